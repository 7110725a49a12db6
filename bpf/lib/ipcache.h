/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Address to identity: this node's own addresses first, then the other single addresses, then the
 * longest prefix. User space keeps the two default prefixes (::ffff:0:0/96 and ::/0) filled with the
 * world; an address that nothing covers is unknown, and unknown is refused once policy applies.
 */
#ifndef SLUICE_IPCACHE_H
#define SLUICE_IPCACHE_H

#include "work.h"

INLINE const struct ipcache_entry *ipcache_lookup(const struct sluice_addr *addr)
{
	const struct ipcache_entry *entry = bpf_map_lookup_elem(&sl_ipcache_exact, addr);
	struct sluice_lpm_key key;

	if (entry)
		return entry;
	key.prefix_len = 128;
	addr_copy4(&key.addr, addr);
	return bpf_map_lookup_elem(&sl_ipcache_lpm, &key);
}

/* An address of the cluster's ranges that no pod has, or one of which nothing is known. */
INLINE int is_nobody(const struct sluice_addr *addr)
{
	const struct ipcache_entry *entry;

	if (bpf_map_lookup_elem(&sl_endpoints, addr))
		return 0;
	entry = ipcache_lookup(addr);
	return !entry || entry->identity == SLUICE_ID_UNKNOWN;
}

/* Fills in the party that has this address. */
INLINE int party_resolve_inline(struct party *party, const struct sluice_addr *addr)
{
	const struct endpoint_info *ep;
	const struct ipcache_entry *entry;

	if (!party || !addr)
		return 0;
	addr_copy(&party->addr, addr);
	party->flags = PARTY_KNOWN;
	party->policy_id = 0;
	party->endpoint_id = 0;
	party->ifindex = 0;
	party->epoch = 0;
	party->identity = SLUICE_ID_UNKNOWN;
	ep = bpf_map_lookup_elem(&sl_endpoints, addr);
	if (ep) {
		party->identity = ep->identity;
		party->policy_id = ep->policy_id;
		if (ep->flags & SLUICE_EP_HOST) {
			party->flags |= PARTY_HOST;
			return 0;
		}
		party->flags |= PARTY_LOCAL | (ep->flags & SLUICE_EP_L3DEV ? PARTY_L3DEV : 0);
		party->ifindex = ep->ifindex;
		party->endpoint_id = ep->id;
		mac_copy(party->mac, ep->mac);
		return 0;
	}
	entry = ipcache_lookup(addr);
	if (!entry)
		return 0;
	party->identity = entry->identity;
	if (entry->flags & SLUICE_IPC_REMOTE)
		party->flags |= PARTY_REMOTE;
	if (entry->flags & SLUICE_IPC_NODE)
		party->flags |= PARTY_NODE;
	if (entry->flags & SLUICE_IPC_CLUSTER)
		party->flags |= PARTY_CLUSTER;
	if (entry->flags & SLUICE_IPC_LEARNED)
		party->flags |= PARTY_LEARNED;
	addr_copy(&party->tunnel_ep, &entry->tunnel_ep);
	return 0;
}

GLOBAL int party_resolve(struct party *party, const struct sluice_addr *addr)
{
	return party_resolve_inline(party, addr);
}

#endif
