/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * ICMP errors. One that quotes a packet of a connection that is allowed is part of that connection, and
 * translated like it, the quoted addresses included: the receiver must recognise its own packet. Any
 * other is judged by its type, like a message of its own.
 */
#ifndef SLUICE_ICMP_ERROR_H
#define SLUICE_ICMP_ERROR_H

#include "conntrack.h"
#include "dns.h"
#include "judge.h"
#include "rewrite.h"

/* Takes the quoted packet apart into w->inner. Returns 1 when it is one that can be tracked. */
GLOBAL int inner_parse(struct __sk_buff *skb, struct work *w)
{
	struct packet *inner;
	__u8 bytes[8];
	__u32 at;

	if (!w)
		return 0;
	inner = &w->inner;
	at = w->pkt.l4_offset + sizeof(struct icmphdr);
	inner->l3_offset = at;
	inner->flags = w->pkt.flags & PKT_V6;
	inner->l3_end = w->pkt.l3_end;
	if (inner->flags & PKT_V6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
			return 0;
		addr_copy4(&inner->saddr, (struct sluice_addr *)&ip.saddr);
		addr_copy4(&inner->daddr, (struct sluice_addr *)&ip.daddr);
		if (addr_is_v4(&inner->saddr) || addr_is_v4(&inner->daddr))
			return 0;
		inner->protocol = ip.nexthdr;
		if (parse_ipv6_extensions(skb, inner, at + sizeof(ip)))
			return 0;
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return 0;
		addr_from_v4(&inner->saddr, ip.saddr);
		addr_from_v4(&inner->daddr, ip.daddr);
		inner->protocol = ip.protocol;
		inner->l4_offset = at + ip.ihl * 4;
		if (ip.frag_off & bpf_htons(IPV4_OFFSET))
			return 0;
	}
	if (inner->flags & PKT_LATER)
		return 0;
	if (inner->l4_offset + sizeof(bytes) > inner->l3_end ||
		bpf_skb_load_bytes(skb, inner->l4_offset, bytes, sizeof(bytes)))
		return 0;
	switch (inner->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		inner->sport = (__u16)bytes[0] << 8 | bytes[1];
		inner->dport = (__u16)bytes[2] << 8 | bytes[3];
		inner->flags |= PKT_PORTS;
		return 1;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		/* Nobody answers an error with an error. */
		if (inner->flags & PKT_V6 ?
				bytes[0] != ICMPV6_ECHO_REQUEST && bytes[0] != ICMPV6_ECHO_REPLY :
				bytes[0] != ICMP_ECHO && bytes[0] != ICMP_ECHOREPLY)
			return 0;
		inner->icmp_type = bytes[0];
		inner->sport = (__u16)bytes[4] << 8 | bytes[5];
		inner->dport = inner->sport;
		inner->flags |= PKT_TYPED;
		return 1;
	}
	inner->sport = 0;
	inner->dport = 0;
	return 1;
}

#define INNER_SRC 0
#define INNER_DST 1

/* Rewrites one end of the quoted packet. In IPv4 the quoted header's own checksum makes up for the address,
 * so that the message's checksum does not notice; in IPv6 there is none. The quoted transport checksum
 * is usually cut off, and nobody looks at it. Returns 0 or a drop reason. */
GLOBAL int inner_rewrite(struct __sk_buff *skb, struct work *w, __u32 end,
						 const struct sluice_addr *addr, __u32 port)
{
	__u32 old[4], new[4], at, checksum;
	__u16 old_port, new_port = bpf_htons(port);
	const struct packet *inner;
	__s64 difference;

	if (!w || !addr)
		return SLUICE_DROP_INTERNAL;
	inner = &w->inner;
	checksum = w->pkt.l4_offset + offsetof(struct icmphdr, checksum);
	addr_copy4((struct sluice_addr *)new, addr);
	if (inner->flags & PKT_V6) {
		at = inner->l3_offset + offsetof(struct ipv6hdr, saddr) + (end == INNER_DST ? 16 : 0);
		if (bpf_skb_load_bytes(skb, at, old, 16))
			return SLUICE_DROP_INVALID_PACKET;
		difference = bpf_csum_diff(old, 16, new, 16, 0);
		if (bpf_skb_store_bytes(skb, at, new, 16, 0) ||
			bpf_l4_csum_replace(skb, checksum, 0, difference, 0))
			return SLUICE_DROP_INVALID_PACKET;
	} else {
		at = inner->l3_offset + offsetof(struct iphdr, saddr) + (end == INNER_DST ? 4 : 0);
		if (bpf_skb_load_bytes(skb, at, old, 4))
			return SLUICE_DROP_INVALID_PACKET;
		difference = bpf_csum_diff(old, 4, &new[3], 4, 0);
		if (bpf_skb_store_bytes(skb, at, &new[3], 4, 0) ||
			bpf_l3_csum_replace(skb, inner->l3_offset + IPV4_CHECKSUM, 0, difference, 0))
			return SLUICE_DROP_INVALID_PACKET;
	}
	if (inner->flags & PKT_TYPED)
		at = inner->l4_offset + offsetof(struct icmphdr, id);
	else if (inner->flags & PKT_PORTS)
		at = inner->l4_offset + (end == INNER_DST ? 2 : 0);
	else
		return 0;
	if (bpf_skb_load_bytes(skb, at, &old_port, 2))
		return SLUICE_DROP_INVALID_PACKET;
	if (old_port == new_port)
		return 0;
	if (bpf_l4_csum_replace(skb, checksum, old_port, new_port, 2) ||
		bpf_skb_store_bytes(skb, at, &new_port, 2, 0))
		return SLUICE_DROP_INVALID_PACKET;
	return 0;
}

