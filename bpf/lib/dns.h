/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Whose replies are a DNS proxy's. See "queries of DNS proxies" in abi.h.
 */
#ifndef SLUICE_DNS_H
#define SLUICE_DNS_H

#include "work.h"

INLINE void dns_pair_key(struct dns_pair *pair, const struct sluice_addr *client,
						 const struct sluice_addr *server, __u16 port)
{
	addr_copy(&pair->client, client);
	addr_copy(&pair->server, server);
	pair->port = port;
}

/* A proxy asks. Returns 0 or a drop reason. */
INLINE int dns_pair_asks(const struct work *w)
{
	struct dns_pair pair __attribute__((aligned(8)));
	__u32 *last;

	dns_pair_key(&pair, &w->pkt.saddr, &w->pkt.daddr, w->pkt.dport);
	last = bpf_map_lookup_elem(&sl_dns_pairs, &pair);
	if (last) {
		if (*last != w->now)
			*last = w->now;
		return 0;
	}
	return bpf_map_update_elem(&sl_dns_pairs, &pair, &w->now, BPF_ANY) ? SLUICE_DROP_CT_FULL : 0;
}

/* A proxy has asked this server in the client's name a moment ago. */
INLINE int dns_pair_asked(const struct sluice_addr *client, const struct sluice_addr *server, __u16 port,
						  __u32 now)
{
	struct dns_pair pair __attribute__((aligned(8)));
	const __u32 *last;

	dns_pair_key(&pair, client, server, port);
	last = bpf_map_lookup_elem(&sl_dns_pairs, &pair);
	return last && (__s32)(now - *last) <= SLUICE_DNS_PAIR_SECONDS;
}

#endif
