/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * ARP and IPv6 neighbour discovery of pods. A pod may speak for its own addresses only. Whatever it asks
 * for, it is told the router's MAC: its only neighbour is the gateway.
 */
#ifndef SLUICE_NEIGHBOUR_H
#define SLUICE_NEIGHBOUR_H

#include "parse.h"
#include "work.h"

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

#define ARP_REQUEST 1

/* The address is one of the pod behind this device. */
INLINE const struct endpoint_info *own_address(struct __sk_buff *skb, const struct sluice_addr *addr)
{
	const struct endpoint_info *ep = bpf_map_lookup_elem(&sl_endpoints, addr);

	if (!ep || ep->ifindex != skb->ifindex || (ep->flags & SLUICE_EP_HOST))
		return NULL;
	return ep;
}

/* Returns an action, or a drop reason (which is never a small number). */
GLOBAL int neighbour_arp(struct __sk_buff *skb)
{
	const struct node_config *config = node_config();
	struct ethhdr *eth = header(skb, 0, sizeof(struct ethhdr) + sizeof(struct arp_ipv4));
	const struct endpoint_info *ep;
	struct sluice_addr sender;
	struct arp_ipv4 *arp;
	__u32 sender_ip, target_ip;

	if (!config || !eth)
		return SLUICE_DROP_INVALID_PACKET;
	arp = (void *)(eth + 1);
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) ||
		arp->hardware_length != 6 || arp->protocol_length != 4)
		return SLUICE_DROP_INVALID_PACKET;
	if (!mac_equal(eth->h_source, arp->sender_mac))
		return SLUICE_DROP_INVALID_SOURCE_MAC;
	__builtin_memcpy(&sender_ip, arp->sender_ip, 4);
	__builtin_memcpy(&target_ip, arp->target_ip, 4);
	/* A probe for a duplicate address claims nothing yet (RFC 5227); nobody else is on the link. */
	if (sender_ip == 0)
		return TC_ACT_OK;
	addr_from_v4(&sender, sender_ip);
	ep = own_address(skb, &sender);
	if (!ep)
		return SLUICE_DROP_INVALID_SOURCE_IP;
	if (!mac_equal(ep->mac, arp->sender_mac))
		return SLUICE_DROP_INVALID_SOURCE_MAC;
	if (arp->operation != bpf_htons(ARP_REQUEST) || sender_ip == target_ip)
		return TC_ACT_OK;
	mac_copy(eth->h_dest, eth->h_source);
	mac_copy(eth->h_source, config->router_mac);
	arp->operation = bpf_htons(2);
	mac_copy(arp->target_mac, arp->sender_mac);
	__builtin_memcpy(arp->target_ip, &sender_ip, 4);
	mac_copy(arp->sender_mac, config->router_mac);
	__builtin_memcpy(arp->sender_ip, &target_ip, 4);
	return bpf_redirect(skb->ifindex, 0);
}

struct nd_message { /* RFC 4861 sections 4.3 and 4.4 */
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 flags;
	struct sluice_addr target;
	__u8 option_type; /* link-layer address: solicitations to one host may leave it out */
	__u8 option_length;
	__u8 option_mac[6];
} __attribute__((packed));

#define ND_BARE 24 /* without the option */
#define ND_SOURCE_ADDRESS 1
#define ND_TARGET_ADDRESS 2
#define ND_ROUTER_SOLICITED_OVERRIDE 0xe0000000u

INLINE int is_gateway_v6(const struct sluice_addr *a) /* fe80::1 */
{
	return ((const word64 *)a)[0] == bpf_cpu_to_be64(0xfe80000000000000ull) &&
		((const word64 *)a)[1] == bpf_cpu_to_be64(1);
}

/* Link-local addresses are the pod's to choose, but not the gateway's. */
INLINE int may_claim(struct __sk_buff *skb, const struct sluice_addr *a)
{
	return own_address(skb, a) || (addr_is_link_local_v6(a) && !is_gateway_v6(a));
}

/* The sum that the ICMPv6 checksum starts from (RFC 8200 section 8.1). */
struct nd_pseudo {
	struct sluice_addr saddr;
	struct sluice_addr daddr;
	__be32 length;
	__be32 next;
};

