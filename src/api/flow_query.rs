//! Flow filters as query parameters: `?pod=shop/frontend&verdict=DROPPED&follow=true`.
//!
//! A repeated parameter is ORed, different ones are ANDed; `from-` and `to-` restrict to one end, `not-` excludes.

use crate::flow::EventKind;
use crate::flow::filter::{
    Condition, End, Filter, Glob, LabelSelector, NamePattern, PartyMatch, PatternError, ProtocolMatch, Regex,
    ReplyMatch, StatusMatch, VerdictKind, address_or_cidr,
};
use crate::model::{Direction, DropReason, Family, Identity, Protocol};

/// A parameter that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}={value}: {expected}")]
pub struct QueryError {
    pub parameter: String,
    pub value: String,
    pub expected: &'static str,
}

/// Builds a filter from parameters that are not otherwise used (`follow`, `last`, ...).
pub fn filter<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Filter, QueryError> {
    let mut groups: Vec<(String, Vec<Condition>)> = Vec::new();
    let mut result = Filter::default();
    for (parameter, value) in parameters {
        let error =
            |expected| QueryError { parameter: parameter.to_owned(), value: value.to_owned(), expected };
        match parameter {
            "since" => result.since_ns = Some(time(value).ok_or_else(|| error("expected an RFC 3339 time"))?),
            "until" => result.until_ns = Some(time(value).ok_or_else(|| error("expected an RFC 3339 time"))?),
            _ => match parameter.strip_prefix("not-") {
                Some(inner) => result.not.push(condition(inner, value).map_err(error)?),
                None => {
                    let condition = condition(parameter, value).map_err(error)?;
                    match groups.iter_mut().find(|(name, _)| name == parameter) {
                        Some((_, group)) => group.push(condition),
                        None => groups.push((parameter.to_owned(), vec![condition])),
                    }
                }
            },
        }
    }
    result.all = groups.into_iter().map(|(_, group)| group).collect();
    Ok(result)
}

fn pattern(error: PatternError) -> &'static str {
    match error {
        PatternError::Empty => "the pattern is empty",
        PatternError::TooLong => "the pattern is too long",
        PatternError::Syntax(_) => "the pattern is not understood",
    }
}

fn time(text: &str) -> Option<u64> {
    u64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()
}

