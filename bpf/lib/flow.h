/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * What every program does once the packet is parsed: find the connection; if it is known, allowed under
 * the policies of today and comes from where it should, pass it on; otherwise judge it.
 */
#ifndef SLUICE_FLOW_H
#define SLUICE_FLOW_H

#include "deliver.h"
#include "fragment.h"
#include "icmp_error.h"
#include "judge.h"
#include "proxy.h"
#include "reject.h"
#include "service.h"

#define CONTINUE 1000 /* no action yet */

/* The packet comes from where the entry says that its sender is. What fails here is looked at again by
 * plausible(), which knows the reason. */
INLINE int from_its_place(struct __sk_buff *skb, struct work *w, __u16 flags, const struct ct_side *src,
						  const __u8 *src_mac, const struct ct_side *dst,
						  const struct node_config *config)
{
	struct ethhdr *eth;

	switch (w->observation) {
	case SLUICE_OBS_FROM_CONTAINER:
		if (src->ifindex != skb->ifindex)
			return 0;
		if (!w->pkt.l3_offset)
			return 1;
		eth = header(skb, 0, sizeof(*eth));
		return eth && mac_equal(eth->h_source, src_mac);
	case SLUICE_OBS_FROM_NETWORK:
		/* A tunnelled flow has no business on the wire. */
		return !src->policy_id &&
			!((config->flags & SLUICE_CFG_TUNNEL) && (flags & SLUICE_CT_TUNNEL) && dst->ifindex);
	case SLUICE_OBS_FROM_OVERLAY: /* both parties are known; the tunnel vouches packet by packet */
		return !src->policy_id && dst->ifindex == w->dst.ifindex && !plausible(skb, w, config);
	case SLUICE_OBS_TO_CONTAINER:
		return !src->ifindex && dst->ifindex == skb->ifindex;
	case SLUICE_OBS_TO_NETWORK:
		return !src->ifindex;
	}
	return 0;
}

INLINE int tunnelled(const struct work *w, const struct node_config *config)
{
	return (config->flags & SLUICE_CFG_TUNNEL) && (w->ct_flags & SLUICE_CT_TUNNEL);
}

/* The packet goes on to another device without the help of the stack. */
INLINE int we_route(const struct work *w, const struct node_config *config, __u32 ifindex)
{
	switch (w->observation) {
	case SLUICE_OBS_FROM_CONTAINER:
		return !(w->ct_flags & SLUICE_CT_PROXY) && (ifindex || tunnelled(w, config));
	case SLUICE_OBS_FROM_NETWORK:
	case SLUICE_OBS_FROM_OVERLAY:
		return !(w->ct_flags & SLUICE_CT_PROXY) && ifindex;
	}
	return 0;
}

INLINE int to_remote_pod(struct __sk_buff *skb, struct work *w)
{
	const struct ipcache_entry *remote = ipcache_lookup(&w->pkt.daddr);

	if (!remote || !(remote->flags & SLUICE_IPC_REMOTE))
		return drop(skb, w, SLUICE_DROP_NO_TUNNEL_ENDPOINT);
	addr_copy(&w->dst.tunnel_ep, &remote->tunnel_ep);
	return deliver_tunnel(skb, w, &w->dst.tunnel_ep);
}

/* What the node's stack sends to a Service was routed by the Service's address; its backend is elsewhere. */
INLINE int node_to_backend(struct __sk_buff *skb, struct work *w, const struct node_config *config,
						   __u32 ifindex, const __u8 *mac)
{
	int reason;

	if (!ifindex) {
		/* The neighbour of the backend, on the device that leads out. Not judged again. */
		set_mark(skb, SLUICE_MARK_VERDICT);
		return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
	}
	if ((w->pkt.l3_offset == 0) != mac_is_zero(mac))
		return drop(skb, w, SLUICE_DROP_UNROUTABLE);
	if (w->pkt.l3_offset) {
		reason = set_macs(skb, config->router_mac, mac);
		if (reason)
			return drop(skb, w, reason);
	}
	set_mark(skb, SLUICE_MARK_VERDICT);
	return bpf_redirect(ifindex, 0);
}

