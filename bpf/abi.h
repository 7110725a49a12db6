/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The one home of everything that the kernel side and the Rust side both see: constants, enums
 * and structs. build.rs turns the SLUICE_* constants and the drop reasons into Rust;
 * src/datapath/abi.rs mirrors the structs, and a test compares both with the BTF of the object.
 *
 * Rules of the house
 *  - Explicit padding, no implicit holes, no bit fields, no pointers.
 *  - Addresses are 16 bytes in network order; IPv4 is stored IPv4-mapped (::ffff:a.b.c.d), so that
 *    there is one code path for both families. Prefix lengths of IPv4 are 96 + n.
 *  - Ports are host order unless the name ends in _be.
 *  - Any change of a struct that a pinned map holds increments SLUICE_ABI_VERSION, which is part
 *    of the pin path: two versions never share a map.
 */
#ifndef SLUICE_ABI_H
#define SLUICE_ABI_H

#include <linux/types.h>

#define SLUICE_ABI_VERSION 5

/* ---- sizes -------------------------------------------------------------------------------- */
#define SLUICE_MAX_POLICIES 16384	 /* policy_id < this; one per local subject identity */
#define SLUICE_MAX_POLICY_ENTRIES 1048576
#define SLUICE_MAX_PORT_CLASSES 262144
#define SLUICE_MAX_ADDR_CLASSES 131072
#define SLUICE_MAX_IPCACHE_EXACT 262144
#define SLUICE_MAX_IPCACHE_LPM 131072
#define SLUICE_MAX_ENDPOINTS 4096
#define SLUICE_MAX_CT 262144
#define SLUICE_MAX_SERVICES 65536
#define SLUICE_MAX_BACKENDS 262144
#define SLUICE_MAX_AFFINITY 65536
#define SLUICE_MAX_FRAGS 16384
#define SLUICE_MAX_NAT 131072
#define SLUICE_MAX_RULE_SETS 262144
#define SLUICE_EVENTS_BYTES 8388608
#define SLUICE_MAX_DROP_TUPLES 65536
#define SLUICE_MAX_ALLOWANCES 8192
#define SLUICE_MAX_DNS_PAIRS 16384
#define SLUICE_IDENTITY_WORDS 1024 /* sl_identities: ARRAY of __u64: which of the identities below 65536 policies know, one bit each */
/* sl_proxy_listeners: SOCKMAP; {HTTP, TLS, DNS/TCP, DNS/UDP} x {IPv4, IPv6}, then the sockets by which DNS proxies hear
 * of their queries' replies: one each for processes that live at the same time, x {IPv4, IPv6}. */
#define SLUICE_PROXY_PLACES 24
#define SLUICE_PROXY_REPLIES 8
#define SLUICE_PROXY_REPLY_BITS 3 /* 8 places for each family */

/* ---- well-known identities ------------------------------------------------------------------ */
#define SLUICE_ID_UNKNOWN 0
#define SLUICE_ID_HOST 1
#define SLUICE_ID_WORLD 2
#define SLUICE_ID_REMOTE_NODE 6
#define SLUICE_ID_WORLD_IPV4 9
#define SLUICE_ID_WORLD_IPV6 10

/* ---- groups of identities --------------------------------------------------------------------
 * A policy key whose identity is one of these is for everybody of a scope; the number of an identity
 * and the family of the peer's address say in which group it is. src/model/identity_group.rs has the
 * same numbers. */
#define SLUICE_GROUP_PODS 0x4000000u	   /* 256..65535 */
#define SLUICE_GROUP_REMOTE_NODES 0x4000001u /* 2<<24.. */
#define SLUICE_GROUP_WORLD_IPV4 0x4000002u   /* 1<<24.., CIDR and FQDN identities */
#define SLUICE_GROUP_WORLD_IPV6 0x4000003u
#define SLUICE_GROUP_ADDRESSES_IPV4 0x4000004u /* 3<<24.., address classes */
#define SLUICE_GROUP_ADDRESSES_IPV6 0x4000005u

/* ---- directions, actions, slots -------------------------------------------------------------- */
#define SLUICE_DIR_EGRESS 0
#define SLUICE_DIR_INGRESS 1

