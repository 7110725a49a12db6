//! Our flows as Hubble's messages.
//!
//! Hubble's forms come first, so that its clients show the right thing; what they have no place for goes into
//! `sluice.flow.v1.FlowDetail`, which they skip.

use std::net::IpAddr;
use std::sync::Arc;

use super::pb::flow as pb;
use super::pb::flow::layer4::Protocol as L4;
use super::pb::flow::layer7::Record;
use super::pb::sluice::flow::v1 as detail;
use super::reasons;
use crate::api::flow_json::summary;
use crate::flow::{DecidedBy, Decision, EventKind, Flow, L7, Observation, Party, Verdict, uuid_text};
use crate::model::{Direction, Identity, ObjectRef, Protocol};
use crate::policy::rule::RuleMatch;

/// `DNS.observation_source`: the DNS proxy saw it.
const BY_PROXY: &str = "proxy";

/// How this node is called.
#[derive(Clone, Debug)]
pub struct Naming {
    pub cluster: Arc<str>,
}

impl Naming {
    /// `cluster/node`, or `node` in the cluster `default`.
    pub fn node(&self, node: &str) -> String {
        if &*self.cluster == "default" { node.to_owned() } else { format!("{}/{node}", self.cluster) }
    }
}

/// Nanoseconds since 1970.
pub fn timestamp(time_ns: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(time_ns / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(time_ns % 1_000_000_000).unwrap_or(0),
    }
}

