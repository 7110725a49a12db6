/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Tells the sender of a refused packet: a reset for TCP, otherwise an ICMP error ("administratively
 * prohibited", or "port unreachable" for a Service without backends). The packet itself becomes the
 * answer and goes back where it came from, in the name of the address that it was sent to.
 *
 * A packet whose life ends here (RFC 792, RFC 4443 section 3.3) is answered in the name of the node: it is a
 * hop, and traceroute shows it.
 *
 * Nobody answers resets, ICMP errors, fragments other than the first, and what was sent to many
 * (RFC 1122 section 3.2.2). ICMP errors are limited by device.
 */
#ifndef SLUICE_REJECT_H
#define SLUICE_REJECT_H

#include "deliver.h"
#include "event.h"
#include "parse.h"

#define ICMP_PORT_UNREACHABLE 3
#define ICMP_ADMIN_PROHIBITED 13
#define ICMPV6_ADMIN_PROHIBITED 1
#define ICMPV6_PORT_UNREACHABLE 4
#define ICMPV6_TIME_EXCEEDED 3

#define TCP_BYTES 20
#define ICMP_BYTES 8
#define QUOTED_V4 28 /* header and eight bytes */
#define QUOTED_V6 48
#define ANSWER_HOPS 64

/* A connection is reset, but not because of a packet that did not get through to its end. */
INLINE int is_reset(const struct work *w, __u32 reason)
{
	return w->pkt.protocol == IPPROTO_TCP && reason != SLUICE_DROP_TTL_EXCEEDED;
}

INLINE __sum16 fold(__s64 sum)
{
	__u32 folded = ((__u32)sum & 0xffff) + ((__u32)sum >> 16);

	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* Sum of the pseudo header of an answer (RFC 793, RFC 8200): addresses as on the wire, swapped or not. */
INLINE __s64 pseudo_sum(struct work *w, __u32 protocol, __u32 length)
{
	struct {
		__be32 length;
		__be32 protocol;
	} rest = {bpf_htonl(length), bpf_htonl(protocol)};
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)&rest, sizeof(rest), 0);

	if (w->pkt.flags & PKT_V6)
		return bpf_csum_diff(NULL, 0, (__be32 *)(w->answer + offsetof(struct ipv6hdr, saddr)), 32, sum);
	return bpf_csum_diff(NULL, 0, (__be32 *)(w->answer + offsetof(struct iphdr, saddr)), 8, sum);
}

/* RFC 9293 section 3.10.7.1. Writes TCP_BYTES at `to`. */
INLINE int answer_tcp(struct __sk_buff *skb, struct work *w, __u8 *to)
{
	__u8 tcp[TCP_BYTES];
	__u32 seq, ack, length;

	if (bpf_skb_load_bytes(skb, w->pkt.l4_offset, tcp, sizeof(tcp)))
		return 0;
	__builtin_memcpy(&seq, tcp + 4, 4);
	__builtin_memcpy(&ack, tcp + 8, 4);
	length = w->pkt.l3_end - w->pkt.l4_offset - (tcp[12] >> 4) * 4;
	if (w->pkt.tcp_flags & TCP_SYN)
		length++;
	if (w->pkt.tcp_flags & TCP_FIN)
		length++;
	__builtin_memset(to, 0, TCP_BYTES);
	to[0] = tcp[2];
	to[1] = tcp[3];
	to[2] = tcp[0];
	to[3] = tcp[1];
	to[12] = (TCP_BYTES / 4) << 4;
	if (w->pkt.tcp_flags & TCP_ACK) {
		__builtin_memcpy(to + 4, &ack, 4);
		to[13] = TCP_RST;
	} else {
		seq = bpf_htonl(bpf_ntohl(seq) + length);
		__builtin_memcpy(to + 8, &seq, 4);
		to[13] = TCP_RST | TCP_ACK;
	}
	*(word16 *)(to + 16) = fold(bpf_csum_diff(NULL, 0, (__be32 *)to, TCP_BYTES,
											  pseudo_sum(w, IPPROTO_TCP, TCP_BYTES)));
	return 1;
}