#define SLUICE_ACTION_NONE 0	  /* slot is empty */
#define SLUICE_ACTION_ALLOW 1
#define SLUICE_ACTION_DENY 2
#define SLUICE_ACTION_PASS 3	  /* no verdict here: admin slot, go on with the normal slot; baseline, with the default */
#define SLUICE_ACTION_REDIRECT_HTTP 4
#define SLUICE_ACTION_REDIRECT_DNS 5
#define SLUICE_ACTION_REDIRECT_TLS 6
#define SLUICE_ACTION_MASK 0xffu
/* policy_slot.action | this: a toFQDNs rule is among the rules, so what they allow may outlive the answer. */
#define SLUICE_ACTION_BY_NAME 0x100u

/* Port classes: the port member of a policy key (see policy_key). */
#define SLUICE_PORT_ANY 0u
#define SLUICE_PORT_EXACT 0x10000u	  /* | destination port, or ICMP type */
#define SLUICE_PORT_CLASS 0x80000000u /* | n: a set of ports that the same ranges cover */

/* policy_info.flags[dir]: what a lookup may skip. A clear bit promises that no such key exists. */
#define SLUICE_PF_DEFAULT_DENY 0x0001u /* no entry matched: drop */
#define SLUICE_PF_ID_EXACT 0x0002u	   /* keys (identity, proto, port)   */
#define SLUICE_PF_ID_PROTO 0x0004u	   /* keys (identity, proto, any)    */
#define SLUICE_PF_ID_ANY 0x0008u	   /* keys (identity, any, any)      */
#define SLUICE_PF_ANY_EXACT 0x0010u	   /* keys (any, proto, port)        */
#define SLUICE_PF_ANY_PROTO 0x0020u	   /* keys (any, proto, any)         */
#define SLUICE_PF_ANY_ANY 0x0040u	   /* keys (any, any, any)           */
#define SLUICE_PF_RANGES 0x0080u	   /* consult the port class trie    */
#define SLUICE_PF_ADDR_CLASS 0x0100u   /* consult the address class trie */
#define SLUICE_PF_ENFORCED 0x0200u	   /* the direction has entries or default deny at all */
#define SLUICE_PF_AUDIT 0x0400u		   /* denies are reported, not enforced */
#define SLUICE_PF_GROUP_EXACT 0x0800u  /* keys (group, proto, port)       */
#define SLUICE_PF_GROUP_PROTO 0x1000u  /* keys (group, proto, any)        */
#define SLUICE_PF_GROUP_ANY 0x2000u	   /* keys (group, any, any)          */

/* endpoint_info.flags */
#define SLUICE_EP_HOST 0x0001u	 /* address of the local node itself */
#define SLUICE_EP_L3DEV 0x0002u /* no Ethernet header on the device */

/* ipcache_entry.flags */
#define SLUICE_IPC_REMOTE 0x01u /* a pod behind tunnel_ep */
#define SLUICE_IPC_NODE 0x02u	  /* a node's own address */
#define SLUICE_IPC_CLUSTER 0x04u /* inside the cluster's ranges: never masqueraded, never world */
#define SLUICE_IPC_LEARNED 0x08u /* an address of the world that belongs to names which toFQDNs rules mean */

/* node_config.flags */
#define SLUICE_CFG_TUNNEL 0x0001u		 /* other nodes over VXLAN, else plain routes */
#define SLUICE_CFG_MASQUERADE_V4 0x0002u
#define SLUICE_CFG_MASQUERADE_V6 0x0004u
#define SLUICE_CFG_HOST_FIREWALL 0x0008u /* the one switch that turns the host policy on */
#define SLUICE_CFG_REJECT 0x0010u		 /* denied: TCP RST / ICMP admin prohibited, else silence */
#define SLUICE_CFG_TRACE 0x0020u		 /* events for forwarded flows too, not only for drops */
#define SLUICE_CFG_PROXY 0x0040u		 /* a proxy listens; else redirects drop */
#define SLUICE_CFG_REDIRECT_PEER 0x0080u /* local delivery by bpf_redirect_peer */