/// Nanoseconds since 1970; `None` before 1970, after 2554, or for a malformed one.
pub fn nanoseconds(time: &prost_types::Timestamp) -> Option<u64> {
    let nanos = u64::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    u64::try_from(time.seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// The message of a flow.
#[allow(deprecated, reason = "old clients read the old members")]
pub fn flow(flow: &Flow, naming: &Naming) -> pb::Flow {
    let mut message = pb::Flow {
        time: Some(timestamp(flow.time_ns)),
        uuid: uuid_text(flow.uuid()),
        verdict: verdict(flow.verdict).into(),
        ip: Some(addresses(flow)),
        l4: layer4(flow).map(|protocol| pb::Layer4 { protocol: Some(protocol) }),
        source: Some(endpoint(&flow.source, naming)),
        destination: Some(endpoint(&flow.destination, naming)),
        r#type: if flow.l7.is_some() { pb::FlowType::L7 } else { pb::FlowType::L3L4 }.into(),
        node_name: naming.node(&flow.node),
        source_names: flow.source_names().map(|name| name.to_string()).collect(),
        destination_names: flow.destination_names().map(|name| name.to_string()).collect(),
        l7: flow.l7.as_deref().and_then(|l7| layer7(flow, l7)),
        reply: flow.is_reply,
        is_reply: Some(flow.is_reply),
        event_type: Some(event_type(flow)),
        destination_service: service(flow),
        traffic_direction: direction(flow.direction).into(),
        policy_match_type: policy_match(flow),
        trace_observation_point: observation(flow.observation).into(),
        interface: flow.interface.as_ref().map(|interface| pb::NetworkInterface {
            index: interface.index,
            name: interface.name.as_deref().unwrap_or_default().to_owned(),
        }),
        summary: summary(flow),
        sluice: Some(flow_detail(flow)),
        ..pb::Flow::default()
    };
    if let Verdict::Dropped(reason) = flow.verdict {
        let wire = reasons::to_wire(reason);
        message.drop_reason = u32::try_from(i32::from(wire)).unwrap_or(0);
        message.drop_reason_desc = wire.into();
    }
    if flow.kind == EventKind::Trace {
        message.trace_reason = match (flow.is_reply, flow.is_established) {
            (true, _) => pb::TraceReason::Reply,
            (false, true) => pb::TraceReason::Established,
            (false, false) => pb::TraceReason::New,
        }
        .into();
    }
    if flow.count > 1 {
        message.aggregate = Some(match flow.direction {
            Direction::Ingress => pb::Aggregate { ingress_flow_count: flow.count, ..Default::default() },
            Direction::Egress => pb::Aggregate { egress_flow_count: flow.count, ..Default::default() },
        });
    }
    *policies_member(&mut message, flow) = policies(&flow.decision);
    message
}

fn verdict(verdict: Verdict) -> pb::Verdict {
    match verdict {
        Verdict::Forwarded => pb::Verdict::Forwarded,
        Verdict::Dropped(_) => pb::Verdict::Dropped,
        Verdict::Redirected => pb::Verdict::Redirected,
        Verdict::Audit => pb::Verdict::Audit,
        Verdict::Error => pb::Verdict::Error,
    }
}

fn direction(direction: Direction) -> pb::TrafficDirection {
    match direction {
        Direction::Ingress => pb::TrafficDirection::Ingress,
        Direction::Egress => pb::TrafficDirection::Egress,
    }
}

fn addresses(flow: &Flow) -> pb::Ip {
    let version = match flow.source.address {
        IpAddr::V4(_) => pb::IpVersion::IPv4,
        IpAddr::V6(_) => pb::IpVersion::IPv6,
    };
    pb::Ip {
        source: flow.source.address.to_string(),
        destination: flow.destination.address.to_string(),
        ip_version: version.into(),
        ..pb::Ip::default()
    }
}

/// The eight flags of the low byte.
pub fn tcp_flags(flags: u8) -> pb::TcpFlags {
    pb::TcpFlags {
        fin: flags & 0x01 != 0,
        syn: flags & 0x02 != 0,
        rst: flags & 0x04 != 0,
        psh: flags & 0x08 != 0,
        ack: flags & 0x10 != 0,
        urg: flags & 0x20 != 0,
        ece: flags & 0x40 != 0,
        cwr: flags & 0x80 != 0,
        ns: false,
    }
}

fn layer4(flow: &Flow) -> Option<L4> {
    let source_port = flow.source_port.map(u32::from).unwrap_or_default();
    let destination_port = flow.destination_port.map(u32::from).unwrap_or_default();
    let (icmp_type, code) = flow.icmp.map_or((0, 0), |(kind, code)| (u32::from(kind), u32::from(code)));
    Some(match flow.protocol {
        Protocol::Tcp => {
            // Records of proxies have no packet.
            let flags = (flow.kind != EventKind::L7).then(|| tcp_flags(flow.tcp_flags));
            L4::Tcp(pb::Tcp { source_port, destination_port, flags })
        }
        Protocol::Udp => L4::Udp(pb::Udp { source_port, destination_port }),
        Protocol::Sctp => L4::Sctp(pb::Sctp { source_port, destination_port, chunk_type: 0 }),
        Protocol::Icmp => L4::IcmPv4(pb::IcmPv4 { r#type: icmp_type, code }),
        Protocol::Icmpv6 => L4::IcmPv6(pb::IcmPv6 { r#type: icmp_type, code }),
        _ => return None,
    })
}

fn endpoint(party: &Party, naming: &Naming) -> pb::Endpoint {
    let is_known = party.pod.is_some() || party.node.is_some();
    pb::Endpoint {
        id: party.endpoint.map(u32::from).unwrap_or_default(),
        identity: party.identity.0,
        namespace: party.namespace.as_deref().unwrap_or_default().to_owned(),
        labels: party.labels.iter().map(ToString::to_string).collect(),
        pod_name: party.pod.as_deref().unwrap_or_default().to_owned(),
        workloads: party
            .workload
            .iter()
            .map(|workload| pb::Workload { name: workload.name.to_string(), kind: workload.kind.to_string() })
            .collect(),
        cluster_name: if is_known { naming.cluster.to_string() } else { String::new() },
    }
}

/// A record of an exchange that was answered is a response, though it stands on the client's side: Hubble's
/// clients print status and latency of responses only.
fn layer7(flow: &Flow, l7: &L7) -> Option<pb::Layer7> {
    let (answered, latency_us, record) = match l7 {
        L7::Http { method, path, host, status, latency_us, version, mismatches: _ } => {
            let http = pb::Http {
                code: u32::from(*status),
                method: method.to_string(),
                url: format!("http://{host}{path}"),
                protocol: version.to_string(),
                headers: Vec::new(),
            };
            (*status != 0 && flow.verdict == Verdict::Forwarded, *latency_us, Record::Http(http))
        }
        L7::Dns { query, query_type, rcode, answers, latency_us } => {
            let dns = pb::Dns {
                query: query.to_string(),
                ips: answers.iter().map(ToString::to_string).collect(),
                observation_source: BY_PROXY.to_owned(),
                rcode: response_code(rcode),
                qtypes: vec![query_type.to_string()],
                rrtypes: if answers.is_empty() { Vec::new() } else { vec![query_type.to_string()] },
                ..pb::Dns::default()
            };
            (flow.verdict == Verdict::Forwarded, *latency_us, Record::Dns(dns))
        }
        L7::Tls { .. } => {
            return Some(pb::Layer7 { r#type: pb::L7FlowType::Request.into(), ..Default::default() });
        }
    };
    let kind = if answered { pb::L7FlowType::Response } else { pb::L7FlowType::Request };
    Some(pb::Layer7 {
        r#type: kind.into(),
        latency_ns: latency_us.saturating_mul(1000),
        record: Some(record),
    })
}

/// IANA's DNS RCODEs by the names that the DNS proxy reports.
const RESPONSE_CODES: [&str; 8] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET"];

fn response_code(name: &str) -> u32 {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_uppercase();
    let code = RESPONSE_CODES.iter().position(|known| *known == plain);
    code.and_then(|code| u32::try_from(code).ok()).unwrap_or(2)
}

/// The name of a DNS RCODE; those that no proxy reports are `SERVFAIL`.
pub fn response_name(code: u32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| RESPONSE_CODES.get(code)).unwrap_or(&RESPONSE_CODES[2])
}

/// Numbers of Cilium's monitor messages.
pub fn event_number(kind: EventKind) -> i32 {
    match kind {
        EventKind::Drop => 1,
        EventKind::Trace => 4,
        EventKind::PolicyVerdict => 5,
        EventKind::L7 => 129,
    }
}

/// The detail of a trace message.
pub fn trace_number(point: Observation) -> i32 {
    match point {
        Observation::ToEndpoint => 0,
        Observation::FromEndpoint => 5,
        Observation::Proxy => 6,
        Observation::FromOverlay => 9,
        Observation::FromNetwork => 10,
        Observation::ToNetwork => 11,
    }
}

fn event_type(flow: &Flow) -> pb::CiliumEventType {
    let sub_type = match (flow.kind, flow.verdict) {
        (EventKind::Drop, Verdict::Dropped(reason)) => reasons::to_wire(reason).into(),
        (EventKind::Trace, _) => trace_number(flow.observation),
        _ => 0,
    };
    pb::CiliumEventType { r#type: event_number(flow.kind), sub_type }
}

fn observation(point: Observation) -> pb::TraceObservationPoint {
    match point {
        Observation::FromEndpoint => pb::TraceObservationPoint::FromEndpoint,
        Observation::ToEndpoint => pb::TraceObservationPoint::ToEndpoint,
        Observation::FromNetwork => pb::TraceObservationPoint::FromNetwork,
        Observation::ToNetwork => pb::TraceObservationPoint::ToNetwork,
        Observation::FromOverlay => pb::TraceObservationPoint::FromOverlay,
        Observation::Proxy => pb::TraceObservationPoint::FromProxy,
    }
}

fn service(flow: &Flow) -> Option<pb::Service> {
    let (namespace, name) = flow.service.as_ref()?.name.as_deref()?.split_once('/')?;
    Some(pb::Service { name: name.to_owned(), namespace: namespace.to_owned() })
}

/// Cilium's numbers of match types.
const MATCH_TYPES: [(RuleMatch, u32); 6] = [
    (RuleMatch::L3Only, 1),
    (RuleMatch::L3L4, 2),
    (RuleMatch::L4Only, 3),
    (RuleMatch::All, 4),
    (RuleMatch::L3Protocol, 5),
    (RuleMatch::ProtocolOnly, 6),
];

/// What policy matched on: told of verdicts and drops, as packets of known connections and requests are judged by
/// nothing new. Where no policy has a say everything matches (all); where default deny decides nothing does (none).
fn policy_match(flow: &Flow) -> u32 {
    if matches!(flow.kind, EventKind::Trace | EventKind::L7) {
        return 0;
    }
    let matched = match (&flow.decision.by, flow.verdict) {
        (DecidedBy::Rules(_), _) => flow.decision.matched,
        (DecidedBy::NoPolicy, Verdict::Forwarded) => Some(RuleMatch::All),
        (DecidedBy::NoPolicy | DecidedBy::DefaultDeny(_), _) => None,
    };
    MATCH_TYPES.iter().find(|(one, _)| Some(*one) == matched).map_or(0, |(_, number)| *number)
}

/// The match type of this number; 0 is none.
pub fn match_type(number: u32) -> Option<RuleMatch> {
    MATCH_TYPES.iter().find(|(_, one)| *one == number).map(|(matched, _)| *matched)
}

fn policies_member<'a>(message: &'a mut pb::Flow, flow: &Flow) -> &'a mut Vec<pb::Policy> {
    let denied = matches!(flow.verdict, Verdict::Dropped(_) | Verdict::Audit);
    match (flow.direction, denied) {
        (Direction::Egress, false) => &mut message.egress_allowed_by,
        (Direction::Egress, true) => &mut message.egress_denied_by,
        (Direction::Ingress, false) => &mut message.ingress_allowed_by,
        (Direction::Ingress, true) => &mut message.ingress_denied_by,
    }
}

fn policies(decision: &Decision) -> Vec<pb::Policy> {
    let policy = |object: &ObjectRef| pb::Policy {
        name: object.name.to_string(),
        namespace: object.namespace.to_string(),
        labels: Vec::new(),
        revision: decision.revision,
        kind: object.kind.to_string(),
    };
    match &decision.by {
        DecidedBy::Rules(parts) => parts.iter().map(|part| policy(&part.object)).collect(),
        DecidedBy::DefaultDeny(objects) => objects.iter().map(policy).collect(),
        DecidedBy::NoPolicy => Vec::new(),
    }
}

fn flow_detail(flow: &Flow) -> detail::FlowDetail {
    let (decision, rules) = match &flow.decision.by {
        DecidedBy::NoPolicy => (detail::Decision::NoPolicy, Vec::new()),
        DecidedBy::DefaultDeny(_) => (detail::Decision::DefaultDeny, Vec::new()),
        DecidedBy::Rules(parts) => {
            let rules = parts.iter().map(|part| detail::PolicyRules {
                kind: part.object.kind.to_string(),
                namespace: part.object.namespace.to_string(),
                name: part.object.name.to_string(),
                rules: part.rules.iter().map(|rule| rule.to_string()).collect(),
            });
            (detail::Decision::Rules, rules.collect())
        }
    };
    detail::FlowDetail {
        drop_reason: match flow.verdict {
            Verdict::Dropped(reason) => reason.name().to_owned(),
            _ => String::new(),
        },
        decision: decision.into(),
        rules,
        tls_server_name: match flow.l7.as_deref() {
            Some(L7::Tls { server_name }) => server_name.as_deref().map(str::to_owned),
            _ => None,
        },
        source_node: flow.source.node.as_deref().unwrap_or_default().to_owned(),
        destination_node: flow.destination.node.as_deref().unwrap_or_default().to_owned(),
        length: flow.length,
        service_address: flow.service.as_ref().map(|service| service.address.to_string()).unwrap_or_default(),
        service_port: flow.service.as_ref().map(|service| u32::from(service.port)).unwrap_or_default(),
        protocol: match layer4(flow) {
            Some(_) => 0,
            None => u32::from(flow.protocol.number()),
        },
        http_mismatches: match flow.l7.as_deref() {
            Some(L7::Http { mismatches, .. }) => mismatches.iter().map(|name| name.to_string()).collect(),
            _ => Vec::new(),
        },
    }
}

/// `ID:300`, or the name of a reserved identity.
pub fn identity_text(identity: u32) -> String {
    Identity(identity).reserved_name().map_or_else(|| format!("ID:{identity}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::HttpVersion;
    use crate::flow::tests::flow as example;
    use crate::model::DropReason;

    fn naming() -> Naming {
        Naming { cluster: "default".into() }
    }

    #[test]
    fn a_drop_says_hubble_s_reason_and_ours() {
        let message = flow(
            &Flow { kind: EventKind::Drop, verdict: Verdict::Dropped(DropReason::SniDenied), ..example(443) },
            &naming(),
        );
        assert_eq!(message.verdict(), pb::Verdict::Dropped);
        assert_eq!(message.drop_reason_desc(), pb::DropReason::PolicyDenied);
        assert_eq!(message.sluice.unwrap().drop_reason, "SNI_DENIED");
        assert_eq!(message.event_type.unwrap(), pb::CiliumEventType { r#type: 1, sub_type: 133 });
    }

    #[test]
    fn verdicts_say_what_the_rule_matched_on_as_cilium_numbers_it() {
        let number = |kind, by, matched| {
            let decision = std::sync::Arc::new(Decision { by, revision: 1, matched });
            flow(&Flow { kind, decision, ..example(80) }, &naming()).policy_match_type
        };
        let rules = || DecidedBy::Rules(Vec::new());
        let names = ["all", "proto-only", "L4-only", "L3-only", "L3-proto", "L3-L4"];
        for ((matched, wanted), name) in RuleMatch::ALL.into_iter().zip([4, 6, 3, 1, 5, 2]).zip(names) {
            assert_eq!(number(EventKind::PolicyVerdict, rules(), Some(matched)), wanted, "{name}");
            assert_eq!(match_type(wanted), Some(matched), "{name}");
        }
        assert_eq!(number(EventKind::PolicyVerdict, DecidedBy::NoPolicy, None), 4);
        assert_eq!(number(EventKind::PolicyVerdict, DecidedBy::DefaultDeny(Vec::new()), None), 0);
        assert_eq!(number(EventKind::Trace, rules(), Some(RuleMatch::L3L4)), 0);
    }

    #[test]
    fn requests_say_the_version_that_was_spoken() {
        for (version, text) in [
            (HttpVersion::Http10, "HTTP/1.0"),
            (HttpVersion::Http11, "HTTP/1.1"),
            (HttpVersion::Http2, "HTTP/2"),
        ] {
            let l7 = L7::Http {
                method: "GET".into(),
                path: "/".into(),
                host: "a".into(),
                status: 200,
                latency_us: 1,
                version,
                mismatches: Vec::new(),
            };
            let message = flow(&Flow { l7: Some(Box::new(l7)), ..example(80) }, &naming());
            let Some(Record::Http(http)) = message.l7.unwrap().record else { panic!("no HTTP") };
            assert_eq!(http.protocol, text);
        }
    }

    #[test]
    fn times_that_are_none_are_refused() {
        let at = |seconds, nanos| nanoseconds(&prost_types::Timestamp { seconds, nanos });
        assert_eq!(at(1, 5), Some(1_000_000_005));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert_eq!(at(seconds, nanos), None, "{seconds} {nanos}");
        }
    }

    #[test]
    fn a_node_of_another_cluster_carries_its_name() {
        assert_eq!(naming().node("n1"), "n1");
        assert_eq!(Naming { cluster: "eu".into() }.node("n1"), "eu/n1");
    }
}
