/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Puts new addresses and ports on the wire, checksums included (RFC 1624). What is to be written is in
 * work.rewrite; struct packet already has what policy sees.
 */
#ifndef SLUICE_REWRITE_H
#define SLUICE_REWRITE_H

#include "parse.h"
#include "sctp.h"
#include "work.h"

#define IPV4_CHECKSUM 10

INLINE void rewrite_source(struct work *w, const struct sluice_addr *addr, __u16 port)
{
	addr_copy(&w->rewrite.saddr, addr);
	w->rewrite.sport = port;
	w->rewrite.flags |= REWRITE_SRC;
}

INLINE void rewrite_destination(struct work *w, const struct sluice_addr *addr, __u16 port)
{
	addr_copy(&w->rewrite.daddr, addr);
	w->rewrite.dport = port;
	w->rewrite.flags |= REWRITE_DST;
}

/* Offset of the transport checksum that covers the addresses; 0 where there is none. */
INLINE __u32 l4_checksum_offset(const struct packet *p)
{
	switch (p->protocol) {
	case IPPROTO_TCP:
		return offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return offsetof(struct udphdr, check);
	case IPPROTO_ICMPV6:
		return offsetof(struct icmphdr, checksum);
	}
	return 0;
}

/* A UDP checksum of 0 means none, and must not come out of the arithmetic by accident. */
INLINE __u64 mangled_zero(const struct packet *p)
{
	return p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

/* One address at `offset`. Returns 0 or a drop reason. */
GLOBAL int rewrite_address(struct __sk_buff *skb, const struct packet *p, __u32 offset,
						   const struct sluice_addr *addr)
{
	__u32 old[4], new[4], checksum;
	__s64 difference;

	if (!p || !addr)
		return SLUICE_DROP_INTERNAL;
	addr_copy4((struct sluice_addr *)new, addr);
	if (p->flags & PKT_V6) {
		if (bpf_skb_load_bytes(skb, offset, old, 16))
			return SLUICE_DROP_INVALID_PACKET;
		difference = bpf_csum_diff(old, 16, new, 16, 0);
		if (bpf_skb_store_bytes(skb, offset, new, 16, 0))
			return SLUICE_DROP_INVALID_PACKET;
	} else {
		if (bpf_skb_load_bytes(skb, offset, old, 4))
			return SLUICE_DROP_INVALID_PACKET;
		difference = bpf_csum_diff(old, 4, &new[3], 4, 0);
		if (bpf_skb_store_bytes(skb, offset, &new[3], 4, 0) ||
			bpf_l3_csum_replace(skb, p->l3_offset + IPV4_CHECKSUM, 0, difference, 0))
			return SLUICE_DROP_INVALID_PACKET;
	}
	checksum = l4_checksum_offset(p);
	if (!checksum || (p->flags & PKT_LATER))
		return 0;
	if (bpf_l4_csum_replace(skb, p->l4_offset + checksum, 0, difference,
							BPF_F_PSEUDO_HDR | mangled_zero(p)))
		return SLUICE_DROP_INVALID_PACKET;
	return 0;
}

/* One 16-bit word of the transport header, `at` bytes into it. */
GLOBAL int rewrite_word(struct __sk_buff *skb, const struct packet *p, __u32 at, __u32 value)
{
	__u16 old, new = bpf_htons(value);
	__u32 checksum;

	if (!p)
		return SLUICE_DROP_INTERNAL;
	checksum = p->protocol == IPPROTO_ICMP ? offsetof(struct icmphdr, checksum) :
											 l4_checksum_offset(p);
	if (bpf_skb_load_bytes(skb, p->l4_offset + at, &old, 2))
		return SLUICE_DROP_CT_TRUNCATED;
	if (old == new)
		return 0;
	if (checksum && bpf_l4_csum_replace(skb, p->l4_offset + checksum, old, new, 2 | mangled_zero(p)))
		return SLUICE_DROP_INVALID_PACKET;
	if (bpf_skb_store_bytes(skb, p->l4_offset + at, &new, 2, 0))
		return SLUICE_DROP_INVALID_PACKET;
	return 0;
}

GLOBAL int rewrite_sctp_ports(struct __sk_buff *skb, const struct packet *p,
							  const struct rewrite *rewrite)
{
	__u16 ports[2];
	__u32 old, new, end;

	if (!p || !rewrite)
		return SLUICE_DROP_INTERNAL;
	if (bpf_skb_load_bytes(skb, p->l4_offset, ports, 4))
		return SLUICE_DROP_CT_TRUNCATED;
	__builtin_memcpy(&old, ports, 4);
	if (rewrite->flags & REWRITE_SRC)
		ports[0] = bpf_htons(rewrite->sport);
	if (rewrite->flags & REWRITE_DST)
		ports[1] = bpf_htons(rewrite->dport);
	__builtin_memcpy(&new, ports, 4);
	if (old == new)
		return 0;
	/* The CRC covers the whole datagram, and a fragment does not say how long that is. */
	if (p->flags & PKT_FRAGMENT)
		return SLUICE_DROP_FRAG_UNSUPPORTED;
	end = p->l3_end;
	if (end < p->l4_offset)
		return SLUICE_DROP_INVALID_PACKET;
	return sctp_set_ports(skb, p->l4_offset, old, new, end - p->l4_offset);
}

/* Returns 0 or a drop reason. */
GLOBAL int rewrite_apply(struct __sk_buff *skb, struct work *w)
{
	struct packet *p;
	struct rewrite *r;
	__u32 base;
	int reason = 0;

	if (!w)
		return SLUICE_DROP_INTERNAL;
	p = &w->pkt;
	r = &w->rewrite;
	base = p->l3_offset + (p->flags & PKT_V6 ? offsetof(struct ipv6hdr, saddr) :
											   offsetof(struct iphdr, saddr));
	if (!(p->flags & PKT_LATER) && (p->flags & PKT_PORTS)) {
		if (p->protocol == IPPROTO_SCTP) {
			reason = rewrite_sctp_ports(skb, p, r);
		} else {
			if (r->flags & REWRITE_SRC)
				reason = rewrite_word(skb, p, 0, r->sport);
			if (!reason && (r->flags & REWRITE_DST))
				reason = rewrite_word(skb, p, 2, r->dport);
		}
	}
	if (!(p->flags & PKT_LATER) && (r->flags & REWRITE_ID))
		reason = rewrite_word(skb, p, offsetof(struct icmphdr, id), r->sport);
	if (!reason && (r->flags & REWRITE_SRC))
		reason = rewrite_address(skb, p, base, &r->saddr);
	if (!reason && (r->flags & REWRITE_DST))
		reason = rewrite_address(skb, p, base + (p->flags & PKT_V6 ? 16 : 4), &r->daddr);
	r->flags = 0;
	return reason;
}

#endif
