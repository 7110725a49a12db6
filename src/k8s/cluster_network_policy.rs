//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy: the tiers Admin and Baseline.
//!
//! Limits are those of the upstream schema. A wildcard in `domainNames` stands for one or more
//! labels there, which is `**.` in our patterns. `Pass` in the Baseline tier skips the rest of the
//! tier and leaves the traffic to the cluster's default.

use std::sync::Arc;

use super::cidr::{self, Form};
use super::cursor::{Cursor, Fields};
use super::meta::{self, Scope, checked, port_name};
use super::selector::{self, Keys};
use super::tree::quoted;
use crate::cluster::Resource;
use crate::model::{Direction, Kind, ObjectRef, PortRange, Protocol};
use crate::policy::l7::DnsPattern;
use crate::policy::rule::{Action, Peer, Peers, Policy, PortMatch, Ports, Rule, Spec, Subject, Tier};
use crate::policy::selector::LabelSelector;

/// Most rules of one direction, and most elements of any list inside a rule.
const MAX_ITEMS: usize = 25;
const MAX_RULE_NAME: usize = 100;
const MAX_PRIORITY: i64 = 1000;

#[derive(Clone, Copy)]
enum TierName {
    Admin,
    Baseline,
}

pub fn read(fields: &Fields<'_>) -> Option<Resource> {
    fields.accept(&["status"]);
    let meta = meta::read(fields, Scope::Cluster);
    let spec = fields.require("spec").and_then(|spec| spec.object(read_spec).flatten());
    let (meta, spec) = (meta?, spec?);
    let object = ObjectRef::new(Kind::ClusterNetworkPolicy, "", &meta.name);
    Some(Resource::Policy(Policy { object, specs: vec![spec] }))
}

fn read_spec(fields: &Fields<'_>) -> Option<Spec> {
    let tier = fields
        .require("tier")
        .and_then(|tier| tier.one_of(&[("Admin", TierName::Admin), ("Baseline", TierName::Baseline)]));
    let priority = fields
        .require("priority")
        .and_then(|priority| priority.integer(0..=MAX_PRIORITY))
        .and_then(|priority| u16::try_from(priority).ok());
    let subject = fields.require("subject").and_then(|subject| subject.object(read_pods).flatten());
    let mut rules = Vec::new();
    for (name, direction, peers) in
        [("ingress", Direction::Ingress, "from"), ("egress", Direction::Egress, "to")]
    {
        let list = fields.list(name);
        limit(fields.cursor(), name, list.len());
        rules.extend(
            list.iter()
                .filter_map(|rule| rule.object(|fields| read_rule(fields, direction, peers)).flatten()),
        );
    }
    let priority = priority?;
    Some(Spec {
        subject: Subject::Pods(Some(subject?)),
        tier: match tier? {
            TierName::Admin => Tier::Admin { priority },
            TierName::Baseline => Tier::Baseline { priority },
        },
        default_deny_ingress: false,
        default_deny_egress: false,
        rules,
    })
}

fn limit(cursor: &Cursor<'_>, name: &str, count: usize) {
    if count > MAX_ITEMS {
        cursor.error(format!("found {count} elements in {name}, at most {MAX_ITEMS} are allowed"));
    }
}

/// `namespaces` or `pods`, exactly one: of a subject.
fn read_pods(fields: &Fields<'_>) -> Option<LabelSelector> {
    match (fields.get("namespaces"), fields.get("pods")) {
        (Some(namespaces), None) => namespaces_selector(&namespaces),
        (None, Some(pods)) => pods_selector(&pods),
        _ => {
            fields.cursor().error("exactly one of namespaces and pods is needed");
            None
        }
    }
}

fn namespaces_selector(cursor: &Cursor<'_>) -> Option<LabelSelector> {
    selector::read(cursor, Keys::Namespace).map(|selector| selector::in_some_namespace(&selector))
}

fn pods_selector(cursor: &Cursor<'_>) -> Option<LabelSelector> {
    cursor.object(|fields| {
        let namespaces = match fields.get("namespaceSelector") {
            Some(cursor) => selector::read(&cursor, Keys::Namespace),
            None => Some(LabelSelector::default()),
        };
        let pods = fields.require("podSelector").and_then(|cursor| selector::read(&cursor, Keys::Pod));
        Some(selector::in_some_namespace(&selector::both(&namespaces?, &pods?)))
    })?
}

fn read_rule(fields: &Fields<'_>, direction: Direction, peers: &'static str) -> Option<Rule> {
    if let Some(name) = fields.get("name")
        && name.string().is_some_and(|text| text.chars().count() > MAX_RULE_NAME)
    {
        name.error(format!("the name has more than {MAX_RULE_NAME} characters"));
    }
    let action = fields.require("action").and_then(|action| {
        action.one_of(&[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)])
    });
    let peer_list = fields.require(peers).and_then(|cursor| non_empty(&cursor)).unwrap_or_default();
    let protocols = fields.get("protocols").and_then(|cursor| non_empty(&cursor));
    let mut found = Vec::new();
    let mut without_names = false;
    for peer in &peer_list {
        let read = peer.object(|fields| read_peer(fields, direction)).flatten();
        for peer_read in read.unwrap_or_default() {
            without_names |= !matches!(peer_read, Peer::Pods(_));
            if matches!(peer_read, Peer::Fqdn(_)) && action.is_some_and(|action| action != Action::Allow) {
                peer.error("domainNames are for rules with action Accept only");
            }
            found.push(peer_read);
        }
    }
    let mut ports = Vec::new();
    for protocol in protocols.iter().flatten() {
        let read = protocol.object(read_protocol).flatten().unwrap_or_default();
        if without_names && read.iter().any(|port| matches!(port, PortMatch::Named(..))) {
            protocol.error("nodes, networks and domainNames have no port names");
        }
        ports.extend(read);
    }
    Some(Rule {
        direction,
        action: action?,
        peers: Peers::OneOf(found),
        ports: if protocols.is_some() { Ports::OneOf(ports) } else { Ports::Any },
        l7: None,
        path: fields.cursor().path().into(),
    })
}

