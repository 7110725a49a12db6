//! Hubble's messages as our flows: the way back of [`super::convert`], for whoever follows other observers.
//!
//! A message comes from another machine: what is malformed or unknown in it is left out, and only a flow
//! without addresses is none. What was cut by a field mask is simply not known.

use std::net::IpAddr;
use std::sync::Arc;

use super::convert::nanoseconds;
use super::pb::flow as pb;
use super::pb::flow::layer4::Protocol as L4;
use super::pb::flow::layer7::Record;
use super::pb::sluice::flow::v1 as detail;
use super::reasons;
use crate::flow::{
    DecidedBy, Decision, EventKind, Flow, HttpVersion, Interface, L7, Observation, Party, PolicyPart,
    ServiceRef, Verdict,
};
use crate::model::{Direction, DropReason, Identity, Kind, ObjectRef, Protocol, Workload};

/// The flow that a message tells of; `None` where it has no addresses.
pub fn flow(message: &pb::Flow) -> Option<Flow> {
    let ip = message.ip.as_ref()?;
    let (source, destination): (IpAddr, IpAddr) = (ip.source.parse().ok()?, ip.destination.parse().ok()?);
    let ours = message.sluice.clone().unwrap_or_default();
    let layer4 = Layer4::of(message, &ours);
    let party = |address, end: &Option<pb::Endpoint>, node: &str, names: &[String]| {
        Arc::new(party(address, end.as_ref(), node, names))
    };
    Some(Flow {
        time_ns: message.time.as_ref().and_then(nanoseconds).unwrap_or_default(),
        sequence: sequence(&message.uuid),
        node: message.node_name.as_str().into(),
        kind: kind(message),
        verdict: verdict(message, &ours),
        direction: match message.traffic_direction() {
            pb::TrafficDirection::Ingress => Direction::Ingress,
            _ => Direction::Egress,
        },
        source: party(source, &message.source, &ours.source_node, &message.source_names),
        source_port: layer4.ports.map(|(port, _)| port),
        source_name: message.source_names.first().map(|name| name.as_str().into()),
        destination: party(
            destination,
            &message.destination,
            &ours.destination_node,
            &message.destination_names,
        ),
        destination_port: layer4.ports.map(|(_, port)| port),
        destination_name: message.destination_names.first().map(|name| name.as_str().into()),
        protocol: layer4.protocol,
        tcp_flags: layer4.flags,
        icmp: layer4.icmp,
        is_reply: message.is_reply.unwrap_or(false),
        is_established: message.trace_reason() == pb::TraceReason::Established,
        service: service(message, &ours).map(Arc::new),
        decision: Arc::new(decision(message, &ours)),
        length: ours.length,
        count: message
            .aggregate
            .map_or(1, |sum| sum.ingress_flow_count.saturating_add(sum.egress_flow_count).max(1)),
        observation: observation(message.trace_observation_point()),
        interface: message.interface.as_ref().map(|interface| {
            let name = Some(interface.name.as_str()).filter(|name| !name.is_empty());
            Arc::new(Interface { index: interface.index, name: name.map(Into::into) })
        }),
        l7: layer7(message, &ours).map(Box::new),
    })
}

struct Layer4 {
    protocol: Protocol,
    ports: Option<(u16, u16)>,
    flags: u8,
    icmp: Option<(u8, u8)>,
}

