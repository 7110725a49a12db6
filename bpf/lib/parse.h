/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Bytes to struct packet. What is malformed stops here, with its own reason: nothing after this asks
 * whether a header is whole.
 *
 * parse() returns 0, a drop reason, or PARSE_NOT_IP.
 */
#ifndef SLUICE_PARSE_H
#define SLUICE_PARSE_H

#include "work.h"

#define PARSE_NOT_IP (-1)

#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff
#define IPV4_OPTION_LSRR 131
#define IPV4_OPTION_SSRR 137
#define MAX_EXTENSION_HEADERS 6

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ICMPV6_MLD_QUERY 130
#define ICMPV6_MLD_DONE 132
#define ICMPV6_ROUTER_SOLICIT 133
#define ICMPV6_NEIGHBOUR_SOLICIT 135
#define ICMPV6_NEIGHBOUR_ADVERT 136
#define ICMPV6_REDIRECT 137
#define ICMPV6_MLDV2_REPORT 143

/* The packet pointers, loaded afresh. In C, clang may keep the 32-bit halves of an earlier load apart from
 * the pointer, and the verifier no longer knows what it is. */
INLINE void *packet_start(const struct __sk_buff *skb)
{
	void *start;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
				 : "=r"(start)
				 : "r"(skb), "i"(offsetof(struct __sk_buff, data)));
	return start;
}

INLINE void *packet_end(const struct __sk_buff *skb)
{
	void *end;

	asm volatile("%0 = *(u32 *)(%1 + %2)"
				 : "=r"(end)
				 : "r"(skb), "i"(offsetof(struct __sk_buff, data_end)));
	return end;
}

/* A pointer to `size` readable bytes at `offset`, or null when the packet is shorter. Pulls bytes into
 * the linear part if need be, which ends the life of earlier pointers. */
INLINE void *header(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	void *data = packet_start(skb);
	void *end = packet_end(skb);

	if (unlikely(offset > 0x1ff))
		return NULL;
	if (likely(data + offset + size <= end))
		return data + offset;
	if (bpf_skb_pull_data(skb, offset + size))
		return NULL;
	data = packet_start(skb);
	end = packet_end(skb);
	if (data + offset + size > end)
		return NULL;
	return data + offset;
}

/* Source routes would send the packet elsewhere after we judged its destination. Seldom run, and pasted into a larger
 * program the loop alone was four fifths of what the verifier had to walk. */
GLOBAL int ipv4_options(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	__u32 at = 0;

	for (int i = 0; i < 40; i++) {
		__u8 option[2];

		if (at >= length)
			return 0;
		if (bpf_skb_load_bytes(skb, offset + at, option, 1))
			return SLUICE_DROP_INVALID_PACKET;
		if (option[0] == 0)
			return 0;
		if (option[0] == 1) {
			at += 1;
			continue;
		}
		if (option[0] == IPV4_OPTION_LSRR || option[0] == IPV4_OPTION_SSRR)
			return SLUICE_DROP_INVALID_PACKET;
		if (at + 1 >= length || bpf_skb_load_bytes(skb, offset + at + 1, option + 1, 1))
			return SLUICE_DROP_INVALID_PACKET;
		if (option[1] < 2)
			return SLUICE_DROP_INVALID_PACKET;
		at += option[1];
	}
	return 0;
}

/* What the next header is found by. The same is in struct packet, for those who come later: to read there what was just
 * written would make each step wait for the last. */
struct payload {
	__u32 offset;
	__u32 end;
	__u16 flags;
	__u8 protocol;
};

INLINE int parse_ipv4(struct __sk_buff *skb, struct packet *p, __u32 l3_offset, struct payload *payload)
{
	struct iphdr *ip = header(skb, l3_offset, sizeof(*ip));
	__u32 header_length, total, end;
	__u16 fragment;

	if (!ip || ip->version != 4)
		return SLUICE_DROP_INVALID_PACKET;
	header_length = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	/* Big TCP sends 0: the length is then that of the buffer. */
	if (header_length < sizeof(*ip) || (total && total < header_length) ||
		l3_offset + (total ? total : header_length) > p->length)
		return SLUICE_DROP_INVALID_PACKET;
	end = total ? l3_offset + total : p->length;
	p->l3_end = end;
	addr_from_v4(&p->saddr, ip->saddr);
	addr_from_v4(&p->daddr, ip->daddr);
	p->protocol = ip->protocol;
	p->ttl = ip->ttl;
	p->l4_offset = l3_offset + header_length;
	*payload = (struct payload){l3_offset + header_length, end, 0, ip->protocol};
	fragment = bpf_ntohs(ip->frag_off);
	if (unlikely(fragment & (IPV4_MF | IPV4_OFFSET))) {
		p->fragment_id = ip->id;
		p->fragment_offset = (fragment & IPV4_OFFSET) * 8;
		payload->flags = PKT_FRAGMENT | (fragment & IPV4_OFFSET ? PKT_LATER : 0);
		p->flags = payload->flags;
	}
	if (unlikely(header_length > sizeof(*ip)))
		return ipv4_options(skb, l3_offset + sizeof(*ip), header_length - sizeof(*ip));
	return 0;
}

