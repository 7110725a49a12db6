//! Filters of requests, checked and compiled.
//!
//! Everything that a client may make large is bounded here, and what is not understood is refused: a filter
//! that is only half understood would show flows that nobody asked for. Unknown *members* of newer clients
//! never reach this code (protobuf drops them).

use tonic::Status;

use super::cel::Expressions;
use super::convert::{Naming, event_number, nanoseconds, trace_number};
use super::pb::flow as pb;
use super::reasons;
use crate::flow::filter::{
    Condition, End, Filter, Glob, LabelSelector, NamePattern, PartyMatch, PatternError, ProtocolMatch, Regex,
    ReplyMatch, Selection, SharedPredicate, StatusMatch, VerdictKind, address_or_cidr,
};
use crate::flow::{EventKind, Observation};
use crate::model::{Direction, Family, Identity, Protocol};

/// Filters in one list.
const FILTERS: usize = 64;
/// Conditions in one request.
const CONDITIONS: usize = 2048;
/// Regular expressions in one request.
const EXPRESSIONS: usize = 64;
/// CEL expressions in one request; clients say each twice where a flag of theirs speaks of either end.
const CEL_EXPRESSIONS: usize = 16;

/// What one request asks for.
pub fn selection(
    allow: &[pb::FlowFilter],
    deny: &[pb::FlowFilter],
    naming: &Naming,
) -> Result<Selection, Status> {
    let mut budget = Budget { conditions: CONDITIONS, expressions: EXPRESSIONS, cel: CEL_EXPRESSIONS };
    let mut list = |name: &str, filters: &[pb::FlowFilter]| {
        if filters.len() > FILTERS {
            return Err(Status::invalid_argument(format!("{name}: more than {FILTERS} filters")));
        }
        filters
            .iter()
            .enumerate()
            .map(|(index, filter)| {
                compile(filter, naming, &mut budget)
                    .map_err(|error| Status::invalid_argument(format!("{name}[{index}].{error}")))
            })
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Selection { allow: list("whitelist", allow)?, deny: list("blacklist", deny)? })
}

/// `since` and `until` of a request.
pub fn time(name: &str, time: Option<&prost_types::Timestamp>) -> Result<Option<u64>, Status> {
    time.map(|time| {
        nanoseconds(time)
            .ok_or_else(|| Status::invalid_argument(format!("{name}: no time between 1970 and 2554")))
    })
    .transpose()
}

struct Budget {
    conditions: usize,
    expressions: usize,
    cel: usize,
}

impl Budget {
    fn take(&mut self, conditions: &[Condition]) -> Result<(), String> {
        let expressions = conditions.iter().filter(|condition| is_expression(condition)).count();
        self.conditions = self
            .conditions
            .checked_sub(conditions.len())
            .ok_or_else(|| format!("more than {CONDITIONS} values in one request"))?;
        self.expressions = self
            .expressions
            .checked_sub(expressions)
            .ok_or_else(|| format!("more than {EXPRESSIONS} regular expressions in one request"))?;
        Ok(())
    }

    fn take_cel(&mut self, expressions: usize) -> Result<(), String> {
        self.cel = self
            .cel
            .checked_sub(expressions)
            .ok_or_else(|| format!("more than {CEL_EXPRESSIONS} expressions in one request"))?;
        Ok(())
    }
}

fn is_expression(condition: &Condition) -> bool {
    matches!(condition, Condition::HttpPath(_) | Condition::HttpUrl(_) | Condition::DnsQuery(_))
}

/// The groups of one filter, as they are read.
struct Groups<'a> {
    all: Vec<Vec<Condition>>,
    budget: &'a mut Budget,
}

impl Groups<'_> {
    /// The alternatives of one member; a member without values says nothing.
    fn member<T>(
        &mut self,
        name: &str,
        values: &[T],
        mut condition: impl FnMut(&T) -> Result<Condition, String>,
    ) -> Result<(), String> {
        if values.is_empty() {
            return Ok(());
        }
        if values.len() > CONDITIONS {
            return Err(format!("{name}: more than {CONDITIONS} values"));
        }
        let mut group = Vec::with_capacity(values.len());
        for value in values {
            let value = condition(value).map_err(|error| format!("{name}: {error}"))?;
            self.budget.take(std::slice::from_ref(&value)).map_err(|error| format!("{name}: {error}"))?;
            group.push(value);
        }
        self.all.push(group);
        Ok(())
    }
}

