//! One condition on a flow.

use std::sync::Arc;

use ipnet::IpNet;

use super::labels::LabelSelector;
use super::predicate::SharedPredicate;
use super::text::{Glob, NamePattern, Regex, StatusMatch};
use crate::flow::{EventKind, Flow, L7, Observation, Party, Verdict};
use crate::model::{Direction, Family, Identity, Protocol};

/// Which end of a flow a member speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Either,
    Source,
    Destination,
}

/// A member about one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartyMatch {
    Pod(NamePattern),
    Namespace(String),
    Label(LabelSelector),
    Identity(Identity),
    Address(IpNet),
    Port(u16),
    /// A DNS name that was looked up for the address.
    Name(Glob),
    /// The node whose own address this is.
    Node(String),
    /// Kind and name; an absent one is any.
    Workload {
        kind: Option<String>,
        name: Option<String>,
    },
    /// A pod or node that this cluster knows.
    Known,
}

/// One end of a flow, with what only this flow says about it.
struct Seen<'a> {
    party: &'a Party,
    port: Option<u16>,
    name: Option<&'a Arc<str>>,
}

impl PartyMatch {
    fn matches(&self, end: &Seen<'_>) -> bool {
        let party = end.party;
        match self {
            PartyMatch::Pod(pattern) => party
                .pod
                .as_deref()
                .is_some_and(|pod| pattern.is_match(party.namespace.as_deref().unwrap_or_default(), pod)),
            PartyMatch::Namespace(namespace) => party.namespace.as_deref() == Some(namespace.as_str()),
            PartyMatch::Label(wanted) => wanted.is_match(&party.labels),
            PartyMatch::Identity(identity) => party.identity == *identity,
            PartyMatch::Address(prefix) => prefix.contains(&party.address),
            PartyMatch::Port(port) => end.port == Some(*port),
            PartyMatch::Name(wanted) => {
                end.name.into_iter().chain(&party.names).any(|known| wanted.is_match(known))
            }
            PartyMatch::Node(node) => party.node.as_deref() == Some(node.as_str()),
            PartyMatch::Workload { kind, name } => party.workload.as_ref().is_some_and(|workload| {
                kind.as_deref().is_none_or(|kind| kind.eq_ignore_ascii_case(&workload.kind))
                    && name.as_deref().is_none_or(|name| name == &*workload.name)
            }),
            PartyMatch::Known => party.pod.is_some() || party.node.is_some(),
        }
    }
}

/// A verdict without its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictKind {
    Forwarded,
    Dropped,
    Redirected,
    Audit,
    Error,
}

impl VerdictKind {
    pub const ALL: [VerdictKind; 5] = [
        VerdictKind::Forwarded,
        VerdictKind::Dropped,
        VerdictKind::Redirected,
        VerdictKind::Audit,
        VerdictKind::Error,
    ];

    pub fn of(verdict: Verdict) -> VerdictKind {
        match verdict {
            Verdict::Forwarded => VerdictKind::Forwarded,
            Verdict::Dropped(_) => VerdictKind::Dropped,
            Verdict::Redirected => VerdictKind::Redirected,
            Verdict::Audit => VerdictKind::Audit,
            Verdict::Error => VerdictKind::Error,
        }
    }

