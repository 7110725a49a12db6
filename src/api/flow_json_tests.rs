use std::sync::Arc;

use super::*;
use crate::api::hubble::json;
use crate::api::hubble::pb::observer::GetFlowsResponse;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::flow::tests::flow as example;
use crate::flow::{
    DecidedBy, Decision, EventKind, HttpVersion, Interface, Observation, Party, PolicyPart, ServiceRef,
    Verdict,
};
use crate::model::{Direction, DropReason, Identity, Kind, ObjectRef};
use crate::policy::rule::RuleMatch;

/// Flows that together have every member.
fn every_kind() -> Vec<Flow> {
    let object = ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "web");
    let part =
        PolicyPart { object: object.clone(), rules: vec!["spec.egress[0]".into(), "spec.egress[1]".into()] };
    let by_rules =
        |matched| Arc::new(Decision { by: DecidedBy::Rules(vec![part.clone()]), revision: 9, matched });
    let by_default =
        Arc::new(Decision { by: DecidedBy::DefaultDeny(vec![object]), revision: 1 << 60, matched: None });
    let outside = Party {
        names: vec!["cdn.example".into(), "api.example".into()],
        ..Party::unknown("2001:db8::9".parse().unwrap(), Identity::WORLD_IPV6)
    };
    let plain = Flow {
        time_ns: 1_700_000_000_000_000_000,
        decision: by_rules(Some(RuleMatch::L3L4)),
        interface: Some(Arc::new(Interface { index: 4, name: Some("lxc4".into()) })),
        service: Some(Arc::new(ServiceRef {
            name: Some("shop/backend".into()),
            address: "10.96.0.1".parse().unwrap(),
            port: 80,
        })),
        ..example(8080)
    };
    let mut flows = vec![plain.clone()];
    // Whole milliseconds, microseconds, nanoseconds; all flags; a node's address.
    flows.extend([1_000_000, 1000, 1].map(|more| Flow {
        time_ns: plain.time_ns + more,
        tcp_flags: 0xff,
        ..plain.clone()
    }));
    let machine = Party {
        node: Some("node2".into()),
        ..Party::unknown("192.0.2.2".parse().unwrap(), Identity::REMOTE_NODE)
    };
    flows.push(Flow {
        destination: Arc::new(machine),
        decision: Arc::new(Decision::none()),
        ..plain.clone()
    });
    for (verdict, kind) in [
        (Verdict::Redirected, EventKind::PolicyVerdict),
        (Verdict::Audit, EventKind::PolicyVerdict),
        (Verdict::Error, EventKind::L7),
        (Verdict::Forwarded, EventKind::Trace),
    ] {
        flows.push(Flow { verdict, kind, direction: Direction::Ingress, ..plain.clone() });
    }
    for reason in DropReason::ALL {
        flows.push(Flow {
            kind: EventKind::Drop,
            verdict: Verdict::Dropped(*reason),
            decision: Arc::clone(&by_default),
            direction: Direction::Ingress,
            count: 12,
            ..plain.clone()
        });
    }
    for observation in [
        Observation::FromEndpoint,
        Observation::ToEndpoint,
        Observation::FromNetwork,
        Observation::ToNetwork,
        Observation::FromOverlay,
        Observation::Proxy,
    ] {
        let is_reply = observation == Observation::ToEndpoint;
        let count = if is_reply { 7 } else { 1 };
        flows.push(Flow {
            kind: EventKind::Trace,
            observation,
            is_reply,
            count,
            is_established: true,
            ..plain.clone()
        });
    }
    for protocol in (0..=255).map(Protocol::from_number) {
        let has_ports = protocol.has_ports();
        flows.push(Flow {
            protocol,
            tcp_flags: 0,
            source_port: has_ports.then_some(0),
            destination_port: has_ports.then_some(53),
            icmp: matches!(protocol, Protocol::Icmp | Protocol::Icmpv6).then_some((3, 0)),
            ..plain.clone()
        });
    }
    let http = |version| L7::Http {
        method: "GET".into(),
        path: "/a?b=<c>".into(),
        host: "web".into(),
        status: 404,
        latency_us: 12_345_678_901,
        version,
        mismatches: vec!["x-token".into(), "x-b".into()],
    };
    let dns = |answers: &[&str]| L7::Dns {
        query: "api.example.".into(),
        query_type: "AAAA".into(),
        rcode: "NXDOMAIN".into(),
        answers: answers.iter().map(|address| address.parse().unwrap()).collect(),
        latency_us: 7,
    };
    let tls = |name: Option<&str>| L7::Tls { server_name: name.map(Into::into) };
    for l7 in [
        http(HttpVersion::Http10),
        http(HttpVersion::Http11),
        http(HttpVersion::Http2),
        dns(&[]),
        dns(&["2001:db8::1", "192.0.2.1"]),
        tls(None),
        tls(Some("")),
        tls(Some("\u{202e}quote\"")),
    ] {
        for verdict in [Verdict::Forwarded, Verdict::Dropped(DropReason::ProxyDenied)] {
            flows.push(Flow {
                kind: EventKind::L7,
                verdict,
                observation: Observation::Proxy,
                l7: Some(Box::new(l7.clone())),
                destination: Arc::new(outside.clone()),
                destination_name: Some("used.example".into()),
                ..plain.clone()
            });
        }
    }
    for matched in RuleMatch::ALL {
        flows.push(Flow { decision: by_rules(Some(matched)), ..plain.clone() });
    }
    flows
}

#[test]
fn every_flow_is_what_the_descriptors_make_of_its_message() {
    for cluster in ["default", "eu"] {
        let naming = Naming { cluster: cluster.into() };
        for flow in every_kind() {
            let message = convert::flow(&flow, &naming);
            let response = GetFlowsResponse {
                node_name: message.node_name.clone(),
                time: message.time,
                response_types: Some(ResponseTypes::Flow(message)),
            };
            let wanted = json::to_json(&response).unwrap();
            // As texts: the order of the members is the same, too.
            assert_eq!(to_json(&flow, &naming).to_string(), wanted);
        }
    }
}