fn text(error: PatternError) -> String {
    error.to_string()
}

fn compile(filter: &pb::FlowFilter, naming: &Naming, budget: &mut Budget) -> Result<Filter, String> {
    let mut groups = Groups { all: Vec::new(), budget };
    let g = &mut groups;
    parties(filter, naming, g)?;
    packet(filter, naming, g)?;
    layer7(filter, g)?;
    own(filter, g)?;
    expressions(filter, naming, g)?;
    Ok(Filter { all: groups.all, ..Filter::default() })
}

fn parties(filter: &pb::FlowFilter, naming: &Naming, g: &mut Groups<'_>) -> Result<(), String> {
    let (source, destination) = (End::Source, End::Destination);
    let party = |end, wanted| Ok(Condition::Party(end, wanted));
    for (name, end, values) in
        [("source_ip", source, &filter.source_ip), ("destination_ip", destination, &filter.destination_ip)]
    {
        g.member(name, values, |value| {
            let prefix =
                address_or_cidr(value).ok_or_else(|| format!("{value:?}: no address and no CIDR"))?;
            party(end, PartyMatch::Address(prefix))
        })?;
    }
    for (name, end, values) in [
        ("source_pod", source, &filter.source_pod),
        ("destination_pod", destination, &filter.destination_pod),
    ] {
        g.member(name, values, |value| {
            let pattern = namespaced(value)?;
            party(
                end,
                match (pattern.namespace, pattern.prefix) {
                    (Some(namespace), prefix) if prefix.is_empty() => PartyMatch::Namespace(namespace),
                    (namespace, prefix) => PartyMatch::Pod(NamePattern { namespace, prefix }),
                },
            )
        })?;
    }
    for (name, end, values) in [
        ("source_fqdn", source, &filter.source_fqdn),
        ("destination_fqdn", destination, &filter.destination_fqdn),
    ] {
        g.member(name, values, |value| party(end, PartyMatch::Name(Glob::parse(value).map_err(text)?)))?;
    }
    for (name, end, values) in [
        ("source_label", source, &filter.source_label),
        ("destination_label", destination, &filter.destination_label),
    ] {
        g.member(name, values, |value| {
            party(end, PartyMatch::Label(LabelSelector::parse(value).map_err(text)?))
        })?;
    }
    for (name, end, values) in [
        ("source_port", source, &filter.source_port),
        ("destination_port", destination, &filter.destination_port),
    ] {
        g.member(name, values, |value| {
            let port = value.parse().map_err(|_| format!("{value:?}: expected a port"))?;
            party(end, PartyMatch::Port(port))
        })?;
    }
    for (name, end, values) in [
        ("source_identity", source, &filter.source_identity),
        ("destination_identity", destination, &filter.destination_identity),
    ] {
        g.member(name, values, |value| party(end, PartyMatch::Identity(Identity(*value))))?;
    }
    for (name, end, values) in [
        ("source_workload", source, &filter.source_workload),
        ("destination_workload", destination, &filter.destination_workload),
    ] {
        g.member(name, values, |value| {
            let given = |text: &String| (!text.is_empty()).then(|| text.clone());
            party(end, PartyMatch::Workload { kind: given(&value.kind), name: given(&value.name) })
        })?;
    }
    for (name, end, values) in [
        ("source_cluster_name", source, &filter.source_cluster_name),
        ("destination_cluster_name", destination, &filter.destination_cluster_name),
    ] {
        g.member(name, values, |value| {
            let is_ours = Glob::parse(value).map_err(text)?.is_match(&naming.cluster);
            if is_ours { party(end, PartyMatch::Known) } else { Ok(Condition::Never) }
        })?;
    }
    // The client addressed the Service; a flow's source is never one.
    g.member("source_service", &filter.source_service, |value| namespaced(value).map(|_| Condition::Never))?;
    g.member("destination_service", &filter.destination_service, |value| {
        namespaced(value).map(Condition::Service)
    })?;
    g.member("source_ip_xlated", &filter.source_ip_xlated, |value| {
        address_or_cidr(value)
            .map(|_| Condition::Never)
            .ok_or_else(|| format!("{value:?}: no address and no CIDR"))
    })
}

