//! `networking.k8s.io/v1` NetworkPolicy.
//!
//! Cases that the policy semantics leave open, decided as upstream: rules of a direction that
//! `policyTypes` does not list are checked but not used (with a warning); an object without `spec`
//! isolates every pod of its namespace for ingress.

use std::sync::Arc;

use super::ParseOptions;
use super::cidr::{self, Form, Inside};
use super::cursor::{Cursor, Fields};
use super::meta::{checked, port_name};
use super::objects::{namespaced, transport};
use super::selector::{self, Keys};
use super::tree::Value;
use crate::cluster::Resource;
use crate::model::{Direction, Kind, ObjectRef, PortRange, Protocol};
use crate::policy::lint::Code;
use crate::policy::rule::{
    Action, CidrSet, Peer, Peers, Policy, PortMatch, Ports, Rule, Spec, Subject, Tier,
};
use crate::policy::selector::LabelSelector;

/// Upstream counts `policyTypes` and does not compare them: the same one twice is fine, a third one is not.
const MAX_POLICY_TYPES: usize = 2;

pub fn read(fields: &Fields<'_>, options: &ParseOptions) -> Option<Resource> {
    fields.accept(&["status"]);
    let meta = namespaced(fields, options);
    let namespace = meta.as_ref().map_or("", |meta| &meta.namespace);
    let spec = match fields.get("spec") {
        Some(spec) => spec.object(|fields| read_spec(fields, namespace)).flatten(),
        None => {
            fields.cursor().warning("no spec: every pod of the namespace is isolated for ingress");
            Some(isolation(selector::in_namespace(&LabelSelector::default(), namespace)))
        }
    };
    let (meta, spec) = (meta?, spec?);
    let object = ObjectRef::new(Kind::NetworkPolicy, &meta.namespace, &meta.name);
    Some(Resource::Policy(Policy { object, specs: vec![spec] }))
}

fn isolation(subject: LabelSelector) -> Spec {
    Spec {
        subject: Subject::Pods(Some(subject)),
        tier: Tier::Normal,
        default_deny_ingress: true,
        default_deny_egress: false,
        rules: Vec::new(),
    }
}

fn read_spec(spec: &Fields<'_>, namespace: &str) -> Option<Spec> {
    // A null selector is an empty one: every pod of the namespace.
    let subject = match spec.get("podSelector") {
        Some(cursor) => selector::read(&cursor, Keys::Pod),
        None => Some(LabelSelector::default()),
    };
    let types = spec.list("policyTypes");
    if let Some(third) = types.get(MAX_POLICY_TYPES) {
        third.error(format!("found {} policyTypes, expected {MAX_POLICY_TYPES} at most", types.len()));
    }
    let types: Vec<Direction> = types
        .iter()
        .filter_map(|item| item.one_of(&[("Ingress", Direction::Ingress), ("Egress", Direction::Egress)]))
        .collect();
    let ingress = spec.list("ingress");
    let egress = spec.list("egress");
    let types_given = !types.is_empty();
    let applies = |direction| match direction {
        _ if types_given => types.contains(&direction),
        Direction::Ingress => true,
        Direction::Egress => !egress.is_empty(),
    };
    let mut rules = Vec::new();
    for (direction, list, peers) in
        [(Direction::Ingress, &ingress, "from"), (Direction::Egress, &egress, "to")]
    {
        let read = |rule: &Cursor<'_>| rule.object(|fields| read_rule(fields, direction, peers, namespace));
        let read: Vec<Rule> = list.iter().filter_map(read).collect();
        if applies(direction) {
            rules.extend(read);
        } else if let Some(rule) = list.first() {
            rule.warning(format!("policyTypes does not list {direction}: these rules do nothing"));
        }
    }
    Some(Spec {
        default_deny_ingress: applies(Direction::Ingress),
        default_deny_egress: applies(Direction::Egress),
        rules,
        ..isolation(selector::in_namespace(&subject?, namespace))
    })
}

