//! Reads a `Scenario` document; every problem has its place in the file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::target::dns_name;
use super::{External, ExternalChange, HostFirewall, NodeDeclaration, Options, Scenario, duration, steps};
use crate::cluster::delta::DenyResponse;
use crate::k8s::cursor::{Cursor, Fields, Report};
use crate::k8s::{EmptyRuleLists, OtherDocument, Position, Problem, UnknownFields};
use crate::lab::topology::{Alias, ListenPort, Transport};
use crate::model::Family;
use crate::policy::engine::{AllowLocalhost, CidrMatch, Enforcement};

pub(super) const API_VERSION: &str = "sluice.dev/v1alpha1";
pub(super) const KIND: &str = "Scenario";

/// TTL of an external's names where the file says nothing.
const DEFAULT_TTL: Duration = Duration::from_secs(30);

const SWITCH: &[(bool, HostFirewall)] = &[(false, HostFirewall::Off), (true, HostFirewall::On)];

/// `Err`: everything that is wrong with it.
pub(super) fn read(document: &OtherDocument) -> Result<Scenario, Vec<Problem>> {
    let report = Report::new(document.position.file.clone(), UnknownFields::Error);
    let scenario = Cursor::root(&document.node, &report)
        .object(|fields| {
            fields.accept(&["apiVersion", "kind"]);
            let name = fields.require("metadata").and_then(|metadata| metadata.object(name).flatten());
            if let Some(name) = &name {
                report.name_object(format!("{KIND} {name}"));
            }
            let spec = fields
                .require("spec")
                .and_then(|spec| spec.object(|fields| spec_of(fields, &document.position)));
            Some(Scenario { name: name?, position: document.position.clone(), ..spec? })
        })
        .flatten();
    match scenario {
        Some(scenario) if !report.has_errors() => Ok(scenario),
        _ => Err(report.into_problems()),
    }
}

fn name(metadata: &Fields<'_>) -> Option<String> {
    metadata.accept(&["labels", "annotations", "namespace"]);
    metadata.require("name")?.string().map(str::to_owned)
}

fn spec_of(fields: &Fields<'_>, position: &Position) -> Scenario {
    let text = |name| fields.get(name).and_then(|field| field.string()).unwrap_or_default().to_owned();
    let nodes: Vec<NodeDeclaration> = fields.list("nodes").iter().filter_map(node).collect();
    for (index, node) in nodes.iter().enumerate() {
        if nodes[..index].iter().any(|other| other.name == node.name) {
            fields.cursor().error(format!("the node {} is listed twice", node.name));
        }
    }
    let externals: Vec<External> = fields.list("externals").iter().filter_map(external).collect();
    for (index, external) in externals.iter().enumerate() {
        if externals[..index].iter().any(|other| other.name == external.name) {
            fields.cursor().error(format!("the external {} is listed twice", external.name));
        }
    }
    let options = fields.get("options").and_then(|options| options.object(options_of)).unwrap_or_default();
    let steps = match fields.require("steps").and_then(|steps| steps.list()) {
        Some(list) => steps::read(&list, &externals, &options, position),
        None => Vec::new(),
    };
    Scenario {
        name: String::new(),
        description: text("description"),
        position: position.clone(),
        nodes,
        externals,
        options,
        steps,
    }
}

fn node(cursor: &Cursor<'_>) -> Option<NodeDeclaration> {
    if cursor.node.as_str().is_some() {
        return Some(NodeDeclaration { name: node_name(cursor)?, labels: BTreeMap::new() });
    }
    cursor
        .object(|node| {
            let name = node.require("name").and_then(|name| node_name(&name));
            let labels = node
                .get("labels")
                .and_then(|labels| labels.entries())
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.to_owned(), value.string()?.to_owned())))
                .collect();
            Some(NodeDeclaration { name: name?, labels })
        })
        .flatten()
}

/// A name that `node:NAME:PORT` can hold.
fn node_name(cursor: &Cursor<'_>) -> Option<String> {
    let name = cursor.string()?;
    if name.is_empty() || name.contains(['/', ':', '[', ']', ' ']) {
        return cursor.expected("a name without / : [ ] and spaces");
    }
    Some(name.to_owned())
}

fn external(cursor: &Cursor<'_>) -> Option<External> {
    let change = external_change(cursor)?;
    let port = |port| ListenPort { port, transport: Transport::Tcp };
    if change.addresses.is_none() {
        cursor.error("the field addresses is missing");
    }
    Some(External {
        name: change.name,
        addresses: change.addresses.unwrap_or_default(),
        names: change.names.unwrap_or_default(),
        aliases: change.aliases.unwrap_or_default(),
        ttl: change.ttl.unwrap_or(DEFAULT_TTL),
        ports: change.ports.unwrap_or_else(|| vec![port(80), port(443)]),
    })
}

