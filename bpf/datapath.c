// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs. All but the last are tc programs, each on one kind of device; they parse, look at what is
 * special to their place, and hand over to flow(). find_proxy() helps the stack to find a proxy's socket.
 */
#include "lib/flow.h"
#include "lib/nat.h"
#include "lib/neighbour.h"

/* Our own answer to a refused packet (see reject.h). Neither pods nor other machines can set marks: they
 * do not cross network namespaces or wires. */
INLINE int is_answer(const struct __sk_buff *skb)
{
	return (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_ANSWER;
}

/* Ingress of the host side of a pod's veth: what the pod sends. */
SEC("classifier")
int from_container(struct __sk_buff *skb)
{
	struct work *w;
	struct ethhdr *eth;
	int reason;

	if (is_answer(skb))
		return TC_ACT_OK;
	w = work_begin(skb, SLUICE_OBS_FROM_CONTAINER, SLUICE_DIR_EGRESS);
	if (!w)
		return TC_ACT_SHOT;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return drop(skb, w, SLUICE_DROP_INVALID_PACKET);
	if (skb->vlan_present || eth->h_proto == ETH_P_8021Q_BE || eth->h_proto == ETH_P_8021AD_BE)
		return drop(skb, w, SLUICE_DROP_VLAN_FILTERED);
	if (eth->h_proto == bpf_htons(ETH_P_ARP)) {
		reason = neighbour_arp(skb);
		return reason >= SLUICE_FIRST_DROP_REASON ? drop(skb, w, reason) : reason;
	}
	reason = parse_inline(skb, &w->pkt, sizeof(*eth), eth->h_proto);
	if (reason == PARSE_NOT_IP)
		return drop(skb, w, SLUICE_DROP_UNSUPPORTED_L3);
	if (reason)
		return drop(skb, w, reason);
	if (w->pkt.flags & PKT_NEIGHBOUR) {
		reason = neighbour_nd(skb, w);
		return reason >= SLUICE_FIRST_DROP_REASON ? drop(skb, w, reason) : reason;
	}
	return flow_inline(skb, w);
}

/* Egress of the same device: what the node's stack sends to the pod. */
SEC("classifier")
int to_container(struct __sk_buff *skb)
{
	struct work *w;
	struct ethhdr *eth;
	int reason;

	if ((skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_VERDICT || is_answer(skb))
		return TC_ACT_OK;
	w = work_begin(skb, SLUICE_OBS_TO_CONTAINER, SLUICE_DIR_INGRESS);
	if (!w)
		return TC_ACT_SHOT;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return drop(skb, w, SLUICE_DROP_INVALID_PACKET);
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		return TC_ACT_OK;
	reason = parse(skb, &w->pkt, sizeof(*eth), eth->h_proto);
	if (reason == PARSE_NOT_IP)
		return drop(skb, w, SLUICE_DROP_UNSUPPORTED_L3);
	if (reason)
		return drop(skb, w, reason);
	if (w->pkt.flags & PKT_NEIGHBOUR)
		return TC_ACT_OK;
	if (is_proxys(skb))
		return proxy_sends(skb, w);
	if (missed_proxy(skb))
		return drop(skb, w, SLUICE_DROP_PROXY_NOT_FOUND);
	return flow(skb, w);
}

/* Fragments of the node's own datagrams may come in any order while nothing depends on their ports: such
 * a one is left to the stack (1). Otherwise 0 or a drop reason. */
INLINE int fragment_of_node(struct work *w)
{
	const struct node_config *config = node_config();
	int reason;

	if (!(w->pkt.flags & PKT_FRAGMENT))
		return 0;
	reason = fragment(w);
	if (reason == SLUICE_DROP_FRAG_NO_FIRST && config &&
		!(config->flags & SLUICE_CFG_HOST_FIREWALL) && ((w->src.flags | w->dst.flags) & PARTY_HOST))
		return 1;
	return reason;
}

INLINE int is_tunnel_packet(const struct work *w)
{
	const struct node_config *config = node_config();

	return config && (config->flags & SLUICE_CFG_TUNNEL) && w->pkt.protocol == IPPROTO_UDP &&
		(w->pkt.flags & PKT_PORTS) && w->pkt.dport == config->tunnel_port;
}

INLINE int is_uplink(const struct __sk_buff *skb)
{
	const struct node_config *config = node_config();

	return config && config->uplink_ifindex == skb->ifindex;
}

/* Ingress of the uplink, and of the node's other devices where the host firewall is wanted. */
SEC("classifier")
int from_network(struct __sk_buff *skb)
{
	struct work *w;
	struct ethhdr *eth;
	int reason;

	/* Nothing comes off the wire with a mark: this is a hairpin of the node's own. */
	if (is_answer(skb) || (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_VERDICT)
		return TC_ACT_OK;
	w = work_begin(skb, SLUICE_OBS_FROM_NETWORK, SLUICE_DIR_INGRESS);
	if (!w)
		return TC_ACT_SHOT;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return drop(skb, w, SLUICE_DROP_INVALID_PACKET);
	reason = parse(skb, &w->pkt, sizeof(*eth), eth->h_proto);
	if (reason == PARSE_NOT_IP)
		return TC_ACT_OK;
	if (reason)
		return drop(skb, w, reason);
	if (w->pkt.flags & PKT_NEIGHBOUR)
		return TC_ACT_OK;
	party_resolve(&w->dst, &w->pkt.daddr);
	arrives_at_host(skb, w);
	if (!(w->dst.flags & (PARTY_LOCAL | PARTY_HOST)))
		return TC_ACT_OK;
	if (w->dst.flags & PARTY_HOST) {
		if (node_needs(w))
			return TC_ACT_OK;
		reason = fragment_of_node(w);
		if (reason)
			return reason < SLUICE_FIRST_DROP_REASON ? TC_ACT_OK : drop(skb, w, reason);
		if (is_tunnel_packet(w)) {
			/* What it carries is judged by from_overlay(). From anybody but a node it is just UDP. */
			party_resolve(&w->src, &w->pkt.saddr);
			if (w->src.flags & PARTY_NODE)
				return TC_ACT_OK;
		}
		reason = unmasquerade(skb, w);
		if (reason)
			return drop(skb, w, reason);
	}
	return flow(skb, w);
}

/* Egress of the same devices. */
SEC("classifier")
int to_network(struct __sk_buff *skb)
{
	struct work *w;
	struct ethhdr *eth;
	int reason;

	if (is_answer(skb) || (skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_TUNNELLED)
		return TC_ACT_OK;
	w = work_begin(skb, SLUICE_OBS_TO_NETWORK, SLUICE_DIR_EGRESS);
	if (!w)
		return TC_ACT_SHOT;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return TC_ACT_SHOT;
	reason = parse(skb, &w->pkt, sizeof(*eth), eth->h_proto);
	if (reason == PARSE_NOT_IP)
		return TC_ACT_OK;
	if (reason)
		return drop(skb, w, reason);
	if (w->pkt.flags & PKT_NEIGHBOUR)
		return TC_ACT_OK;
	if (missed_proxy(skb))
		return drop(skb, w, SLUICE_DROP_PROXY_NOT_FOUND);
	if (is_proxys(skb)) {
		reason = proxy_sends(skb, w);
		if (reason != TC_ACT_OK)
			return reason;
		w->rewrite.flags = 0;
		w->reply = 0;
	}
	party_resolve(&w->src, &w->pkt.saddr);
	leaves_host(skb, w);
	if ((w->src.flags & PARTY_HOST) && node_needs(w))
		return TC_ACT_OK;
	if (w->src.flags & (PARTY_LOCAL | PARTY_HOST)) {
		reason = fragment_of_node(w);
		if (reason)
			return reason < SLUICE_FIRST_DROP_REASON ? TC_ACT_OK : drop(skb, w, reason);
	}
	if (w->src.flags & PARTY_LOCAL) {
		/* The address to masquerade with is the uplink's. */
		if (!is_uplink(skb))
			return TC_ACT_OK;
		reason = masquerade(skb, w);
		return reason ? drop(skb, w, reason) : TC_ACT_OK;
	}
	if ((skb->mark & SLUICE_MARK_MASK) == SLUICE_MARK_VERDICT || is_proxys(skb) ||
		!(w->src.flags & PARTY_HOST))
		return TC_ACT_OK;
	/* What it carries was judged as pods' traffic. To anybody but a node it is just UDP. */
	if (is_tunnel_packet(w)) {
		party_resolve(&w->dst, &w->pkt.daddr);
		if (w->dst.flags & PARTY_NODE)
			return TC_ACT_OK;
	}
	return flow(skb, w);
}

/* Ingress of the VXLAN device. */
SEC("classifier")
int from_overlay(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	struct work *w;
	struct ethhdr *eth;
	int reason;

	w = work_begin(skb, SLUICE_OBS_FROM_OVERLAY, SLUICE_DIR_INGRESS);
	if (!w)
		return TC_ACT_SHOT;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return drop(skb, w, SLUICE_DROP_INVALID_PACKET);
	reason = parse(skb, &w->pkt, sizeof(*eth), eth->h_proto);
	if (reason == PARSE_NOT_IP)
		return drop(skb, w, SLUICE_DROP_UNSUPPORTED_L3);
	if (reason)
		return drop(skb, w, reason);
	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		addr_from_v4(&w->tunnel_remote, bpf_htonl(key.remote_ipv4));
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		addr_copy4(&w->tunnel_remote, (struct sluice_addr *)key.remote_ipv6);
	} else {
		return drop(skb, w, SLUICE_DROP_INVALID_TUNNEL_SOURCE);
	}
	w->tunnel_id = key.tunnel_id;
	party_resolve(&w->src, &w->pkt.saddr);
	party_resolve(&w->dst, &w->pkt.daddr);
	return flow(skb, w);
}

/* Ingress of the loopback device: the node to itself, and what was turned to here. Everything else passes at the first
 * test. */
SEC("classifier")
int from_loopback(struct __sk_buff *skb)
{
	__u32 mark = skb->mark & SLUICE_MARK_MASK;
	struct work *w;
	struct ethhdr *eth;

	if (mark != SLUICE_MARK_TURNED && mark != SLUICE_MARK_PROXY_OUT)
		return TC_ACT_OK;
	w = work_begin(skb, SLUICE_OBS_TO_CONTAINER, SLUICE_DIR_INGRESS);
	if (!w)
		return TC_ACT_SHOT;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth || parse(skb, &w->pkt, sizeof(*eth), eth->h_proto))
		return drop(skb, w, SLUICE_DROP_INVALID_PACKET);
	return mark == SLUICE_MARK_TURNED ? turned(skb, w) : proxy_answers_node(skb, w);
}

/* The network namespace's lookup of listening sockets. */
SEC("sk_lookup")
int find_proxy(struct bpf_sk_lookup *ctx)
{
	return proxy_listens(ctx);
}

/* Run by user space on a ct_record: brings a connection from another table (src/datapath/connections.rs). Nobody else writes
 * sl_ct. TC_ACT_OK: done. TC_ACT_PIPE: it was there. */
SEC("classifier")
int keep_connection(struct __sk_buff *skb)
{
	__u32 zero = 0, expires, replace;
	struct work *w = bpf_map_lookup_elem(&sl_work, &zero);

	if (!w || bpf_skb_load_bytes(skb, offsetof(struct ct_record, key), &w->key, sizeof(w->key)) ||
		bpf_skb_load_bytes(skb, offsetof(struct ct_record, entry), &w->entry, sizeof(w->entry)) ||
		bpf_skb_load_bytes(skb, offsetof(struct ct_record, expires), &expires, sizeof(expires)) ||
		bpf_skb_load_bytes(skb, offsetof(struct ct_record, replace), &replace, sizeof(replace)))
		return TC_ACT_SHOT;
	w->now = now_seconds();
	if (!replace && ct_is_there(w))
		return TC_ACT_PIPE;
	return ct_store(w, expires) ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";

/* Nothing else names these structs in the object's BTF, which a test compares with src/datapath/abi.rs. */
const struct flow_event *sluice_btf_flow_event __attribute__((unused));
const struct ct_record *sluice_btf_ct_record __attribute__((unused));