/* The connection of the quoted packet, if it is allowed today. Sets from_lo of the quoted packet. */
INLINE struct ct_entry *inner_connection(struct work *w, const struct node_config *config,
										 __u8 *from_lo)
{
	struct ct_entry *e;

	*from_lo = ct_key_of(&w->key, &w->inner.saddr, &w->inner.daddr, w->inner.sport, w->inner.dport,
						 w->inner.protocol);
	e = ct_look(w);
	if (!e || !ct_alive(w) || (e->flags & SLUICE_CT_DENIED) ||
		!ct_side_current(&e->lo, config) || !ct_side_current(&e->hi, config))
		return NULL;
	return e;
}

/* The packet can be given to a proxy: it does not leave the node. */
INLINE int stays(const struct work *w)
{
	return w->observation != SLUICE_OBS_TO_NETWORK;
}

/* Returns 1 for an error that is part of an allowed connection (translated as it must be), 0 for another
 * one, or a drop reason. */
GLOBAL int icmp_error(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct sluice_addr replacement;
	struct ct_entry *e;
	__u8 from_lo;
	__u16 port;
	int reason;

	if (!w || !config)
		return SLUICE_DROP_INTERNAL;
	/* The error goes to the sender of what it quotes. */
	if (!addr_equal(&w->inner.saddr, &w->pkt.daddr))
		return 0;
	e = inner_connection(w, config, &from_lo);
	if (!e) {
		if (w->inner.protocol != IPPROTO_UDP || !stays(w) ||
			!dns_pair_asked(&w->inner.saddr, &w->inner.daddr, w->inner.dport, w->now))
			return 0;
		w->ct_flags |= SLUICE_CT_PROXY;
		goto known;
	}
	if (e->flags & SLUICE_CT_HAIRPIN)
		return 0;
	if (e->flags & SLUICE_CT_SERVICE) {
		/* The client complains to the frontend about an answer: it means the backend. */
		if (w->observation != SLUICE_OBS_FROM_CONTAINER || !ct_is_reply(e, from_lo))
			return 0;
		addr_copy(&replacement, &e->svc_addr);
		port = e->svc_port;
		addr_copy(&w->inner.saddr, &replacement);
		w->inner.sport = port;
		e = inner_connection(w, config, &from_lo);
		if (!e)
			return 0;
		reason = inner_rewrite(skb, w, INNER_SRC, &replacement, port);
		if (reason)
			return reason;
		addr_copy(&w->pkt.daddr, &replacement);
		rewrite_destination(w, &replacement, 0);
	} else if ((e->flags & SLUICE_CT_REV_NAT) && !(e->flags & SLUICE_CT_PROXY) && !ct_is_reply(e, from_lo)) {
		/* Somebody on the way to the backend complains to the client, who knows the frontend only. */
		addr_copy(&replacement, &e->svc_addr);
		port = e->svc_port;
		reason = inner_rewrite(skb, w, INNER_DST, &replacement, port);
		if (reason)
			return reason;
		if (addr_equal(&w->pkt.saddr, &w->inner.daddr))
			rewrite_source(w, &replacement, 0);
	}
	/* Both legs of a proxied connection are the proxy's, whosever address it sent from: it hears of ports that nobody
	 * listens at, and of paths that are narrower than their ends. */
	if (stays(w))
		w->ct_flags |= e->flags & SLUICE_CT_PROXY;
known:
	if (!(w->src.flags & PARTY_KNOWN))
		party_resolve(&w->src, &w->pkt.saddr);
	party_resolve(&w->dst, &w->pkt.daddr);
	reason = plausible(skb, w, config);
	if (reason)
		return reason;
	return 1;
}

#endif
