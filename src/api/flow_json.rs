//! Flows as JSON: the field names of Hubble's `Flow` in its JSON form, so that scripts written for
//! `hubble observe -o json` read ours.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::flow::{DecidedBy, EventKind, Flow, L7, Observation, Party, PolicyPart, Verdict, uuid_text};
use crate::model::{Direction, ObjectRef, Protocol};

/// `{"flow": {...}, "node_name": ..., "time": ...}`.
pub fn to_json(flow: &Flow) -> Value {
    let mut inner = Map::new();
    let time = rfc3339(flow.time_ns);
    inner.insert("time".into(), json!(time));
    inner.insert("uuid".into(), json!(uuid_text(flow.uuid())));
    inner.insert("verdict".into(), json!(flow.verdict.to_string()));
    if let Verdict::Dropped(reason) = flow.verdict {
        inner.insert("drop_reason".into(), json!(reason as u8));
        inner.insert("drop_reason_desc".into(), json!(reason.name()));
    }
    inner.insert(
        "IP".into(),
        json!({
            "source": flow.source.address.to_string(),
            "destination": flow.destination.address.to_string(),
            "ipVersion": if flow.source.address.is_ipv4() { "IPv4" } else { "IPv6" },
        }),
    );
    inner.insert("l4".into(), l4(flow));
    inner.insert("source".into(), party(&flow.source, flow.source_names()));
    inner.insert("destination".into(), party(&flow.destination, flow.destination_names()));
    inner.insert("Type".into(), json!(if flow.l7.is_some() { "L7" } else { "L3_L4" }));
    inner.insert("node_name".into(), json!(&*flow.node));
    if let Some(l7) = flow.l7.as_deref() {
        inner.insert("l7".into(), layer7(flow, l7));
    }
    if let Some(service) = &flow.service {
        let (namespace, name) =
            service.name.as_deref().and_then(|name| name.split_once('/')).unwrap_or_default();
        inner.insert(
            "destination_service".into(),
            json!({"namespace": namespace, "name": name, "address": service.address.to_string(), "port": service.port}),
        );
    }
    inner.insert(
        "traffic_direction".into(),
        json!(match flow.direction {
            Direction::Ingress => "INGRESS",
            Direction::Egress => "EGRESS",
        }),
    );
    inner.insert("trace_observation_point".into(), json!(observation(flow.observation)));
    inner.insert("is_reply".into(), json!(flow.is_reply));
    if let Some(interface) = &flow.interface {
        inner.insert(
            "interface".into(),
            json!({"index": interface.index, "name": interface.name.as_deref().unwrap_or_default()}),
        );
    }
    if flow.count > 1 {
        inner.insert("count".into(), json!(flow.count));
    }
    inner.insert("event_type".into(), json!({"type": event_type(flow.kind)}));
    decided_by(flow, &mut inner);
    inner.insert("Summary".into(), json!(summary(flow)));
    json!({"flow": inner, "node_name": &*flow.node, "time": time})
}

/// Nanoseconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(time_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(time_ns))
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |time| time.to_string())
}

fn l4(flow: &Flow) -> Value {
    let ports = json!({"source_port": flow.source_port, "destination_port": flow.destination_port});
    match flow.protocol {
        Protocol::Tcp => {
            json!({"TCP": {"source_port": flow.source_port, "destination_port": flow.destination_port, "flags": tcp_flags(flow.tcp_flags)}})
        }
        Protocol::Udp => json!({ "UDP": ports }),
        Protocol::Sctp => json!({ "SCTP": ports }),
        Protocol::Icmp | Protocol::Icmpv6 => {
            let (icmp_type, code) = flow.icmp.unwrap_or_default();
            let name = if flow.protocol == Protocol::Icmp { "ICMPv4" } else { "ICMPv6" };
            json!({name: {"type": icmp_type, "code": code}})
        }
        other => json!({"protocol": other.to_string()}),
    }
}

fn tcp_flags(flags: u8) -> Value {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Map<String, Value> = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| flags & (1 << bit) != 0)
        .map(|(_, name)| ((*name).to_owned(), json!(true)))
        .collect();
    Value::Object(set)
}

fn party<'a>(party: &Party, names: impl Iterator<Item = &'a Arc<str>>) -> Value {
    let mut value = Map::new();
    value.insert("identity".into(), json!(party.identity.0));
    if let Some(namespace) = &party.namespace {
        value.insert("namespace".into(), json!(&**namespace));
    }
    if let Some(pod) = &party.pod {
        value.insert("pod_name".into(), json!(&**pod));
    }
    if let Some(node) = &party.node {
        value.insert("node_name".into(), json!(&**node));
    }
    if let Some(workload) = &party.workload {
        value.insert("workloads".into(), json!([{"name": &*workload.name, "kind": &*workload.kind}]));
    }
    if let Some(endpoint) = party.endpoint {
        value.insert("ID".into(), json!(endpoint));
    }
    let names: Vec<_> = names.map(|name| &**name).collect();
    if !names.is_empty() {
        value.insert("names".into(), json!(names));
    }
    value.insert("labels".into(), json!(party.labels));
    Value::Object(value)
}

