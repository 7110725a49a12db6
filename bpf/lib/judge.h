/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The verdict on a flow: may this packet be on this hook at all, and do the policies of both of its ends
 * that are on this node allow it? It does not matter which hook asks, so a flow gets one verdict however
 * it travels.
 */
#ifndef SLUICE_JUDGE_H
#define SLUICE_JUDGE_H

#include "conntrack.h"
#include "dns.h"
#include "event.h"
#include "host.h"
#include "ipcache.h"
#include "policy.h"
#include "socket.h"

/* Addresses that no packet from another machine may have: loopback, multicast, broadcast. */
INLINE int martian_source(const struct sluice_addr *a)
{
	if (addr_is_v4(a))
		return a->b[12] == 127 || a->b[12] >= 224;
	return a->b[0] == 0xff ||
		(((const word64 *)a)[0] == 0 && ((const word64 *)a)[1] == bpf_cpu_to_be64(1));
}

INLINE int source_from_container(struct __sk_buff *skb, struct work *w)
{
	if (!(w->src.flags & PARTY_LOCAL) || w->src.ifindex != skb->ifindex)
		return SLUICE_DROP_INVALID_SOURCE_IP;
	if (w->pkt.l3_offset) {
		struct ethhdr *eth = header(skb, 0, sizeof(*eth));

		if (!eth || !mac_equal(eth->h_source, w->src.mac))
			return SLUICE_DROP_INVALID_SOURCE_MAC;
	}
	return 0;
}

/* Have the policies of this node's endpoints been compiled with this identity in mind? */
INLINE int identity_known(__u32 identity)
{
	const __u32 word = identity / 64;
	const __u64 *bits = bpf_map_lookup_elem(&sl_identities, &word);

	return bits && (*bits >> (identity % 64) & 1);
}

/* The tunnel tells which node sent the packet; the address must be behind that node, or be its own. An
 * address of the cluster that we have not heard of yet counts as the identity that the node says, as
 * long as it is one that pods have, and one that policies know: a rule that denies by label has no entry for
 * an identity whose labels nobody has told us. */
INLINE int source_from_overlay(struct work *w)
{
	const struct ipcache_entry *node;

	if ((w->src.flags & (PARTY_REMOTE | PARTY_NODE)) &&
		addr_equal(&w->src.tunnel_ep, &w->tunnel_remote))
		return 0;
	if ((w->src.flags & PARTY_NODE) && addr_equal(&w->src.addr, &w->tunnel_remote))
		return 0;
	if ((w->src.flags & PARTY_CLUSTER) && !(w->src.flags & (PARTY_LOCAL | PARTY_HOST)) &&
		w->src.identity == SLUICE_ID_UNKNOWN && w->tunnel_id >= 256 && w->tunnel_id <= 65535) {
		node = ipcache_lookup(&w->tunnel_remote);
		if (node && (node->flags & SLUICE_IPC_NODE)) {
			if (!identity_known(w->tunnel_id))
				return SLUICE_DROP_IDENTITY_NOT_LEARNED;
			w->src.identity = w->tunnel_id;
			return 0;
		}
	}
	return SLUICE_DROP_INVALID_TUNNEL_SOURCE;
}

/* May a packet with these addresses be here? Returns 0 or a drop reason. */
INLINE int plausible(struct __sk_buff *skb, struct work *w, const struct node_config *config)
{
	switch (w->observation) {
	case SLUICE_OBS_FROM_CONTAINER:
		return source_from_container(skb, w);
	case SLUICE_OBS_FROM_NETWORK:
		if ((w->src.flags & (PARTY_LOCAL | PARTY_HOST)) || martian_source(&w->src.addr))
			return SLUICE_DROP_INVALID_SOURCE_IP;
		/* Between pods everything comes through the tunnel, where there is one. */
		if ((config->flags & SLUICE_CFG_TUNNEL) && (w->src.flags & PARTY_REMOTE) &&
			(w->dst.flags & PARTY_LOCAL))
			return SLUICE_DROP_INVALID_SOURCE_IP;
		return 0;
	case SLUICE_OBS_FROM_OVERLAY:
		if (!(w->dst.flags & (PARTY_LOCAL | PARTY_HOST)))
			return SLUICE_DROP_UNROUTABLE;
		return source_from_overlay(w);
	case SLUICE_OBS_TO_CONTAINER:
		if (!(w->dst.flags & PARTY_LOCAL) || w->dst.ifindex != skb->ifindex)
			return SLUICE_DROP_UNKNOWN_ENDPOINT;
		if (w->src.ifindex == skb->ifindex)
			return SLUICE_DROP_INVALID_SOURCE_IP;
		return 0;
	}
	return 0;
}

INLINE int has_policy(const struct party *party, const struct node_config *config)
{
	return (party->flags & PARTY_LOCAL) ||
		((party->flags & PARTY_HOST) && (config->flags & SLUICE_CFG_HOST_FIREWALL));
}

