/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * One side's policy: the best of at most nine cells. See "policy" in abi.h for the contract and
 * src/policy/map_state.rs for why a maximum over the cells is the maximum over the rules.
 */
#ifndef SLUICE_POLICY_H
#define SLUICE_POLICY_H

#include "work.h"

/* What the policy is asked about: the responder's port, or the type of an ICMP message. */
struct question {
	__u16 port;
	__u8 protocol;
	__u8 has_port;
};

struct best {
	struct policy_slot admin;
	struct policy_slot normal;
};

INLINE void cell(struct best *best, struct policy_key *key)
{
	const struct policy_entry *entry = bpf_map_lookup_elem(&sl_policy, key);

	if (!entry)
		return;
	if (entry->admin.precedence > best->admin.precedence)
		best->admin = entry->admin;
	if (entry->normal.precedence > best->normal.precedence)
		best->normal = entry->normal;
}

/* The three cells of one peer. `exact`, `protocol` and `any` are the flags of their kinds. */
INLINE void cells(struct best *best, struct policy_key *key, const struct question *q, __u32 flags,
				  __u32 port_class, __u32 exact, __u32 protocol, __u32 any)
{
	key->protocol = q->protocol;
	if ((flags & exact) && q->has_port) {
		key->port_class = port_class;
		cell(best, key);
	}
	key->port_class = SLUICE_PORT_ANY;
	if (flags & protocol)
		cell(best, key);
	if (flags & any) {
		key->protocol = 0;
		cell(best, key);
	}
}

/* Ports that ranges cover are known by their class, the others by their number. */
INLINE __u32 port_class(const struct question *q, __u32 policy_id, __u8 direction, __u32 flags)
{
	if ((flags & SLUICE_PF_RANGES) && q->has_port) {
		struct port_class_key key = {
			.prefix_len = 64,
			.policy_id = policy_id,
			.direction = direction,
			.protocol = q->protocol,
			.port_be = bpf_htons(q->port),
		};
		const __u32 *class = bpf_map_lookup_elem(&sl_port_class, &key);

		if (class)
			return SLUICE_PORT_CLASS | *class;
	}
	return SLUICE_PORT_EXACT | q->port;
}

INLINE __u32 address_class(const struct sluice_addr *addr)
{
	struct sluice_lpm_key key = {.prefix_len = 128};
	const __u32 *class;

	addr_copy4(&key.addr, addr);
	class = bpf_map_lookup_elem(&sl_addr_class, &key);
	return class ? *class : 0;
}

INLINE void count_rule(__u32 rule_set)
{
	__u64 *hits = bpf_map_lookup_elem(&sl_rule_hits, &rule_set);

	if (hits)
		*hits += 1;
}

/* Judges `peer` by the policy of `subject` in one direction. Returns 0 or a drop reason; `d` says
 * what decided. Sets subject->epoch. */
GLOBAL int policy_decide(struct decision *d, struct party *subject, const struct party *peer,
						 const struct question *q, __u32 direction)
{
	const struct policy_info *info;
	struct best best = {};
	struct policy_key key = {};
	struct policy_slot *slot;
	__u32 flags, class, id;

	if (!d || !subject || !peer || !q)
		return SLUICE_DROP_INTERNAL;
	direction &= 1;
	id = subject->policy_id;
	d->policy_id = id;
	d->endpoint_id = subject->endpoint_id;
	d->direction = direction;
	d->action = SLUICE_ACTION_DENY;
	d->rule_set = 0;
	d->default_deny = 0;
	d->audited = 0;
	info = bpf_map_lookup_elem(&sl_policy_info, &id);
	if (!id || !info || !info->epoch)
		return SLUICE_DROP_ENDPOINT_NOT_READY;
	/* Read before the cells: a change that comes in between leaves an old epoch in the conntrack entry,
	 * and the flow is judged again. */
	subject->epoch = *(volatile const __u32 *)&info->epoch;
	flags = info->flags[direction];
	if ((flags & SLUICE_PF_ENFORCED) && peer->identity == SLUICE_ID_UNKNOWN)
		return SLUICE_DROP_UNKNOWN_IDENTITY;

	key.policy_id = id;
	key.direction = direction;
	class = port_class(q, id, direction, flags);
	key.identity = peer->identity;
	cells(&best, &key, q, flags, class, SLUICE_PF_ID_EXACT, SLUICE_PF_ID_PROTO, SLUICE_PF_ID_ANY);
	if (flags & SLUICE_PF_ADDR_CLASS) {
		key.identity = address_class(&peer->addr);
		if (key.identity)
			cells(&best, &key, q, flags, class, SLUICE_PF_ID_EXACT, SLUICE_PF_ID_PROTO,
				  SLUICE_PF_ID_ANY);
	}
	key.identity = 0;
	cells(&best, &key, q, flags, class, SLUICE_PF_ANY_EXACT, SLUICE_PF_ANY_PROTO, SLUICE_PF_ANY_ANY);

	slot = &best.normal;
	if (best.admin.precedence && best.admin.action != SLUICE_ACTION_PASS)
		slot = &best.admin;
	/* PASS of a baseline rule: the rest of its tier is skipped, and what is left is the default. */
	if (slot->precedence && slot->action != SLUICE_ACTION_PASS) {
		d->action = slot->action;
		d->rule_set = slot->rule_set;
		count_rule(slot->rule_set);
	} else if (flags & SLUICE_PF_DEFAULT_DENY) {
		d->default_deny = 1;
	} else {
		d->action = SLUICE_ACTION_ALLOW;
	}
	switch (d->action) {
	case SLUICE_ACTION_ALLOW:
	case SLUICE_ACTION_REDIRECT_HTTP:
	case SLUICE_ACTION_REDIRECT_DNS:
	case SLUICE_ACTION_REDIRECT_TLS:
		return 0;
	}
	/* Deny, and whatever this version does not know. */
	if (flags & SLUICE_PF_AUDIT) {
		d->audited = 1;
		return 0;
	}
	return d->default_deny ? SLUICE_DROP_POLICY_DENIED : SLUICE_DROP_POLICY_DENY;
}

#endif
