/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Whose packet is it: the node's own, or one that it only forwards? User space lists addresses of the node in
 * sl_endpoints, but a node has traffic of others too: multicast and broadcast, link-local addresses, one that was
 * added a moment ago. While the host firewall is on, everything that the node's stack sends or would keep is
 * under the policy of the host, whatever its address. Exempt is what an interface needs before it has an address
 * at all: ARP and neighbour discovery, multicast listener discovery, and the DHCP client.
 */
#ifndef SLUICE_HOST_H
#define SLUICE_HOST_H

#include "ipcache.h"
#include "parse.h"

#define FIB_INET 2 /* AF_INET and AF_INET6, without their headers */
#define FIB_INET6 10

#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define DHCP6_CLIENT 546
#define DHCP6_SERVER 547

#define PARTY_PLACED (PARTY_LOCAL | PARTY_HOST | PARTY_REMOTE | PARTY_NODE)

/* Multicast, or the limited broadcast address. */
INLINE int is_group(const struct sluice_addr *a)
{
	if (addr_is_v4(a))
		return (a->b[12] & 0xf0) == 0xe0 || ((const word32 *)a)[3] == 0xffffffff;
	return a->b[0] == 0xff;
}

/* The party is under the host's policy. */
INLINE void party_is_host(struct party *party, const struct node_config *config)
{
	party->flags = PARTY_KNOWN | PARTY_HOST;
	party->policy_id = config->host_policy_id;
	party->endpoint_id = 0;
	party->ifindex = 0;
}

/* The node's stack made this packet: it came in by no device. */
INLINE int own_packet(const struct __sk_buff *skb)
{
	return !skb->ingress_ifindex;
}

/* Would the node's stack keep a packet to this address? What it would throw away counts as kept. */
GLOBAL int stack_keeps(struct __sk_buff *skb, struct work *w)
{
	struct bpf_fib_lookup fib = {};

	if (!w)
		return 1;
	if (is_group(&w->pkt.daddr))
		return 1;
	fib.ifindex = skb->ifindex;
	fib.l4_protocol = w->pkt.protocol;
	if (w->pkt.flags & PKT_V6) {
		fib.family = FIB_INET6;
		addr_copy4((struct sluice_addr *)fib.ipv6_src, &w->pkt.saddr);
		addr_copy4((struct sluice_addr *)fib.ipv6_dst, &w->pkt.daddr);
	} else {
		fib.family = FIB_INET;
		fib.ipv4_src = addr_to_v4(&w->pkt.saddr);
		fib.ipv4_dst = addr_to_v4(&w->pkt.daddr);
	}
	switch (bpf_fib_lookup(skb, &fib, sizeof(fib), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return 0;
	}
	return 1;
}

/* A node is deaf without these, so they are nobody's to refuse. */
INLINE int node_needs(const struct work *w)
{
	const struct packet *p = &w->pkt;

	if (p->flags & PKT_LATER)
		return 0;
	if (p->protocol == IPPROTO_ICMPV6) /* RFC 3810 section 5: never beyond the link */
		return p->ttl == 1 &&
			((p->icmp_type >= ICMPV6_MLD_QUERY && p->icmp_type <= ICMPV6_MLD_DONE) ||
			 p->icmp_type == ICMPV6_MLDV2_REPORT);
	if (p->protocol != IPPROTO_UDP)
		return 0;
	if (w->observation == SLUICE_OBS_TO_NETWORK)
		return p->flags & PKT_V6 ? p->sport == DHCP6_CLIENT && p->dport == DHCP6_SERVER :
								   p->sport == DHCP_CLIENT && p->dport == DHCP_SERVER;
	return p->flags & PKT_V6 ? p->sport == DHCP6_SERVER && p->dport == DHCP6_CLIENT :
							   p->sport == DHCP_SERVER && p->dport == DHCP_CLIENT;
}

INLINE int host_firewall_is_on(const struct node_config *config)
{
	return config && (config->flags & SLUICE_CFG_HOST_FIREWALL);
}

/* Ingress of a device of the node. The destination was looked up. */
INLINE void arrives_at_host(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();

	if (!host_firewall_is_on(config) || (w->dst.flags & PARTY_PLACED) || !stack_keeps(skb, w))
		return;
	party_is_host(&w->dst, config);
	w->dst.identity = SLUICE_ID_HOST;
}

/* Egress of a device of the node. The source was looked up. */
INLINE void leaves_host(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();

	if (!host_firewall_is_on(config) || (w->src.flags & (PARTY_LOCAL | PARTY_HOST)) || !own_packet(skb))
		return;
	party_is_host(&w->src, config);
	w->src.identity = SLUICE_ID_HOST;
}

/* Both parties were looked up by address; puts the one that is the host by circumstance under its policy. Called
 * for flows that are judged, never for known ones. */
INLINE void resolve_host(struct __sk_buff *skb, struct work *w, const struct node_config *config)
{
	switch (w->observation) {
	case SLUICE_OBS_TO_CONTAINER:
		/* An address of the cluster's ranges that nobody has is not the node's either: it stays unknown. */
		if (!(w->src.flags & (PARTY_PLACED | PARTY_CLUSTER)) && own_packet(skb)) {
			party_is_host(&w->src, config);
			w->src.identity = SLUICE_ID_HOST;
		}
		return;
	case SLUICE_OBS_FROM_CONTAINER:
		/* What the pod's policy thinks of the address stays: it may be a group that others hear too. */
		if (host_firewall_is_on(config) && !(w->dst.flags & PARTY_PLACED) && stack_keeps(skb, w))
			party_is_host(&w->dst, config);
		return;
	}
}

#endif
