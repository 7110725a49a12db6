/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Every map. Keys and values are described in abi.h.
 */
#ifndef SLUICE_MAPS_H
#define SLUICE_MAPS_H

#include "helpers.h"

#define SLUICE_MAP(name, map_type, key_type, value_type, entries, flag_bits) \
	struct {                                                                 \
		__uint(type, map_type);                                              \
		__type(key, key_type);                                               \
		__type(value, value_type);                                           \
		__uint(max_entries, entries);                                        \
		__uint(map_flags, flag_bits);                                        \
	} name SEC(".maps")

#define GROWING BPF_F_NO_PREALLOC

/* What user space writes. */
SLUICE_MAP(sl_config, BPF_MAP_TYPE_ARRAY, __u32, struct node_config, 1, 0);
SLUICE_MAP(sl_endpoints, BPF_MAP_TYPE_HASH, struct sluice_addr, struct endpoint_info,
		   SLUICE_MAX_ENDPOINTS * 2, GROWING);
SLUICE_MAP(sl_ipcache_exact, BPF_MAP_TYPE_HASH, struct sluice_addr, struct ipcache_entry,
		   SLUICE_MAX_IPCACHE_EXACT, GROWING);
SLUICE_MAP(sl_ipcache_lpm, BPF_MAP_TYPE_LPM_TRIE, struct sluice_lpm_key, struct ipcache_entry,
		   SLUICE_MAX_IPCACHE_LPM, GROWING);
SLUICE_MAP(sl_addr_class, BPF_MAP_TYPE_LPM_TRIE, struct sluice_lpm_key, __u32,
		   SLUICE_MAX_ADDR_CLASSES, GROWING);
SLUICE_MAP(sl_policy, BPF_MAP_TYPE_HASH, struct policy_key, struct policy_entry,
		   SLUICE_MAX_POLICY_ENTRIES, GROWING);
SLUICE_MAP(sl_policy_info, BPF_MAP_TYPE_ARRAY, __u32, struct policy_info, SLUICE_MAX_POLICIES, 0);
SLUICE_MAP(sl_port_class, BPF_MAP_TYPE_LPM_TRIE, struct port_class_key, __u32,
		   SLUICE_MAX_PORT_CLASSES, GROWING);
SLUICE_MAP(sl_identities, BPF_MAP_TYPE_ARRAY, __u32, __u64, SLUICE_IDENTITY_WORDS, 0);
SLUICE_MAP(sl_services, BPF_MAP_TYPE_HASH, struct svc_key, struct svc_entry, SLUICE_MAX_SERVICES,
		   GROWING);
SLUICE_MAP(sl_backends, BPF_MAP_TYPE_HASH, struct backend_key, struct backend_entry,
		   SLUICE_MAX_BACKENDS, GROWING);

/* What packets write. Least recently used entries make room: a flood costs old flows a new
 * judgement, and never opens anything. */
SLUICE_MAP(sl_ct_secret, BPF_MAP_TYPE_ARRAY, __u32, struct ct_secret, 1, 0);
SLUICE_MAP(sl_ct, BPF_MAP_TYPE_ARRAY, __u32, struct ct_set, SLUICE_MAX_CT / SLUICE_CT_WAYS, 0);
SLUICE_MAP(sl_frags, BPF_MAP_TYPE_LRU_HASH, struct frag_key, struct frag_entry, SLUICE_MAX_FRAGS, 0);
SLUICE_MAP(sl_nat, BPF_MAP_TYPE_LRU_HASH, struct nat_key, struct nat_entry, SLUICE_MAX_NAT, 0);
SLUICE_MAP(sl_affinity, BPF_MAP_TYPE_LRU_HASH, struct affinity_key, struct affinity_entry,
		   SLUICE_MAX_AFFINITY, 0);
SLUICE_MAP(sl_drops, BPF_MAP_TYPE_LRU_HASH, struct drop_tuple, struct drop_told,
		   SLUICE_MAX_DROP_TUPLES, 0);
SLUICE_MAP(sl_allowances, BPF_MAP_TYPE_LRU_HASH, struct allowance_key, struct allowance_used,
		   SLUICE_MAX_ALLOWANCES, 0);

SLUICE_MAP(sl_dns_pairs, BPF_MAP_TYPE_LRU_HASH, struct dns_pair, __u32, SLUICE_MAX_DNS_PAIRS, 0);

/* What user space reads. */
SLUICE_MAP(sl_metrics, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, 2 * SLUICE_MAX_METRIC, 0);
SLUICE_MAP(sl_ep_stats, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ep_counter, SLUICE_MAX_ENDPOINTS, 0);
SLUICE_MAP(sl_rule_hits, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, SLUICE_MAX_RULE_SETS, 0);
SLUICE_MAP(sl_event_lost, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, SLUICE_LOST_CAUSES, 0);

/* Listening sockets of the proxies, put here by themselves. */
SLUICE_MAP(sl_proxy_listeners, BPF_MAP_TYPE_SOCKMAP, __u32, __u32, SLUICE_PROXY_PLACES, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SLUICE_EVENTS_BYTES);
} sl_events SEC(".maps");

#endif