/* Which proxy a connection is given to, as its entry keeps it. */
INLINE __u16 listener_flag(__u32 action)
{
	switch (action) {
	case SLUICE_ACTION_REDIRECT_HTTP:
		return 1 << SLUICE_CT_LISTENER_SHIFT;
	case SLUICE_ACTION_REDIRECT_TLS:
		return 2 << SLUICE_CT_LISTENER_SHIFT;
	case SLUICE_ACTION_REDIRECT_DNS:
		return 3 << SLUICE_CT_LISTENER_SHIFT;
	}
	return 0;
}

/* Sides that want different proxies get the one that can judge for both: it reads what it can, and what it cannot read
 * passes the sides that refuse nothing and no others, as it does where each side has a proxy of its own on another node
 * (the table is in src/httpproxy/policy.rs). Only the client's side has DNS rules, so that proxy comes first anyway.
 * The listener for TLS is that of the process which reads HTTP too. */
INLINE __u32 proxy_for_both(__u32 one, __u32 other)
{
	if (!one || one == other)
		return other;
	if (one == SLUICE_ACTION_REDIRECT_DNS || other == SLUICE_ACTION_REDIRECT_DNS)
		return SLUICE_ACTION_REDIRECT_DNS;
	return SLUICE_ACTION_REDIRECT_TLS;
}

/* What L7 proxies decide later is passed to them; without a proxy it is not passed at all. Where both sides
 * have L7 rules one proxy judges for both. */
INLINE int redirect(struct work *w, const struct node_config *config)
{
	if (w->decision.action < SLUICE_ACTION_REDIRECT_HTTP || w->decision.audited)
		return 0;
	if (!(config->flags & SLUICE_CFG_PROXY))
		return SLUICE_DROP_PROXY_NOT_FOUND;
	w->redirect = proxy_for_both(w->redirect, w->decision.action);
	return 0;
}

/* Egress policy of the opener, then ingress policy of the responder. Returns 0 or a drop reason. */
INLINE int judge_flow(struct __sk_buff *skb, struct work *w, struct party *opener,
					  struct party *responder)
{
	const struct node_config *config = node_config();
	struct decision first = {};
	struct question q = {};
	int reason, tell_first = 0, tell_second = 0;

	if (!w || !opener || !responder || !config)
		return SLUICE_DROP_INTERNAL;
	opener->epoch = 0;
	responder->epoch = 0;
	q.protocol = w->pkt.protocol;
	q.has_port = !!(w->pkt.flags & (PKT_PORTS | PKT_TYPED));
	if (w->pkt.flags & PKT_TYPED) {
		q.port = w->pkt.icmp_type;
		/* An answer is judged as what it answers. */
		if (w->reply && w->pkt.flags & PKT_TRACKED)
			q.port = w->pkt.flags & PKT_V6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
	} else {
		q.port = w->reply ? w->pkt.sport : w->pkt.dport;
	}
	if (has_policy(opener, config)) {
		reason = policy_decide(&w->decision, opener, responder, &q, SLUICE_DIR_EGRESS);
		/* The answer with the address has ended, and a rule about its name still stands. Other rules that allowed
		 * the names' identity are not asked: they speak of the address, and were asked about that. A deny rule is
		 * not outlived: it gave another reason. */
		if (reason == SLUICE_DROP_POLICY_DENIED && w->learned && w->learned != responder->identity) {
			__u32 identity = responder->identity;

			first = w->decision;
			responder->identity = w->learned;
			reason = policy_decide(&w->decision, opener, responder, &q, SLUICE_DIR_EGRESS);
			if (!reason && !w->decision.by_name) {
				reason = SLUICE_DROP_POLICY_DENIED;
				w->decision = first;
			}
			if (reason)
				responder->identity = identity;
		}
		if (w->decision.by_name && (responder->flags & PARTY_LEARNED))
			w->ct_flags |= SLUICE_CT_FQDN;
		if (!reason)
			reason = redirect(w, config);
		if (reason)
			return reason;
		tell_first = (config->flags & SLUICE_CFG_TRACE) || w->decision.audited;
		if (tell_first)
			first = w->decision;
	}
	if (has_policy(responder, config)) {
		reason = policy_decide(&w->decision, responder, opener, &q, SLUICE_DIR_INGRESS);
		if (!reason)
			reason = redirect(w, config);
		if (reason)
			return reason;
		tell_second = (config->flags & SLUICE_CFG_TRACE) || w->decision.audited;
	}
	/* Told when both sides let the flow pass: one that the other side refuses comes again and again, and its drops
	 * are limited, where verdicts are not. */
	if (tell_first) {
		struct decision second = w->decision;

		w->decision = first;
		event(skb, w, SLUICE_EVENT_VERDICT, 0);
		w->decision = second;
	}
	if (tell_second)
		event(skb, w, SLUICE_EVENT_VERDICT, 0);
	return 0;
}