/* Walks hop-by-hop, destination options, routing, authentication and fragment headers (RFC 8200).
 * `at` is where the first of them starts. Sets protocol and l4_offset. */
GLOBAL int parse_ipv6_extensions(struct __sk_buff *skb, struct packet *p, __u32 at)
{
	__u8 next;

	if (!p)
		return SLUICE_DROP_INTERNAL;
	next = p->protocol;
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		__u8 option[8];
		__u32 length;

		switch (next) {
		case IPPROTO_HOPOPTS:
			if (i)
				return SLUICE_DROP_INVALID_EXTENSION_HEADER;
			break;
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		case IPPROTO_NONE:
			return SLUICE_DROP_UNKNOWN_L4;
		default:
			p->protocol = next;
			p->l4_offset = at;
			return 0;
		}
		if (at > 0x1f0 || bpf_skb_load_bytes(skb, at, option, sizeof(option)))
			return SLUICE_DROP_INVALID_EXTENSION_HEADER;
		length = 8;
		if (next == IPPROTO_FRAGMENT) {
			__u32 offset = ((__u32)option[2] << 8 | option[3]) & 0xfff8;

			/* An atomic fragment (RFC 6946) is a whole packet. */
			if (offset || (option[3] & 1)) {
				if (p->flags & PKT_FRAGMENT)
					return SLUICE_DROP_INVALID_EXTENSION_HEADER;
				p->flags |= PKT_FRAGMENT | (offset ? PKT_LATER : 0);
				p->fragment_offset = offset;
				__builtin_memcpy(&p->fragment_id, option + 4, 4);
				/* Only the first fragment would have headers after this one, so nobody
				 * could tell the protocol of the others. */
				switch (option[0]) {
				case IPPROTO_HOPOPTS:
				case IPPROTO_DSTOPTS:
				case IPPROTO_ROUTING:
				case IPPROTO_FRAGMENT:
				case IPPROTO_AH:
					return SLUICE_DROP_INVALID_EXTENSION_HEADER;
				}
			}
		} else if (next == IPPROTO_AH) {
			length = (option[1] + 2) * 4;
		} else {
			/* Segments left: the destination that we see is not the last. */
			if (next == IPPROTO_ROUTING && option[3])
				return SLUICE_DROP_INVALID_EXTENSION_HEADER;
			length = (option[1] + 1) * 8;
		}
		next = option[0];
		at += length;
	}
	return SLUICE_DROP_INVALID_EXTENSION_HEADER;
}

INLINE int parse_ipv6(struct __sk_buff *skb, struct packet *p, __u32 l3_offset, struct payload *payload)
{
	struct ipv6hdr *ip = header(skb, l3_offset, sizeof(*ip));
	__u32 end;
	int reason;

	if (!ip || ip->version != 6)
		return SLUICE_DROP_INVALID_PACKET;
	if (l3_offset + sizeof(*ip) + bpf_ntohs(ip->payload_len) > p->length)
		return SLUICE_DROP_INVALID_PACKET;
	end = ip->payload_len ? l3_offset + sizeof(*ip) + bpf_ntohs(ip->payload_len) : p->length;
	p->l3_end = end;
	addr_from_v6(&p->saddr, &ip->saddr);
	addr_from_v6(&p->daddr, &ip->daddr);
	/* In our maps such an address means IPv4: on the wire it may not appear at all. */
	if (addr_is_v4(&p->saddr) || addr_is_v4(&p->daddr))
		return SLUICE_DROP_INVALID_PACKET;
	p->flags = PKT_V6;
	p->protocol = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->l4_offset = l3_offset + sizeof(*ip);
	*payload = (struct payload){l3_offset + sizeof(*ip), end, PKT_V6, ip->nexthdr};
	switch (payload->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_ICMPV6:
		return 0;
	}
	reason = parse_ipv6_extensions(skb, p, payload->offset);
	*payload = (struct payload){p->l4_offset, end, p->flags, p->protocol};
	return reason;
}

/* A transport header of `size` bytes, inside what the IP header says is the datagram: what follows that is
 * padding, which the receiver does not look at. */