/* The packet goes to a local pod, to this node, or on. */
INLINE int forward(struct __sk_buff *skb, struct work *w, const struct node_config *config,
				   __u32 ifindex, const __u8 *mac)
{
	int to_backend = w->rewrite.flags & REWRITE_DST;

	/* Before anything is rewritten: the sender is to recognize its packet. The stack does the same for what it
	 * forwards itself. */
	if (unlikely(w->pkt.ttl <= 1) && we_route(w, config, ifindex))
		return refuse(skb, w, SLUICE_DROP_TTL_EXCEEDED);

	if (w->rewrite.flags) {
		int reason = rewrite_apply(skb, w);

		if (reason)
			return drop(skb, w, reason);
	}
	count_packet(w->direction, SLUICE_METRIC_FORWARDED, w->pkt.length);
	if (unlikely(w->ct_flags & SLUICE_CT_PROXY))
		return to_proxy(skb, w, config);
	switch (w->observation) {
	case SLUICE_OBS_FROM_CONTAINER:
		if (ifindex)
			return deliver_local(skb, w, config, ifindex, mac);
		if (tunnelled(w, config))
			return to_remote_pod(skb, w);
		return to_stack(skb);
	case SLUICE_OBS_TO_NETWORK:
		/* The node itself reaches pods of other nodes as its pods do. */
		if (tunnelled(w, config))
			return to_remote_pod(skb, w);
		return to_backend ? node_to_backend(skb, w, config, ifindex, mac) : TC_ACT_OK;
	case SLUICE_OBS_FROM_NETWORK:
	case SLUICE_OBS_FROM_OVERLAY:
		if (ifindex)
			return deliver_local(skb, w, config, ifindex, mac);
		return to_stack(skb);
	}
	return TC_ACT_OK;
}

INLINE int sampled(const struct node_config *config)
{
	return (config->flags & SLUICE_CFG_TRACE) && config->trace_sample &&
		bpf_get_prandom_u32() % config->trace_sample == 0;
}

/* The client had called a Service, and hears from its address. What a server sends to a DNS proxy keeps its own: the
 * entry may be that of a client's query from the same port (see proxy.h). */
INLINE int answers_service(const struct work *w, const struct ct_entry *e)
{
	return w->reply && (e->flags & SLUICE_CT_REV_NAT) &&
		!((e->flags & SLUICE_CT_PROXY) && w->pkt.protocol == IPPROTO_UDP);
}

/* An established packet. Returns an action, or CONTINUE when the packet must be judged. */
INLINE int established(struct __sk_buff *skb, struct work *w, const struct node_config *config,
					   struct ct_entry *e)
{
	const struct ct_side *src = w->from_lo ? &e->lo : &e->hi;
	const struct ct_side *dst = w->from_lo ? &e->hi : &e->lo;
	const __u8 *src_mac = w->from_lo ? e->lo_mac : e->hi_mac;
	const __u8 *dst_mac = w->from_lo ? e->hi_mac : e->lo_mac;

	if (unlikely(e->flags & SLUICE_CT_DENIED) || !ct_alive(w) ||
		ct_reopens(e, &w->pkt, w->from_lo))
		return CONTINUE;
	if (!from_its_place(skb, w, e->flags, src, src_mac, dst, config))
		return CONTINUE;
	if (!ct_side_current(src, config) || !ct_side_current(dst, config))
		return CONTINUE;
	w->reply = ct_is_reply(e, w->from_lo);
	if (!w->reply && ((e->flags ^ w->ct_flags) & SLUICE_CT_REV_NAT))
		return CONTINUE;
	ct_touch(w, &w->pkt);
	if (src->endpoint_id)
		count_forwarded(src->endpoint_id, SLUICE_DIR_EGRESS, w->pkt.length);
	if (dst->endpoint_id)
		count_forwarded(dst->endpoint_id, SLUICE_DIR_INGRESS, w->pkt.length);
	if (unlikely(config->flags & SLUICE_CFG_TRACE)) {
		ct_count(w);
		if (sampled(config)) {
			w->src.identity = src->identity;
			w->dst.identity = dst->identity;
			w->decision.rule_set = e->rule_set;
			w->event_flags |= SLUICE_EVF_ESTABLISHED;
			event(skb, w, SLUICE_EVENT_TRACE, 0);
		}
	}
	w->ct_flags = e->flags;
	w->tunnel_id = src->identity;
	if (answers_service(w, e))
		rewrite_source(w, &e->svc_addr, e->svc_port);
	return forward(skb, w, config, dst->ifindex, dst_mac);
}

/* Pods and the node's own processes may call a Service. */
INLINE int may_call_service(const struct work *w)
{
	return w->observation == SLUICE_OBS_FROM_CONTAINER ||
		(w->observation == SLUICE_OBS_TO_NETWORK && (w->src.flags & PARTY_HOST));
}

/* Finds the connection, and translates what is sent to a Service. Returns 0, a drop reason, or an action for a
 * hairpin, which is judged by nobody. */
