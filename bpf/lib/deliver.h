/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The way out, once the verdict is "pass": into a local pod, into the tunnel, or up to the node's own
 * stack.
 */
#ifndef SLUICE_DELIVER_H
#define SLUICE_DELIVER_H

#include "event.h"
#include "parse.h"

INLINE void set_mark(struct __sk_buff *skb, __u32 mark)
{
	skb->mark = (skb->mark & ~SLUICE_MARK_MASK) | mark;
}

/* Both sides were judged: no program that meets the packet later in this node does it again. */
INLINE int to_stack(struct __sk_buff *skb)
{
	set_mark(skb, SLUICE_MARK_VERDICT);
	/* The sender may have addressed the gateway by a MAC that the device does not have. */
	if (skb->pkt_type == PACKET_OTHERHOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return TC_ACT_OK;
}

/* A router's duty on a packet that leaves by another device. That its life is over is noticed before, in forward(),
 * where the sender can still be told; here it is the last line. Returns 0 or a drop reason. */
INLINE int decrement_ttl(struct __sk_buff *skb, const struct packet *p)
{
	if (p->flags & PKT_V6) {
		struct ipv6hdr *ip6 = header(skb, p->l3_offset, sizeof(*ip6));

		if (!ip6)
			return SLUICE_DROP_INVALID_PACKET;
		if (ip6->hop_limit <= 1)
			return SLUICE_DROP_TTL_EXCEEDED;
		ip6->hop_limit -= 1;
	} else {
		struct iphdr *ip = header(skb, p->l3_offset, sizeof(*ip));
		__u32 check;

		if (!ip)
			return SLUICE_DROP_INVALID_PACKET;
		if (ip->ttl <= 1)
			return SLUICE_DROP_TTL_EXCEEDED;
		ip->ttl -= 1;
		check = ip->check + bpf_htons(0x0100); /* RFC 1624 */
		ip->check = check + (check >= 0xffff);
	}
	return 0;
}

INLINE int set_macs(struct __sk_buff *skb, const __u8 *source, const __u8 *destination)
{
	struct ethhdr *eth = header(skb, 0, sizeof(*eth));

	if (!eth)
		return SLUICE_DROP_INVALID_PACKET;
	mac_copy(eth->h_source, source);
	mac_copy(eth->h_dest, destination);
	return 0;
}

/* Into the pod behind `ifindex`. A device without Ethernet header has the zero address; packets between
 * the two kinds of devices go through the stack, which knows how to. */
INLINE int deliver_local(struct __sk_buff *skb, struct work *w, const struct node_config *config,
						 __u32 ifindex, const __u8 *mac)
{
	int reason;

	if (unlikely((w->pkt.l3_offset == 0) != mac_is_zero(mac)))
		return to_stack(skb);
	reason = decrement_ttl(skb, &w->pkt);
	if (!reason && w->pkt.l3_offset)
		reason = set_macs(skb, config->router_mac, mac);
	if (unlikely(reason))
		return drop(skb, w, reason);
	if (config->flags & SLUICE_CFG_REDIRECT_PEER) {
		if (skb->mark & SLUICE_MARK_MASK)
			set_mark(skb, 0);
		return bpf_redirect_peer(ifindex, 0);
	}
	set_mark(skb, SLUICE_MARK_VERDICT);
	return bpf_redirect(ifindex, 0);
}

/* Says which node the packet goes to, once it is redirected to the tunnel's device. The tunnel id carries
 * the source identity as a hint for a node that does not know the address yet; it proves nothing. Returns 1
 * on success. */
INLINE int tunnel_to(struct __sk_buff *skb, struct work *w, const struct sluice_addr *remote)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	key.tunnel_id = w->tunnel_id;
	key.tunnel_ttl = 64;
	if (addr_is_v4(remote)) {
		key.remote_ipv4 = bpf_ntohl(addr_to_v4(remote));
	} else {
		addr_copy4((struct sluice_addr *)key.remote_ipv6, remote);
		flags = BPF_F_TUNINFO_IPV6;
	}
	return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

/* To the node that the destination is behind. */
GLOBAL int deliver_tunnel(struct __sk_buff *skb, struct work *w, const struct sluice_addr *remote)
{
	const struct node_config *config = node_config();
	__u8 source[6];
	int reason;

	if (!w || !remote || !config)
		return TC_ACT_SHOT;
	if (addr_is_zero(remote) || !config->tunnel_ifindex)
		return drop(skb, w, SLUICE_DROP_NO_TUNNEL_ENDPOINT);
	if (!w->pkt.l3_offset) /* VXLAN carries Ethernet */
		return drop(skb, w, SLUICE_DROP_UNROUTABLE);
	/* Every node's VXLAN device has the router's address, and a frame that comes from its own address is a loop to
	 * it (vxlan_set_mac): the sender is another. */
	mac_copy(source, config->router_mac);
	source[5] ^= 1;
	/* What the node's stack sends has left a router already, or begins its way here. */
	reason = w->observation == SLUICE_OBS_TO_NETWORK ? 0 : decrement_ttl(skb, &w->pkt);
	if (!reason)
		reason = set_macs(skb, source, config->router_mac);
	if (reason)
		return drop(skb, w, reason);
	if (!tunnel_to(skb, w, remote))
		return drop(skb, w, SLUICE_DROP_NO_TUNNEL_ENDPOINT);
	/* The kernel keeps the mark on the packet that carries this one (iptunnel_xmit, within a network namespace): the
	 * uplink does not look at that again. */
	set_mark(skb, SLUICE_MARK_TUNNELLED);
	return bpf_redirect(config->tunnel_ifindex, 0);
}

#endif
