/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The table of connections: sets of SLUICE_CT_WAYS places, and a connection is in the set that a keyed hash of its tuple
 * names. The kernel's LRU hash would do, at twice the price: finding an entry there cost an established packet a third of
 * its time, and inserting one a new flow half. See "connection tracking" in abi.h.
 *
 *  - Readers take no lock. ct_find() copies the entry to w->found and looks whether the set's version is still what it
 *    was; if not, it copies again, under the set's lock. So what a program decides by is one connection's entry, never
 *    half of one and half of another that took its place.
 *  - Whoever changes what an entry says takes the lock and asks again whether the place is still the connection's.
 *    Two things need no lock: until when an entry lives, and the counts of packets. They may go astray, to the
 *    connection that took the place over in this very moment: its next packet puts right until when it lives.
 *  - Who needs a place takes one that is empty or expired, else the one that would expire first: closed connections
 *    before those that nobody answered, and these before the established. A flood of SYNs costs no established
 *    connection its place.
 *  - Nobody outside can choose tuples that meet in one set: the hash begins with a sum of products with secret factors
 *    (D. Lemire, O. Kaser, "Strongly universal string hashing is fast", 2014), drawn when the table is made. The sums of ports
 *    in a row are in a row, too, and with some factors they crowd; so the sum is mixed.
 */
#ifndef SLUICE_CT_TABLE_H
#define SLUICE_CT_TABLE_H

#include "work.h"

/* User space says both when it loads the programs (src/datapath/connections.rs). */
const volatile __u64 sl_ct_factors[SLUICE_CT_SECRETS] = {};
const volatile __u32 sl_ct_sets = 0;

/* Loads among loads, and stores among stores, stay in the order of the text. x86 keeps them so by itself; elsewhere an
 * atomic operation with a result is a full barrier, on whatever word is at hand. */
#if defined(__TARGET_ARCH_x86)
#define IN_ORDER(word) asm volatile("" ::: "memory")
#else
#define IN_ORDER(word) ((void)__sync_fetch_and_add(word, 0))
#endif

/* Writers of one set wait for each other, for as long as many of them would take: only a CPU that its hypervisor has stopped
 * holds a set longer, or a thread of a real-time kernel. Whoever gives up changes nothing, and a new flow is dropped then
 * (CT_FULL) and comes again.
 *
 * Not bpf_spin_lock(): it turns interrupts off and on and is three calls deep, which is a tenth of a new flow where
 * returns are slow (AMD's Safe RET). Ours needs no more than that a program is not interrupted by another on its CPU
 * (work.h), and that user space does not write. */
#define CT_LOCK_TRIES 64

GLOBAL int ct_lock_wait(struct ct_set *set)
{
	if (!set)
		return 0;
	for (int i = 0; i < CT_LOCK_TRIES; i++) {
		if (!__sync_lock_test_and_set(&set->lock, 1))
			return 1;
	}
	return 0;
}

INLINE int ct_lock(struct ct_set *set)
{
	return likely(!__sync_lock_test_and_set(&set->lock, 1)) || ct_lock_wait(set);
}

INLINE void ct_unlock(struct ct_set *set)
{
	IN_ORDER(&set->version);
	*(volatile __u32 *)&set->lock = 0;
}

/* Around a change of what an entry is about or says. Readers that saw half of it look again. */
INLINE void ct_change_begin(struct ct_set *set)
{
	*(volatile __u32 *)&set->version += 1;
	IN_ORDER(&set->lock);
}

INLINE void ct_change_end(struct ct_set *set)
{
	IN_ORDER(&set->lock);
	*(volatile __u32 *)&set->version += 1;
}

INLINE __u32 ct_hash(const struct ct_key *key)
{
	const word32 *words = (const word32 *)key;
	__u64 sum = sl_ct_factors[SLUICE_CT_SECRETS - 1];

#pragma unroll
	for (int i = 0; i < SLUICE_CT_SECRETS - 1; i++)
		sum += sl_ct_factors[i] * words[i];
	sum ^= sum >> 32;
	return (sum * SLUICE_CT_MIX) >> 32;
}

INLINE __u32 ct_set_of(__u32 hash)
{
	return ((__u64)hash * sl_ct_sets) >> 32;
}

/* Never 0, which means an empty place. */
INLINE __u16 ct_tag_of(__u32 hash)
{
	return (__u16)hash ? (__u16)hash : 1;
}

INLINE int ct_key_equal(const struct ct_key *a, const struct ct_key *b)
{
	const word64 *x = (const word64 *)a, *y = (const word64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4]));
}