/// The members of an external; a change has only some of them.
pub(super) fn external_change(cursor: &Cursor<'_>) -> Option<ExternalChange> {
    cursor
        .object(|fields| {
            let name = fields.require("name").and_then(|name| node_name(&name));
            Some(ExternalChange {
                addresses: all(fields, "addresses", address),
                names: all(fields, "names", owned_name),
                aliases: all(fields, "cnames", alias),
                ttl: fields.get("ttl").and_then(|ttl| duration_of(&ttl)),
                ports: all(fields, "ports", listen_port),
                name: name?,
            })
        })
        .flatten()
}

fn all<T>(
    fields: &Fields<'_>,
    name: &'static str,
    read: impl Fn(&Cursor<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let items = fields.get(name)?.list()?;
    Some(items.iter().filter_map(read).collect())
}

fn address(cursor: &Cursor<'_>) -> Option<IpAddr> {
    let text = cursor.string()?;
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            cursor.expected("an IPv4 address without ::ffff:")
        }
        Ok(address) => Some(address),
        Err(_) => cursor.expected("an IPv4 or IPv6 address"),
    }
}

fn owned_name(cursor: &Cursor<'_>) -> Option<String> {
    let name = dns_name(cursor.string()?);
    if name.is_none() {
        return cursor.expected("a DNS name");
    }
    name
}

fn alias(cursor: &Cursor<'_>) -> Option<Alias> {
    cursor
        .object(|alias| {
            let name = alias.require("name").and_then(|name| owned_name(&name));
            let target = alias.require("target").and_then(|target| owned_name(&target));
            Some(Alias { name: name?, target: target? })
        })
        .flatten()
}

/// `443/TCP`; a bare number is TCP.
fn listen_port(cursor: &Cursor<'_>) -> Option<ListenPort> {
    let wrong = || cursor.expected("a port such as 443/TCP, 53/UDP or 38412/SCTP");
    if cursor.node.as_str().is_none() {
        return Some(ListenPort { port: cursor.port()?, transport: Transport::Tcp });
    }
    let text = cursor.string()?;
    let (port, transport) = text.split_once('/').unwrap_or((text, "TCP"));
    let transport = match transport {
        "TCP" => Transport::Tcp,
        "UDP" => Transport::Udp,
        "SCTP" => Transport::Sctp,
        _ => return wrong(),
    };
    match port.parse() {
        Ok(port) if port != 0 => Some(ListenPort { port, transport }),
        _ => wrong(),
    }
}

pub(super) fn duration_of(cursor: &Cursor<'_>) -> Option<Duration> {
    if cursor.node.as_str().is_none() {
        let seconds = cursor.integer(0..=31_536_000)?;
        return u64::try_from(seconds).ok().map(Duration::from_secs);
    }
    let parsed = duration::parse(cursor.string()?);
    if parsed.is_none() {
        return cursor.expected("a duration such as 5s, 250ms or 1m30s");
    }
    parsed
}

fn options_of(fields: &Fields<'_>) -> Options {
    let defaults = Options::default();
    fn choice<T: Copy>(fields: &Fields<'_>, name: &'static str, choices: &[(&str, T)], default: T) -> T {
        fields.get(name).and_then(|field| field.one_of(choices)).unwrap_or(default)
    }
    let host_firewall = fields.get("hostFirewall").and_then(|field| field.boolean()).unwrap_or_default();
    let cidr_match = all(fields, "cidrMatchMode", |mode| mode.one_of(&[("nodes", ())])).unwrap_or_default();
    let families = fields.get("ipFamilies").and_then(|field| {
        let families = field.list()?;
        if families.is_empty() {
            return field.expected("at least one of IPv4 and IPv6");
        }
        let mut read: Vec<Family> = families
            .iter()
            .filter_map(|family| family.one_of(&[("IPv4", Family::IPv4), ("IPv6", Family::IPv6)]))
            .collect();
        read.dedup();
        Some(read).filter(|read| !read.is_empty())
    });
    Options {
        enforcement: choice(
            fields,
            "policyEnforcement",
            &[
                ("default", Enforcement::Default),
                ("always", Enforcement::Always),
                ("never", Enforcement::Never),
            ],
            defaults.enforcement,
        ),
        empty_rule_lists: choice(
            fields,
            "emptyRuleLists",
            &[("deny", EmptyRuleLists::Deny), ("ignore", EmptyRuleLists::Ignore)],
            defaults.empty_rule_lists,
        ),
        host_firewall: SWITCH
            .iter()
            .find(|(on, _)| *on == host_firewall)
            .map(|(_, mode)| *mode)
            .unwrap_or_default(),
        allow_localhost: choice(
            fields,
            "allowLocalhost",
            &[("always", AllowLocalhost::Always), ("policy", AllowLocalhost::Policy)],
            defaults.allow_localhost,
        ),
        cidr_match: if cidr_match.is_empty() { CidrMatch::World } else { CidrMatch::WorldAndNodes },
        deny_response: choice(
            fields,
            "denyResponse",
            &[("drop", DenyResponse::Drop), ("reject", DenyResponse::Reject)],
            defaults.deny_response,
        ),
        families: families.unwrap_or(defaults.families),
    }
}
