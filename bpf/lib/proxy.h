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
 *
 * Datagrams have no sockets of their own, and no second flow. Queries go to the proxy's listener; the proxy sends
 * its own with the mark PROXY_ASKS from ports that it draws itself (dns.h), and what the server sends to the client
 * goes to where the proxy hears of replies. A port may be drawn that the client used lately: what the server sends
 * there is still the proxy's, as everything is that comes from a server whose answers the client gets by a proxy.
 *
 * The node itself may be the client, or the server. What its stack sends to a pod, and a proxy is to have, meets our
 * programs where it leaves, and no socket can be given a packet there: it is turned to the loopback device, and arrives
 * there (turned()). What a proxy sends to the node's own addresses is judged nowhere, and gets no entry. So its connection
 * is known by its socket alone (proxy_has_connection()), and its query by the one that the pod sent.
 */
#ifndef SLUICE_PROXY_H
#define SLUICE_PROXY_H

#include "deliver.h"
#include "dns.h"
#include "judge.h"
#include "rewrite.h"
#include "socket.h"

#define AF_INET_FAMILY 2
#define LOOPBACK_IFINDEX 1 /* in each network namespace */

/* Indexes of sl_proxy_listeners, see src/datapath/proxy.rs. `listener` as in SLUICE_CT_LISTENER. */
INLINE __u32 listener_place(__u32 listener, int is_v6)
{
	return listener ? 2 * (listener - 1) + !!is_v6 : SLUICE_PROXY_PLACES;
}

