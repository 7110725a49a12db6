//! Which flows a reader wants: members are ANDed, values of one member ORed (as in Hubble).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{DecidedBy, EventKind, Flow, L7, Party, Verdict};
use crate::model::{Identity, Protocol};

/// A pod pattern: `ns/` (a namespace), `ns/prefix`, or `prefix` in any namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPattern {
    namespace: Option<String>,
    prefix: String,
}

impl PodPattern {
    pub fn parse(text: &str) -> PodPattern {
        match text.split_once('/') {
            Some((namespace, prefix)) => {
                PodPattern { namespace: Some(namespace.to_owned()), prefix: prefix.to_owned() }
            }
            None => PodPattern { namespace: None, prefix: text.to_owned() },
        }
    }

    fn matches(&self, party: &Party) -> bool {
        let Some(pod) = &party.pod else { return false };
        let namespace = party.namespace.as_deref().unwrap_or_default();
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace) && pod.starts_with(&self.prefix)
    }
}

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
    Pod(PodPattern),
    Namespace(String),
    /// `source:key=value`, `key=value` or `key`.
    Label(String),
    Identity(Identity),
    Address(IpNet),
    Port(u16),
    /// A DNS name, `*` allowed at the front.
    Name(String),
    Node(String),
}

/// One end of a flow, with what only this flow says about it.
struct Seen<'a> {
    party: &'a Party,
    port: Option<u16>,
    name: Option<&'a Arc<str>>,
}

impl Flow {
    fn seen_source(&self) -> Seen<'_> {
        Seen { party: &self.source, port: self.source_port, name: self.source_name.as_ref() }
    }

    fn seen_destination(&self) -> Seen<'_> {
        Seen { party: &self.destination, port: self.destination_port, name: self.destination_name.as_ref() }
    }
}

impl PartyMatch {
    fn matches(&self, end: &Seen<'_>) -> bool {
        let party = end.party;
        match self {
            PartyMatch::Pod(pattern) => pattern.matches(party),
            PartyMatch::Namespace(namespace) => party.namespace.as_deref() == Some(namespace.as_str()),
            PartyMatch::Label(wanted) => label_matches(party, wanted),
            PartyMatch::Identity(identity) => party.identity == *identity,
            PartyMatch::Address(prefix) => prefix.contains(&party.address),
            PartyMatch::Port(port) => end.port == Some(*port),
            PartyMatch::Name(name) => {
                end.name.into_iter().chain(&party.names).any(|known| match name.strip_prefix('*') {
                    Some(suffix) => known.ends_with(suffix),
                    None => **known == **name,
                })
            }
            PartyMatch::Node(node) => party.node.as_deref() == Some(node.as_str()),
        }
    }
}

fn label_matches(party: &Party, wanted: &str) -> bool {
    let (key, value) = match wanted.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (wanted, None),
    };
    party.labels.iter().any(|label| {
        let full = format!("{}:{}", label.source, label.key);
        (*label.key == *key || full == key) && value.is_none_or(|value| *label.value == *value)
    })
}

/// One condition. A [`Filter`] is a list of alternatives for each of several conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Party(End, PartyMatch),
    Verdict(&'static str),
    DropReason(String),
    Protocol(ProtocolMatch),
    Kind(EventKind),
    /// `ns/name` or `name` of a policy that decided.
    Policy(String),
    Reply(ReplyMatch),
    Family(crate::model::Family),
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

impl Condition {
    fn matches(&self, flow: &Flow) -> bool {
        match self {
            Condition::Party(End::Either, wanted) => {
                wanted.matches(&flow.seen_source()) || wanted.matches(&flow.seen_destination())
            }
            Condition::Party(End::Source, wanted) => wanted.matches(&flow.seen_source()),
            Condition::Party(End::Destination, wanted) => wanted.matches(&flow.seen_destination()),
            Condition::Verdict(verdict) => flow.verdict.to_string() == **verdict,
            Condition::DropReason(name) => {
                matches!(flow.verdict, Verdict::Dropped(reason) if reason.name().eq_ignore_ascii_case(name))
            }
            Condition::Protocol(ProtocolMatch::L4(protocol)) => flow.protocol == *protocol,
            Condition::Protocol(ProtocolMatch::Http) => matches!(flow.l7.as_deref(), Some(L7::Http { .. })),
            Condition::Protocol(ProtocolMatch::Dns) => matches!(flow.l7.as_deref(), Some(L7::Dns { .. })),
            Condition::Protocol(ProtocolMatch::Tls) => matches!(flow.l7.as_deref(), Some(L7::Tls { .. })),
            Condition::Kind(kind) => flow.kind == *kind,
            Condition::Policy(path) => {
                flow.policies().any(|object| object.path() == *path || *object.name == **path)
            }
            Condition::Reply(ReplyMatch::Only) => flow.is_reply,
            Condition::Reply(ReplyMatch::Never) => !flow.is_reply,
            Condition::Family(family) => crate::model::Family::of(flow.source.address) == *family,
        }
    }
}

impl Flow {
    /// The policy objects that the verdict rests on.
    pub fn policies(&self) -> impl Iterator<Item = &crate::model::ObjectRef> {
        let (rules, defaults) = match &self.decision.by {
            DecidedBy::Rules(parts) => (&parts[..], &[][..]),
            DecidedBy::DefaultDeny(objects) => (&[][..], &objects[..]),
            DecidedBy::NoPolicy => (&[][..], &[][..]),
        };
        rules.iter().map(|part| &part.object).chain(defaults)
    }
}

/// All groups must match; a group matches when one of its conditions does; none of `not` may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub all: Vec<Vec<Condition>>,
    pub not: Vec<Condition>,
    /// Nanoseconds since 1970; inclusive.
    pub since_ns: Option<u64>,
    pub until_ns: Option<u64>,
}

impl Filter {
    pub fn matches(&self, flow: &Flow) -> bool {
        self.since_ns.is_none_or(|since| flow.time_ns >= since)
            && self.until_ns.is_none_or(|until| flow.time_ns <= until)
            && self.all.iter().all(|group| group.iter().any(|condition| condition.matches(flow)))
            && !self.not.iter().any(|condition| condition.matches(flow))
    }
}

/// A prefix from an address or CIDR text.
pub fn address_or_cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    #[test]
    fn groups_are_anded_and_values_ored() {
        let filter = Filter {
            all: vec![
                vec![
                    Condition::Party(End::Destination, PartyMatch::Port(80)),
                    Condition::Party(End::Destination, PartyMatch::Port(81)),
                ],
                vec![Condition::Verdict("FORWARDED")],
            ],
            ..Filter::default()
        };
        assert!(filter.matches(&flow(80)) && filter.matches(&flow(81)));
        assert!(!filter.matches(&flow(82)));
    }

    #[test]
    fn not_excludes() {
        let not = Condition::Party(End::Either, PartyMatch::Pod(PodPattern::parse("shop/front")));
        assert!(!Filter { not: vec![not], ..Filter::default() }.matches(&flow(80)));
    }

    #[test]
    fn labels_match_with_and_without_source() {
        for (wanted, matches) in
            [("app=web", true), ("k8s:app=web", true), ("app", true), ("reserved:app", false)]
        {
            let all = vec![vec![Condition::Party(End::Source, PartyMatch::Label(wanted.into()))]];
            assert_eq!(Filter { all, ..Filter::default() }.matches(&flow(80)), matches, "{wanted}");
        }
    }
}