/* Which end opened a flow of the node that began before we looked? The one with the higher port, as a
 * rule. It matters only for flows that are not judged yet (the host firewall is off), and makes it
 * possible to switch the firewall on without cutting the session of whoever does it. */
INLINE int looks_like_answer(const struct work *w)
{
	return w->pkt.protocol == IPPROTO_TCP && !(w->pkt.tcp_flags & TCP_SYN) &&
		w->pkt.sport < w->pkt.dport;
}

/* A packet that no entry vouches for: `e` is the one under w->key, or null. Returns 0 or a drop reason; both
 * parties are known afterwards, and an entry exists when the packet is tracked. */
GLOBAL int judge(struct __sk_buff *skb, struct work *w, struct ct_entry *e)
{
	const struct node_config *config = node_config();
	int reason;

	if (!w || !config)
		return SLUICE_DROP_INTERNAL;
	if (!(w->src.flags & PARTY_KNOWN))
		party_resolve_inline(&w->src, &w->pkt.saddr);
	if (!(w->dst.flags & PARTY_KNOWN))
		party_resolve_inline(&w->dst, &w->pkt.daddr);
	resolve_host(skb, w, config);
	reason = plausible(skb, w, config);
	if (reason)
		return reason;
	if (addr_equal(&w->pkt.saddr, &w->pkt.daddr)) /* a pod reaches itself, always */
		return 0;
	if (w->pkt.flags & PKT_TRACKED) {
		if (e && (!ct_alive(w) || ct_reopens(e, &w->pkt, w->from_lo) ||
				  ((e->flags ^ w->ct_flags) & SLUICE_CT_REV_NAT && !ct_is_reply(e, w->from_lo))))
			e = NULL;
		w->reply = e ? ct_is_reply(e, w->from_lo) :
				   !(config->flags & SLUICE_CFG_HOST_FIREWALL) &&
				   ((w->src.flags | w->dst.flags) & PARTY_HOST) &&
				   !((w->src.flags | w->dst.flags) & PARTY_LOCAL) && looks_like_answer(w);
	}
	/* The reply to a DNS proxy, which judged the query. */
	if (!e && w->pkt.protocol == IPPROTO_UDP && (w->pkt.flags & PKT_PORTS) &&
		dns_pair_asked(&w->pkt.daddr, &w->pkt.saddr, w->pkt.sport, w->now)) {
		w->reply = 1;
		w->ct_flags |= SLUICE_CT_PROXY;
		return 0;
	}
	/* The node answers a proxy that has called it. Calls are judged, whoever makes them. */
	if (!e && w->observation == SLUICE_OBS_TO_CONTAINER && w->pkt.protocol == IPPROTO_TCP &&
		(w->pkt.flags & PKT_PORTS) && (w->pkt.tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN &&
		(w->src.flags & PARTY_HOST) && proxy_has_connection(skb, w)) {
		w->reply = 1;
		w->ct_flags |= SLUICE_CT_PROXY;
		return 0;
	}
	if (e && (e->flags & SLUICE_CT_FQDN))
		w->learned = w->reply == w->from_lo ? e->lo.identity : e->hi.identity;
	reason = judge_flow(skb, w, w->reply ? &w->dst : &w->src, w->reply ? &w->src : &w->dst);
	if (reason) {
		if (e)
			ct_mark(w, SLUICE_CT_DENIED, 0);
		return reason;
	}
	/* What leaves the node is given to no proxy (it stays where it called a Service that a pod of ours serves), and a
	 * connection only from its beginning. */
	if (w->redirect &&
		((w->observation == SLUICE_OBS_TO_NETWORK && !w->dst.ifindex) || !(w->pkt.flags & PKT_PORTS) ||
		 (e && !(e->flags & SLUICE_CT_PROXY)))) {
		if (e)
			ct_mark(w, SLUICE_CT_DENIED, 0);
		return SLUICE_DROP_PROXY_NOT_FOUND;
	}
	if (w->redirect || (e && (e->flags & SLUICE_CT_PROXY)))
		w->ct_flags |= SLUICE_CT_PROXY | listener_flag(w->redirect);
	if (!(w->pkt.flags & PKT_TRACKED))
		return 0;
	/* Unsolicited answers start nothing. */
	if (!e && (w->pkt.flags & PKT_TYPED) &&
		w->pkt.icmp_type == (w->pkt.flags & PKT_V6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
		return 0;
	if (!e)
		return ct_open(w);
	/* What it was by its names counts as long as the connection lasts. */
	if (w->learned && w->reply && !(w->src.flags & PARTY_LEARNED))
		w->src.identity = w->learned;
	if (w->learned && !w->reply && !(w->dst.flags & PARTY_LEARNED))
		w->dst.identity = w->learned;
	ct_renew(w);
	return 0;
}

#endif
