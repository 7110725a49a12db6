/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Services. What a pod or a process of the node sends to a frontend is translated to one of its backends before
 * anything is judged: policy sees the backend's address and port. Two conntrack entries keep a connection together:
 *
 *	(client, frontend)	CT_SERVICE	-> backend	 finds the backend of later packets
 *	(client, backend)	CT_REV_NAT	-> frontend	 the flow itself; replies get the frontend as source
 *
 * A pod, or a process of the node, that reaches itself through its own Service would see its own address as the
 * source and answer itself, past us. So the frontend stands in as the source (hairpin):
 *
 *	(client, frontend)			CT_SERVICE|CT_HAIRPIN
 *	(frontend:client port, backend)	CT_REV_NAT|CT_HAIRPIN
 */
#ifndef SLUICE_SERVICE_H
#define SLUICE_SERVICE_H

#include "conntrack.h"
#include "deliver.h"
#include "judge.h"
#include "rewrite.h"

#define BACKEND_TRIES 4

/* The packet goes to this backend instead. */
INLINE void service_translate(struct work *w, const struct sluice_addr *backend, __u16 port)
{
	addr_copy(&w->svc_addr, &w->pkt.daddr);
	w->svc_port = w->pkt.dport;
	addr_copy(&w->ct_svc_addr, &w->pkt.daddr);
	w->ct_svc_port = w->pkt.dport;
	w->ct_flags |= SLUICE_CT_REV_NAT;
	addr_copy(&w->pkt.daddr, backend);
	w->pkt.dport = port;
	rewrite_destination(w, backend, port);
}

INLINE const struct backend_entry *backend_at(__u32 service, __u32 slot)
{
	struct backend_key key = {.svc_id = service, .slot = slot};

	return bpf_map_lookup_elem(&sl_backends, &key);
}

INLINE const struct backend_entry *backend_of_client(struct work *w, const struct svc_entry *service,
													 struct affinity_key *key)
{
	const struct affinity_entry *known = bpf_map_lookup_elem(&sl_affinity, key);
	const struct backend_entry *backend;

	if (!known || known->slot >= service->backends ||
		w->now - known->last_seen > service->affinity_secs)
		return NULL;
	backend = backend_at(service->id, known->slot);
	return backend && backend->backend_id == known->backend_id ? backend : NULL;
}

/* Chooses a backend if the destination is a frontend. Returns 0, with the packet translated or not, or a
 * drop reason. */
GLOBAL int service_select(struct work *w)
{
	struct svc_key key = {};
	struct affinity_key client = {};
	struct affinity_entry affinity = {};
	const struct svc_entry *service;
	const struct backend_entry *backend = NULL;
	__u32 slot = 0;

	if (!w)
		return SLUICE_DROP_INTERNAL;
	addr_copy4(&key.addr, &w->pkt.daddr);
	key.port = w->pkt.dport;
	key.protocol = w->pkt.protocol;
	service = bpf_map_lookup_elem(&sl_services, &key);
	if (!service)
		return 0;
	if (service->flags & SLUICE_SVC_AFFINITY) {
		addr_copy4(&client.client, &w->pkt.saddr);
		client.svc_id = service->id;
		backend = backend_of_client(w, service, &client);
	}
	if (!backend) {
		slot = bpf_get_prandom_u32();
		/* A slot may be empty for the moment in which user space changes the Service. */
		for (int i = 0; i < BACKEND_TRIES && !backend && service->backends; i++) {
			slot = (slot + i) % service->backends;
			backend = backend_at(service->id, slot);
		}
		if (backend)
			affinity.slot = slot;
	} else {
		const struct affinity_entry *known = bpf_map_lookup_elem(&sl_affinity, &client);

		if (known)
			affinity.slot = known->slot;
	}
	if (!backend || addr_is_v4(&backend->addr) == !!(w->pkt.flags & PKT_V6)) {
		addr_copy(&w->svc_addr, &w->pkt.daddr);
		w->svc_port = w->pkt.dport;
		return SLUICE_DROP_NO_SERVICE_BACKEND;
	}
	if (service->flags & SLUICE_SVC_AFFINITY) {
		affinity.backend_id = backend->backend_id;
		affinity.last_seen = w->now;
		bpf_map_update_elem(&sl_affinity, &client, &affinity, BPF_ANY);
	}
	w->ct_flags |= SLUICE_CT_SERVICE;
	service_translate(w, &backend->addr, backend->port);
	return 0;
}

