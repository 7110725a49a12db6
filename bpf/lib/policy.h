/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * One side's policy: the best of at most fifteen cells, most of which the flags say are not there. See
 * "policy" in abi.h for the contract and src/policy/map_state.rs for why a maximum over the cells is the
 * maximum over the rules.
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

/* One lookup of a policy: the cell that is looked at, and the best slots so far. */
struct search {
	struct policy_key key;
	__u32 policy_id;
	__u32 identity;
	__u32 port_class;
	__u32 direction;
	struct policy_slot admin;
	struct policy_slot normal;
};

/* Which of a peer's cells there are: three flags side by side, from the lowest up. */
#define CELLS_EXACT 1u
#define CELLS_PROTO 2u
#define CELLS_ANY 4u
#define CELLS_OF(flags, lowest) (((flags) / (lowest)) & 7)

/* Of equal slots the first stands for all, except that each may be one that names made. */
INLINE void better(struct policy_slot *best, const struct policy_slot *slot)
{
	if (slot->precedence > best->precedence)
		*best = *slot;
	else if (slot->precedence == best->precedence)
		best->action |= slot->action & SLUICE_ACTION_BY_NAME;
}

INLINE void cell(struct search *s, __u32 port_class, __u8 protocol)
{
	const struct policy_entry *entry;

	/* By words: the kernel reads it so. */
	((word64 *)&s->key)[0] = word_of(s->policy_id, s->identity);
	((word64 *)&s->key)[1] = word_of(port_class, bytes_of(protocol, s->direction));
	entry = bpf_map_lookup_elem(&sl_policy, &s->key);
	if (!entry)
		return;
	better(&s->admin, &entry->admin);
	better(&s->normal, &entry->normal);
}

/* The three cells of the peer in the key. Verified by itself: five peers in a row would be too many paths. */
GLOBAL int cells(struct search *s, const struct question *q, __u32 present)
{
	if (!s || !q)
		return 0;
	if ((present & CELLS_EXACT) && q->has_port)
		cell(s, s->port_class, q->protocol);
	if (present & CELLS_PROTO)
		cell(s, SLUICE_PORT_ANY, q->protocol);
	if (present & CELLS_ANY)
		cell(s, SLUICE_PORT_ANY, 0);
	return 0;
}

/* The cells of an identity (or class of addresses) and of its group. */
INLINE void cells_with_group(struct search *s, const struct question *q, __u32 flags, __u32 identity,
							 __u32 group)
{
	__u32 of_one = CELLS_OF(flags, SLUICE_PF_ID_EXACT);
	const __u32 of_group = CELLS_OF(flags, SLUICE_PF_GROUP_EXACT);

	s->identity = identity;
	/* Most policies have this one and no other. */
	if ((of_one & CELLS_EXACT) && q->has_port) {
		cell(s, s->port_class, q->protocol);
		of_one &= ~CELLS_EXACT;
	}
	if (of_one)
		cells(s, q, of_one);
	if (group && of_group) {
		s->identity = group;
		cells(s, q, of_group);
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

/* The group of an identity that `addr` was resolved to; 0: none. */
INLINE __u32 identity_group(__u32 identity, const struct sluice_addr *addr)
{
	switch (identity >> 24) {
	case 0:
		return identity >= 256 && identity <= 65535 ? SLUICE_GROUP_PODS : 0;
	case 1:
		return addr_is_v4(addr) ? SLUICE_GROUP_WORLD_IPV4 : SLUICE_GROUP_WORLD_IPV6;
	case 2:
		return SLUICE_GROUP_REMOTE_NODES;
	case 3:
		return addr_is_v4(addr) ? SLUICE_GROUP_ADDRESSES_IPV4 : SLUICE_GROUP_ADDRESSES_IPV6;
	}
	return 0;
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
	struct search s __attribute__((aligned(8))) = {};
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
	d->by_name = 0;
	info = bpf_map_lookup_elem(&sl_policy_info, &id);
	if (!id || !info || !info->epoch)
		return SLUICE_DROP_ENDPOINT_NOT_READY;
	/* Read before the cells: a change that comes in between leaves an old epoch in the conntrack entry,
	 * and the flow is judged again. */
	subject->epoch = *(volatile const __u32 *)&info->epoch;
	flags = info->flags[direction];
	if ((flags & SLUICE_PF_ENFORCED) && peer->identity == SLUICE_ID_UNKNOWN)
		return SLUICE_DROP_UNKNOWN_IDENTITY;

	s.policy_id = id;
	s.direction = direction;
	s.port_class = port_class(q, id, direction, flags);
	cells_with_group(&s, q, flags, peer->identity, identity_group(peer->identity, &peer->addr));
	if (flags & SLUICE_PF_ADDR_CLASS) {
		class = address_class(&peer->addr);
		if (class)
			cells_with_group(&s, q, flags, class, identity_group(class, &peer->addr));
	}
	s.identity = 0;
	if (CELLS_OF(flags, SLUICE_PF_ANY_EXACT))
		cells(&s, q, CELLS_OF(flags, SLUICE_PF_ANY_EXACT));

	slot = &s.normal;
	if (s.admin.precedence && s.admin.action != SLUICE_ACTION_PASS)
		slot = &s.admin;
	/* PASS of a baseline rule: the rest of its tier is skipped, and what is left is the default. */
	if (slot->precedence && slot->action != SLUICE_ACTION_PASS) {
		d->action = slot->action & SLUICE_ACTION_MASK;
		d->by_name = !!(slot->action & SLUICE_ACTION_BY_NAME);
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