INLINE int translate(struct __sk_buff *skb, struct work *w, const struct node_config *config,
					 struct ct_entry **entry)
{
	struct ct_entry *e = ct_find(w);
	int opening = w->pkt.protocol == IPPROTO_TCP &&
		(w->pkt.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	int reason;

	*entry = e;
	if (!may_call_service(w) || !(w->pkt.flags & PKT_PORTS))
		return CONTINUE;
	if (e && ct_alive(w)) {
		if ((e->flags & SLUICE_CT_HAIRPIN) && !opening)
			return hairpin_continue(skb, w, config, e);
		if (!(e->flags & (SLUICE_CT_SERVICE | SLUICE_CT_HAIRPIN)))
			return CONTINUE;
		if ((e->flags & SLUICE_CT_SERVICE) && !(e->flags & SLUICE_CT_HAIRPIN)) {
			struct sluice_addr frontend;
			__u16 port = w->pkt.dport;

			ct_touch(w, &w->pkt);
			addr_copy(&frontend, &w->pkt.daddr);
			service_translate(w, &e->svc_addr, e->svc_port);
			ct_key(w);
			*entry = e = ct_look(w);
			/* A connection that is over does not bind the next one to its backend, and a backend that is gone
			 * binds no datagram: a sender that never pauses would talk to nobody for good. */
			if ((opening || w->pkt.protocol != IPPROTO_TCP) && is_nobody(&w->pkt.daddr))
				opening = 1, e = NULL;
			if (!opening || (e && !ct_closing(e->flags) && ct_alive(w)))
				return CONTINUE;
			addr_copy(&w->pkt.daddr, &frontend);
			w->pkt.dport = port;
			w->rewrite.flags = 0;
			w->ct_flags = 0;
			w->svc_port = 0;
			ct_key(w);
			*entry = NULL;
		}
	}
	/* An address of somebody is no frontend. */
	party_resolve(&w->dst, &w->pkt.daddr);
	if (w->dst.flags & (PARTY_LOCAL | PARTY_HOST | PARTY_REMOTE | PARTY_NODE))
		return CONTINUE;
	reason = service_select(w);
	if (reason)
		return refuse(skb, w, reason);
	if (!(w->ct_flags & SLUICE_CT_SERVICE))
		return CONTINUE;
	w->dst.flags = 0;
	if (addr_equal(&w->pkt.saddr, &w->pkt.daddr))
		return hairpin_open(skb, w);
	ct_key(w);
	*entry = ct_look(w);
	return CONTINUE;
}

/* From a parsed packet to an action. Pasted into the program that pods' packets meet: that saves some
 * nanoseconds a packet. The others call flow(), which saves the verifier's time. */
INLINE int flow_inline(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct ct_entry *e = NULL;
	int verdict;

	if (!config)
		return TC_ACT_SHOT;
	if (unlikely(w->pkt.flags & PKT_FRAGMENT)) {
		verdict = fragment(w);
		if (verdict)
			return drop(skb, w, verdict);
	}
	if (unlikely(w->pkt.flags & PKT_ICMP_ERROR)) {
		verdict = w->inner_known || inner_parse(skb, w) ? icmp_error(skb, w) : 0;
		if (verdict > 1)
			return drop(skb, w, verdict);
		if (verdict) {
			w->event_flags |= SLUICE_EVF_ESTABLISHED;
			goto pass;
		}
	}
	if (w->pkt.flags & PKT_TRACKED) {
		ct_key(w);
		verdict = translate(skb, w, config, &e);
		if (verdict != CONTINUE)
			return verdict;
		if (e && !(w->ct_flags & SLUICE_CT_SERVICE)) {
			verdict = established(skb, w, config, e);
			if (verdict != CONTINUE)
				return verdict;
		}
	}
	verdict = judge(skb, w, e);
	if (verdict)
		return refuse(skb, w, verdict);
	if (e && answers_service(w, e))
		rewrite_source(w, &e->svc_addr, e->svc_port);
	if (w->ct_flags & SLUICE_CT_SERVICE) {
		verdict = service_remember(w);
		if (verdict)
			return drop(skb, w, verdict);
	}
pass:
	count_forwarded(w->src.endpoint_id, SLUICE_DIR_EGRESS, w->pkt.length);
	count_forwarded(w->dst.endpoint_id, SLUICE_DIR_INGRESS, w->pkt.length);
	w->ct_flags = (w->ct_flags & SLUICE_CT_PROXY) | (w->dst.flags & PARTY_REMOTE ? SLUICE_CT_TUNNEL : 0);
	w->tunnel_id = w->src.identity;
	return forward(skb, w, config, w->dst.ifindex, w->dst.mac);
}

GLOBAL int flow(struct __sk_buff *skb, struct work *w)
{
	return w ? flow_inline(skb, w) : TC_ACT_SHOT;
}

#endif