/* Packet marks in the node's network namespace. */
#define SLUICE_MARK_MASK 0x0f00u
#define SLUICE_MARK_TURNED 0x0100u	   /* the node's own packet to a pod, on its way to a proxy */
#define SLUICE_MARK_PROXY 0x0200u	   /* deliver to a local (transparent) socket */
#define SLUICE_MARK_PROXY_OUT 0x0300u  /* sent by a proxy: identity of the client is in sl_ct */
#define SLUICE_MARK_VERDICT 0x0400u	   /* policy of both sides is done; do not judge again */
#define SLUICE_MARK_ANSWER 0x0500u	   /* our own answer to a refused packet, on its way back */
#define SLUICE_MARK_PROXY_ASKS 0x0600u /* a query of a DNS proxy, in a datagram */
#define SLUICE_MARK_TUNNELLED 0x0700u /* for another node: judged, and carried by the tunnel from here on */

/* ---- drop reasons ------------------------------------------------------------------------------
 * The only list. X(number, name, text). Numbers 130.. are those that Cilium's monitor and Hubble
 * use for the same reason, so that dashboards keep their meaning; 200.. are ours. build.rs reads
 * these lines; keep one reason a line.
 */
#define SLUICE_DROP_REASONS(X) \
	X(130, INVALID_SOURCE_MAC, "Invalid source mac") \
	X(132, INVALID_SOURCE_IP, "Invalid source ip") \
	X(133, POLICY_DENIED, "Policy denied") \
	X(134, INVALID_PACKET, "Invalid packet") \
	X(135, CT_TRUNCATED, "CT: Truncated or invalid header") \
	X(136, FRAG_NEEDED, "Fragmentation needed") \
	X(137, CT_UNKNOWN_PROTO, "CT: Unknown L4 protocol") \
	X(140, UNSUPPORTED_L3, "Unsupported L3 protocol") \
	X(142, UNKNOWN_L4, "Unknown L4 protocol") \
	X(150, UNROUTABLE, "Unroutable packet") \
	X(155, CT_FULL, "CT: Map insertion failed") \
	X(156, INVALID_EXTENSION_HEADER, "Invalid IPv6 extension header") \
	X(157, FRAG_UNSUPPORTED, "IP fragmentation not supported") \
	X(158, NO_SERVICE_BACKEND, "Service backend not found") \
	X(160, NO_TUNNEL_ENDPOINT, "No tunnel/encapsulation endpoint (datapath BUG!)") \
	X(166, NAT_NO_MAPPING, "No mapping for NAT masquerade") \
	X(167, NAT_UNSUPPORTED_PROTO, "Unsupported protocol for NAT masquerade") \
	X(169, FIB_FAILED, "FIB lookup failed") \
	X(174, PROXY_NOT_FOUND, "Proxy not available") \
	X(181, POLICY_DENY, "Policy denied by denylist") \
	X(183, VLAN_FILTERED, "VLAN traffic disallowed by VLAN filter") \
	X(189, UNKNOWN_ENDPOINT, "Unknown endpoint") \
	X(196, TTL_EXCEEDED, "TTL exceeded") \
	X(200, FRAG_NO_FIRST, "First fragment not seen") \
	X(201, FRAG_OVERLAP, "Overlapping or tiny fragment") \
	X(202, INVALID_TUNNEL_SOURCE, "Tunnel packet from an address that is not behind that node") \
	X(203, UNKNOWN_IDENTITY, "Source identity unknown") \
	X(204, PROXY_DENIED, "Denied by L7 policy") \
	X(205, ENDPOINT_NOT_READY, "Endpoint has no policy yet") \
	X(206, INTERNAL, "Internal error") \
	X(207, SNI_DENIED, "Denied by TLS server name policy") \
	X(208, DNS_DENIED, "Denied by DNS policy") \
	X(209, IDENTITY_NOT_LEARNED, "Source identity not known on this node yet")

enum sluice_drop_reason {
#define SLUICE_X(n, name, text) SLUICE_DROP_##name = n,
	SLUICE_DROP_REASONS(SLUICE_X)
#undef SLUICE_X
};
#define SLUICE_METRIC_FORWARDED 0 /* metrics key for what passed; others are drop reasons */
#define SLUICE_MAX_METRIC 256

