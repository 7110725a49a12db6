/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Masquerade: what pods send to the outside leaves with the node's address. A mapping is two entries,
 * found from inside and from outside. The outside port is the pod's own where that lies in the configured
 * range and is free, else one that is probed for. A port that a connection of the node itself uses is not
 * free.
 */
#ifndef SLUICE_NAT_H
#define SLUICE_NAT_H

#include "conntrack.h"
#include "icmp_error.h"
#include "ipcache.h"
#include "rewrite.h"

#define NAT_PROBES 24
#define NAT_TCP_SECONDS 21600
#define NAT_OTHER_SECONDS 300

INLINE __u32 nat_seconds(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_SCTP ? NAT_TCP_SECONDS : NAT_OTHER_SECONDS;
}

INLINE void nat_key_of(struct nat_key *key, const struct sluice_addr *local,
					   const struct sluice_addr *remote, __u16 local_port, __u16 remote_port,
					   __u8 protocol, __u8 reverse)
{
	addr_copy(&key->local, local);
	addr_copy(&key->remote, remote);
	key->local_port = local_port;
	key->remote_port = remote_port;
	key->protocol = protocol;
	key->reverse = reverse;
	key->pad = 0;
}

/* ICMP echo has one number for both ends. */
INLINE __u16 nat_remote_port(const struct packet *p, __u16 port)
{
	return p->flags & PKT_TYPED ? 0 : port;
}

INLINE int nat_is_masqueraded(const struct node_config *config, const struct packet *p)
{
	return p->flags & PKT_V6 ?
		(config->flags & SLUICE_CFG_MASQUERADE_V6) && !addr_is_zero(&config->node_v6) :
		(config->flags & SLUICE_CFG_MASQUERADE_V4) && !addr_is_zero(&config->node_v4);
}

INLINE const struct sluice_addr *nat_node_address(const struct node_config *config,
												  const struct packet *p)
{
	return p->flags & PKT_V6 ? &config->node_v6 : &config->node_v4;
}

/* The node itself has a connection with these ports. */
INLINE int nat_taken_by_node(struct work *w, const struct sluice_addr *node, __u16 port)
{
	__u16 remote_port = w->pkt.flags & PKT_TYPED ? port : w->pkt.dport;

	ct_key_of(&w->key, node, &w->pkt.daddr, port, remote_port, w->pkt.protocol);
	return ct_is_there(w) && ct_alive(w);
}

/* Claims the outside port in w->nat_key, which holds the reverse key. Returns 1 on success. Tried in a loop, so
 * verified by itself. */
GLOBAL int nat_claim(struct work *w, __u32 port)
{
	const struct nat_entry *old;

	if (!w || nat_taken_by_node(w, &w->nat_key.local, port))
		return 0;
	w->nat_key.local_port = port;
	addr_copy(&w->nat_entry.to_addr, &w->pkt.saddr);
	w->nat_entry.to_port = w->pkt.sport;
	w->nat_entry.pad = 0;
	w->nat_entry.last_seen = w->now;
	if (!bpf_map_update_elem(&sl_nat, &w->nat_key, &w->nat_entry, BPF_NOEXIST))
		return 1;
	old = bpf_map_lookup_elem(&sl_nat, &w->nat_key);
	if (!old)
		return 0;
	if (!(addr_equal(&old->to_addr, &w->pkt.saddr) && old->to_port == w->pkt.sport) &&
		w->now - old->last_seen <= nat_seconds(w->pkt.protocol))
		return 0;
	return !bpf_map_update_elem(&sl_nat, &w->nat_key, &w->nat_entry, BPF_ANY);
}

/* Finds or makes the mapping of the packet. Returns 0 with the node's port in *port, or a drop reason. */
GLOBAL int nat_map(struct work *w, __u32 *port)
{
	const struct node_config *config = node_config();
	const struct sluice_addr *node;
	struct nat_entry *known;
	__u32 range, candidate, start;
	__u16 remote_port;

	if (!w || !port || !config)
		return SLUICE_DROP_INTERNAL;
	node = nat_node_address(config, &w->pkt);
	remote_port = nat_remote_port(&w->pkt, w->pkt.dport);
	nat_key_of(&w->nat_key, &w->pkt.saddr, &w->pkt.daddr, w->pkt.sport, remote_port, w->pkt.protocol,
			   0);
	known = bpf_map_lookup_elem(&sl_nat, &w->nat_key);
	if (known && known->last_seen == w->now && addr_equal(&known->to_addr, node)) {
		*port = known->to_port;
		return 0;
	}
	/* Once a second the other half is refreshed too: it could have been evicted. */
	start = known && addr_equal(&known->to_addr, node) ? known->to_port : w->pkt.sport;
	if (config->nat_port_max < config->nat_port_min || !config->nat_port_min)
		return SLUICE_DROP_NAT_NO_MAPPING;
	range = (__u32)config->nat_port_max - config->nat_port_min + 1;
	if (start < config->nat_port_min || start > config->nat_port_max)
		start = config->nat_port_min + bpf_get_prandom_u32() % range;
	nat_key_of(&w->nat_key, node, &w->pkt.daddr, 0, remote_port, w->pkt.protocol, 1);
	candidate = start;
	for (int i = 0; i < NAT_PROBES; i++) {
		if (nat_claim(w, candidate)) {
			nat_key_of(&w->nat_key, &w->pkt.saddr, &w->pkt.daddr, w->pkt.sport, remote_port,
					   w->pkt.protocol, 0);
			addr_copy(&w->nat_entry.to_addr, node);
			w->nat_entry.to_port = candidate;
			if (bpf_map_update_elem(&sl_nat, &w->nat_key, &w->nat_entry, BPF_ANY))
				return SLUICE_DROP_NAT_NO_MAPPING;
			*port = candidate;
			return 0;
		}
		candidate = config->nat_port_min + bpf_get_prandom_u32() % range;
	}
	return SLUICE_DROP_NAT_NO_MAPPING;
}

