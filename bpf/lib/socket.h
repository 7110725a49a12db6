/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Connected sockets of this network namespace that have a packet's tuple. One with the address of a pod is a
 * transparent proxy's.
 */
#ifndef SLUICE_SOCKET_H
#define SLUICE_SOCKET_H

#include "work.h"

INLINE __u32 socket_tuple(struct bpf_sock_tuple *tuple, const struct packet *p)
{
	if (p->flags & PKT_V6) {
		addr_copy4((struct sluice_addr *)tuple->ipv6.saddr, &p->saddr);
		addr_copy4((struct sluice_addr *)tuple->ipv6.daddr, &p->daddr);
		tuple->ipv6.sport = bpf_htons(p->sport);
		tuple->ipv6.dport = bpf_htons(p->dport);
		return sizeof(tuple->ipv6);
	}
	tuple->ipv4.saddr = addr_to_v4(&p->saddr);
	tuple->ipv4.daddr = addr_to_v4(&p->daddr);
	tuple->ipv4.sport = bpf_htons(p->sport);
	tuple->ipv4.dport = bpf_htons(p->dport);
	return sizeof(tuple->ipv4);
}

/* The socket of a connection, never one that only listens. Returns 1 when the packet was given to it. */
INLINE int assign_connected(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = socket_tuple(&tuple, p);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	int assigned = 0;

	if (!sk)
		return 0;
	if (sk->state != BPF_TCP_LISTEN)
		assigned = !bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	return assigned;
}

/* A proxy has a connection for this packet, or is about to. */
GLOBAL int proxy_has_connection(struct __sk_buff *skb, struct work *w)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	int connected;

	if (!w)
		return 0;
	sk = bpf_skc_lookup_tcp(skb, &tuple, socket_tuple(&tuple, &w->pkt), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	connected = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return connected;
}

#endif