/* sl_clock_seconds: seconds of a jiffy, times 2 to the power of this. What it is multiplied with overflows after 34 years, and
 * is wrong by a second after three (where jiffies are milliseconds; after eight at 250 Hz). */
#define SLUICE_CLOCK_SHIFT 34

/* ---- addresses ------------------------------------------------------------------------------- */
struct sluice_addr {
	__u8 b[16];
};

struct sluice_lpm_key { /* sl_ipcache_lpm, sl_addr_class */
	__u32 prefix_len;	/* 96 + n for IPv4 */
	struct sluice_addr addr;
};

/* ---- node ------------------------------------------------------------------------------------ */
struct node_config { /* sl_config: ARRAY[1] */
	__u32 flags;	 /* SLUICE_CFG_* */
	__u32 uplink_ifindex;
	__u32 tunnel_ifindex;
	__u32 host_policy_id;	   /* policy of the node itself (identity 1) */
	struct sluice_addr node_v4; /* masquerade source, tunnel source; zero if none */
	struct sluice_addr node_v6;
	__u32 trace_sample; /* one in n forwarded packets of an established flow gives an event; 0 none */
	__u16 nat_port_min; /* masquerade ports */
	__u16 nat_port_max;
	__u8 router_mac[6]; /* source MAC towards pods */
	__u16 tunnel_port; /* UDP port of the VXLAN device: its outer packets are not the node's own traffic */
	__u32 drop_repeats; /* identical drops (see drop_tuple) told in a second; 0: every drop is told */
	__u32 drop_events;  /* drops told in a second for one device and reason, when drop_repeats is not 0 */
	__u32 port_key;		/* says which of a DNS proxy's ports belong to which place (dns_pair); odd, random, kept */
};

struct ipcache_entry { /* sl_ipcache_exact: HASH by sluice_addr; sl_ipcache_lpm: LPM_TRIE */
	__u32 identity;
	__u32 flags; /* SLUICE_IPC_* */
	struct sluice_addr tunnel_ep; /* node that the address is behind; zero if none */
};

struct endpoint_info { /* sl_endpoints: HASH by sluice_addr; local addresses only */
	__u32 ifindex;	 /* host side device */
	__u32 identity;
	__u32 policy_id;
	__u32 flags; /* SLUICE_EP_* */
	__u16 id;	 /* endpoint id */
	__u8 mac[6]; /* of the pod's side */
	__u32 pad;
};

/* ---- policy ----------------------------------------------------------------------------------
 * sl_policy: one HASH for all policies. A packet is looked up in the cells
 *   {identity, its group, address class, its group, any} x {(proto, port class), (proto, any), (any, any)}
 * and the highest precedence of the admin slots decides; PASS or nothing there leaves it to the
 * highest precedence of the normal slots; PASS or nothing there leaves it to the default of the direction.
 * Deny beats redirect beats allow because user space numbers precedences so.
 */
struct policy_key {
	__u32 policy_id;
	__u32 identity;	  /* 0: any; SLUICE_GROUP_* */
	__u32 port_class; /* SLUICE_PORT_* */
	__u8 protocol;	  /* IP protocol; 0: any, and then port_class is SLUICE_PORT_ANY */
	__u8 direction;	  /* SLUICE_DIR_* */
	__u16 pad;
};

struct policy_slot {
	__u32 precedence; /* 0: empty */
	__u32 rule_set;	  /* which rules this came from: index of sl_rule_hits, meaning in user space */
	__u32 action;	  /* SLUICE_ACTION_*, SLUICE_ACTION_BY_NAME */
};

struct policy_entry {
	struct policy_slot admin;
	struct policy_slot normal; /* baseline rules too: below every normal precedence */
};

struct policy_info { /* sl_policy_info: ARRAY by policy_id; id 0 is never used, it means "no policy" */
	__u32 epoch;	 /* never 0 once loaded; drawn from one node-wide counter, so that equal epoch means same policy, same content */
	__u32 flags[2];	 /* by direction, SLUICE_PF_* */
	__u32 subject_identity;
};