/* Remembers the choice that service_select() made. Uses w->key and w->entry. */
INLINE int service_remember(struct work *w)
{
	struct ct_entry *e = &w->entry;
	__u8 from_lo = ct_key_of(&w->key, &w->pkt.saddr, &w->ct_svc_addr, w->pkt.sport, w->ct_svc_port,
							 w->pkt.protocol);

	__builtin_memset(e, 0, sizeof(*e));
	e->flags = SLUICE_CT_SERVICE | SLUICE_CT_SEEN_REPLY | (w->ct_flags & SLUICE_CT_HAIRPIN) |
		(from_lo ? 0 : SLUICE_CT_INIT_HI);
	addr_copy(&e->svc_addr, &w->pkt.daddr);
	e->svc_port = w->pkt.dport;
	ct_fill_side(from_lo ? &e->lo : &e->hi, from_lo ? e->lo_mac : e->hi_mac, &w->src);
	return ct_store(w, w->now + ct_timeout(w->pkt.protocol, e->flags));
}

/* Whoever hairpins is who it says it is; a process of the node is, by the device. */
INLINE int hairpin_source(struct __sk_buff *skb, struct work *w)
{
	party_resolve(&w->src, &w->pkt.saddr);
	return w->observation == SLUICE_OBS_FROM_CONTAINER ? source_from_container(skb, w) : 0;
}

/* Back to where it came from. The node's stack takes it as if it had come in by the device. */
INLINE int hairpin_deliver(struct __sk_buff *skb, struct work *w, const struct node_config *config)
{
	struct ethhdr *eth;

	count_packet(w->direction, SLUICE_METRIC_FORWARDED, w->pkt.length);
	if (w->observation == SLUICE_OBS_FROM_CONTAINER)
		return deliver_local(skb, w, config, w->src.ifindex, w->src.mac);
	eth = header(skb, 0, sizeof(*eth));
	if (!eth)
		return drop(skb, w, SLUICE_DROP_INVALID_PACKET);
	mac_copy(eth->h_dest, eth->h_source);
	set_mark(skb, SLUICE_MARK_VERDICT);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* A first packet to its own sender through a Service. The packet is translated already. */
GLOBAL int hairpin_open(struct __sk_buff *skb, struct work *w)
{
	const struct node_config *config = node_config();
	struct ct_entry *e;
	__u8 from_lo;
	int reason;

	if (!w || !config)
		return TC_ACT_SHOT;
	e = &w->entry;
	reason = hairpin_source(skb, w);
	if (reason)
		return drop(skb, w, reason);
	w->ct_flags |= SLUICE_CT_HAIRPIN;
	reason = service_remember(w);
	if (reason)
		return drop(skb, w, reason);
	/* The backend's answer goes from (pod, backend port) to (frontend, client port). */
	from_lo = ct_key_of(&w->key, &w->pkt.daddr, &w->ct_svc_addr, w->pkt.dport, w->pkt.sport,
						w->pkt.protocol);
	__builtin_memset(e, 0, sizeof(*e));
	e->flags = SLUICE_CT_REV_NAT | SLUICE_CT_HAIRPIN | SLUICE_CT_SEEN_REPLY |
		(from_lo ? SLUICE_CT_INIT_HI : 0);
	addr_copy(&e->svc_addr, &w->ct_svc_addr);
	e->svc_port = w->ct_svc_port;
	ct_fill_side(from_lo ? &e->lo : &e->hi, from_lo ? e->lo_mac : e->hi_mac, &w->src);
	reason = ct_store(w, w->now + ct_timeout(w->pkt.protocol, e->flags));
	if (reason)
		return drop(skb, w, reason);
	rewrite_source(w, &w->ct_svc_addr, w->pkt.sport);
	reason = rewrite_apply(skb, w);
	if (reason)
		return drop(skb, w, reason);
	return hairpin_deliver(skb, w, config);
}

/* A packet of a hairpin that is known: the way there (CT_SERVICE) or back. */
INLINE int hairpin_continue(struct __sk_buff *skb, struct work *w, const struct node_config *config,
							struct ct_entry *e)
{
	int reason;

	reason = hairpin_source(skb, w);
	if (reason)
		return drop(skb, w, reason);
	ct_touch(w, &w->pkt);
	if (e->flags & SLUICE_CT_SERVICE) {
		rewrite_source(w, &w->pkt.daddr, w->pkt.sport);
		rewrite_destination(w, &e->svc_addr, e->svc_port);
	} else {
		rewrite_source(w, &e->svc_addr, e->svc_port);
		rewrite_destination(w, &w->pkt.saddr, w->pkt.dport);
	}
	reason = rewrite_apply(skb, w);
	if (reason)
		return drop(skb, w, reason);
	return hairpin_deliver(skb, w, config);
}

#endif
