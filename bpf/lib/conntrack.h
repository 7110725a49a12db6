/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Connection tracking: one entry a connection, found from both directions. An entry says under which
 * policy epochs the flow was allowed and where both ends are, so that an established packet costs one
 * lookup. See "connection tracking" in abi.h.
 */
#ifndef SLUICE_CONNTRACK_H
#define SLUICE_CONNTRACK_H

#include "ct_table.h"
#include "parse.h"

#define CT_FIN_BOTH (SLUICE_CT_FIN_LO | SLUICE_CT_FIN_HI)

/* The key of a tuple; says whether its source is the lower end. */
INLINE __u8 ct_key_of(struct ct_key *key, const struct sluice_addr *saddr,
					  const struct sluice_addr *daddr, __u16 sport, __u16 dport, __u8 protocol)
{
	__u16 swap;
	__u8 from_lo;

	if (addr_equal(saddr, daddr))
		from_lo = sport <= dport;
	else
		from_lo = addr_before(saddr, daddr);
	if (from_lo) {
		addr_copy(&key->lo_addr, saddr);
		addr_copy(&key->hi_addr, daddr);
	} else {
		addr_copy(&key->lo_addr, daddr);
		addr_copy(&key->hi_addr, saddr);
		swap = sport;
		sport = dport;
		dport = swap;
	}
	*(word64 *)&key->lo_port = word_of(half_words_of(sport, dport), bytes_of(protocol, 0));
	return from_lo;
}

INLINE void ct_key(struct work *w)
{
	w->from_lo = ct_key_of(&w->key, &w->pkt.saddr, &w->pkt.daddr, w->pkt.sport, w->pkt.dport,
						   w->pkt.protocol);
}

INLINE int ct_closing(__u16 flags)
{
	return (flags & SLUICE_CT_RST) || (flags & CT_FIN_BOTH) == CT_FIN_BOTH;
}

INLINE __u32 ct_timeout(__u8 protocol, __u16 flags)
{
	switch (protocol) {
	case IPPROTO_TCP:
		if (ct_closing(flags))
			return SLUICE_CT_SECONDS_TCP_CLOSING;
		return flags & SLUICE_CT_SYN_ONLY ? SLUICE_CT_SECONDS_OPENING : SLUICE_CT_SECONDS_TCP;
	case IPPROTO_SCTP:
		return flags & SLUICE_CT_SEEN_REPLY ? SLUICE_CT_SECONDS_SCTP : SLUICE_CT_SECONDS_OPENING;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return SLUICE_CT_SECONDS_ICMP;
	}
	return flags & SLUICE_CT_SEEN_REPLY ? SLUICE_CT_SECONDS_ANSWERED : SLUICE_CT_SECONDS_OPENING;
}

/* Is what was found still there, as far as time goes? */
INLINE int ct_alive(const struct work *w)
{
	return (__s32)(w->expires - w->now) >= 0;
}

/* The packet goes against the direction in which the connection was opened. */
INLINE int ct_is_reply(const struct ct_entry *e, __u8 from_lo)
{
	return from_lo == !!(e->flags & SLUICE_CT_INIT_HI);
}

/* A SYN opens a new connection where the old one is closing, and always where it comes from the end that
 * was called: being allowed to answer is not being allowed to call. An echo request likewise. */
INLINE int ct_reopens(const struct ct_entry *e, const struct packet *p, __u8 from_lo)
{
	if (p->protocol == IPPROTO_TCP) {
		if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
			return 0;
		return ct_closing(e->flags) || ct_is_reply(e, from_lo);
	}
	if (p->flags & PKT_TYPED)
		return ct_is_reply(e, from_lo) &&
			p->icmp_type == (p->flags & PKT_V6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO);
	return 0;
}

/* Follows the state of the connection that was found. Writes only what changes: the set's cache lines are shared. */
INLINE void ct_touch(struct work *w, const struct packet *p)
{
	__u16 flags = w->found.flags;
	__u32 expires;

	if (ct_is_reply(&w->found, w->from_lo))
		flags = (flags | SLUICE_CT_SEEN_REPLY) & ~SLUICE_CT_SYN_ONLY;
	if (p->protocol == IPPROTO_TCP) {
		/* A forged reset must not shorten the life of a connection that goes on. */
		if (p->tcp_flags & TCP_RST)
			flags |= SLUICE_CT_RST;
		else if (p->tcp_flags & TCP_ACK)
			flags &= ~SLUICE_CT_RST;
		if (p->tcp_flags & TCP_FIN)
			flags |= w->from_lo ? SLUICE_CT_FIN_LO : SLUICE_CT_FIN_HI;
	}
	if (unlikely(flags != w->found.flags)) {
		ct_mark(w, flags & ~w->found.flags, w->found.flags & ~flags);
		w->found.flags = flags;
	}
	expires = w->now + ct_timeout(p->protocol, flags);
	if (unlikely(w->expires != expires))
		ct_prolong(w, expires);
}