fn layer7(flow: &Flow, l7: &L7) -> Value {
    let kind = if flow.is_reply { "RESPONSE" } else { "REQUEST" };
    match l7 {
        L7::Http { method, path, host, status, latency_us } => json!({
            "type": kind, "latency_ns": latency_us * 1000,
            "http": {"code": status, "method": &**method, "url": format!("http://{host}{path}"), "protocol": "HTTP/1.1"},
        }),
        L7::Dns { query, query_type, rcode, answers, latency_us } => json!({
            "type": kind, "latency_ns": latency_us * 1000,
            "dns": {"query": &**query, "qtypes": [&**query_type], "rcode": &**rcode,
                    "ips": answers.iter().map(ToString::to_string).collect::<Vec<_>>()},
        }),
        L7::Tls { server_name } => json!({"type": kind, "tls": {"server_name": server_name.as_deref()}}),
    }
}

fn observation(point: Observation) -> &'static str {
    match point {
        Observation::FromEndpoint => "FROM_ENDPOINT",
        Observation::ToEndpoint => "TO_ENDPOINT",
        Observation::FromNetwork => "FROM_NETWORK",
        Observation::ToNetwork => "TO_NETWORK",
        Observation::FromOverlay => "FROM_OVERLAY",
        Observation::Proxy => "FROM_PROXY",
    }
}

/// Cilium's monitor message types.
fn event_type(kind: EventKind) -> u8 {
    match kind {
        EventKind::Drop => 1,
        EventKind::Trace => 4,
        EventKind::PolicyVerdict => 5,
        EventKind::L7 => 129,
    }
}

fn object(object: &ObjectRef) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("name".into(), json!(&*object.name));
    if !object.namespace.is_empty() {
        value.insert("namespace".into(), json!(&*object.namespace));
    }
    value.insert("kind".into(), json!(object.kind));
    value
}

fn decided_by(flow: &Flow, inner: &mut Map<String, Value>) {
    let denied = matches!(flow.verdict, Verdict::Dropped(_) | Verdict::Audit);
    let key = match (flow.direction, denied) {
        (Direction::Egress, false) => "egress_allowed_by",
        (Direction::Egress, true) => "egress_denied_by",
        (Direction::Ingress, false) => "ingress_allowed_by",
        (Direction::Ingress, true) => "ingress_denied_by",
    };
    let revision = flow.decision.revision;
    let object = |named: &ObjectRef| {
        let mut value = object(named);
        if revision != 0 {
            value.insert("revision".into(), json!(revision));
        }
        value
    };
    let part = |part: &PolicyPart| {
        let mut value = object(&part.object);
        value.insert("rules".into(), json!(part.rules.iter().map(|rule| &**rule).collect::<Vec<_>>()));
        Value::Object(value)
    };
    match &flow.decision.by {
        DecidedBy::Rules(parts) => {
            inner.insert(key.into(), parts.iter().map(part).collect());
            inner.insert("policy_match".into(), json!("rule"));
        }
        DecidedBy::DefaultDeny(objects) => {
            inner.insert(key.into(), objects.iter().map(|o| Value::Object(object(o))).collect());
            inner.insert("policy_match".into(), json!("default-deny"));
        }
        DecidedBy::NoPolicy => {
            inner.insert("policy_match".into(), json!("none"));
        }
    }
}

/// Addresses of a DNS answer that the compact form has room for.
const SHOWN_ANSWERS: usize = 3;

/// The last column of the compact form.
pub fn summary(flow: &Flow) -> String {
    match flow.l7.as_deref() {
        Some(L7::Http { method, path, host, status, .. }) => {
            format!("HTTP {method} http://{host}{path} {status}")
        }
        Some(L7::Dns { query, query_type, rcode, answers, latency_us }) => {
            let shown: String =
                answers.iter().take(SHOWN_ANSWERS).map(|address| format!(" {address}")).collect();
            let more = answers.len().saturating_sub(SHOWN_ANSWERS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("DNS {query_type} {query} {rcode}{shown}{more}, {latency_us} us")
        }
        Some(L7::Tls { server_name }) => format!("TLS SNI {}", server_name.as_deref().unwrap_or("(none)")),
        None => match flow.protocol {
            Protocol::Tcp => {
                let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
                let set: Vec<_> = names
                    .iter()
                    .enumerate()
                    .filter(|(bit, _)| flow.tcp_flags & (1 << bit) != 0)
                    .map(|(_, n)| *n)
                    .collect();
                format!("TCP Flags: {}", set.join(", "))
            }
            Protocol::Icmp | Protocol::Icmpv6 => {
                let (icmp_type, code) = flow.icmp.unwrap_or_default();
                format!("{} type {icmp_type} code {code}", flow.protocol)
            }
            other => other.to_string(),
        },
    }
}
