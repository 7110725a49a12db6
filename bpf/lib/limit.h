/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * How often the same thing is said. A flood of refused packets must neither fill the ring, nor hide the drops
 * of others, nor make this node a source of ICMP errors. Two limits, both by the second of w->now:
 *
 *  - identical drops: the first `drop_repeats` of a second are told; the next one that is told says how many
 *    were not.
 *  - a device and a reason: at most `drop_events` told; a tuple that is known already may use a quarter of that,
 *    so that a new one among many is told at once.
 *
 * CPUs may race for the last places of a second: one more or less is told then. What is not told is counted
 * exactly, by CPU.
 */
#ifndef SLUICE_LIMIT_H
#define SLUICE_LIMIT_H

#include "work.h"

INLINE void count_lost(__u32 cause)
{
	__u64 *lost = bpf_map_lookup_elem(&sl_event_lost, &cause);

	if (lost)
		*lost += 1;
}

/* Takes one of `limit` places that a device has in this second. Returns 1 when there was one. */
GLOBAL int allowance_take(__u32 ifindex, __u32 purpose, __u32 now, __u32 limit)
{
	struct allowance_key key = {.ifindex = ifindex, .purpose = purpose};
	struct allowance_used *known = bpf_map_lookup_elem(&sl_allowances, &key);

	if (!known) {
		struct allowance_used first = {.second = now, .used = 1};

		bpf_map_update_elem(&sl_allowances, &key, &first, BPF_ANY);
		return limit > 0;
	}
	if (known->second != now) {
		known->second = now;
		known->used = 0;
	}
	if (known->used >= limit)
		return 0;
	__sync_fetch_and_add(&known->used, 1);
	return 1;
}

/* Shall this drop be told? Sets `repeats` to the number of drops like it that were not. */
INLINE int worth_telling(__u32 ifindex, const struct work *w, const struct node_config *config,
						 __u32 reason, __u32 *repeats)
{
	struct drop_tuple tuple = {};
	struct drop_told *known;

	addr_copy4(&tuple.saddr, &w->pkt.saddr);
	addr_copy4(&tuple.daddr, &w->pkt.daddr);
	tuple.ifindex = ifindex;
	tuple.dport = w->pkt.flags & PKT_TYPED ? w->pkt.icmp_type : w->pkt.dport;
	tuple.protocol = w->pkt.protocol;
	tuple.reason = reason;
	known = bpf_map_lookup_elem(&sl_drops, &tuple);
	if (!known) {
		struct drop_told first = {.second = w->now, .told = 1};

		if (!allowance_take(ifindex, reason, w->now, config->drop_events)) {
			count_lost(SLUICE_LOST_LIMIT);
			return 0;
		}
		bpf_map_update_elem(&sl_drops, &tuple, &first, BPF_ANY);
		return 1;
	}
	if (known->second != w->now) {
		known->second = w->now;
		known->told = 0;
	}
	if (known->told >= config->drop_repeats) {
		__sync_fetch_and_add(&known->repeats, 1);
		count_lost(SLUICE_LOST_REPEATED);
		return 0;
	}
	if (!allowance_take(ifindex, reason, w->now, config->drop_events / 4)) {
		__sync_fetch_and_add(&known->repeats, 1);
		count_lost(SLUICE_LOST_LIMIT);
		return 0;
	}
	known->told += 1;
	*repeats = __sync_lock_test_and_set(&known->repeats, 0);
	return 1;
}

#endif
