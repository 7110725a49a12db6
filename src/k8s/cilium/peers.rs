//! The L3 part of a rule: at most one kind of peer.

use std::sync::Arc;

use super::Context;
use crate::k8s::cidr::{self, Form, Inside};
use crate::k8s::cursor::{Cursor, Fields};
use crate::k8s::meta::{checked, dns_label, subdomain};
use crate::k8s::near::nearest;
use crate::k8s::selector::{self, Keys};
use crate::k8s::tree::quoted;
use crate::model::Direction;
use crate::policy::rule::{Action, CidrGroupRef, CidrSet, Entity, GroupSelect, Peer, Peers, ServiceRef};
use crate::policy::selector::LabelSelector;

/// What a member holds.
#[derive(Clone, Copy)]
enum Member {
    Endpoints,
    Cidr,
    CidrSet,
    Entities,
    Nodes,
    Services,
    Fqdns,
    /// Exists upstream, or did, and is refused.
    NotSupported,
}

const INGRESS: &[(&str, Member)] = &[
    ("fromEndpoints", Member::Endpoints),
    ("fromCIDR", Member::Cidr),
    ("fromCIDRSet", Member::CidrSet),
    ("fromEntities", Member::Entities),
    ("fromNodes", Member::Nodes),
    ("fromGroups", Member::NotSupported),
    ("fromRequires", Member::NotSupported),
];

const EGRESS: &[(&str, Member)] = &[
    ("toEndpoints", Member::Endpoints),
    ("toCIDR", Member::Cidr),
    ("toCIDRSet", Member::CidrSet),
    ("toEntities", Member::Entities),
    ("toNodes", Member::Nodes),
    ("toServices", Member::Services),
    ("toFQDNs", Member::Fqdns),
    ("toGroups", Member::NotSupported),
    ("toRequires", Member::NotSupported),
];

/// The peers; `None` where the rule has no L3 member. An empty list is no peer, not every peer.
pub(super) fn read(fields: &Fields<'_>, context: Context<'_>) -> Option<Peers> {
    let members = match context.direction {
        Direction::Ingress => INGRESS,
        Direction::Egress => EGRESS,
    };
    let mut found: Vec<&str> = Vec::new();
    let mut peers = Vec::new();
    for (name, member) in members {
        let Some(field) = fields.get(name) else { continue };
        if let Member::NotSupported = member {
            field.error(format!("{name} is not supported"));
            continue;
        }
        found.push(name);
        for item in field.list().unwrap_or_default() {
            peers.extend(read_item(&item, *member, context));
        }
        if let (Member::Fqdns, Action::Deny) = (member, context.action) {
            field.error("toFQDNs may not stand in a deny rule");
        }
    }
    if found.len() > 1 {
        fields
            .cursor()
            .error(format!("only one kind of peer may stand in one rule, found {}", found.join(" and ")));
    }
    (!found.is_empty()).then_some(Peers::OneOf(peers))
}

fn read_item(item: &Cursor<'_>, member: Member, context: Context<'_>) -> Option<Peer> {
    match member {
        Member::Endpoints => {
            let selector = nullable_selector(item, Keys::Cilium)?;
            Some(Peer::Pods(selector::cilium_peer(&selector, context.namespace)))
        }
        Member::Nodes => nullable_selector(item, Keys::Node).map(Peer::Nodes),
        Member::Cidr => cidr::prefix(item, Form::PrefixOrAddress).map(|net| Peer::Cidr(cidr::whole(net))),
        Member::CidrSet => item.object(cidr_set).flatten(),
        Member::Entities => entity(item).map(Peer::Entity),
        Member::Services => item.object(service).flatten().map(Peer::Service),
        Member::Fqdns => super::l7::name_or_pattern(item).map(Peer::Fqdn),
        Member::NotSupported => None,
    }
}

/// A null selector matches nothing.
fn nullable_selector(item: &Cursor<'_>, keys: Keys) -> Option<LabelSelector> {
    if item.is_null() {
        item.warning("a null selector selects nothing");
        return None;
    }
    selector::read(item, keys)
}

fn entity(item: &Cursor<'_>) -> Option<Entity> {
    let text = item.string()?;
    let entity = Entity::parse(text);
    if entity.is_none() {
        let names: Vec<&str> = Entity::ALL.iter().map(|(name, _)| *name).collect();
        let hint = nearest(text, names.iter().copied())
            .map(|name| format!("; did you mean {name}?"))
            .unwrap_or_default();
        item.error(format!("found {}, expected an entity: {}{hint}", quoted(text), names.join(", ")));
    }
    entity
}

fn cidr_set(fields: &Fields<'_>) -> Option<Peer> {
    let cidr_field = fields.get("cidr");
    let group = fields.get("cidrGroupRef");
    let labels = fields.get("cidrGroupSelector");
    let given = [&cidr_field, &group, &labels].into_iter().flatten().count();
    if given != 1 {
        fields.cursor().error(format!(
            "found {given} of cidr, cidrGroupRef and cidrGroupSelector, expected exactly one"
        ));
    }
    let cidr = cidr_field.and_then(|field| cidr::prefix(&field, Form::Prefix));
    let except = cidr::except(cidr, &fields.list("except"), Inside::OrEqual);
    if let Some(cidr) = cidr {
        return Some(Peer::Cidr(CidrSet { cidr, except }));
    }
    let groups = match (group, labels) {
        (Some(name), _) => {
            GroupSelect::Name(checked(&name, "the name of a CiliumCIDRGroup", subdomain)?.into())
        }
        (None, Some(labels)) => GroupSelect::Labels(selector::read(&labels, Keys::Object)?),
        (None, None) => return None,
    };
    Some(Peer::CidrGroup(CidrGroupRef { groups, except }))
}

fn service(fields: &Fields<'_>) -> Option<ServiceRef> {
    let by_name = fields.get("k8sService");
    let by_labels = fields.get("k8sServiceSelector");
    match (by_name, by_labels) {
        (Some(by_name), None) => by_name
            .object(|fields| {
                let namespace = service_namespace(fields);
                let name = fields
                    .require("serviceName")
                    .and_then(|name| checked(&name, "the name of a Service", dns_label));
                Some(ServiceRef::Name { namespace, name: name?.into() })
            })
            .flatten(),
        (None, Some(by_labels)) => by_labels
            .object(|fields| {
                let namespace = service_namespace(fields);
                let selector = fields.require("selector")?;
                let selector = selector::read(&selector, Keys::Object)?;
                Some(ServiceRef::Labels { namespace, selector })
            })
            .flatten(),
        _ => {
            fields.cursor().error("exactly one of k8sService and k8sServiceSelector is needed");
            None
        }
    }
}

/// The namespace of a Service. None given is any, in a CNP, too (upstream): unlike a selector of pods, a reference does not
/// stay in the policy's own.
fn service_namespace(fields: &Fields<'_>) -> Option<Arc<str>> {
    fields
        .get("namespace")
        .filter(|field| field.node.as_str() != Some(""))
        .and_then(|field| checked(&field, "a namespace name", dns_label))
        .map(Arc::from)
}