/* Builds the IPv4 answer in w->answer. Returns its length, or 0. */
INLINE __u32 answer_v4(struct __sk_buff *skb, struct work *w, __u32 reason)
{
	struct iphdr *ip = (void *)w->answer;
	__u8 *l4 = w->answer + sizeof(*ip);
	struct icmphdr *icmp = (void *)l4;
	__u32 length = sizeof(*ip) + ICMP_BYTES + QUOTED_V4;
	const struct node_config *config = node_config();
	int tcp = is_reset(w, reason);

	if (!config || bpf_skb_load_bytes(skb, w->pkt.l3_offset, l4 + ICMP_BYTES, QUOTED_V4))
		return 0;
	if (tcp)
		length = sizeof(*ip) + TCP_BYTES;
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(length);
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = ANSWER_HOPS;
	ip->protocol = tcp ? IPPROTO_TCP : IPPROTO_ICMP;
	ip->saddr = ((struct iphdr *)(l4 + ICMP_BYTES))->daddr;
	ip->daddr = ((struct iphdr *)(l4 + ICMP_BYTES))->saddr;
	if (reason == SLUICE_DROP_TTL_EXCEEDED)
		ip->saddr = addr_to_v4(&config->node_v4);
	ip->check = fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
	/* To many: 224.0.0.0/4 and broadcast; or from nobody; or a node without an address of the family. */
	if (w->answer[12] >= 224 || !ip->daddr || !ip->saddr)
		return 0;
	if (tcp)
		return answer_tcp(skb, w, l4) ? length : 0;
	icmp->type = reason == SLUICE_DROP_TTL_EXCEEDED ? ICMP_TIME_EXCEEDED : ICMP_DEST_UNREACH;
	icmp->code = reason == SLUICE_DROP_TTL_EXCEEDED	  ? 0 :
		reason == SLUICE_DROP_NO_SERVICE_BACKEND ? ICMP_PORT_UNREACHABLE :
												   ICMP_ADMIN_PROHIBITED;
	icmp->checksum = 0;
	*(word32 *)&icmp->id = 0;
	icmp->checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)l4, ICMP_BYTES + QUOTED_V4, 0));
	return length;
}

/* Builds the IPv6 answer in w->answer. Returns its length, or 0. */
INLINE __u32 answer_v6(struct __sk_buff *skb, struct work *w, __u32 reason)
{
	struct ipv6hdr *ip = (void *)w->answer;
	__u8 *l4 = w->answer + sizeof(*ip);
	struct icmphdr *icmp = (void *)l4;
	const struct node_config *config = node_config();
	int tcp = is_reset(w, reason);
	__u32 length = tcp ? TCP_BYTES : ICMP_BYTES + QUOTED_V6;

	if (!config || bpf_skb_load_bytes(skb, w->pkt.l3_offset, l4 + ICMP_BYTES, QUOTED_V6))
		return 0;
	__builtin_memset(ip, 0, 8);
	ip->version = 6;
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = tcp ? IPPROTO_TCP : IPPROTO_ICMPV6;
	ip->hop_limit = ANSWER_HOPS;
	addr_copy4((struct sluice_addr *)&ip->saddr,
			   (struct sluice_addr *)&((struct ipv6hdr *)(l4 + ICMP_BYTES))->daddr);
	addr_copy4((struct sluice_addr *)&ip->daddr,
			   (struct sluice_addr *)&((struct ipv6hdr *)(l4 + ICMP_BYTES))->saddr);
	if (reason == SLUICE_DROP_TTL_EXCEEDED)
		addr_copy4((struct sluice_addr *)&ip->saddr, &config->node_v6);
	if (w->answer[offsetof(struct ipv6hdr, saddr)] == 0xff ||
		addr_is_zero((struct sluice_addr *)&ip->daddr) || addr_is_zero((struct sluice_addr *)&ip->saddr))
		return 0;
	if (tcp)
		return answer_tcp(skb, w, l4) ? sizeof(*ip) + length : 0;
	icmp->type = reason == SLUICE_DROP_TTL_EXCEEDED ? ICMPV6_TIME_EXCEEDED : ICMPV6_DEST_UNREACH;
	icmp->code = reason == SLUICE_DROP_TTL_EXCEEDED	  ? 0 :
		reason == SLUICE_DROP_NO_SERVICE_BACKEND ? ICMPV6_PORT_UNREACHABLE :
												   ICMPV6_ADMIN_PROHIBITED;
	icmp->checksum = 0;
	*(word32 *)&icmp->id = 0;
	icmp->checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)l4, ICMP_BYTES + QUOTED_V6,
										pseudo_sum(w, IPPROTO_ICMPV6, ICMP_BYTES + QUOTED_V6)));
	return sizeof(*ip) + length;
}