/* The way that has the key, or SLUICE_CT_WAYS. By comparisons and branches: what is done with the way need not wait for it
 * then. */
INLINE __u32 ct_scan(const struct ct_set *set, __u16 tag, const struct ct_key *key)
{
	__u32 way;

	for (way = 0; way < SLUICE_CT_WAYS; way++) {
		if (set->tags[way] == tag && ct_key_equal(&set->ways[way].key, key))
			break;
	}
	return way;
}

/* ct_scan() where no packet hurries: the verifier walks every copy of that loop sixteen times. */
GLOBAL int ct_way_of(const struct ct_set *set, __u32 tag, const struct ct_key *key)
{
	return set && key ? ct_scan(set, tag, key) : SLUICE_CT_WAYS;
}

/* Where a new connection goes: a way that is empty, or the one that expires first. */
GLOBAL int ct_room(const struct ct_set *set, __u32 now)
{
	__s32 left, least = 0x7fffffff;
	__u32 victim = 0;

	if (!set)
		return 0;
	for (__u32 i = 0; i < SLUICE_CT_WAYS; i++) {
		if (!set->tags[i])
			return i;
		left = set->expires[i] - now;
		if (left < least) {
			least = left;
			victim = i;
		}
	}
	return victim;
}

/* By words: the compiler would do as the struct is aligned, which is by bytes for all that it knows. */
#define COPY_WORDS(to, from, bytes)                    \
	_Pragma("unroll") for (int i = 0; i < (bytes) / 8; i++) \
		((word64 *)(to))[i] = ((const word64 *)(from))[i]

/* Copies what is in a way. */
INLINE int ct_take(struct work *w, const struct ct_set *set, __u32 way)
{
	if (way >= SLUICE_CT_WAYS)
		return 0;
	COPY_WORDS(&w->found, &set->ways[way].entry, offsetof(struct ct_entry, packets));
	w->expires = set->expires[way];
	w->ct_way = way;
	return 1;
}

/* ct_find() while others write. */
GLOBAL int ct_find_locked(struct work *w)
{
	struct ct_set *set;
	int found;

	if (!w)
		return 0;
	set = bpf_map_lookup_elem(&sl_ct, &w->ct_index);
	if (!set || !ct_lock(set))
		return 0;
	found = ct_take(w, set, ct_way_of(set, w->ct_tag, &w->key));
	ct_unlock(set);
	return found;
}

/* Or clang asks a number later where the pointer is meant, and the verifier does not know that they agree. */
INLINE struct ct_entry *the_pointer(struct ct_entry *e)
{
	asm volatile("" : "+r"(e));
	return e;
}

/* The set of w->key. */
INLINE struct ct_set *ct_locate(struct work *w)
{
	__u32 hash = ct_hash(&w->key);

	w->ct_index = ct_set_of(hash);
	w->ct_tag = ct_tag_of(hash);
	return bpf_map_lookup_elem(&sl_ct, &w->ct_index);
}

/* The same, and its version, which is to be read before anything else of it. */
INLINE const struct ct_set *ct_begin(struct work *w, __u32 *version)
{
	const struct ct_set *set = ct_locate(w);

	if (set)
		*version = *(volatile const __u32 *)&set->version;
	IN_ORDER(&w->barrier);
	return set;
}

/* What is in the way that a scan since ct_begin() has named: a copy in w->found, or null. */
INLINE struct ct_entry *ct_end(struct work *w, const struct ct_set *set, __u32 version, __u32 way)
{
	struct ct_entry *e = ct_take(w, set, way) ? &w->found : NULL;

	IN_ORDER(&w->barrier);
	if (unlikely((version & 1) || *(volatile const __u32 *)&set->version != version))
		e = ct_find_locked(w) ? &w->found : NULL;
	return the_pointer(e);
}

/* The entry under w->key, as it was at one moment: a copy in w->found, or null. */
INLINE struct ct_entry *ct_find(struct work *w)
{
	__u32 version = 0;
	const struct ct_set *set = ct_begin(w, &version);

	return set ? ct_end(w, set, version, ct_scan(set, w->ct_tag, &w->key)) : NULL;
}

GLOBAL int ct_is_there(struct work *w)
{
	const struct ct_set *set;
	__u32 version = 0;

	if (!w)
		return 0;
	set = ct_begin(w, &version);
	return set && ct_end(w, set, version, ct_way_of(set, w->ct_tag, &w->key));
}

/* ct_find() where no packet hurries. */
INLINE struct ct_entry *ct_look(struct work *w)
{
	return the_pointer(ct_is_there(w) ? &w->found : NULL);
}