fn read_rule(fields: &Fields<'_>, direction: Direction, peers: &'static str, namespace: &str) -> Rule {
    // Missing or empty: every peer, every port.
    let peer_list = fields.list(peers);
    let port_list = fields.list("ports");
    let peers: Vec<Peer> = peer_list.iter().filter_map(|peer| read_peer(peer, namespace)).collect();
    let ports: Vec<PortMatch> = port_list.iter().filter_map(read_port).collect();
    Rule {
        direction,
        action: Action::Allow,
        peers: if peer_list.is_empty() { Peers::Any } else { Peers::OneOf(peers) },
        ports: if port_list.is_empty() { Ports::Any } else { Ports::OneOf(ports) },
        l7: None,
        path: fields.cursor().path().into(),
    }
}

fn read_peer(peer: &Cursor<'_>, namespace: &str) -> Option<Peer> {
    peer.object(|fields| {
        let block = fields.get("ipBlock");
        let pods = fields.get("podSelector");
        let namespaces = fields.get("namespaceSelector");
        if block.is_some() && (pods.is_some() || namespaces.is_some()) {
            peer.error("ipBlock may not stand beside a selector in one element");
        }
        let read_pods = |cursor: &Cursor<'_>| selector::read(cursor, Keys::Pod);
        let read_namespaces = |cursor: &Cursor<'_>| selector::read(cursor, Keys::Namespace);
        match (block, namespaces, pods) {
            (Some(block), ..) => block.object(ip_block).flatten().map(Peer::Address),
            (None, None, Some(pods)) => {
                Some(Peer::Pods(selector::in_namespace(&read_pods(&pods)?, namespace)))
            }
            (None, Some(namespaces), None) => {
                Some(Peer::Pods(selector::in_some_namespace(&read_namespaces(&namespaces)?)))
            }
            (None, Some(namespaces), Some(pods)) => {
                let (namespaces, pods) = (read_namespaces(&namespaces), read_pods(&pods));
                Some(Peer::Pods(selector::in_some_namespace(&selector::both(&namespaces?, &pods?))))
            }
            (None, None, None) => {
                peer.error("a peer needs one of ipBlock, namespaceSelector and podSelector");
                None
            }
        }
    })?
}

fn ip_block(block: &Fields<'_>) -> Option<CidrSet> {
    let cidr = block.require("cidr").and_then(|cursor| cidr::prefix(&cursor, Form::Prefix));
    let except = cidr::except(cidr, &block.list("except"), Inside::Strictly);
    Some(CidrSet { cidr: cidr?, except })
}

fn read_port(port: &Cursor<'_>) -> Option<PortMatch> {
    port.object(|fields| {
        let protocol = transport(fields);
        let first = fields.get("port");
        let end = fields.get("endPort");
        let last = end.as_ref().and_then(|end| end.port());
        let Some(first) = first else {
            if let Some(end) = end {
                end.error("endPort needs port");
            }
            return protocol.map(PortMatch::Protocol);
        };
        if let Value::Text(_) = first.node.value {
            if let Some(end) = end {
                end.error("endPort needs a port number, found a port name");
            }
            let name = checked(&first, "a port name", port_name);
            return Some(PortMatch::Named(protocol?, Arc::from(name?)));
        }
        let first = first.port()?;
        numbered(protocol?, first, end.as_ref(), last.unwrap_or(first))
    })?
}

/// Ports `first` to `last`; `end` is where the last one is written.
fn numbered(protocol: Protocol, first: u16, end: Option<&Cursor<'_>>, last: u16) -> Option<PortMatch> {
    let range = PortRange::new(first, last);
    if range.is_none()
        && let Some(end) = end
    {
        end.trap(Code::EndPortBelowPort, format!("endPort {last} is below port {first}"));
    }
    Some(PortMatch::Range(protocol, range?))
}