fn condition(parameter: &str, value: &str) -> Result<Condition, &'static str> {
    let (end, name) = match (parameter.strip_prefix("from-"), parameter.strip_prefix("to-")) {
        (Some(name), _) => (End::Source, name),
        (_, Some(name)) => (End::Destination, name),
        _ => (End::Either, parameter),
    };
    let party = match name {
        "pod" => Some(PartyMatch::Pod(NamePattern::parse(value))),
        "namespace" => Some(PartyMatch::Namespace(value.to_owned())),
        "label" => Some(PartyMatch::Label(LabelSelector::parse(value).map_err(pattern)?)),
        "identity" => {
            Some(PartyMatch::Identity(identity(value).ok_or("expected a number or a reserved name")?))
        }
        "ip" => Some(PartyMatch::Address(address_or_cidr(value).ok_or("expected an address or a CIDR")?)),
        "port" => Some(PartyMatch::Port(value.parse().map_err(|_| "expected a port")?)),
        "fqdn" => Some(PartyMatch::Name(Glob::parse(value).map_err(pattern)?)),
        "node" => Some(PartyMatch::Node(value.to_owned())),
        "workload" => Some(match value.split_once('/') {
            Some((kind, name)) => {
                PartyMatch::Workload { kind: Some(kind.to_owned()), name: Some(name.to_owned()) }
            }
            None => PartyMatch::Workload { kind: None, name: Some(value.to_owned()) },
        }),
        _ => None,
    };
    if let Some(party) = party {
        return Ok(Condition::Party(end, party));
    }
    match parameter {
        "verdict" => VerdictKind::ALL
            .into_iter()
            .find(|verdict| verdict.name().eq_ignore_ascii_case(value))
            .map(Condition::Verdict)
            .ok_or("expected FORWARDED, DROPPED, REDIRECTED, AUDIT or ERROR"),
        "drop-reason" => DropReason::ALL
            .iter()
            .find(|reason| reason.name().eq_ignore_ascii_case(value))
            .map(|reason| Condition::DropReason(reason.name().to_owned()))
            .ok_or("expected a drop reason such as POLICY_DENIED"),
        "service" => Ok(Condition::Service(NamePattern::parse(value))),
        "direction" => match value.to_ascii_lowercase().as_str() {
            "ingress" => Ok(Condition::Direction(Direction::Ingress)),
            "egress" => Ok(Condition::Direction(Direction::Egress)),
            _ => Err("expected ingress or egress"),
        },
        "http-status" => StatusMatch::parse(value).map(Condition::HttpStatus).map_err(pattern),
        "http-method" => Ok(Condition::HttpMethod(value.to_owned())),
        "http-path" => Regex::parse(value).map(Condition::HttpPath).map_err(pattern),
        "dns-query" => Regex::parse(value).map(Condition::DnsQuery).map_err(pattern),
        "server-name" => Glob::parse(value).map(Condition::ServerName).map_err(pattern),
        "on-node" => Glob::parse(value).map(Condition::ObservedOn).map_err(pattern),
        "uuid" => Ok(Condition::Uuid(value.to_ascii_lowercase())),
        "protocol" => protocol(value)
            .map(Condition::Protocol)
            .ok_or("expected tcp, udp, sctp, icmp, icmpv6, http, dns or tls"),
        "type" => match value {
            "drop" => Ok(Condition::Kind(EventKind::Drop)),
            "policy-verdict" => Ok(Condition::Kind(EventKind::PolicyVerdict)),
            "trace" => Ok(Condition::Kind(EventKind::Trace)),
            "l7" => Ok(Condition::Kind(EventKind::L7)),
            _ => Err("expected drop, policy-verdict, trace or l7"),
        },
        "policy" => Ok(Condition::Policy(value.to_owned())),
        "reply" => match value {
            "true" => Ok(Condition::Reply(ReplyMatch::Only)),
            "false" => Ok(Condition::Reply(ReplyMatch::Never)),
            _ => Err("expected true or false"),
        },
        "ip-version" => match value {
            "4" => Ok(Condition::Family(Family::IPv4)),
            "6" => Ok(Condition::Family(Family::IPv6)),
            _ => Err("expected 4 or 6"),
        },
        _ => Err("unknown parameter"),
    }
}

fn identity(value: &str) -> Option<Identity> {
    value
        .parse()
        .ok()
        .map(Identity)
        .or_else(|| Identity::RESERVED.iter().find(|(_, name)| *name == value).map(|(identity, _)| *identity))
}

fn protocol(value: &str) -> Option<ProtocolMatch> {
    Some(match value.to_ascii_lowercase().as_str() {
        "tcp" => ProtocolMatch::L4(Protocol::Tcp),
        "udp" => ProtocolMatch::L4(Protocol::Udp),
        "sctp" => ProtocolMatch::L4(Protocol::Sctp),
        "icmp" | "icmpv4" => ProtocolMatch::L4(Protocol::Icmp),
        "icmpv6" => ProtocolMatch::L4(Protocol::Icmpv6),
        "http" => ProtocolMatch::Http,
        "dns" => ProtocolMatch::Dns,
        "tls" => ProtocolMatch::Tls,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_parameters_are_one_group() {
        let filter =
            filter([("port", "80"), ("port", "81"), ("verdict", "dropped"), ("not-pod", "shop/")]).unwrap();
        assert_eq!((filter.all.len(), filter.all[0].len(), filter.not.len()), (2, 2, 1));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (parameter, value) in
            [("prot", "tcp"), ("port", "x"), ("verdict", "MAYBE"), ("since", "yesterday")]
        {
            assert!(filter([(parameter, value)]).is_err(), "{parameter}={value}");
        }
    }
}