/// As in Hubble: a name without a namespace is in `default`, `/name` in any.
fn namespaced(value: &str) -> Result<NamePattern, String> {
    if value.is_empty() || value == "/" {
        return Err("the name is empty".into());
    }
    let full = if value.contains('/') { value.to_owned() } else { format!("default/{value}") };
    Ok(NamePattern::parse(&full))
}

fn packet(filter: &pb::FlowFilter, naming: &Naming, g: &mut Groups<'_>) -> Result<(), String> {
    g.member("verdict", &filter.verdict, |value| {
        Ok(match pb::Verdict::try_from(*value).map_err(|_| format!("{value}: unknown"))? {
            pb::Verdict::Forwarded => Condition::Verdict(VerdictKind::Forwarded),
            pb::Verdict::Dropped => Condition::Verdict(VerdictKind::Dropped),
            pb::Verdict::Error => Condition::Verdict(VerdictKind::Error),
            pb::Verdict::Audit => Condition::Verdict(VerdictKind::Audit),
            pb::Verdict::Redirected => Condition::Verdict(VerdictKind::Redirected),
            pb::Verdict::Unknown | pb::Verdict::Traced | pb::Verdict::Translated => Condition::Never,
        })
    })?;
    let mut reasons = Vec::new();
    for value in &filter.drop_reason_desc {
        let wire =
            pb::DropReason::try_from(*value).map_err(|_| format!("drop_reason_desc: {value}: unknown"))?;
        reasons.extend(reasons::from_wire(wire).map(|reason| Condition::DropReason(reason.name().into())));
        reasons.push(Condition::Never);
    }
    g.member("drop_reason_desc", &reasons, |condition| Ok(condition.clone()))?;
    g.member("event_type", &filter.event_type, |value| Ok(event(value)))?;
    g.member("protocol", &filter.protocol, |value| protocol(value))?;
    g.member("reply", &filter.reply, |reply| {
        Ok(Condition::Reply(if *reply { ReplyMatch::Only } else { ReplyMatch::Never }))
    })?;
    g.member("tcp_flags", &filter.tcp_flags, |flags| {
        let bits = [flags.fin, flags.syn, flags.rst, flags.psh, flags.ack, flags.urg, flags.ece, flags.cwr];
        let mask = bits.iter().enumerate().fold(0, |mask, (bit, set)| mask | (u8::from(*set) << bit));
        Ok(if flags.ns { Condition::Never } else { Condition::TcpFlags(mask) })
    })?;
    g.member("ip_version", &filter.ip_version, |value| match pb::IpVersion::try_from(*value) {
        Ok(pb::IpVersion::IPv4) => Ok(Condition::Family(Family::IPv4)),
        Ok(pb::IpVersion::IPv6) => Ok(Condition::Family(Family::IPv6)),
        Ok(pb::IpVersion::IpNotUsed) => Ok(Condition::Never),
        Err(_) => Err(format!("{value}: unknown")),
    })?;
    g.member("traffic_direction", &filter.traffic_direction, |value| {
        match pb::TrafficDirection::try_from(*value) {
            Ok(pb::TrafficDirection::Ingress) => Ok(Condition::Direction(Direction::Ingress)),
            Ok(pb::TrafficDirection::Egress) => Ok(Condition::Direction(Direction::Egress)),
            Ok(pb::TrafficDirection::Unknown) => Ok(Condition::Never),
            Err(_) => Err(format!("{value}: unknown")),
        }
    })?;
    g.member("node_name", &filter.node_name, |value| node(value, naming))?;
    g.member("interface", &filter.interface, |value| {
        Ok(Condition::Interface {
            index: (value.index != 0).then_some(value.index),
            name: (!value.name.is_empty()).then(|| value.name.clone()),
        })
    })?;
    g.member("uuid", &filter.uuid, |value| Ok(Condition::Uuid(value.to_ascii_lowercase())))?;
    g.member("encrypted", &filter.encrypted, |wanted| {
        Ok(if *wanted { Condition::Never } else { Condition::Always })
    })?;
    // Labels of nodes and traces are not in our flows.
    g.member("node_labels", &filter.node_labels, |value| {
        LabelSelector::parse(value).map(|_| Condition::Never).map_err(text)
    })?;
    g.member("trace_id", &filter.trace_id, |_| Ok(Condition::Never))?;
    g.member("ip_trace_id", &filter.ip_trace_id, |_| Ok(Condition::Never))
}