/* Replaces the packet by w->answer. Returns 1 on success. */
INLINE int answer_write(struct __sk_buff *skb, struct work *w, __u32 length)
{
	struct ethhdr *eth;
	__u8 mac[6];

	if (bpf_skb_change_tail(skb, w->pkt.l3_offset + length, 0))
		return 0;
	switch (length) {
	case sizeof(struct iphdr) + TCP_BYTES:
		if (bpf_skb_store_bytes(skb, w->pkt.l3_offset, w->answer, sizeof(struct iphdr) + TCP_BYTES, 0))
			return 0;
		break;
	case sizeof(struct iphdr) + ICMP_BYTES + QUOTED_V4:
		if (bpf_skb_store_bytes(skb, w->pkt.l3_offset, w->answer,
								sizeof(struct iphdr) + ICMP_BYTES + QUOTED_V4, 0))
			return 0;
		break;
	case sizeof(struct ipv6hdr) + TCP_BYTES:
		if (bpf_skb_store_bytes(skb, w->pkt.l3_offset, w->answer, sizeof(struct ipv6hdr) + TCP_BYTES,
								0))
			return 0;
		break;
	default:
		if (bpf_skb_store_bytes(skb, w->pkt.l3_offset, w->answer,
								sizeof(struct ipv6hdr) + ICMP_BYTES + QUOTED_V6, 0))
			return 0;
	}
	/* In the tunnel both directions have the same addresses, see deliver_tunnel(). */
	if (!w->pkt.l3_offset || w->observation == SLUICE_OBS_FROM_OVERLAY)
		return 1;
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return 0;
	mac_copy(mac, eth->h_source);
	mac_copy(eth->h_source, eth->h_dest);
	mac_copy(eth->h_dest, mac);
	return 1;
}

/* Sends the answer back. The mark lets it pass the programs that it meets on its way. */
INLINE int answer_send(struct __sk_buff *skb, struct work *w)
{
	set_mark(skb, SLUICE_MARK_ANSWER);
	switch (w->observation) {
	case SLUICE_OBS_TO_CONTAINER:
	case SLUICE_OBS_TO_NETWORK:
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS); /* our own stack sent it */
	case SLUICE_OBS_FROM_OVERLAY:
		w->tunnel_id = w->dst.identity;
		if (!tunnel_to(skb, w, &w->tunnel_remote))
			return TC_ACT_SHOT;
		break;
	}
	return bpf_redirect(skb->ifindex, 0);
}

INLINE int answerable(const struct work *w, const struct node_config *config, __u32 reason)
{
	if (reason != SLUICE_DROP_NO_SERVICE_BACKEND && reason != SLUICE_DROP_TTL_EXCEEDED &&
		!((config->flags & SLUICE_CFG_REJECT) &&
		  (reason == SLUICE_DROP_POLICY_DENIED || reason == SLUICE_DROP_POLICY_DENY)))
		return 0;
	return !(w->pkt.flags & (PKT_ICMP_ERROR | PKT_LATER | PKT_NEIGHBOUR)) &&
		!(w->pkt.protocol == IPPROTO_TCP && (w->pkt.tcp_flags & TCP_RST));
}

/* A drop of which the sender may be told. */
GLOBAL int refuse(struct __sk_buff *skb, struct work *w, __u32 reason)
{
	const struct node_config *config = node_config();
	__u32 length;

	if (!w || !config)
		return TC_ACT_SHOT;
	if (!answerable(w, config, reason))
		return drop(skb, w, reason);
	if (!is_reset(w, reason) &&
		!allowance_take(skb->ifindex, SLUICE_ALLOW_ICMP, w->now, SLUICE_ICMP_PER_SECOND))
		return drop(skb, w, reason);
	length = w->pkt.flags & PKT_V6 ? answer_v6(skb, w, reason) : answer_v4(skb, w, reason);
	if (!length || !answer_write(skb, w, length))
		return drop(skb, w, reason);
	w->event_flags |= SLUICE_EVF_REJECTED;
	drop(skb, w, reason);
	return answer_send(skb, w);
}

#endif
