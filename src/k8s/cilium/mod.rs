//! `cilium.io` CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and CiliumCIDRGroup.
//!
//! Cases that the policy semantics leave open, decided here:
//! - An empty `toPorts` or `icmps` list is absent (upstream), with a warning. A `toPorts` element
//!   without ports matches nothing (upstream), with a warning.
//! - `protocol: ANY` on port "0" is every port of TCP, UDP and SCTP; ICMP is not part of it (upstream).
//! - A numbered `port` of protocol ICMP or ICMPv6 is a type (upstream); "0" is every type.
//! - `serverNames` and DNS rules under ANY are for the protocols that carry them (TCP; UDP and TCP).
//! - An empty `dns` or `serverNames` list is an error, as an empty `http` list is.
//! - A namespaced policy may name Secrets of its own namespace only, because `mismatch: REPLACE`
//!   would otherwise hand any Secret to its author.
//! - Where a header names both a Secret and a value, the Secret alone counts.

mod cidr_group;
mod http;
mod icmp;
mod l7;
mod peers;
mod ports;

use super::cursor::{Cursor, Fields};
use super::meta::{self, Scope};
use super::objects::namespaced;
use super::selector::{self, Keys};
use super::{EmptyRuleLists, ParseOptions};
use crate::cluster::Resource;
use crate::model::{Direction, Kind, ObjectRef};
use crate::policy::lint::Code;
use crate::policy::rule::{Action, Peers, Policy, Ports, Rule, Spec, Subject, Tier};

pub use cidr_group::read as cidr_group;
use ports::PortRule;

/// What the rules of a spec depend on besides their own text.
#[derive(Clone, Copy, Debug)]
struct Context<'a> {
    /// The policy's namespace; empty for a CCNP.
    namespace: &'a str,
    direction: Direction,
    action: Action,
    host: HostPolicy,
}

/// Does the spec govern nodes (`nodeSelector`)?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostPolicy {
    Yes,
    No,
}

pub fn policy(fields: &Fields<'_>, kind: Kind, options: &ParseOptions) -> Option<Resource> {
    fields.accept(&["status"]);
    let meta =
        if kind.is_namespaced() { namespaced(fields, options) } else { meta::read(fields, Scope::Cluster) };
    let namespace = meta.as_ref().map_or("", |meta| &meta.namespace);
    let several = fields.list("specs");
    let all: Vec<Cursor<'_>> = fields.get("spec").into_iter().chain(several).collect();
    if all.is_empty() {
        fields.cursor().error("one of spec and specs is needed");
    }
    let read = |cursor: &Cursor<'_>| cursor.object(|fields| spec(fields, kind, namespace, options)).flatten();
    let specs: Vec<Option<Spec>> = all.iter().map(read).collect();
    let meta = meta?;
    let object = ObjectRef::new(kind, &meta.namespace, &meta.name);
    Some(Resource::Policy(Policy { object, specs: specs.into_iter().collect::<Option<_>>()? }))
}

fn spec(fields: &Fields<'_>, kind: Kind, namespace: &str, options: &ParseOptions) -> Option<Spec> {
    fields.accept(&["labels", "log"]);
    if let Some(description) = fields.get("description") {
        description.string();
    }
    let subject = subject(fields, kind, namespace);
    let host = match subject {
        Some(Subject::Nodes(_)) => HostPolicy::Yes,
        _ => HostPolicy::No,
    };
    let mut rules = Vec::new();
    let mut section = |name: &'static str, direction, action| -> Section {
        let Some(list) = fields.get(name) else { return Section::Absent };
        let Some(items) = list.list() else { return Section::Absent };
        let context = Context { namespace, direction, action, host };
        for item in &items {
            item.object(|fields| rules.extend(rule(fields, context)));
        }
        if items.is_empty() { Section::Empty(list.path()) } else { Section::Rules }
    };
    let ingress = [
        section("ingress", Direction::Ingress, Action::Allow),
        section("ingressDeny", Direction::Ingress, Action::Deny),
    ];
    let egress = [
        section("egress", Direction::Egress, Action::Allow),
        section("egressDeny", Direction::Egress, Action::Deny),
    ];
    if ingress.iter().chain(&egress).all(|section| matches!(section, Section::Absent)) {
        fields.cursor().error("one of ingress, ingressDeny, egress and egressDeny is needed");
    }
    let (stated_ingress, stated_egress) = fields
        .get("enableDefaultDeny")
        .and_then(|cursor| {
            cursor.object(|fields| {
                let flag = |name| fields.get(name).and_then(|flag| flag.boolean());
                (flag("ingress"), flag("egress"))
            })
        })
        .unwrap_or_default();
    let turns_on = |sections: &[Section], stated: Option<bool>| {
        stated.unwrap_or_else(|| sections.iter().any(|section| section.isolates(options.empty_rule_lists)))
    };
    for section in ingress.iter().chain(&egress) {
        if let Section::Empty(path) = section {
            let meaning = match options.empty_rule_lists {
                EmptyRuleLists::Ignore => "is ignored: it isolates nothing",
                EmptyRuleLists::Deny => {
                    "turns default deny on here and does nothing in Cilium: `- {}` is portable"
                }
            };
            fields.cursor().trap(Code::EmptyList, format!("{path} is an empty list, which {meaning}"));
        }
    }
    Some(Spec {
        subject: subject?,
        tier: Tier::Normal,
        default_deny_ingress: turns_on(&ingress, stated_ingress),
        default_deny_egress: turns_on(&egress, stated_egress),
        rules,
    })
}

