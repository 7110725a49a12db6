/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Counters and events. A drop is always counted, and told to user space unless limit.h says that it is one
 * too many of its kind. Verdicts and traces leave a quarter of the ring to drops. What is not told is
 * counted by cause.
 */
#ifndef SLUICE_EVENT_H
#define SLUICE_EVENT_H

#include "limit.h"

INLINE void count_packet(__u32 direction, __u32 reason, __u32 bytes)
{
	__u32 index = (direction & 1) * SLUICE_MAX_METRIC + (reason & 0xff);
	struct counter *counter = bpf_map_lookup_elem(&sl_metrics, &index);

	if (counter) {
		counter->packets += 1;
		counter->bytes += bytes;
	}
}

INLINE void count_forwarded(__u32 endpoint_id, __u32 direction, __u32 bytes)
{
	struct ep_counter *stats = bpf_map_lookup_elem(&sl_ep_stats, &endpoint_id);

	if (stats && endpoint_id) {
		stats->forwarded[direction & 1].packets += 1;
		stats->forwarded[direction & 1].bytes += bytes;
	}
}

INLINE void count_dropped(__u32 endpoint_id, __u32 direction, __u32 bytes)
{
	struct ep_counter *stats = bpf_map_lookup_elem(&sl_ep_stats, &endpoint_id);

	if (stats && endpoint_id) {
		stats->dropped[direction & 1].packets += 1;
		stats->dropped[direction & 1].bytes += bytes;
	}
}

GLOBAL int event(struct __sk_buff *skb, struct work *w, __u32 type, __u32 reason)
{
	const struct node_config *config = node_config();
	struct flow_event *e;
	__u32 repeats = 0;

	if (!w || !config)
		return 0;
	if (type == SLUICE_EVENT_DROP) {
		if (config->drop_repeats && !worth_telling(skb->ifindex, w, config, reason, &repeats))
			return 0;
	} else if (bpf_ringbuf_query(&sl_events, BPF_RB_AVAIL_DATA) >
			   bpf_ringbuf_query(&sl_events, BPF_RB_RING_SIZE) / 4 * 3) {
		count_lost(type == SLUICE_EVENT_VERDICT ? SLUICE_LOST_VERDICT : SLUICE_LOST_TRACE);
		return 0;
	}
	e = bpf_ringbuf_reserve(&sl_events, sizeof(*e), 0);
	if (!e) {
		count_lost(type == SLUICE_EVENT_DROP	? SLUICE_LOST_DROP :
				   type == SLUICE_EVENT_VERDICT ? SLUICE_LOST_VERDICT :
												  SLUICE_LOST_TRACE);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->timestamp_ns = bpf_ktime_get_ns();
	addr_copy(&e->saddr, &w->pkt.saddr);
	addr_copy(&e->daddr, &w->pkt.daddr);
	if (w->svc_port) {
		addr_copy(&e->svc_addr, &w->svc_addr);
		e->svc_port = w->svc_port;
		e->flags |= SLUICE_EVF_SERVICE;
	}
	e->src_identity = w->src.identity;
	e->dst_identity = w->dst.identity;
	e->policy_id = w->decision.policy_id;
	e->rule_set = w->decision.rule_set;
	e->ifindex = skb->ifindex;
	e->length = w->pkt.length;
	e->sport = w->pkt.sport;
	e->dport = w->pkt.dport;
	e->endpoint_id = w->decision.endpoint_id;
	e->type = type;
	e->reason = reason;
	e->protocol = w->pkt.protocol;
	e->tcp_flags = w->pkt.tcp_flags;
	e->icmp_type = w->pkt.icmp_type;
	e->icmp_code = w->pkt.icmp_code;
	e->direction = w->decision.action ? w->decision.direction : w->direction;
	e->action = w->decision.action;
	e->observation = w->observation;
	e->repeats = repeats;
	e->flags |= w->event_flags | (w->reply ? SLUICE_EVF_REPLY : 0) |
		(w->decision.default_deny ? SLUICE_EVF_DEFAULT_DENY : 0);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Counts, tells, and gives the action that ends the packet. */
GLOBAL int drop(struct __sk_buff *skb, struct work *w, __u32 reason)
{
	__u32 direction, endpoint;

	if (!w)
		return TC_ACT_SHOT;
	direction = w->decision.action ? w->decision.direction : w->direction;
	endpoint = w->decision.endpoint_id;
	if (!endpoint)
		endpoint = direction == SLUICE_DIR_EGRESS ? w->src.endpoint_id : w->dst.endpoint_id;
	count_packet(direction, reason, w->pkt.length);
	count_dropped(endpoint, direction, w->pkt.length);
	event(skb, w, SLUICE_EVENT_DROP, reason);
	return TC_ACT_SHOT;
}

#endif