/* Where the process hears of replies that drew this port. */
INLINE __u32 reply_place(__u16 port, int is_v6, const struct node_config *config)
{
	__u32 owner = (port * config->port_key) >> (32 - SLUICE_PROXY_REPLY_BITS);

	return SLUICE_PROXY_REPLIES + 2 * owner + !!is_v6;
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

/* To the proxy's socket, where the packet arrives. `action` is the redirect that was decided just now, or 0
 * for a packet of a known flow. Returns an action of tc. */
GLOBAL int give_to_proxy(struct __sk_buff *skb, struct work *w, __u32 action)
{
	const struct node_config *config = node_config();
	int opens, given, reason;
	__u32 listener;

	if (!w || !config)
		return TC_ACT_SHOT;
	if (w->pkt.protocol == IPPROTO_TCP) {
		given = assign_connected(skb, &w->pkt);
		/* A first packet that is sent again finds out from the entry where the first one went, or should have. */
		opens = action || (w->pkt.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
		listener = (action ? listener_flag(action) : w->ct_flags & SLUICE_CT_LISTENER) >> SLUICE_CT_LISTENER_SHIFT;
		if (!given && opens)
			given = assign_listener(skb, listener_place(listener, w->pkt.flags & PKT_V6));
	} else if (w->pkt.protocol == IPPROTO_UDP) {
		/* Before the proxy asks: its own query may meet no program. */
		reason = w->reply ? 0 : dns_pair_asks(w);
		if (reason)
			return drop(skb, w, reason);
		opens = 1;
		given = assign_listener(skb, w->reply ? reply_place(w->pkt.dport, w->pkt.flags & PKT_V6, config) :
										listener_place(4, w->pkt.flags & PKT_V6));
	} else {
		opens = given = 0; /* an ICMP error: the stack knows whom to tell */
	}
	if (!given && opens)
		return drop(skb, w, SLUICE_DROP_PROXY_NOT_FOUND);
	/* A connection that the proxy no longer has: the stack resets it. */
	set_mark(skb, SLUICE_MARK_PROXY);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return TC_ACT_OK;
}

/* To from_loopback(). */
GLOBAL int turn(struct __sk_buff *skb)
{
	set_mark(skb, SLUICE_MARK_TURNED);
	return bpf_redirect(LOOPBACK_IFINDEX, BPF_F_INGRESS);
}

/* Gives a packet of a proxied flow to the proxy. */
INLINE int to_proxy(struct __sk_buff *skb, struct work *w, const struct node_config *config)
{
	if (!(config->flags & SLUICE_CFG_PROXY))
		return drop(skb, w, SLUICE_DROP_PROXY_NOT_FOUND);
	if (w->observation == SLUICE_OBS_TO_CONTAINER || w->observation == SLUICE_OBS_TO_NETWORK)
		return turn(skb);
	return give_to_proxy(skb, w, w->redirect);
}

/* The packet was judged and counted where it left, a moment ago. */
GLOBAL int turned(struct __sk_buff *skb, struct work *w)
{
	struct ct_entry *e = NULL;

	if (!w)
		return TC_ACT_SHOT;
	if (w->pkt.flags & PKT_TRACKED) {
		ct_key(w);
		e = ct_look(w);
		if (e && !(e->flags & SLUICE_CT_PROXY))
			e = NULL;
	}
	/* Without an entry it is for a proxy that calls or asks the node. */
	w->reply = e ? ct_is_reply(e, w->from_lo) : 1;
	w->ct_flags = e ? e->flags : 0;
	return give_to_proxy(skb, w, 0);
}

INLINE int asks(const struct __sk_buff *skb)
{
	return (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_PROXY_ASKS;
}

/* It was for a proxy of this node, and is about to leave: the rule that keeps such packets here has gone. No rule of layer 7
 * has seen it. */
INLINE int missed_proxy(const struct __sk_buff *skb)
{
	return (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_PROXY;
}

INLINE int is_proxys(const struct __sk_buff *skb)
{
	return (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_PROXY_OUT || asks(skb);
}

/* The entry of what a proxy sends, if there is one. A client that had called a Service hears from its address. Returns 0
 * or a drop reason. */
INLINE int speak_as_server(struct __sk_buff *skb, struct work *w, struct ct_entry **entry)
{
	struct ct_entry *e;

	*entry = NULL;
	ct_key(w);
	e = ct_look(w);
	if (!e || !ct_alive(w))
		return 0;
	*entry = e;
	w->reply = ct_is_reply(e, w->from_lo);
	ct_touch(w, &w->pkt);
	if (!w->reply || !(e->flags & SLUICE_CT_REV_NAT))
		return 0;
	rewrite_source(w, &e->svc_addr, e->svc_port);
	return rewrite_apply(skb, w);
}

/* To the node's own addresses. It has arrived, and its source was never looked at. */
GLOBAL int proxy_answers_node(struct __sk_buff *skb, struct work *w)
{
	struct ct_entry *e;
	int reason;

	if (!w)
		return TC_ACT_SHOT;
	reason = w->pkt.flags & PKT_TRACKED ? speak_as_server(skb, w, &e) : 0;
	return reason ? drop(skb, w, reason) : TC_ACT_OK;
}

/* Who both ends are, where nobody has asked yet. */
INLINE void resolve_both(struct work *w)
{
	if (!(w->src.flags & PARTY_KNOWN))
		party_resolve(&w->src, &w->pkt.saddr);
	if (!(w->dst.flags & PARTY_KNOWN))
		party_resolve(&w->dst, &w->pkt.daddr);
}

/* Keeps the entry by which what is sent back finds the proxy. Returns 0 or a drop reason. */
INLINE int remember_sent(struct __sk_buff *skb, struct work *w)
{
	struct ct_entry *e;
	int reason = speak_as_server(skb, w, &e);

	if (reason)
		return reason;
	if (e && (e->flags & SLUICE_CT_PROXY))
		return 0;
	resolve_both(w);
	/* An answer to a datagram opens nothing: what the client sends next is its own. */
	if (w->pkt.protocol == IPPROTO_UDP)
		return 0;
	w->src.policy_id = 0;
	w->src.epoch = 0;
	w->dst.policy_id = 0;
	w->dst.epoch = 0;
	w->ct_flags = SLUICE_CT_PROXY;
	return ct_open(w);
}

/* What the proxy sends, to a local pod or out of the node: its client's side was judged, and it judged the
 * rest. */
GLOBAL int proxy_sends(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	int reason;

	if (!w || !config)
		return TC_ACT_SHOT;
	if (!(w->pkt.flags & PKT_PORTS))
		return TC_ACT_OK;
	reason = asks(skb) ? dns_pair_asks(w) : remember_sent(skb, w);
	if (reason) {
		resolve_both(w); /* for whoever reads of it */
		return drop(skb, w, reason);
	}
	if (w->observation == SLUICE_OBS_TO_CONTAINER || !(config->flags & SLUICE_CFG_TUNNEL))
		return TC_ACT_OK;
	resolve_both(w);
	w->tunnel_id = w->src.identity;
	return w->dst.flags & PARTY_REMOTE ? deliver_tunnel(skb, w, &w->dst.tunnel_ep) : TC_ACT_OK;
}

/* A reply to a DNS proxy that came in fragments: putting them together lost the socket that each was given (ip_defrag
 * orphans them). What the node itself asked is its own. Returns a place, or SLUICE_PROXY_PLACES. */
INLINE __u32 reassembled_reply(const struct bpf_sk_lookup *ctx, const struct sluice_addr *client,
							   const struct sluice_addr *server)
{
	const struct node_config *config = node_config();
	const struct endpoint_info *host;

	/* The tunnel's packets are many, and none of them is a reply. */
	if (!config || ctx->local_port == config->tunnel_port)
		return SLUICE_PROXY_PLACES;
	host = bpf_map_lookup_elem(&sl_endpoints, client);
	if ((host && (host->flags & SLUICE_EP_HOST)) ||
		!dns_pair_asked(client, server, bpf_ntohs(ctx->remote_port), now_seconds()))
		return SLUICE_PROXY_PLACES;
	return reply_place(ctx->local_port, ctx->family != AF_INET_FAMILY, config);
}

/* A connection whose tuple is in TIME_WAIT begins anew, or its first packet came before a proxy listened. Nobody
 * listens there by address, so the connection's entry says which proxy does. Without this the old socket answers the
 * SYN with a challenge, and the client tries again later (RFC 5961, section 4.2; RFC 6191). */
INLINE __u32 opened_again(const struct bpf_sk_lookup *ctx, const struct sluice_addr *client,
						  const struct sluice_addr *server)
{
	struct ct_key key __attribute__((aligned(8))) = {};
	__u16 flags;
	__u8 from_lo;

	from_lo = ct_key_of(&key, client, server, bpf_ntohs(ctx->remote_port), ctx->local_port, IPPROTO_TCP);
	flags = ct_flags_of(&key);
	if (!(flags & SLUICE_CT_PROXY) || (flags & SLUICE_CT_DENIED) || from_lo == !!(flags & SLUICE_CT_INIT_HI))
		return SLUICE_PROXY_PLACES;
	return listener_place((flags & SLUICE_CT_LISTENER) >> SLUICE_CT_LISTENER_SHIFT,
						  ctx->family != AF_INET_FAMILY);
}

/* The stack looks for who listens where a packet is for this host and no connected socket has its tuple. */
INLINE int proxy_listens(struct bpf_sk_lookup *ctx)
{
	struct sluice_addr remote __attribute__((aligned(8)));
	struct sluice_addr local __attribute__((aligned(8)));
	struct bpf_sock *sk;
	__u32 place;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return SK_PASS;
	if (ctx->family == AF_INET_FAMILY) {
		addr_from_v4(&remote, ctx->remote_ip4);
		addr_from_v4(&local, ctx->local_ip4);
	} else {
		((word32 *)&remote)[0] = ctx->remote_ip6[0];
		((word32 *)&remote)[1] = ctx->remote_ip6[1];
		((word32 *)&remote)[2] = ctx->remote_ip6[2];
		((word32 *)&remote)[3] = ctx->remote_ip6[3];
		((word32 *)&local)[0] = ctx->local_ip6[0];
		((word32 *)&local)[1] = ctx->local_ip6[1];
		((word32 *)&local)[2] = ctx->local_ip6[2];
		((word32 *)&local)[3] = ctx->local_ip6[3];
	}
	place = ctx->protocol == IPPROTO_TCP ? opened_again(ctx, &remote, &local) :
										   reassembled_reply(ctx, &local, &remote);
	sk = bpf_map_lookup_elem(&sl_proxy_listeners, &place);
	if (sk) {
		bpf_sk_assign(ctx, sk, 0);
		bpf_sk_release(sk);
	}
	return SK_PASS;
}

#endif
