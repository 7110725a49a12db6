/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Connections that an L7 proxy of this node carries.
 *
 * A flow whose verdict is REDIRECT is given to the proxy's listening socket, with its addresses as they are
 * (after Service translation): the proxy accepts the connection under the destination's address, and opens
 * another one to the destination under the client's address. So there are two flows:
 *
 *	client:p  <-> server:q	judged; its entry is marked CT_PROXY
 *	client:p' <-> server:q	the proxy's own; its entry is marked CT_PROXY and has no policy
 *
 * What pods, the uplink or the tunnel send on either of them goes up to the socket that has the tuple; what
 * the proxy sends has the mark PROXY_OUT, which no pod and no other machine can set. Sockets are looked up
 * only for packets whose source was checked, or a pod could speak in another one's connection.
 */
#ifndef SLUICE_PROXY_H
#define SLUICE_PROXY_H

#include "deliver.h"
#include "judge.h"
#include "rewrite.h"

/* The index of sl_proxy_listeners, see src/datapath/proxy.rs. */
INLINE __u32 listener_place(__u32 action, const struct packet *p)
{
	__u32 kind;

	switch (action) {
	case SLUICE_ACTION_REDIRECT_HTTP:
		kind = 0;
		break;
	case SLUICE_ACTION_REDIRECT_TLS:
		kind = 1;
		break;
	case SLUICE_ACTION_REDIRECT_DNS:
		kind = p->protocol == IPPROTO_UDP ? 3 : 2;
		break;
	default:
		return SLUICE_PROXY_PLACES;
	}
	return 2 * kind + !!(p->flags & PKT_V6);
}

INLINE __u32 proxy_tuple(struct bpf_sock_tuple *tuple, const struct packet *p)
{
	if (p->flags & PKT_V6) {
		addr_copy4((struct sluice_addr *)tuple->ipv6.saddr, &p->saddr);
		addr_copy4((struct sluice_addr *)tuple->ipv6.daddr, &p->daddr);
		tuple->ipv6.sport = bpf_htons(p->sport);
		tuple->ipv6.dport = bpf_htons(p->dport);
		return sizeof(tuple->ipv6);
	}
	tuple->ipv4.saddr = addr_to_v4(&p->saddr);
	tuple->ipv4.daddr = addr_to_v4(&p->daddr);
	tuple->ipv4.sport = bpf_htons(p->sport);
	tuple->ipv4.dport = bpf_htons(p->dport);
	return sizeof(tuple->ipv4);
}

/* The socket of a connection, never one that only listens. Returns 1 when the packet was given to it. */
INLINE int assign_connected(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = proxy_tuple(&tuple, p);
	struct bpf_sock *sk;
	int assigned = 0;

	if (p->protocol == IPPROTO_TCP) {
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return 0;
		if (sk->state != BPF_TCP_LISTEN)
			assigned = !bpf_sk_assign(skb, sk, 0);
		bpf_sk_release(sk);
		return assigned;
	}
	sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	assigned = !bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	return assigned;
}

INLINE int assign_listener(struct __sk_buff *skb, __u32 place)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sl_proxy_listeners, &place);
	int assigned;

	if (!sk)
		return 0;
	assigned = !bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	return assigned;
}

/* Gives a packet of a proxied flow to the proxy. `action` is the redirect that was decided just now, or 0
 * for a packet of a known flow. Returns an action of tc. */
GLOBAL int to_proxy(struct __sk_buff *skb, struct work *w, __u32 action)
{
	const struct node_config *config = node_config();
	int is_datagram, given = 0;

	if (!w || !config)
		return TC_ACT_SHOT;
	if (!(config->flags & SLUICE_CFG_PROXY))
		return drop(skb, w, SLUICE_DROP_PROXY_NOT_FOUND);
	is_datagram = w->pkt.protocol != IPPROTO_TCP;
	if (is_datagram && !w->reply && !action)
		action = SLUICE_ACTION_REDIRECT_DNS; /* nothing else is redirected without connections */
	/* A datagram to the server belongs to the listener, always: a lookup could find a socket that the proxy
	 * answers from. One from the server belongs to the socket that asked. */
	if (!is_datagram || w->reply)
		given = assign_connected(skb, &w->pkt);
	if (!given && action)
		given = assign_listener(skb, listener_place(action, &w->pkt));
	/* A connection that the proxy no longer has: the stack resets it. */
	if (!given && (is_datagram || action))
		return drop(skb, w, SLUICE_DROP_PROXY_NOT_FOUND);
	set_mark(skb, SLUICE_MARK_PROXY);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return TC_ACT_OK;
}

/* What the proxy sends, to a local pod or out of the node: its client's side was judged, and it judged the
 * rest. Keeps the entry by which the answers find the proxy. */
GLOBAL int proxy_sends(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct ct_entry *e;
	int reason;

	if (!w || !config)
		return TC_ACT_SHOT;
	if (!(w->pkt.flags & PKT_PORTS))
		return TC_ACT_OK;
	ct_key(w);
	party_resolve(&w->src, &w->pkt.saddr);
	party_resolve(&w->dst, &w->pkt.daddr);
	e = bpf_map_lookup_elem(&sl_ct, &w->key);
	if (e && !ct_alive(e, w->pkt.protocol, w->now))
		e = NULL;
	if (e) {
		w->reply = ct_is_reply(e, w->from_lo);
		ct_touch(e, &w->pkt, w->from_lo, w->now);
		if (w->reply && (e->flags & SLUICE_CT_REV_NAT)) {
			rewrite_source(w, &e->svc_addr, e->svc_port);
			reason = rewrite_apply(skb, w);
			if (reason)
				return drop(skb, w, reason);
		}
		if (!(e->flags & SLUICE_CT_PROXY))
			e = NULL;
	}
	if (!e) {
		w->src.policy_id = 0;
		w->src.epoch = 0;
		w->dst.policy_id = 0;
		w->dst.epoch = 0;
		w->ct_flags = SLUICE_CT_PROXY;
		reason = ct_open(w);
		if (reason)
			return drop(skb, w, reason);
	}
	w->tunnel_id = w->src.identity;
	if (w->observation == SLUICE_OBS_TO_NETWORK && (config->flags & SLUICE_CFG_TUNNEL) &&
		(w->dst.flags & PARTY_REMOTE))
		return deliver_tunnel(skb, w, &w->dst.tunnel_ep);
	return TC_ACT_OK;
}

INLINE int is_proxys(const struct __sk_buff *skb)
{
	return (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_PROXY_OUT;
}

#endif