/// A list of 1 to 25 elements.
fn non_empty<'a>(cursor: &Cursor<'a>) -> Option<Vec<Cursor<'a>>> {
    let items = cursor.list()?;
    if items.is_empty() {
        cursor.error("found an empty list, expected at least one element");
        return None;
    }
    if items.len() > MAX_ITEMS {
        cursor.error(format!("found {} elements, at most {MAX_ITEMS} are allowed", items.len()));
    }
    Some(items)
}

/// One peer element: exactly one of its fields. `nodes`, `networks` and `domainNames` are for
/// egress only.
fn read_peer(fields: &Fields<'_>, direction: Direction) -> Option<Vec<Peer>> {
    let namespaces = fields.get("namespaces");
    let pods = fields.get("pods");
    let (nodes, networks, names) = match direction {
        Direction::Egress => (fields.get("nodes"), fields.get("networks"), fields.get("domainNames")),
        Direction::Ingress => (None, None, None),
    };
    let given = [&namespaces, &pods, &nodes, &networks, &names].into_iter().flatten().count();
    if given != 1 {
        fields.cursor().error(format!("found {given} kinds of peer in one element, expected exactly one"));
        return None;
    }
    let one = |peer: Option<Peer>| peer.map(|peer| vec![peer]);
    if let Some(cursor) = namespaces {
        one(namespaces_selector(&cursor).map(Peer::Pods))
    } else if let Some(cursor) = pods {
        one(pods_selector(&cursor).map(Peer::Pods))
    } else if let Some(cursor) = nodes {
        one(selector::read(&cursor, Keys::Node).map(Peer::Nodes))
    } else if let Some(cursor) = networks {
        let items = non_empty(&cursor)?;
        let network = |item: &Cursor<'_>| Some(Peer::Address(cidr::whole(cidr::prefix(item, Form::Prefix)?)));
        Some(items.iter().filter_map(network).collect())
    } else {
        let items = non_empty(&names?)?;
        Some(items.iter().filter_map(domain_name).map(Peer::Fqdn).collect())
    }
}

/// A name, or `*.` and a name.
fn domain_name(cursor: &Cursor<'_>) -> Option<DnsPattern> {
    let text = cursor.string()?;
    let parsed = match text.strip_prefix("*.") {
        Some(rest) if !rest.contains('*') => DnsPattern::parse_pattern(&format!("**.{rest}")),
        _ => DnsPattern::parse_name(text),
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    let several_labels = name.strip_suffix('.').unwrap_or(name).contains('.');
    match parsed {
        Ok(pattern) if several_labels => Some(pattern),
        Ok(_) => {
            cursor.error(format!("found {}, expected a name of two or more labels", quoted(text)));
            None
        }
        Err(why) => {
            cursor.error(format!("found {}, expected a DNS name, or *. and a name: {why}", quoted(text)));
            None
        }
    }
}

const TRANSPORTS: [(&str, Protocol); 3] =
    [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];

/// One protocol element: exactly one of its fields.
fn read_protocol(fields: &Fields<'_>) -> Option<Vec<PortMatch>> {
    let named = fields.get("destinationNamedPort");
    let transports: Vec<(Protocol, Cursor<'_>)> =
        TRANSPORTS.iter().filter_map(|(name, protocol)| Some((*protocol, fields.get(name)?))).collect();
    match (transports.as_slice(), named) {
        ([(protocol, cursor)], None) => {
            let port = cursor.object(|fields| fields.require("destinationPort"))??;
            let range = port.object(read_range)??;
            Some(vec![PortMatch::Range(*protocol, range)])
        }
        // The protocol is that of the container port.
        ([], Some(cursor)) => {
            let name: Arc<str> = checked(&cursor, "a port name", port_name)?.into();
            Some(TRANSPORTS.iter().map(|(_, protocol)| PortMatch::Named(*protocol, name.clone())).collect())
        }
        _ => {
            fields.cursor().error("exactly one of tcp, udp, sctp and destinationNamedPort is needed");
            None
        }
    }
}

/// `number`, or `range` with `start` below `end`.
fn read_range(fields: &Fields<'_>) -> Option<PortRange> {
    match (fields.get("number"), fields.get("range")) {
        (Some(number), None) => PortRange::single(number.port()?),
        (None, Some(range)) => range.object(|fields| {
            let start = fields.require("start").and_then(|start| start.port());
            let end = fields.require("end").and_then(|end| end.port());
            let (start, end) = (start?, end?);
            if start >= end {
                range.error(format!("the range {start} to {end} is empty: start must be below end"));
                return None;
            }
            PortRange::new(start, end)
        })?,
        _ => {
            fields.cursor().error("exactly one of number and range is needed");
            None
        }
    }
}