struct port_class_key { /* sl_port_class: LPM_TRIE; prefix_len = 48 + bits of the port */
	__u32 prefix_len;
	__u32 policy_id;
	__u8 direction;
	__u8 protocol;
	__u16 port_be;
};

/* ---- connection tracking ---------------------------------------------------------------------
 * One entry per connection and node, found from both directions: lo is the smaller of the two
 * (address, port) pairs in memcmp order. The entry holds all that the fast path needs, so that an
 * established packet costs one lookup: both policies' epochs, and where to deliver.
 *
 * sl_ct is an array of sets, and lib/ct_table.h says how it is read and written. User space reads it, and writes it only
 * through the program keep_connection().
 */
struct ct_key {
	struct sluice_addr lo_addr;
	struct sluice_addr hi_addr;
	__u16 lo_port; /* ICMP echo: the id in both */
	__u16 hi_port;
	__u8 protocol;
	__u8 pad[3];
};

#define SLUICE_CT_INIT_HI 0x0001u	/* hi opened the connection */
#define SLUICE_CT_SEEN_REPLY 0x0002u
#define SLUICE_CT_FIN_LO 0x0004u
#define SLUICE_CT_FIN_HI 0x0008u
#define SLUICE_CT_RST 0x0010u
#define SLUICE_CT_SERVICE 0x0020u	/* (client, frontend) -> backend */
#define SLUICE_CT_REV_NAT 0x0040u	/* reply source becomes the frontend */
#define SLUICE_CT_PROXY 0x0080u		/* goes through a proxy */
#define SLUICE_CT_FQDN 0x0100u		/* a toFQDNs rule allowed it while the address was learned: such rules still may */
#define SLUICE_CT_DENIED 0x0200u	/* re-evaluated against: the next packets are dropped without a lookup */
#define SLUICE_CT_HAIRPIN 0x0400u
#define SLUICE_CT_SYN_ONLY 0x0800u	/* TCP, no answer seen yet */

#define SLUICE_CT_TUNNEL 0x1000u	/* the other node is reached through the tunnel */
/* With CT_PROXY: which listener took the connection, 1 + its kind in sl_proxy_listeners; 0: the proxy's own leg. */
#define SLUICE_CT_LISTENER_SHIFT 13
#define SLUICE_CT_LISTENER 0x6000u

/* Seconds without a packet after which an entry is as good as gone. */
#define SLUICE_CT_SECONDS_TCP 21600
#define SLUICE_CT_SECONDS_TCP_CLOSING 10 /* reset, or closed by both ends */
#define SLUICE_CT_SECONDS_SCTP 3600
#define SLUICE_CT_SECONDS_ICMP 30
#define SLUICE_CT_SECONDS_ANSWERED 180 /* UDP and others */
#define SLUICE_CT_SECONDS_OPENING 60   /* nobody answered yet, TCP included */

struct ct_side {
	__u32 epoch;	   /* policy_info.epoch under which this side's policy allowed the flow; 0 for the
				  * host side while the host firewall is off */
	__u16 policy_id;   /* policy of the local endpoint on this side; 0: side is not local */
	__u16 endpoint_id; /* of sl_ep_stats */
	__u32 ifindex;	 /* its device; 0: not local */
	__u32 identity;
};

struct ct_entry {
	struct ct_side lo;
	struct ct_side hi;
	__u16 flags;	 /* SLUICE_CT_* */
	__u16 svc_port;	 /* frontend port (REV_NAT), backend port (SERVICE) */
	__u32 rule_set;	 /* that allowed it; for events */
	struct sluice_addr svc_addr; /* frontend (REV_NAT), backend (SERVICE) */
	__u8 lo_mac[6];	 /* of the local pod on that side */
	__u8 lo_pad[2];
	__u8 hi_mac[6];
	__u8 hi_pad[2];
	__u64 packets[2]; /* [0] from lo, [1] from hi; only kept up while tracing */
	__u64 bytes[2];
};

struct ct_way {
	struct ct_key key;
	struct ct_entry entry;
};

/* sl_ct: ARRAY. A connection is in the set that the hash of its key names: the hash times the number of sets, without the
 * lower 32 bits. Its tag is the lower 16 bits of the hash, or 1 where they are 0. */