fn event(value: &pb::EventTypeFilter) -> Condition {
    let kind = [EventKind::Drop, EventKind::Trace, EventKind::PolicyVerdict, EventKind::L7]
        .into_iter()
        .find(|kind| event_number(*kind) == value.r#type);
    let kind = match (kind, value.r#type) {
        (Some(kind), _) => Some(Condition::Kind(kind)),
        (None, 0) => None,
        (None, _) => return Condition::Never,
    };
    let detail = value.match_sub_type.then(|| sub_type(value));
    Condition::Each(kind.into_iter().chain(detail).collect())
}

/// A detail means a point for traces, and a reason for drops; elsewhere it is 0.
fn sub_type(value: &pb::EventTypeFilter) -> Condition {
    let points = [
        Observation::FromEndpoint,
        Observation::ToEndpoint,
        Observation::FromNetwork,
        Observation::ToNetwork,
        Observation::FromOverlay,
        Observation::Proxy,
    ];
    let is_trace = value.r#type == event_number(EventKind::Trace);
    let is_drop = value.r#type == event_number(EventKind::Drop);
    if is_trace {
        let point = points.into_iter().find(|point| trace_number(*point) == value.sub_type);
        return point.map_or(Condition::Never, Condition::Observation);
    }
    if is_drop {
        let wire = pb::DropReason::try_from(value.sub_type).ok();
        let names = wire.into_iter().flat_map(reasons::from_wire);
        // One number may stand for several of our reasons.
        let any: Vec<_> = names.map(|reason| Condition::DropReason(reason.name().into())).collect();
        return Condition::Any(any);
    }
    if value.sub_type == 0 { Condition::Always } else { Condition::Never }
}

fn protocol(value: &str) -> Result<Condition, String> {
    let l4 = |protocol| Ok(Condition::Protocol(ProtocolMatch::L4(protocol)));
    match value.to_ascii_lowercase().as_str() {
        "tcp" => l4(Protocol::Tcp),
        "udp" => l4(Protocol::Udp),
        "sctp" => l4(Protocol::Sctp),
        "icmp" => Ok(Condition::Any(vec![
            Condition::Protocol(ProtocolMatch::L4(Protocol::Icmp)),
            Condition::Protocol(ProtocolMatch::L4(Protocol::Icmpv6)),
        ])),
        "icmpv4" => l4(Protocol::Icmp),
        "icmpv6" => l4(Protocol::Icmpv6),
        "vrrp" => l4(Protocol::Other(112)),
        "igmp" => l4(Protocol::Other(2)),
        "http" => Ok(Condition::Protocol(ProtocolMatch::Http)),
        "dns" => Ok(Condition::Protocol(ProtocolMatch::Dns)),
        "tls" => Ok(Condition::Protocol(ProtocolMatch::Tls)),
        "kafka" => Ok(Condition::Never),
        _ => Err(format!("{value:?}: unknown protocol")),
    }
}

/// `[CLUSTER/]NODE`, where each half may be empty.
fn node(value: &str, naming: &Naming) -> Result<Condition, String> {
    let (cluster, node) = value.split_once('/').unwrap_or(("", value));
    if value.is_empty() || node.contains('/') {
        return Err(format!("{value:?}: expected [CLUSTER/]NODE"));
    }
    if !cluster.is_empty() && !Glob::parse(cluster).map_err(text)?.is_match(&naming.cluster) {
        return Ok(Condition::Never);
    }
    if node.is_empty() {
        return Ok(Condition::Always);
    }
    Ok(Condition::ObservedOn(Glob::parse(node).map_err(text)?))
}

fn layer7(filter: &pb::FlowFilter, g: &mut Groups<'_>) -> Result<(), String> {
    let regex = |value: &String| Regex::parse(value).map_err(|error| format!("{value:.80?}: {error}"));
    g.member("http_status_code", &filter.http_status_code, |value| {
        StatusMatch::parse(value).map(Condition::HttpStatus).map_err(|error| format!("{value:?}: {error}"))
    })?;
    g.member("http_method", &filter.http_method, |value| Ok(Condition::HttpMethod(value.clone())))?;
    g.member("http_path", &filter.http_path, |value| regex(value).map(Condition::HttpPath))?;
    g.member("http_url", &filter.http_url, |value| regex(value).map(Condition::HttpUrl))?;
    // Records have no headers: what is not kept cannot leak.
    g.member("http_header", &filter.http_header, |_| Ok(Condition::Never))?;
    g.member("dns_query", &filter.dns_query, |value| regex(value).map(Condition::DnsQuery))
}

fn own(filter: &pb::FlowFilter, g: &mut Groups<'_>) -> Result<(), String> {
    let Some(own) = &filter.sluice else { return Ok(()) };
    g.member("sluice.policy", &own.policy, |value| Ok(Condition::Policy(value.clone())))?;
    g.member("sluice.drop_reason", &own.drop_reason, |value| {
        crate::model::DropReason::ALL
            .iter()
            .find(|reason| reason.name().eq_ignore_ascii_case(value))
            .map(|reason| Condition::DropReason(reason.name().into()))
            .ok_or_else(|| format!("{value:?}: no drop reason"))
    })?;
    let node = |end| move |value: &String| Ok(Condition::Party(end, PartyMatch::Node(value.clone())));
    g.member("sluice.source_node", &own.source_node, node(End::Source))?;
    g.member("sluice.destination_node", &own.destination_node, node(End::Destination))?;
    g.member("sluice.tls_server_name", &own.tls_server_name, |value| {
        Glob::parse(value).map(Condition::ServerName).map_err(text)
    })
}

/// All expressions of a filter are one condition: they share the message that they look at, and an error in one of
/// them ends them all.
fn expressions(filter: &pb::FlowFilter, naming: &Naming, g: &mut Groups<'_>) -> Result<(), String> {
    let Some(experimental) = &filter.experimental else { return Ok(()) };
    let sources = &experimental.cel_expression;
    if sources.is_empty() {
        return Ok(());
    }
    let named = |error| format!("experimental.cel_expression{error}");
    g.budget.take_cel(sources.len()).map_err(|error| named(format!(": {error}")))?;
    let expressions = Expressions::compile(sources, naming).map_err(named)?;
    g.all.push(vec![Condition::Predicate(SharedPredicate::new(expressions))]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;
    use crate::flow::{Flow, Verdict};
    use crate::model::DropReason;

    fn naming() -> Naming {
        Naming { cluster: "default".into() }
    }

    fn matches(filter: pb::FlowFilter, flow: &Flow) -> bool {
        selection(&[filter], &[], &naming()).unwrap().matches(flow)
    }

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn refusal(filter: pb::FlowFilter) -> String {
        let status = selection(&[filter], &[], &naming()).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    }

    #[test]
    fn pods_are_prefixes_in_a_namespace() {
        for (pod, wanted) in [
            ("shop/front", true),
            ("shop/", true),
            ("/front", true),
            ("front", false),
            ("default/front", false),
            ("shop/back", false),
        ] {
            let filter = pb::FlowFilter { source_pod: strings(&[pod]), ..Default::default() };
            assert_eq!(matches(filter, &flow(80)), wanted, "{pod}");
        }
    }

    #[test]
    fn members_are_anded_and_values_are_alternatives() {
        let filter = |ports: &[&str], protocol: &str| pb::FlowFilter {
            destination_port: strings(ports),
            protocol: strings(&[protocol]),
            ..Default::default()
        };
        assert!(matches(filter(&["80", "81"], "TCP"), &flow(81)));
        assert!(!matches(filter(&["80", "81"], "udp"), &flow(81)));
        assert!(!matches(filter(&["80", "81"], "tcp"), &flow(82)));
    }

    #[test]
    fn drop_reasons_are_found_by_hubble_s_number_and_by_our_name() {
        let sni = Flow { verdict: Verdict::Dropped(DropReason::SniDenied), ..flow(443) };
        let wire = pb::FlowFilter {
            drop_reason_desc: vec![pb::DropReason::PolicyDenied.into()],
            ..Default::default()
        };
        assert!(matches(wire.clone(), &sni) && !matches(wire, &flow(443)));
        let own = |name: &str| pb::FlowFilter {
            sluice: Some(super::super::pb::sluice::flow::v1::FilterDetail {
                drop_reason: strings(&[name]),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(matches(own("sni_denied"), &sni) && !matches(own("POLICY_DENIED"), &sni));
    }

    #[test]
    fn event_types_match_with_and_without_detail() {
        let verdict = |match_sub_type, sub_type| pb::FlowFilter {
            event_type: vec![pb::EventTypeFilter { r#type: 5, match_sub_type, sub_type }],
            ..Default::default()
        };
        assert!(matches(verdict(false, 7), &flow(80)));
        assert!(matches(verdict(true, 0), &flow(80)));
        assert!(!matches(verdict(true, 7), &flow(80)));
    }

    #[test]
    fn absurd_filters_are_refused_and_the_member_is_named() {
        let with = |edit: fn(&mut pb::FlowFilter)| {
            let mut filter = pb::FlowFilter::default();
            edit(&mut filter);
            refusal(filter)
        };
        for (message, member) in [
            (with(|f| f.http_path = vec!["(a{500}){500}".into()]), "whitelist[0].http_path"),
            (with(|f| f.http_path = vec!["x".into(); EXPRESSIONS + 1]), "regular expressions"),
            (with(|f| f.dns_query = vec!["[".into()]), "dns_query"),
            (with(|f| f.source_ip = vec!["10.0.0.0/33".into()]), "source_ip"),
            (with(|f| f.source_port = vec!["65536".into()]), "source_port"),
            (with(|f| f.source_identity = vec![1; CONDITIONS + 1]), "source_identity"),
            (with(|f| f.verdict = vec![99]), "verdict"),
            (with(|f| f.protocol = vec!["carrier-pigeon".into()]), "protocol"),
            (with(|f| f.source_label = vec!["a in (".into()]), "source_label"),
            (with(|f| f.node_name = vec!["a/b/c".into()]), "node_name"),
            (with(|f| f.destination_pod = vec![String::new()]), "destination_pod"),
        ] {
            assert!(message.contains(member), "{message}");
        }
        let many = vec![pb::FlowFilter::default(); FILTERS + 1];
        assert!(selection(&many, &[], &naming()).is_err());
    }

    fn expressions(sources: &[&str]) -> Option<pb::flow_filter::Experimental> {
        Some(pb::flow_filter::Experimental { cel_expression: strings(sources) })
    }

    #[test]
    fn expressions_are_alternatives_and_anded_with_other_members() {
        let filter = |ports: &[&str], sources: &[&str]| pb::FlowFilter {
            destination_port: strings(ports),
            experimental: expressions(sources),
            ..Default::default()
        };
        let to = ["_flow.l4.TCP.destination_port == 80", "_flow.l4.TCP.destination_port == 81"];
        assert!(matches(filter(&[], &to), &flow(81)));
        assert!(!matches(filter(&[], &to), &flow(82)));
        assert!(matches(filter(&["81", "82"], &to), &flow(81)));
        assert!(!matches(filter(&["82"], &to), &flow(81)));
        assert!(matches(filter(&["82"], &[]), &flow(82)));
        let denied = selection(&[], &[filter(&[], &to)], &naming()).unwrap();
        assert!(denied.has_predicates() && denied.matches(&flow(82)) && !denied.matches(&flow(81)));
    }

    #[test]
    fn expressions_that_are_refused_are_named() {
        let message = |sources: &[&str]| {
            refusal(pb::FlowFilter { experimental: expressions(sources), ..Default::default() })
        };
        assert_eq!(
            message(&["true", "_flow.sauce == ''"]),
            "whitelist[0].experimental.cel_expression[1]: flow.Flow has no member sauce"
        );
        assert_eq!(
            message(&["true"; CEL_EXPRESSIONS + 1]),
            "whitelist[0].experimental.cel_expression: more than 16 expressions in one request"
        );
        // One budget for all filters of the request.
        let half = pb::FlowFilter { experimental: expressions(&["true"; 9]), ..Default::default() };
        let status =
            selection(std::slice::from_ref(&half), std::slice::from_ref(&half), &naming()).unwrap_err();
        assert!(status.message().starts_with("blacklist[0].experimental.cel_expression: more than"));
    }

    #[test]
    fn a_filter_of_the_denylist_excludes() {
        let shop = pb::FlowFilter { source_pod: strings(&["shop/"]), ..Default::default() };
        assert!(!selection(&[], &[shop], &naming()).unwrap().matches(&flow(80)));
    }
}