INLINE __sum16 nd_checksum(const struct nd_pseudo *pseudo, const struct nd_message *nd, __u32 size)
{
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)pseudo, sizeof(*pseudo), 0);
	__u32 folded;

	sum = bpf_csum_diff(NULL, 0, (__be32 *)nd, size, sum);
	folded = ((__u32)sum & 0xffff) + ((__u32)sum >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* Answers a solicitation: whatever the target, it is behind the router. */
INLINE int nd_answer(struct __sk_buff *skb, struct work *w, const struct node_config *config,
					 struct nd_message *nd, __u32 size)
{
	struct nd_pseudo pseudo = {};
	struct ethhdr *eth;
	struct ipv6hdr *ip;

	nd->type = ICMPV6_NEIGHBOUR_ADVERT;
	nd->check = 0;
	nd->flags = bpf_htonl(ND_ROUTER_SOLICITED_OVERRIDE);
	addr_copy4(&pseudo.saddr, &nd->target);
	addr_copy4(&pseudo.daddr, &w->pkt.saddr);
	pseudo.length = bpf_htonl(size);
	pseudo.next = bpf_htonl(IPPROTO_ICMPV6);
	if (size == sizeof(*nd)) {
		nd->option_type = ND_TARGET_ADDRESS;
		mac_copy(nd->option_mac, config->router_mac);
		nd->check = nd_checksum(&pseudo, nd, sizeof(*nd));
	} else {
		nd->check = nd_checksum(&pseudo, nd, ND_BARE);
	}
	if (bpf_skb_store_bytes(skb, w->pkt.l4_offset, nd, ND_BARE, 0))
		return SLUICE_DROP_INVALID_PACKET;
	if (size == sizeof(*nd) && bpf_skb_store_bytes(skb, w->pkt.l4_offset, nd, sizeof(*nd), 0))
		return SLUICE_DROP_INVALID_PACKET;
	eth = header(skb, 0, sizeof(*eth) + sizeof(*ip));
	if (!eth)
		return SLUICE_DROP_INVALID_PACKET;
	mac_copy(eth->h_dest, eth->h_source);
	mac_copy(eth->h_source, config->router_mac);
	ip = (void *)(eth + 1);
	addr_copy4((struct sluice_addr *)&ip->saddr, &pseudo.saddr);
	addr_copy4((struct sluice_addr *)&ip->daddr, &pseudo.daddr);
	return bpf_redirect(skb->ifindex, 0);
}

/* Neighbour solicitation and advertisement of a pod. Router solicitations find no router, and redirects and
 * router advertisements are not a pod's to send. Returns an action or a drop reason. */
GLOBAL int neighbour_nd(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct nd_message nd = {};
	struct sluice_addr target;
	__u32 size;

	if (!config || !w)
		return SLUICE_DROP_INTERNAL;
	if (!w->pkt.l3_offset || w->pkt.ttl != 255 || w->pkt.icmp_code ||
		w->pkt.l4_offset != sizeof(struct ethhdr) + sizeof(struct ipv6hdr))
		return SLUICE_DROP_INVALID_PACKET;
	if (w->pkt.icmp_type != ICMPV6_NEIGHBOUR_SOLICIT && w->pkt.icmp_type != ICMPV6_NEIGHBOUR_ADVERT)
		return SLUICE_DROP_INVALID_PACKET;
	if (w->pkt.l3_end < w->pkt.l4_offset + ND_BARE ||
		bpf_skb_load_bytes(skb, w->pkt.l4_offset, &nd, ND_BARE))
		return SLUICE_DROP_CT_TRUNCATED;
	addr_copy4(&target, &nd.target);
	if (!addr_is_zero(&w->pkt.saddr) && !may_claim(skb, &w->pkt.saddr))
		return SLUICE_DROP_INVALID_SOURCE_IP;
	if (w->pkt.icmp_type == ICMPV6_NEIGHBOUR_ADVERT)
		return !addr_is_zero(&w->pkt.saddr) && may_claim(skb, &target) ?
			TC_ACT_OK :
			SLUICE_DROP_INVALID_SOURCE_IP;
	/* Duplicate address detection (RFC 4862): silence is the answer that the pod wants. */
	if (addr_is_zero(&w->pkt.saddr))
		return TC_ACT_OK;
	size = ND_BARE;
	if (w->pkt.l3_end == w->pkt.l4_offset + sizeof(nd)) {
		if (bpf_skb_load_bytes(skb, w->pkt.l4_offset, &nd, sizeof(nd)))
			return SLUICE_DROP_CT_TRUNCATED;
		size = sizeof(nd);
	} else if (w->pkt.l3_end != w->pkt.l4_offset + ND_BARE) {
		return TC_ACT_OK; /* other options: the stack may answer */
	}
	return nd_answer(skb, w, config, &nd, size);
}

#endif
