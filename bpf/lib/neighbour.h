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

struct nd_message { /* RFC 4861 sections 4.3 and 4.4, with the link-layer address option */
	struct ipv6hdr ip;
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 flags;
	struct sluice_addr target;
	__u8 option_type;
	__u8 option_length;
	__u8 option_mac[6];
} __attribute__((packed));

/* Neighbour solicitation and advertisement of a pod; router solicitations find no router, and redirects
 * and router advertisements are not a pod's to send. */
GLOBAL int neighbour_nd(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct nd_message *nd;
	struct ethhdr *eth;
	__u32 size = sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + 24;
	struct sluice_addr source, target;
	__u8 type;

	if (!config || !w)
		return SLUICE_DROP_INTERNAL;
	if (!w->pkt.l3_offset || w->pkt.ttl != 255 || w->pkt.icmp_code ||
		w->pkt.l4_offset != sizeof(struct ethhdr) + sizeof(struct ipv6hdr))
		return SLUICE_DROP_INVALID_PACKET;
	type = w->pkt.icmp_type;
	if (type != ICMPV6_NEIGHBOUR_SOLICIT && type != ICMPV6_NEIGHBOUR_ADVERT)
		return SLUICE_DROP_INVALID_PACKET;
	eth = header(skb, 0, size);
	if (!eth)
		return SLUICE_DROP_CT_TRUNCATED;
	nd = (void *)(eth + 1);
	addr_copy4(&source, &w->pkt.saddr);
	addr_copy4(&target, &nd->target);
	/* Link-local addresses are the pod's to choose, but fe80::1 is the gateway's. */
	if (!addr_is_zero(&source) && !own_address(skb, &source) &&
		(!addr_is_link_local_v6(&source) ||
		 (((word64 *)&source)[0] == bpf_cpu_to_be64(0xfe80000000000000ull) &&
		  ((word64 *)&source)[1] == bpf_cpu_to_be64(1))))
		return SLUICE_DROP_INVALID_SOURCE_IP;
	if (type == ICMPV6_NEIGHBOUR_ADVERT) {
		if (addr_is_zero(&source))
			return SLUICE_DROP_INVALID_SOURCE_IP;
		if (!own_address(skb, &target) && !addr_equal(&source, &target))
			return SLUICE_DROP_INVALID_SOURCE_IP;
		return TC_ACT_OK;
	}
	/* Duplicate address detection: silence is the answer that the pod wants. */
	if (addr_is_zero(&source))
		return TC_ACT_OK;
	return TC_ACT_OK;
}

#endif
