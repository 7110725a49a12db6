/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Addresses: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. struct sluice_addr has the alignment of
 * a byte, so copies and comparisons go through words: clang would do them byte by byte.
 */
#ifndef SLUICE_ADDR_H
#define SLUICE_ADDR_H

#include "helpers.h"

typedef __u64 __attribute__((may_alias)) word64;
typedef __u32 __attribute__((may_alias)) word32;
typedef __u16 __attribute__((may_alias)) word16;

INLINE void addr_copy(struct sluice_addr *to, const struct sluice_addr *from)
{
	((word64 *)to)[0] = ((const word64 *)from)[0];
	((word64 *)to)[1] = ((const word64 *)from)[1];
}

/* For places that are only 4-aligned: longest-prefix keys. */
INLINE void addr_copy4(struct sluice_addr *to, const struct sluice_addr *from)
{
	((word32 *)to)[0] = ((const word32 *)from)[0];
	((word32 *)to)[1] = ((const word32 *)from)[1];
	((word32 *)to)[2] = ((const word32 *)from)[2];
	((word32 *)to)[3] = ((const word32 *)from)[3];
}

INLINE int addr_equal(const struct sluice_addr *a, const struct sluice_addr *b)
{
	return ((const word64 *)a)[0] == ((const word64 *)b)[0] &&
		((const word64 *)a)[1] == ((const word64 *)b)[1];
}

INLINE int addr_is_zero(const struct sluice_addr *a)
{
	return !(((const word64 *)a)[0] | ((const word64 *)a)[1]);
}

/* What is read as one word soon is written as one: a load cannot be served from two stores that are still on their way to the
 * cache, and waits for them. */
INLINE __u64 word_of(__u32 first, __u32 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (__u64)second << 32 | first;
#else
	return (__u64)first << 32 | second;
#endif
}

INLINE __u32 half_words_of(__u16 first, __u16 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (__u32)second << 16 | first;
#else
	return (__u32)first << 16 | second;
#endif
}

/* Two bytes, and two that are 0. */
INLINE __u32 bytes_of(__u8 first, __u8 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (__u32)second << 8 | first;
#else
	return (__u32)first << 24 | (__u32)second << 16;
#endif
}

INLINE void addr_from_v4(struct sluice_addr *to, __be32 v4)
{
	((word64 *)to)[0] = 0;
	((word64 *)to)[1] = word_of(bpf_htonl(0xffff), v4);
}

/* From a place that is only 4-aligned: packets. */
INLINE void addr_from_v6(struct sluice_addr *to, const void *v6)
{
	const word32 *from = v6;

	((word64 *)to)[0] = word_of(from[0], from[1]);
	((word64 *)to)[1] = word_of(from[2], from[3]);
}

INLINE __be32 addr_to_v4(const struct sluice_addr *a)
{
	return ((const word32 *)a)[3];
}

INLINE int addr_is_v4(const struct sluice_addr *a)
{
	return ((const word64 *)a)[0] == 0 && ((const word32 *)a)[2] == bpf_htonl(0xffff);
}

/* fe80::/10 */
INLINE int addr_is_link_local_v6(const struct sluice_addr *a)
{
	return (((const word32 *)a)[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* True where a comes before b in memcmp order. */
INLINE int addr_before(const struct sluice_addr *a, const struct sluice_addr *b)
{
	__u64 high_a = ((const word64 *)a)[0], high_b = ((const word64 *)b)[0];

	if (high_a != high_b)
		return bpf_be64_to_cpu(high_a) < bpf_be64_to_cpu(high_b);
	return bpf_be64_to_cpu(((const word64 *)a)[1]) < bpf_be64_to_cpu(((const word64 *)b)[1]);
}


/* MAC addresses lie at even offsets, in packets and in our structs. */
INLINE void mac_copy(__u8 *to, const __u8 *from)
{
	((word16 *)to)[0] = ((const word16 *)from)[0];
	((word16 *)to)[1] = ((const word16 *)from)[1];
	((word16 *)to)[2] = ((const word16 *)from)[2];
}

INLINE int mac_equal(const __u8 *a, const __u8 *b)
{
	return !((((const word16 *)a)[0] ^ ((const word16 *)b)[0]) |
			 (((const word16 *)a)[1] ^ ((const word16 *)b)[1]) |
			 (((const word16 *)a)[2] ^ ((const word16 *)b)[2]));
}

INLINE int mac_is_zero(const __u8 *mac)
{
	return !(((const word16 *)mac)[0] | ((const word16 *)mac)[1] | ((const word16 *)mac)[2]);
}

#endif