/* Flags of the entry under a key, or 0; where there is no work area, and no hurry to be right: an entry that changes just now is
 * none. */
INLINE __u16 ct_flags_of(const struct ct_key *key)
{
	__u32 hash = ct_hash(key);
	__u32 index = ct_set_of(hash), version, way;
	struct ct_set *set = bpf_map_lookup_elem(&sl_ct, &index);
	__u16 flags = 0;

	if (!set)
		return 0;
	version = *(volatile const __u32 *)&set->version;
	IN_ORDER(&set->lock);
	way = ct_way_of(set, ct_tag_of(hash), key);
	if (way < SLUICE_CT_WAYS)
		flags = *(volatile const __u16 *)&set->ways[way].entry.flags;
	IN_ORDER(&set->lock);
	return (version & 1) || *(volatile const __u32 *)&set->version != version ? 0 : flags;
}

/* The set of w->key, locked; null if that cannot be had. */
INLINE struct ct_set *ct_hold_any(struct work *w)
{
	struct ct_set *set = ct_locate(w);

	return set && ct_lock(set) ? set : NULL;
}

/* Puts w->entry under w->key, in place of what is there (`way`), and gives the set up. */
INLINE void ct_put(struct work *w, struct ct_set *set, __u32 way, __u32 expires)
{
	if (way >= SLUICE_CT_WAYS)
		way = set->tags[0] ? ct_room(set, w->now) : 0;
	/* By way of memory: the verifier forgets which way it was, and need not walk what follows for each. */
	w->ct_way = way;
	way = *(volatile const __u32 *)&w->ct_way;
	if (way < SLUICE_CT_WAYS) {
		struct ct_way *place = &set->ways[way];

		ct_change_begin(set);
		set->tags[way] = w->ct_tag;
		set->expires[way] = expires;
		COPY_WORDS(&place->key, &w->key, sizeof(struct ct_key));
		COPY_WORDS(&place->entry, &w->entry, sizeof(struct ct_entry));
		ct_change_end(set);
	}
	ct_unlock(set);
}

/* Stores w->entry under w->key. Returns 0 or a drop reason. */
INLINE int ct_store_inline(struct work *w, __u32 expires)
{
	struct ct_set *set = ct_hold_any(w);

	if (!set)
		return SLUICE_DROP_CT_FULL;
	ct_put(w, set, ct_scan(set, w->ct_tag, &w->key), expires);
	return 0;
}

/* ct_store_inline() where no packet hurries. */
GLOBAL int ct_store(struct work *w, __u32 expires)
{
	struct ct_set *set = w ? ct_hold_any(w) : NULL;

	if (!set)
		return SLUICE_DROP_CT_FULL;
	ct_put(w, set, ct_way_of(set, w->ct_tag, &w->key), expires);
	return 0;
}

/* The set of the entry that was found, locked, if that is still there; null otherwise. */
INLINE struct ct_set *ct_hold(struct work *w)
{
	struct ct_set *set = bpf_map_lookup_elem(&sl_ct, &w->ct_index);
	__u32 way = w->ct_way;

	if (!set || way >= SLUICE_CT_WAYS || !ct_lock(set))
		return NULL;
	if (set->tags[way] == w->ct_tag && ct_key_equal(&set->ways[way].key, &w->key))
		return set;
	ct_unlock(set);
	return NULL;
}

/* Changes flags of the entry that was found, if it is still there. */
GLOBAL int ct_mark(struct work *w, __u32 add, __u32 remove)
{
	struct ct_set *set = w ? ct_hold(w) : NULL;
	__u32 way;

	if (!set)
		return 0;
	way = w->ct_way;
	if (way < SLUICE_CT_WAYS)
		set->ways[way].entry.flags = (set->ways[way].entry.flags & ~remove) | add;
	ct_unlock(set);
	return 0;
}

/* The entry that was found lives on until then. */
INLINE void ct_prolong(const struct work *w, __u32 expires)
{
	struct ct_set *set = bpf_map_lookup_elem(&sl_ct, &w->ct_index);
	__u32 way = w->ct_way;

	if (set && way < SLUICE_CT_WAYS)
		set->expires[way] = expires;
}

INLINE void ct_count(const struct work *w)
{
	struct ct_set *set = bpf_map_lookup_elem(&sl_ct, &w->ct_index);
	__u32 way = w->ct_way;

	if (set && way < SLUICE_CT_WAYS) {
		set->ways[way].entry.packets[!w->from_lo] += 1;
		set->ways[way].entry.bytes[!w->from_lo] += w->pkt.length;
	}
}

#endif