#define SLUICE_CT_WAYS 16

struct ct_set {
	__u32 lock;	   /* 1: somebody writes */
	__u32 version; /* odd while a way changes */
	__u16 tags[SLUICE_CT_WAYS]; /* 0: the way is empty */
	__u32 pad[6];
	__u32 expires[SLUICE_CT_WAYS]; /* seconds since boot, of CLOCK_MONOTONIC, give or take one */
	struct ct_way ways[SLUICE_CT_WAYS];
};

/* The hash of a key: the sum of its ten 32-bit words, as they lie in memory, times a factor each, and of one number more; its
 * upper half is laid over the lower one, and the upper half of the product with SLUICE_CT_MIX is the hash. All modulo 2^64.
 * Factors are drawn when sl_ct is made, and kept in sl_ct_secret, ARRAY[1], for as long. Programs are told when they are loaded. */
#define SLUICE_CT_SECRETS 11
#define SLUICE_CT_MIX 0x9e3779b97f4a7c15ull /* 2^64 / golden ratio, odd */

struct ct_secret {
	__u64 factors[SLUICE_CT_SECRETS];
};

/* What user space hands to keep_connection(), as a packet. */
struct ct_record {
	struct ct_key key;
	struct ct_entry entry;
	__u32 expires;
	__u32 replace; /* 0: what is there stays */
};

