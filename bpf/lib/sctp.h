/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * SCTP's checksum is a CRC32c of the whole packet (RFC 9260 section 6.8): it does not cover the addresses,
 * so a change of address leaves it alone, but it covers the ports. CRCs are linear: the new one is the old
 * one xor the CRC of what changed, followed by as many zero bytes as the packet goes on for. Appending n
 * zero bytes is a multiplication by x^8n modulo the polynomial: at most 16 multiplications, whatever the
 * length.
 */
#ifndef SLUICE_SCTP_H
#define SLUICE_SCTP_H

#include "parse.h"

#define CRC32C_POLYNOMIAL 0x82f63b78u /* reflected: bit 31 is x^0 */
#define SCTP_CHECKSUM 8				  /* offset; stored in little-endian order */

/* x^(8 * 2^k) modulo the polynomial. */
static const __u32 crc32c_power[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a,
	0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

GLOBAL __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		if (a & 0x80000000u)
			product ^= b;
		a <<= 1;
		b = (b >> 1) ^ (b & 1 ? CRC32C_POLYNOMIAL : 0);
	}
	return product;
}

/* What xoring `change` (first byte lowest) into the first four of `length` bytes does to the CRC. */
GLOBAL __u32 crc32c_change(__u32 change, __u32 length)
{
	__u32 crc = change;

	if (length < 4)
		return 0;
	for (int i = 0; i < 32; i++)
		crc = (crc >> 1) ^ (crc & 1 ? CRC32C_POLYNOMIAL : 0);
	length -= 4;
	for (int k = 0; k < 16; k++)
		if (length & (1u << k))
			crc = crc32c_multiply(crc32c_power[k], crc);
	return crc;
}

/* Replaces the four bytes of ports. `length` is that of the SCTP packet. Returns 0 or a drop reason. */
GLOBAL int sctp_set_ports(struct __sk_buff *skb, __u32 l4_offset, __be32 old_ports, __be32 new_ports,
						  __u32 length)
{
	__u32 checksum;

	if (bpf_skb_load_bytes(skb, l4_offset + SCTP_CHECKSUM, &checksum, 4))
		return SLUICE_DROP_CT_TRUNCATED;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	checksum ^= crc32c_change(old_ports ^ new_ports, length);
#else
	checksum ^= __builtin_bswap32(crc32c_change(__builtin_bswap32(old_ports ^ new_ports), length));
#endif
	if (bpf_skb_store_bytes(skb, l4_offset, &new_ports, 4, 0) ||
		bpf_skb_store_bytes(skb, l4_offset + SCTP_CHECKSUM, &checksum, 4, 0))
		return SLUICE_DROP_INVALID_PACKET;
	return 0;
}

#endif