    /// As flows print it.
    pub fn name(self) -> &'static str {
        match self {
            VerdictKind::Forwarded => "FORWARDED",
            VerdictKind::Dropped => "DROPPED",
            VerdictKind::Redirected => "REDIRECTED",
            VerdictKind::Audit => "AUDIT",
            VerdictKind::Error => "ERROR",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMatch {
    Only,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolMatch {
    L4(Protocol),
    Http,
    Dns,
    Tls,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Party(End, PartyMatch),
    Verdict(VerdictKind),
    /// Our name of a drop reason.
    DropReason(String),
    Protocol(ProtocolMatch),
    Kind(EventKind),
    Observation(Observation),
    /// `ns/name` or `name` of a policy that decided.
    Policy(String),
    Reply(ReplyMatch),
    Family(Family),
    Direction(Direction),
    /// All of these TCP flags are set.
    TcpFlags(u8),
    /// The Service that the client addressed.
    Service(NamePattern),
    /// The node that observed the flow.
    ObservedOn(Glob),
    Interface {
        index: Option<u32>,
        name: Option<String>,
    },
    HttpStatus(StatusMatch),
    /// Without regard to case.
    HttpMethod(String),
    /// The path without its query.
    HttpPath(Regex),
    HttpUrl(Regex),
    DnsQuery(Regex),
    ServerName(Glob),
    Uuid(String),
    /// What an expression says.
    Predicate(SharedPredicate),
    /// All of these.
    Each(Vec<Condition>),
    /// At least one of these.
    Any(Vec<Condition>),
    /// What no flow of sluice has (a trace, encryption, a masqueraded source).
    Never,
    /// What every flow of sluice has (it is not encrypted by sluice).
    Always,
}

impl Flow {
    fn seen_source(&self) -> Seen<'_> {
        Seen { party: &self.source, port: self.source_port, name: self.source_name.as_ref() }
    }

    fn seen_destination(&self) -> Seen<'_> {
        Seen { party: &self.destination, port: self.destination_port, name: self.destination_name.as_ref() }
    }
}

impl Condition {
    pub fn matches(&self, flow: &Flow) -> bool {
        match self {
            Condition::Party(End::Either, wanted) => {
                wanted.matches(&flow.seen_source()) || wanted.matches(&flow.seen_destination())
            }
            Condition::Party(End::Source, wanted) => wanted.matches(&flow.seen_source()),
            Condition::Party(End::Destination, wanted) => wanted.matches(&flow.seen_destination()),
            Condition::Verdict(verdict) => VerdictKind::of(flow.verdict) == *verdict,
            Condition::DropReason(name) => {
                matches!(flow.verdict, Verdict::Dropped(reason) if reason.name().eq_ignore_ascii_case(name))
            }
            Condition::Protocol(ProtocolMatch::L4(protocol)) => flow.protocol == *protocol,
            Condition::Protocol(ProtocolMatch::Http) => matches!(flow.l7.as_deref(), Some(L7::Http { .. })),
            Condition::Protocol(ProtocolMatch::Dns) => matches!(flow.l7.as_deref(), Some(L7::Dns { .. })),
            Condition::Protocol(ProtocolMatch::Tls) => matches!(flow.l7.as_deref(), Some(L7::Tls { .. })),
            Condition::Kind(kind) => flow.kind == *kind,
            Condition::Observation(point) => flow.observation == *point,
            Condition::Policy(path) => {
                flow.policies().any(|object| object.path() == *path || *object.name == **path)
            }
            Condition::Reply(ReplyMatch::Only) => flow.is_reply,
            Condition::Reply(ReplyMatch::Never) => !flow.is_reply,
            Condition::Family(family) => Family::of(flow.source.address) == *family,
            Condition::Direction(direction) => flow.direction == *direction,
            Condition::TcpFlags(flags) => flow.protocol == Protocol::Tcp && flow.tcp_flags & flags == *flags,
            Condition::Service(pattern) => flow
                .service
                .as_ref()
                .and_then(|service| service.name.as_deref()?.split_once('/'))
                .is_some_and(|(namespace, name)| pattern.is_match(namespace, name)),
            Condition::ObservedOn(node) => node.is_match(&flow.node),
            Condition::Interface { index, name } => flow.interface.as_ref().is_some_and(|interface| {
                index.is_none_or(|index| index == interface.index)
                    && name.as_deref().is_none_or(|name| interface.name.as_deref() == Some(name))
            }),
            Condition::HttpStatus(_)
            | Condition::HttpMethod(_)
            | Condition::HttpPath(_)
            | Condition::HttpUrl(_)
            | Condition::DnsQuery(_)
            | Condition::ServerName(_) => flow.l7.as_deref().is_some_and(|l7| self.matches_l7(l7)),
            Condition::Uuid(uuid) => crate::flow::uuid_text(flow.uuid()) == *uuid,
            Condition::Predicate(predicate) => predicate.matches(flow),
            Condition::Each(conditions) => conditions.iter().all(|condition| condition.matches(flow)),
            Condition::Any(conditions) => conditions.iter().any(|condition| condition.matches(flow)),
            Condition::Never => false,
            Condition::Always => true,
        }
    }

    fn matches_l7(&self, l7: &L7) -> bool {
        match (self, l7) {
            (Condition::HttpStatus(wanted), L7::Http { status, .. }) => wanted.is_match(*status),
            (Condition::HttpMethod(wanted), L7::Http { method, .. }) => method.eq_ignore_ascii_case(wanted),
            (Condition::HttpPath(wanted), L7::Http { path, .. }) => {
                wanted.is_match(path.split(['?', '#']).next().unwrap_or_default())
            }
            (Condition::HttpUrl(wanted), L7::Http { host, path, .. }) => {
                wanted.is_match(&format!("http://{host}{path}"))
            }
            (Condition::DnsQuery(wanted), L7::Dns { query, .. }) => wanted.is_match(query),
            (Condition::ServerName(wanted), L7::Tls { server_name: Some(name) }) => wanted.is_match(name),
            _ => false,
        }
    }
}