/* The side's policy is the one that allowed the flow. */
INLINE int ct_side_current(const struct ct_side *side, const struct node_config *config)
{
	const struct policy_info *info;
	__u32 id = side->policy_id;

	if (!id)
		return 1;
	if (id == config->host_policy_id && !(config->flags & SLUICE_CFG_HOST_FIREWALL))
		return side->epoch == 0;
	info = bpf_map_lookup_elem(&sl_policy_info, &id);
	return info && info->epoch && info->epoch == side->epoch;
}

INLINE void ct_fill_side(struct ct_side *side, __u8 *mac, const struct party *party)
{
	const word16 *half = (const word16 *)party->mac;

	((word64 *)side)[0] = word_of(party->epoch, half_words_of(party->policy_id, party->endpoint_id));
	((word64 *)side)[1] = word_of(party->ifindex, party->identity);
	*(word64 *)mac = word_of(half_words_of(half[0], half[1]), half_words_of(half[2], 0));
}

INLINE void ct_fill(struct ct_entry *e, const struct work *w)
{
	const struct party *lo = w->from_lo ? &w->src : &w->dst;
	const struct party *hi = w->from_lo ? &w->dst : &w->src;

	ct_fill_side(&e->lo, e->lo_mac, lo);
	ct_fill_side(&e->hi, e->hi_mac, hi);
}

/* The flow that was found goes on under the policies of today. Whoever copied the entry before finds an epoch that is old, and
 * judges for itself. */
GLOBAL int ct_renew(struct work *w)
{
	struct ct_set *set;
	__u32 way;

	if (!w)
		return 0;
	ct_touch(w, &w->pkt);
	set = ct_hold(w);
	if (!set)
		return 0;
	way = w->ct_way;
	if (way < SLUICE_CT_WAYS) {
		struct ct_entry *e = &set->ways[way].entry;

		ct_change_begin(set);
		ct_fill(e, w);
		e->rule_set = w->decision.rule_set;
		e->flags = (e->flags | (w->ct_flags & SLUICE_CT_FQDN)) & ~SLUICE_CT_DENIED;
		ct_change_end(set);
	}
	ct_unlock(set);
	return 0;
}

/* The packet opens a flow that was just allowed. Returns 0 or a drop reason. */
INLINE int ct_open(struct work *w)
{
	struct ct_entry *e = &w->entry;
	int opener_is_lo = w->reply ? !w->from_lo : w->from_lo;
	__u16 flags, port = 0;

	flags = (w->ct_flags & (SLUICE_CT_REV_NAT | SLUICE_CT_PROXY | SLUICE_CT_LISTENER | SLUICE_CT_FQDN)) |
		(opener_is_lo ? 0 : SLUICE_CT_INIT_HI);
	if (w->reply)
		flags |= SLUICE_CT_SEEN_REPLY;
	else if (w->pkt.protocol == IPPROTO_TCP)
		flags |= SLUICE_CT_SYN_ONLY;
	if (w->pkt.protocol == IPPROTO_TCP) {
		if (w->pkt.tcp_flags & TCP_RST)
			flags |= SLUICE_CT_RST;
		if (w->pkt.tcp_flags & TCP_FIN)
			flags |= w->from_lo ? SLUICE_CT_FIN_LO : SLUICE_CT_FIN_HI;
	}
	if ((w->src.flags | w->dst.flags) & PARTY_REMOTE)
		flags |= SLUICE_CT_TUNNEL;
	((word64 *)&e->svc_addr)[0] = 0;
	((word64 *)&e->svc_addr)[1] = 0;
	if (w->ct_flags & SLUICE_CT_REV_NAT) {
		addr_copy(&e->svc_addr, &w->ct_svc_addr);
		port = w->ct_svc_port;
	}
	*(word64 *)&e->flags = word_of(half_words_of(flags, port), w->decision.rule_set);
	e->packets[0] = 0;
	e->packets[1] = 0;
	e->bytes[0] = 0;
	e->bytes[1] = 0;
	ct_fill(e, w);
	return ct_store_inline(w, w->now + ct_timeout(w->pkt.protocol, flags));
}

#endif