/* ---- services -------------------------------------------------------------------------------- */
struct svc_key { /* sl_services: HASH */
	struct sluice_addr addr;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

#define SLUICE_SVC_AFFINITY 0x0001u

struct svc_entry {
	__u32 id;
	__u32 backends; /* slots 0..backends-1 of sl_backends */
	__u32 flags;
	__u32 affinity_secs;
};

struct backend_key { /* sl_backends: HASH */
	__u32 svc_id;
	__u32 slot;
};

struct backend_entry {
	struct sluice_addr addr;
	__u16 port;
	__u16 pad;
	__u32 backend_id; /* stable while the address and port live */
};

struct affinity_key { /* sl_affinity: LRU_HASH */
	struct sluice_addr client;
	__u32 svc_id;
};

struct affinity_entry {
	__u32 backend_id;
	__u32 slot;
	__u32 last_seen;
};

/* ---- fragments ------------------------------------------------------------------------------- */
struct frag_key { /* sl_frags: LRU_HASH */
	struct sluice_addr saddr;
	struct sluice_addr daddr;
	__u32 id;
	__u8 protocol;
	__u8 pad[3];
};

struct frag_entry {
	__u16 sport; /* of the first fragment */
	__u16 dport;
	__u32 last_seen;
};

/* ---- masquerade ------------------------------------------------------------------------------ */
struct nat_key { /* sl_nat: LRU_HASH; both directions */
	struct sluice_addr local;  /* forward: the pod; reverse: the node */
	struct sluice_addr remote;
	__u16 local_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 reverse;
	__u16 pad;
};

struct nat_entry {
	struct sluice_addr to_addr; /* forward: the node; reverse: the pod */
	__u16 to_port;
	__u16 pad;
	__u32 last_seen;
};

/* ---- counters -------------------------------------------------------------------------------- */
struct metric_key_index { /* sl_metrics: PERCPU_ARRAY[2 * SLUICE_MAX_METRIC], index = direction * SLUICE_MAX_METRIC + reason */
	__u32 index;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct ep_counter { /* sl_ep_stats: PERCPU_ARRAY[SLUICE_MAX_ENDPOINTS] by endpoint id: [direction] */
	struct counter forwarded[2];
	struct counter dropped[2];
};

/* ---- events ---------------------------------------------------------------------------------- */
#define SLUICE_EVENT_DROP 1
#define SLUICE_EVENT_VERDICT 2 /* a new flow was judged */
#define SLUICE_EVENT_TRACE 3   /* a packet of a known flow */

/* Where in the node the event was made. */
#define SLUICE_OBS_FROM_CONTAINER 1
#define SLUICE_OBS_TO_CONTAINER 2
#define SLUICE_OBS_FROM_NETWORK 3
#define SLUICE_OBS_TO_NETWORK 4
#define SLUICE_OBS_FROM_OVERLAY 5

#define SLUICE_EVF_REPLY 0x01u
#define SLUICE_EVF_ESTABLISHED 0x02u
#define SLUICE_EVF_DEFAULT_DENY 0x04u /* no entry matched */
#define SLUICE_EVF_FRAGMENT 0x08u
#define SLUICE_EVF_REJECTED 0x10u	  /* and the sender was told */
#define SLUICE_EVF_SERVICE 0x20u	  /* svc_addr, svc_port are the frontend */

struct flow_event { /* sl_events: RINGBUF */
	__u64 timestamp_ns; /* CLOCK_MONOTONIC (bpf_ktime_get_ns) */
	struct sluice_addr saddr;
	struct sluice_addr daddr;
	struct sluice_addr svc_addr;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 policy_id;
	__u32 rule_set;	  /* 0 with EVF_DEFAULT_DENY */
	__u32 ifindex;
	__u32 length; /* bytes of the packet */
	__u16 sport;
	__u16 dport;
	__u16 svc_port;
	__u16 endpoint_id; /* the local endpoint whose policy is meant; 0 the host */
	__u8 type;		 /* SLUICE_EVENT_* */
	__u8 reason;	 /* drop reason, 0 otherwise */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 direction; /* of the policy that decided */
	__u8 action;	/* SLUICE_ACTION_* */
	__u8 observation; /* SLUICE_OBS_* */
	__u8 flags;		  /* SLUICE_EVF_* */
	__u8 pad[2];
	__u32 repeats; /* drops like this one that were not told since the last that was */
};

/* sl_event_lost: PERCPU_ARRAY[SLUICE_LOST_CAUSES] of __u64: events that nobody was told, by cause. Counters
 * (sl_metrics, sl_ep_stats) know every packet all the same. */
#define SLUICE_LOST_DROP 0	   /* a drop found the ring full */
#define SLUICE_LOST_VERDICT 1  /* a verdict found it full, or fuller than leaves room for drops */
#define SLUICE_LOST_TRACE 2	   /* a trace did */
#define SLUICE_LOST_REPEATED 3 /* a drop was like others of the same second; `repeats` of the next tells, if one comes */
#define SLUICE_LOST_LIMIT 4	   /* a drop was beyond the limit of its device and reason */
#define SLUICE_LOST_CAUSES 5

/* What makes two drops identical. */
struct drop_tuple { /* sl_drops: LRU_HASH */
	struct sluice_addr saddr;
	struct sluice_addr daddr;
	__u32 ifindex;
	__u16 dport; /* type of an ICMP message */
	__u8 protocol;
	__u8 reason;
};

struct drop_told {
	__u32 second; /* that `told` is about */
	__u32 told;
	__u32 repeats;
};

/* How much of a second's allowance a device has used, for one purpose: a drop reason (events), or
 * SLUICE_ALLOW_ICMP (errors that we send, RFC 4443 section 2.4 f). */
#define SLUICE_ALLOW_ICMP 0x100u
#define SLUICE_ICMP_PER_SECOND 1000

struct allowance_key { /* sl_allowances: LRU_HASH */
	__u32 ifindex;
	__u32 purpose;
};

struct allowance_used {
	__u32 second;
	__u32 used;
};

/* ---- queries of DNS proxies --------------------------------------------------------------------
 * A DNS proxy's datagrams leave from the client's address and a port that it draws for each. They have no conntrack
 * entries, of which a busy resolver would need as many as it asks questions: what a server sends to a client that a
 * proxy asks it for is the proxy's, if no connection of the client itself knows it. Which of several proxy processes
 * (one takes over from another) the port belongs to is the upper SLUICE_PROXY_REPLY_BITS bits of
 * port * port_key (32 bits): each process draws ports that are its own. */
struct dns_pair { /* sl_dns_pairs: LRU_HASH; value: second of the last query */
	struct sluice_addr client;
	struct sluice_addr server;
	__u32 port; /* of the server */
};
#define SLUICE_DNS_PAIR_SECONDS 75 /* more than a proxy waits for a reply */

#endif