impl Layer4 {
    fn of(message: &pb::Flow, ours: &detail::FlowDetail) -> Layer4 {
        let known = |protocol| Layer4 { protocol, ports: None, flags: 0, icmp: None };
        // Out of range in a malformed message only.
        let port = |number: u32| u16::try_from(number).unwrap_or_default();
        let ports = |source, destination| Some((port(source), port(destination)));
        let icmp = |kind: u32, code: u32| Some((u8::try_from(kind).ok()?, u8::try_from(code).ok()?));
        match message.l4.as_ref().and_then(|layer| layer.protocol.as_ref()) {
            Some(L4::Tcp(tcp)) => Layer4 {
                ports: ports(tcp.source_port, tcp.destination_port),
                flags: tcp.flags.as_ref().map_or(0, flags),
                ..known(Protocol::Tcp)
            },
            Some(L4::Udp(udp)) => {
                Layer4 { ports: ports(udp.source_port, udp.destination_port), ..known(Protocol::Udp) }
            }
            Some(L4::Sctp(sctp)) => {
                Layer4 { ports: ports(sctp.source_port, sctp.destination_port), ..known(Protocol::Sctp) }
            }
            Some(L4::IcmPv4(said)) => Layer4 { icmp: icmp(said.r#type, said.code), ..known(Protocol::Icmp) },
            Some(L4::IcmPv6(said)) => {
                Layer4 { icmp: icmp(said.r#type, said.code), ..known(Protocol::Icmpv6) }
            }
            Some(L4::Vrrp(_)) => known(Protocol::Vrrp),
            Some(L4::Igmp(_)) => known(Protocol::Igmp),
            None => known(Protocol::from_number(u8::try_from(ours.protocol).unwrap_or_default())),
        }
    }
}

fn flags(flags: &pb::TcpFlags) -> u8 {
    let bits = [flags.fin, flags.syn, flags.rst, flags.psh, flags.ack, flags.urg, flags.ece, flags.cwr];
    bits.into_iter().enumerate().fold(0, |byte, (bit, is_set)| byte | (u8::from(is_set) << bit))
}

/// Our own identifiers carry it; others have none.
fn sequence(uuid: &str) -> u64 {
    uuid.rsplit('-').next().and_then(|tail| u64::from_str_radix(tail, 16).ok()).unwrap_or_default()
        & 0xffff_ffff
}

fn party(address: IpAddr, end: Option<&pb::Endpoint>, node: &str, names: &[String]) -> Party {
    let text = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Arc::<str>::from);
    let end = end.cloned().unwrap_or_default();
    Party {
        labels: end.labels.iter().filter_map(|label| label.parse().ok()).collect(),
        namespace: text(&end.namespace),
        pod: text(&end.pod_name),
        workload: end.workloads.first().map(|workload| Workload::new(&workload.kind, &workload.name)),
        endpoint: u16::try_from(end.id).ok().filter(|id| *id != 0),
        node: text(node),
        names: names.iter().map(|name| name.as_str().into()).collect(),
        ..Party::unknown(address, Identity(end.identity))
    }
}

fn kind(message: &pb::Flow) -> EventKind {
    match message.event_type.as_ref().map(|event| event.r#type) {
        Some(1) => EventKind::Drop,
        Some(5) => EventKind::PolicyVerdict,
        Some(129) => EventKind::L7,
        _ if message.l7.is_some() => EventKind::L7,
        _ => EventKind::Trace,
    }
}

fn verdict(message: &pb::Flow, ours: &detail::FlowDetail) -> Verdict {
    match message.verdict() {
        pb::Verdict::Dropped => {
            let named = DropReason::ALL.iter().copied().find(|reason| reason.name() == ours.drop_reason);
            let numbered = || reasons::from_wire(message.drop_reason_desc()).next();
            Verdict::Dropped(named.or_else(numbered).unwrap_or(DropReason::Internal))
        }
        pb::Verdict::Redirected => Verdict::Redirected,
        pb::Verdict::Audit => Verdict::Audit,
        pb::Verdict::Error => Verdict::Error,
        _ => Verdict::Forwarded,
    }
}

fn observation(point: pb::TraceObservationPoint) -> Observation {
    match point {
        pb::TraceObservationPoint::ToEndpoint => Observation::ToEndpoint,
        pb::TraceObservationPoint::FromNetwork => Observation::FromNetwork,
        pb::TraceObservationPoint::ToNetwork => Observation::ToNetwork,
        pb::TraceObservationPoint::FromOverlay => Observation::FromOverlay,
        pb::TraceObservationPoint::FromProxy => Observation::Proxy,
        _ => Observation::FromEndpoint,
    }
}

fn service(message: &pb::Flow, ours: &detail::FlowDetail) -> Option<ServiceRef> {
    let named = message.destination_service.as_ref();
    let address = ours.service_address.parse().ok()?;
    Some(ServiceRef {
        name: named.map(|service| format!("{}/{}", service.namespace, service.name).into()),
        address,
        port: u16::try_from(ours.service_port).unwrap_or_default(),
    })
}

fn decision(message: &pb::Flow, ours: &detail::FlowDetail) -> Decision {
    let members = [
        &message.egress_allowed_by,
        &message.egress_denied_by,
        &message.ingress_allowed_by,
        &message.ingress_denied_by,
    ];
    let named = || members.into_iter().flatten();
    let object = |kind: &str, namespace: &str, name: &str| {
        Kind::parse(kind).map(|kind| ObjectRef::new(kind, namespace, name))
    };
    let by = match ours.decision() {
        detail::Decision::NoPolicy => DecidedBy::NoPolicy,
        detail::Decision::DefaultDeny => {
            let objects = named().filter_map(|policy| object(&policy.kind, &policy.namespace, &policy.name));
            DecidedBy::DefaultDeny(objects.collect())
        }
        detail::Decision::Rules => {
            let parts = ours.rules.iter().filter_map(|part| {
                let object = object(&part.kind, &part.namespace, &part.name)?;
                Some(PolicyPart {
                    object,
                    rules: part.rules.iter().map(|rule| rule.as_str().into()).collect(),
                })
            });
            DecidedBy::Rules(parts.collect())
        }
    };
    Decision {
        matched: super::convert::match_type(message.policy_match_type)
            .filter(|_| matches!(by, DecidedBy::Rules(_))),
        revision: named().map(|policy| policy.revision).max().unwrap_or_default(),
        by,
    }
}

fn layer7(message: &pb::Flow, ours: &detail::FlowDetail) -> Option<L7> {
    let layer = message.l7.as_ref()?;
    let latency_us = layer.latency_ns / 1000;
    Some(match &layer.record {
        Some(Record::Http(http)) => {
            let rest = http.url.split_once("://").map_or(http.url.as_str(), |(_, rest)| rest);
            let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            L7::Http {
                method: http.method.as_str().into(),
                path: path.into(),
                host: host.into(),
                status: u16::try_from(http.code).unwrap_or_default(),
                latency_us,
                version: match http.protocol.as_str() {
                    "HTTP/1.0" => HttpVersion::Http10,
                    version if version.starts_with("HTTP/2") => HttpVersion::Http2,
                    _ => HttpVersion::Http11,
                },
                mismatches: ours.http_mismatches.iter().map(|name| name.as_str().into()).collect(),
            }
        }
        Some(Record::Dns(dns)) => L7::Dns {
            query: dns.query.as_str().into(),
            query_type: dns.qtypes.first().map(String::as_str).unwrap_or_default().into(),
            rcode: super::convert::response_name(dns.rcode).into(),
            answers: dns.ips.iter().filter_map(|address| address.parse().ok()).collect(),
            latency_us,
        },
        _ => L7::Tls { server_name: ours.tls_server_name.as_deref().map(Into::into) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;

    /// There and back again.
    fn back(flow: &Flow) -> Flow {
        super::flow(&convert::flow(flow, &Naming { cluster: "default".into() })).unwrap()
    }

    fn policy() -> ObjectRef {
        ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "web")
    }

    #[test]
    fn flows_come_back_as_they_were() {
        let rules = vec![PolicyPart { object: policy(), rules: vec!["spec.egress[0]".into()] }];
        let plain = Flow {
            sequence: 77,
            decision: Arc::new(Decision {
                by: DecidedBy::Rules(rules),
                revision: 9,
                matched: Some(crate::policy::rule::RuleMatch::L3Only),
            }),
            interface: Some(Arc::new(Interface { index: 4, name: Some("lxc4".into()) })),
            service: Some(Arc::new(ServiceRef {
                name: Some("shop/web".into()),
                address: "10.96.0.1".parse().unwrap(),
                port: 80,
            })),
            count: 3,
            ..example(80)
        };
        let denied = Flow {
            kind: EventKind::Drop,
            verdict: Verdict::Dropped(DropReason::SniDenied),
            direction: Direction::Ingress,
            decision: Arc::new(Decision {
                by: DecidedBy::DefaultDeny(vec![policy()]),
                revision: 9,
                matched: None,
            }),
            ..example(443)
        };
        let ping = Flow {
            protocol: Protocol::Icmp,
            source_port: None,
            destination_port: None,
            tcp_flags: 0,
            icmp: Some((8, 0)),
            kind: EventKind::Trace,
            is_established: true,
            observation: Observation::ToEndpoint,
            ..example(0)
        };
        let other = Flow { protocol: Protocol::Other(47), icmp: None, ..ping.clone() };
        for flow in [plain, denied, ping, other] {
            assert_eq!(back(&flow), flow);
        }
    }

    #[test]
    fn records_of_proxies_come_back_as_they_were() {
        let http = L7::Http {
            method: "GET".into(),
            path: "/a?b=c".into(),
            host: "web:80".into(),
            status: 404,
            latency_us: 12,
            version: HttpVersion::Http2,
            mismatches: vec!["x-token".into()],
        };
        let dns = L7::Dns {
            query: "api.example.".into(),
            query_type: "AAAA".into(),
            rcode: "NXDOMAIN".into(),
            answers: vec!["2001:db8::1".parse().unwrap()],
            latency_us: 7,
        };
        for l7 in [http, dns, L7::Tls { server_name: Some("x".into()) }, L7::Tls { server_name: None }] {
            let record = Flow {
                kind: EventKind::L7,
                observation: Observation::Proxy,
                tcp_flags: 0,
                l7: Some(Box::new(l7)),
                ..example(80)
            };
            assert_eq!(back(&record), record);
        }
    }

    #[test]
    fn a_name_that_was_used_is_shown_first() {
        let mut flow = example(443);
        flow.destination = Arc::new(Party {
            names: vec!["cdn.example".into()],
            ..Party::unknown("203.0.113.9".parse().unwrap(), Identity::WORLD_IPV4)
        });
        flow.destination_name = Some("api.example".into());
        let names: Vec<String> = back(&flow).destination_names().map(ToString::to_string).collect();
        assert_eq!(names, ["api.example", "cdn.example"]);
    }

    #[test]
    fn malformed_messages_are_no_flows_and_panic_nowhere() {
        assert!(super::flow(&pb::Flow::default()).is_none());
        let mut message = convert::flow(&example(80), &Naming { cluster: "default".into() });
        message.uuid = "é".into();
        message.aggregate =
            Some(pb::Aggregate { egress_flow_count: u32::MAX, ingress_flow_count: 1, ..Default::default() });
        message.source.as_mut().unwrap().labels = vec!["no label".into()];
        message.l4 = Some(pb::Layer4 {
            protocol: Some(L4::Udp(pb::Udp { source_port: 1 << 20, destination_port: 0 })),
        });
        let read = super::flow(&message).unwrap();
        assert_eq!((read.source.labels.len(), read.source_port, read.count), (0, Some(0), u32::MAX));
    }
}
