/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * What is known about the packet in hand. It lives in a per-CPU map because the 512 bytes of BPF stack
 * would not hold it. Programs of one CPU do not interrupt each other: both tc hooks run with bottom
 * halves off.
 */
#ifndef SLUICE_WORK_H
#define SLUICE_WORK_H

#include "addr.h"
#include "maps.h"

/* packet.flags */
#define PKT_V6 0x01u		   /* the header on the wire */
#define PKT_FRAGMENT 0x02u	   /* a piece of a datagram */
#define PKT_LATER 0x04u		   /* a fragment without the transport header */
#define PKT_ICMP_ERROR 0x08u   /* about the packet that it quotes */
#define PKT_TRACKED 0x10u	   /* gets a conntrack entry */
#define PKT_TYPED 0x20u		   /* ICMP: icmp_type stands where a port would */
#define PKT_PORTS 0x40u		   /* TCP, UDP, SCTP */
#define PKT_NEIGHBOUR 0x80u	   /* IPv6 neighbour discovery */

struct packet {
	struct sluice_addr saddr; /* after translation: what policy sees */
	struct sluice_addr daddr;
	__u32 length;	   /* bytes, Ethernet header included */
	__u32 fragment_id; /* host order of no meaning: a cookie */
	__u16 sport;	   /* host order; ICMP echo: the id in both */
	__u16 dport;
	__u16 l3_offset;
	__u16 l4_offset;
	__u16 fragment_offset; /* bytes */
	__u16 flags;		   /* PKT_* */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 ttl;
	__u8 pad;
	__u16 pad2;
	__u32 l3_end; /* where the datagram ends; padding may follow */
};

/* party.flags */
#define PARTY_LOCAL 0x01u  /* a pod of this node */
#define PARTY_HOST 0x02u   /* this node itself */
#define PARTY_REMOTE 0x04u /* a pod behind another node */
#define PARTY_NODE 0x08u   /* another node */
#define PARTY_CLUSTER 0x10u
#define PARTY_L3DEV 0x20u
#define PARTY_LEARNED 0x40u /* belongs to names of toFQDNs rules */
#define PARTY_KNOWN 0x80u	/* looked up */

/* One end of the packet. */
struct party {
	struct sluice_addr addr;
	struct sluice_addr tunnel_ep;
	__u32 ifindex;
	__u32 identity;
	__u32 flags; /* PARTY_* */
	__u32 epoch; /* of the policy, read before the policy is */
	__u16 policy_id;
	__u16 endpoint_id;
	__u8 mac[6];
	__u8 pad[2];
};

struct decision {
	__u32 action; /* SLUICE_ACTION_* */
	__u32 rule_set;
	__u16 policy_id;
	__u16 endpoint_id;
	__u8 direction;
	__u8 default_deny;
	__u8 audited; /* a deny that is only reported */
	__u8 by_name; /* a toFQDNs rule is among those that allow */
};

/* What will replace the addresses and ports on the wire. */
#define REWRITE_SRC 0x1u
#define REWRITE_DST 0x2u
#define REWRITE_ID 0x4u /* sport is the id of an ICMP echo message */
struct rewrite {
	struct sluice_addr saddr;
	struct sluice_addr daddr;
	__u32 flags;
	__u16 sport;
	__u16 dport;
};

/* Keys and values for lookups, too big for the stack. */
struct work {
	struct packet pkt;
	struct packet inner; /* quoted by an ICMP error */
	struct rewrite rewrite;
	struct ct_key key;
	struct party src;
	struct party dst;
	struct decision decision;
	struct ct_entry entry; /* to be stored */
	struct ct_entry found; /* copy of what is stored under `key`, without counts; see ct_find() */
	__u32 expires;		   /* of `found` */
	__u32 ct_index;		   /* where it is stored */
	__u32 ct_way;
	__u16 ct_tag;
	__u16 pad3;
	__u64 barrier;
	struct nat_key nat_key;
	struct nat_entry nat_entry;
	struct sluice_addr svc_addr; /* frontend that the client named, for events */
	struct sluice_addr tunnel_remote;
	__u32 tunnel_id;
	__u32 now;
	__u16 svc_port;
	__u16 ct_flags; /* to be set in a new conntrack entry */
	__u8 observation;
	__u8 direction; /* where this hook's drops and packets are counted */
	__u8 reply;
	__u8 from_lo;
	__u8 event_flags;
	__u8 inner_known; /* `inner` is filled in, and may be ahead of the wire */
	__u8 pad[2];
	struct sluice_addr ct_svc_addr; /* goes into a new conntrack entry with ct_flags */
	__u16 ct_svc_port;
	__u16 pad2;
	__u32 learned;	/* identity that the responder had by its names when the connection began, or 0 */
	__u32 redirect; /* SLUICE_ACTION_REDIRECT_*: what a policy of either side wants, or 0 */
	__u8 answer[96]; /* to a refused packet: IP header and what follows */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct work);
	__uint(max_entries, 1);
} sl_work SEC(".maps");

/* The scratch area, as good as empty. parse() fills in pkt. */
INLINE struct work *work_begin(struct __sk_buff *skb, __u8 observation, __u8 direction)
{
	__u32 zero = 0;
	struct work *w = bpf_map_lookup_elem(&sl_work, &zero);

	if (!w)
		return NULL;
	w->observation = observation;
	w->direction = direction;
	w->pkt.length = skb->len;
	/* A packet that is dropped before its addresses are read has none, not those of the last one. */
	((word64 *)&w->pkt.saddr)[0] = 0;
	((word64 *)&w->pkt.saddr)[1] = 0;
	((word64 *)&w->pkt.daddr)[0] = 0;
	((word64 *)&w->pkt.daddr)[1] = 0;
	w->pkt.flags = 0;
	w->pkt.sport = 0;
	w->pkt.dport = 0;
	w->pkt.protocol = 0;
	w->rewrite.flags = 0;
	w->src.flags = 0;
	w->src.identity = 0;
	w->src.endpoint_id = 0;
	w->dst.flags = 0;
	w->dst.identity = 0;
	w->dst.endpoint_id = 0;
	w->decision.action = 0;
	w->decision.rule_set = 0;
	*(word64 *)&w->decision.policy_id = 0;
	w->svc_port = 0;
	w->ct_flags = 0;
	w->reply = 0;
	w->event_flags = 0;
	w->inner_known = 0;
	w->learned = 0;
	w->redirect = 0;
	w->now = now_seconds();
	return w;
}

INLINE const struct node_config *node_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sl_config, &zero);
}

#endif
