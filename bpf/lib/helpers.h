/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * What every other header needs: kernel types, helper declarations, byte order, and the two kinds of
 * function that this code has.
 *
 *  - INLINE functions are pasted into their caller. Small, or on the path of an established packet.
 *  - GLOBAL functions are BPF-to-BPF calls that the verifier checks once, by itself, whatever calls
 *    them: that keeps five programs with a long slow path verifiable. Their pointer arguments may be
 *    null as far as the verifier knows, so each checks them.
 */
#ifndef SLUICE_HELPERS_H
#define SLUICE_HELPERS_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/icmpv6.h>
#include <linux/pkt_cls.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "abi.h"

#define INLINE static __always_inline
#define GLOBAL __attribute__((noinline))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* linux/icmp.h drags in the C library's sockets. RFC 792. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id; /* echo; otherwise unused, or the next hop's MTU in the second half */
	__be16 sequence;
};
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

/* linux/if_packet.h, which drags in sockets */
#define PACKET_HOST 0
#define PACKET_OTHERHOST 3

/* Actions of tc are small numbers, drop reasons are not. */
#define SLUICE_FIRST_DROP_REASON 128

#define ETH_P_8021AD_BE bpf_htons(0x88a8)
#define ETH_P_8021Q_BE bpf_htons(0x8100)

/* How jiffies are counted on this machine: what they began with, and seconds in each, as a fraction of
 * 2^SLUICE_CLOCK_SHIFT. User space says so when it loads the programs (src/datapath/clock.rs). */
const volatile __u64 sl_clock_zero = 0;
const volatile __u64 sl_clock_seconds = 0;

/* Seconds since boot, as CLOCK_MONOTONIC counts them, give or take one. The kernel's jiffies are a load in the program
 * (kernel 5.6); the coarse clock would be a call, a tenth of what an established packet costs, and a division as much again
 * on some processors. */
INLINE __u32 now_seconds(void)
{
	return ((bpf_jiffies64() - sl_clock_zero) * sl_clock_seconds) >> SLUICE_CLOCK_SHIFT;
}

#endif