/* An error of a pod about a packet that came in through a mapping. */
INLINE int nat_outgoing_error(struct __sk_buff *skb, struct work *w, const struct node_config *config)
{
	const struct nat_entry *known;
	int reason;

	if (!inner_parse(skb, w))
		return 0;
	nat_key_of(&w->nat_key, &w->inner.daddr, &w->inner.saddr, w->inner.dport,
			   nat_remote_port(&w->inner, w->inner.sport), w->inner.protocol, 0);
	known = bpf_map_lookup_elem(&sl_nat, &w->nat_key);
	if (!known)
		return 0;
	reason = inner_rewrite(skb, w, INNER_DST, &known->to_addr, known->to_port);
	if (reason)
		return reason;
	rewrite_source(w, nat_node_address(config, &w->pkt), 0);
	return rewrite_apply(skb, w);
}

/* Gives a pod's packet that leaves the cluster the node's address. w->src is known, and a local pod; a later
 * fragment has its ports.
 * Returns 0 or a drop reason. */
GLOBAL int masquerade(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	__u32 port = 0;
	int reason;

	if (!w || !config)
		return SLUICE_DROP_INTERNAL;
	if (!nat_is_masqueraded(config, &w->pkt))
		return 0;
	party_resolve(&w->dst, &w->pkt.daddr);
	if (w->dst.flags & (PARTY_LOCAL | PARTY_HOST | PARTY_REMOTE | PARTY_NODE | PARTY_CLUSTER))
		return 0;
	if (w->pkt.flags & PKT_ICMP_ERROR)
		return nat_outgoing_error(skb, w, config);
	if (!(w->pkt.flags & PKT_TRACKED) || !(w->pkt.flags & (PKT_PORTS | PKT_TYPED)))
		return SLUICE_DROP_NAT_UNSUPPORTED_PROTO;
	/* Who called the pod by its own address expects the answer from there. */
	ct_key(w);
	if (ct_is_there(w) && ct_is_reply(&w->found, w->from_lo) && ct_alive(w))
		return 0;
	reason = nat_map(w, &port);
	if (reason)
		return reason;
	rewrite_source(w, nat_node_address(config, &w->pkt), port);
	if (w->pkt.flags & PKT_TYPED)
		w->rewrite.flags |= REWRITE_ID;
	return rewrite_apply(skb, w);
}

/* An error from outside about a packet that left through a mapping. */
INLINE int nat_incoming_error(struct __sk_buff *skb, struct work *w)
{
	const struct nat_entry *known;
	struct sluice_addr pod;
	__u16 port;
	int reason;

	if (!inner_parse(skb, w))
		return 0;
	w->inner_known = 1;
	if (!addr_equal(&w->inner.saddr, &w->pkt.daddr))
		return 0;
	nat_key_of(&w->nat_key, &w->inner.saddr, &w->inner.daddr, w->inner.sport,
			   nat_remote_port(&w->inner, w->inner.dport), w->inner.protocol, 1);
	known = bpf_map_lookup_elem(&sl_nat, &w->nat_key);
	if (!known)
		return 0;
	addr_copy(&pod, &known->to_addr);
	port = known->to_port;
	reason = inner_rewrite(skb, w, INNER_SRC, &pod, port);
	if (reason)
		return reason;
	addr_copy(&w->inner.saddr, &pod);
	w->inner.sport = port;
	if (w->inner.flags & PKT_TYPED)
		w->inner.dport = port;
	addr_copy(&w->pkt.daddr, &pod);
	rewrite_destination(w, &pod, 0);
	return 0;
}

/* Sends what comes back through a mapping to its pod. w->dst is known, and this node. Returns 0, with the
 * packet translated or not, or a drop reason. */
GLOBAL int unmasquerade(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct nat_entry *known;
	int reason;

	if (!w || !config)
		return SLUICE_DROP_INTERNAL;
	if (!nat_is_masqueraded(config, &w->pkt) ||
		!addr_equal(&w->pkt.daddr, nat_node_address(config, &w->pkt)))
		return 0;
	if (w->pkt.flags & PKT_ICMP_ERROR) {
		reason = nat_incoming_error(skb, w);
		goto resolve;
	}
	if (!(w->pkt.flags & PKT_TRACKED) || !(w->pkt.flags & (PKT_PORTS | PKT_TYPED)))
		return 0;
	if ((w->pkt.flags & PKT_TYPED) &&
		w->pkt.icmp_type != (w->pkt.flags & PKT_V6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
		return 0;
	nat_key_of(&w->nat_key, &w->pkt.daddr, &w->pkt.saddr, w->pkt.dport,
			   nat_remote_port(&w->pkt, w->pkt.sport), w->pkt.protocol, 1);
	known = bpf_map_lookup_elem(&sl_nat, &w->nat_key);
	if (!known)
		return 0;
	if (known->last_seen != w->now)
		known->last_seen = w->now;
	addr_copy(&w->pkt.daddr, &known->to_addr);
	w->pkt.dport = known->to_port;
	if (w->pkt.flags & PKT_TYPED)
		w->pkt.sport = known->to_port;
	rewrite_destination(w, &w->pkt.daddr, w->pkt.dport);
	if (w->pkt.flags & PKT_TYPED) {
		w->rewrite.sport = known->to_port;
		w->rewrite.flags |= REWRITE_ID;
	}
	reason = 0;
resolve:
	if (w->rewrite.flags)
		party_resolve(&w->dst, &w->pkt.daddr);
	return reason;
}

#endif