/// One of the four lists of a spec.
enum Section {
    Absent,
    /// `[]`, with its field path.
    Empty(String),
    Rules,
}

impl Section {
    fn isolates(&self, empty: EmptyRuleLists) -> bool {
        match self {
            Section::Absent => false,
            Section::Empty(_) => empty == EmptyRuleLists::Deny,
            Section::Rules => true,
        }
    }
}

fn subject(fields: &Fields<'_>, kind: Kind, namespace: &str) -> Option<Subject> {
    match (fields.get("endpointSelector"), fields.get("nodeSelector")) {
        (Some(endpoints), None) => {
            let selector = selector::read(&endpoints, Keys::Cilium)?;
            Some(Subject::Pods(Some(match kind {
                Kind::CiliumNetworkPolicy => selector::subject_in_namespace(&endpoints, &selector, namespace),
                _ => selector,
            })))
        }
        (None, Some(nodes)) => {
            if kind == Kind::CiliumNetworkPolicy {
                nodes.error("nodeSelector is for CiliumClusterwideNetworkPolicy only");
            }
            selector::read(&nodes, Keys::Node).map(Subject::Nodes)
        }
        (Some(_), Some(_)) => {
            fields.cursor().error("only one of endpointSelector and nodeSelector may be given");
            None
        }
        (None, None) => {
            fields.cursor().error("one of endpointSelector and nodeSelector is needed");
            None
        }
    }
}

/// One rule: none where it matches nothing (`{}`), else one model rule for each `toPorts` element.
fn rule(fields: &Fields<'_>, context: Context<'_>) -> Vec<Rule> {
    let peers = peers::read(fields, context);
    let ports = ports::read(fields, context);
    let icmps = icmp::read(fields);
    refuse_unsupported(fields, context);
    if ports.is_some() && icmps.is_some() {
        fields.cursor().error("icmps and toPorts may not stand in one rule");
    }
    let whole = || fields.cursor().path();
    let build = |ports: Ports, l7: Option<crate::policy::l7::L7Rules>, path: &str| Rule {
        direction: context.direction,
        action: context.action,
        peers: peers.clone().unwrap_or(Peers::Any),
        ports,
        l7: l7.map(std::sync::Arc::new),
        path: path.into(),
    };
    match (ports, icmps) {
        (Some(elements), _) => elements
            .into_iter()
            .map(|PortRule { ports, l7, path }| build(Ports::OneOf(ports), l7, &path))
            .collect(),
        (None, Some(types)) if types.is_empty() => Vec::new(),
        (None, Some(types)) => vec![build(Ports::OneOf(types), None, &whole())],
        // Neither peers nor ports: `{}` only turns default deny on.
        (None, None) if peers.is_none() => Vec::new(),
        (None, None) => vec![build(Ports::Any, None, &whole())],
    }
}

/// `authentication` that asks for something is refused, never ignored.
fn refuse_unsupported(fields: &Fields<'_>, context: Context<'_>) {
    if context.action != Action::Allow {
        return;
    }
    let Some(authentication) = fields.get("authentication") else { return };
    authentication.object(|fields| {
        if let Some(mode) = fields.require("mode")
            && mode.string().is_some_and(|mode| mode != "disabled")
        {
            mode.error(format!("authentication with mode {} is not supported", mode.node.describe()));
        }
    });
}