INLINE void *transport(struct __sk_buff *skb, const struct payload *payload, __u32 size)
{
	return payload->offset + size <= payload->end ? header(skb, payload->offset, size) : NULL;
}

/* ICMP and ICMPv6 differ in numbers only. Messages other than echo requests and replies and errors
 * are judged one by one, by type. */
INLINE int parse_icmp(struct __sk_buff *skb, struct packet *p, const struct payload *payload)
{
	struct icmphdr *icmp = transport(skb, payload, sizeof(*icmp));
	__u8 type;

	if (!icmp)
		return SLUICE_DROP_CT_TRUNCATED;
	type = icmp->type;
	p->icmp_type = type;
	p->icmp_code = icmp->code;
	p->flags |= PKT_TYPED;
	if (p->flags & PKT_V6) {
		if (type == ICMPV6_ECHO_REQUEST || type == ICMPV6_ECHO_REPLY)
			goto echo;
		if (type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB)
			p->flags |= PKT_ICMP_ERROR;
		else if (type >= ICMPV6_ROUTER_SOLICIT && type <= ICMPV6_REDIRECT)
			p->flags |= PKT_NEIGHBOUR;
		return 0;
	}
	if (type == ICMP_ECHO || type == ICMP_ECHOREPLY)
		goto echo;
	if (type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB ||
		type == ICMP_SOURCE_QUENCH)
		p->flags |= PKT_ICMP_ERROR;
	return 0;
echo:
	p->sport = bpf_ntohs(icmp->id);
	p->dport = p->sport;
	p->flags |= PKT_TRACKED;
	return 0;
}

INLINE int parse_l4(struct __sk_buff *skb, struct packet *p, const struct payload *payload)
{
	switch (payload->protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = transport(skb, payload, sizeof(*tcp));

		if (!tcp || tcp->doff < 5)
			return SLUICE_DROP_CT_TRUNCATED;
		p->sport = bpf_ntohs(tcp->source);
		p->dport = bpf_ntohs(tcp->dest);
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->flags = payload->flags | PKT_TRACKED | PKT_PORTS;
		return 0;
	}
	case IPPROTO_UDP:
	case IPPROTO_SCTP: {
		/* The first eight bytes of UDP, and of SCTP's twelve: ports come first in both. */
		struct udphdr *udp = transport(skb, payload, sizeof(*udp));

		if (!udp)
			return SLUICE_DROP_CT_TRUNCATED;
		p->sport = bpf_ntohs(udp->source);
		p->dport = bpf_ntohs(udp->dest);
		p->flags = payload->flags | PKT_TRACKED | PKT_PORTS;
		return 0;
	}
	case IPPROTO_ICMP:
		if (payload->flags & PKT_V6)
			return SLUICE_DROP_UNKNOWN_L4;
		return parse_icmp(skb, p, payload);
	case IPPROTO_ICMPV6:
		if (!(payload->flags & PKT_V6))
			return SLUICE_DROP_UNKNOWN_L4;
		return parse_icmp(skb, p, payload);
	}
	/* Judged by protocol number, and tracked by the pair of addresses. */
	p->flags |= PKT_TRACKED;
	return 0;
}

/* `l3_offset` is 14, or 0 on a device without Ethernet header. `ether_type` is in network order. */
INLINE int parse_inline(struct __sk_buff *skb, struct packet *p, __u32 l3_offset, __u32 ether_type)
{
	struct payload payload;
	int reason;

	p->l3_offset = l3_offset;
	p->flags = 0;
	p->sport = 0;
	p->dport = 0;
	p->tcp_flags = 0;
	p->icmp_type = 0;
	p->icmp_code = 0;
	if (ether_type == bpf_htons(ETH_P_IP))
		reason = parse_ipv4(skb, p, l3_offset, &payload);
	else if (ether_type == bpf_htons(ETH_P_IPV6))
		reason = parse_ipv6(skb, p, l3_offset, &payload);
	else
		return PARSE_NOT_IP;
	if (reason || (payload.flags & PKT_LATER))
		return reason;
	reason = parse_l4(skb, p, &payload);
	/* A first fragment too short for the header that policy needs is an attack (RFC 1858). */
	if (reason && (payload.flags & PKT_FRAGMENT))
		return SLUICE_DROP_FRAG_OVERLAP;
	return reason;
}

GLOBAL int parse(struct __sk_buff *skb, struct packet *p, __u32 l3_offset, __u32 ether_type)
{
	return p ? parse_inline(skb, p, l3_offset, ether_type) : SLUICE_DROP_INTERNAL;
}

#endif
