/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Fragments. The first one carries the ports: they are remembered for the others of the same datagram,
 * which are then judged like any packet of that flow. One that comes before the first is dropped (the
 * sender repeats the datagram), and so is one that would overwrite a header that was judged.
 */
#ifndef SLUICE_FRAGMENT_H
#define SLUICE_FRAGMENT_H

#include "work.h"

#define FRAGMENT_SECONDS 60 /* RFC 8200 section 4.5; IPv4 stacks use 30 */

/* Bytes of the transport header that verdicts depend on. */
INLINE __u32 fragment_header_bytes(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? 20 : 8;
}

GLOBAL int fragment(struct work *w)
{
	struct frag_key key = {};
	struct frag_entry *known, entry = {};
	struct packet *p;

	if (!w)
		return SLUICE_DROP_INTERNAL;
	p = &w->pkt;
	w->event_flags |= SLUICE_EVF_FRAGMENT;
	addr_copy4(&key.saddr, &p->saddr);
	addr_copy4(&key.daddr, &p->daddr);
	key.id = p->fragment_id;
	key.protocol = p->protocol;
	if (!(p->flags & PKT_LATER)) {
		entry.sport = p->sport;
		entry.dport = p->flags & PKT_TYPED ? p->icmp_type << 8 | p->icmp_code : p->dport;
		entry.last_seen = w->now;
		return bpf_map_update_elem(&sl_frags, &key, &entry, BPF_ANY) ? SLUICE_DROP_INTERNAL : 0;
	}
	if (p->fragment_offset < fragment_header_bytes(p->protocol))
		return SLUICE_DROP_FRAG_OVERLAP;
	known = bpf_map_lookup_elem(&sl_frags, &key);
	if (!known || w->now - known->last_seen > FRAGMENT_SECONDS)
		return SLUICE_DROP_FRAG_NO_FIRST;
	p->sport = known->sport;
	p->dport = known->dport;
	switch (p->protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		p->icmp_type = known->dport >> 8;
		p->icmp_code = known->dport & 0xff;
		p->dport = p->sport;
		p->flags |= PKT_TYPED;
		/* Echo messages are tracked; errors are never fragmented (RFC 1812, RFC 4443). */
		if (p->flags & PKT_V6 ?
				p->icmp_type == ICMPV6_ECHO_REQUEST || p->icmp_type == ICMPV6_ECHO_REPLY :
				p->icmp_type == ICMP_ECHO || p->icmp_type == ICMP_ECHOREPLY)
			p->flags |= PKT_TRACKED;
		break;
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		p->flags |= PKT_TRACKED | PKT_PORTS;
		break;
	default:
		p->flags |= PKT_TRACKED;
	}
	return 0;
}

#endif
