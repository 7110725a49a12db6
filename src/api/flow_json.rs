//! Flows as JSON: protobuf's JSON mapping of Hubble's messages with the names of the .proto files, as `hubble
//! observe -o jsonpb` prints them, so that scripts written for that read ours.
//!
//! Written by hand, because a flow a line is written for export: a test compares every kind of flow with what the
//! descriptors say ([`super::hubble::json`]). Members with default values are left out, numbers of 64 bits are
//! texts, members stand in the order of their numbers.

use serde_json::{Map, Value, json};

use super::hubble::convert::{self, Naming};
use super::hubble::pb::flow as pb;
use super::hubble::pb::flow::layer4::Protocol as L4;
use super::hubble::pb::flow::layer7::Record;
use super::hubble::pb::sluice::flow::v1 as detail;
use crate::flow::{Flow, L7};
use crate::model::Protocol;

/// `{"flow": {...}, "node_name": ..., "time": ...}`: an `observer.GetFlowsResponse`.
pub fn to_json(flow: &Flow, naming: &Naming) -> Value {
    let message = convert::flow(flow, naming);
    let time = message.time.as_ref().map(timestamp);
    let mut response = Members::default();
    response.text("node_name", &message.node_name);
    response.value("time", time);
    let mut outer = Map::new();
    outer.insert("flow".into(), self::message(&message));
    outer.extend(response.0);
    Value::Object(outer)
}

/// Members that are not at their default.
#[derive(Default)]
struct Members(Map<String, Value>);

impl Members {
    fn value(&mut self, name: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value);
        }
    }

    fn text(&mut self, name: &str, text: &str) {
        self.value(name, (!text.is_empty()).then(|| json!(text)));
    }

    fn number(&mut self, name: &str, number: impl Into<i64>) {
        let number = number.into();
        self.value(name, (number != 0).then(|| json!(number)));
    }

    /// Of 64 bits: JavaScript has no such numbers.
    fn big(&mut self, name: &str, number: u64) {
        self.value(name, (number != 0).then(|| json!(number.to_string())));
    }

    /// An enumeration; the first of each is its default.
    fn one_of(&mut self, name: &str, number: i32, text: &str) {
        self.value(name, (number != 0).then(|| json!(text)));
    }

    fn flag(&mut self, name: &str, is_set: bool) {
        self.value(name, is_set.then_some(Value::Bool(true)));
    }

    fn list<T>(&mut self, name: &str, items: &[T], item: impl Fn(&T) -> Value) {
        self.value(name, (!items.is_empty()).then(|| items.iter().map(item).collect()));
    }

    fn texts(&mut self, name: &str, items: &[String]) {
        self.list(name, items, |text| json!(text));
    }

    fn object(self) -> Value {
        Value::Object(self.0)
    }
}

fn object(fill: impl FnOnce(&mut Members)) -> Value {
    let mut members = Members::default();
    fill(&mut members);
    members.object()
}

#[allow(deprecated, reason = "old clients read the old members")]
fn message(flow: &pb::Flow) -> Value {
    object(|m| {
        m.value("time", flow.time.as_ref().map(timestamp));
        m.one_of("verdict", flow.verdict, flow.verdict().as_str_name());
        m.number("drop_reason", flow.drop_reason);
        m.value("IP", flow.ip.as_ref().map(ip));
        m.value("l4", flow.l4.as_ref().map(layer4));
        m.value("source", flow.source.as_ref().map(endpoint));
        m.value("destination", flow.destination.as_ref().map(endpoint));
        m.one_of("Type", flow.r#type, flow.r#type().as_str_name());
        m.text("node_name", &flow.node_name);
        m.texts("source_names", &flow.source_names);
        m.texts("destination_names", &flow.destination_names);
        m.value("l7", flow.l7.as_ref().map(layer7));
        m.flag("reply", flow.reply);
        m.value("event_type", flow.event_type.as_ref().map(event_type));
        m.value("destination_service", flow.destination_service.as_ref().map(service));
        m.one_of("traffic_direction", flow.traffic_direction, flow.traffic_direction().as_str_name());
        m.number("policy_match_type", flow.policy_match_type);
        let point = flow.trace_observation_point();
        m.one_of("trace_observation_point", point.into(), point.as_str_name());
        m.one_of("drop_reason_desc", flow.drop_reason_desc, flow.drop_reason_desc().as_str_name());
        // A wrapper: false is not absent.
        m.value("is_reply", flow.is_reply.map(Value::Bool));
        m.value("interface", flow.interface.as_ref().map(interface));
        m.text("uuid", &flow.uuid);
        m.one_of("trace_reason", flow.trace_reason, flow.trace_reason().as_str_name());
        m.list("egress_allowed_by", &flow.egress_allowed_by, policy);
        m.list("ingress_allowed_by", &flow.ingress_allowed_by, policy);
        m.list("egress_denied_by", &flow.egress_denied_by, policy);
        m.list("ingress_denied_by", &flow.ingress_denied_by, policy);
        m.value("aggregate", flow.aggregate.as_ref().map(aggregate));
        m.text("Summary", &flow.summary);
        m.value("sluice", flow.sluice.as_ref().map(ours));
    })
}

fn timestamp(time: &prost_types::Timestamp) -> Value {
    json!(convert::nanoseconds(time).map(rfc3339).unwrap_or_default())
}

/// Nanoseconds since 1970 as RFC 3339 in UTC, with 0, 3, 6 or 9 digits of a second as protobuf wants it.
pub fn rfc3339(time_ns: u64) -> String {
    let digits = match time_ns {
        _ if time_ns.is_multiple_of(1_000_000_000) => 0,
        _ if time_ns.is_multiple_of(1_000_000) => 3,
        _ if time_ns.is_multiple_of(1000) => 6,
        _ => 9,
    };
    jiff::Timestamp::from_nanosecond(i128::from(time_ns))
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |time| format!("{time:.digits$}"))
}

fn ip(ip: &pb::Ip) -> Value {
    object(|m| {
        m.text("source", &ip.source);
        m.text("destination", &ip.destination);
        m.one_of("ipVersion", ip.ip_version, ip.ip_version().as_str_name());
    })
}

fn layer4(layer: &pb::Layer4) -> Value {
    let ports = |source: u32, destination: u32| {
        object(|m| {
            m.number("source_port", source);
            m.number("destination_port", destination);
        })
    };
    let message = |kind: u32, code: u32| {
        object(|m| {
            m.number("type", kind);
            m.number("code", code);
        })
    };
    object(|m| match &layer.protocol {
        Some(L4::Tcp(tcp)) => m.value(
            "TCP",
            Some(object(|m| {
                m.number("source_port", tcp.source_port);
                m.number("destination_port", tcp.destination_port);
                m.value("flags", tcp.flags.as_ref().map(tcp_flags));
            })),
        ),
        Some(L4::Udp(udp)) => m.value("UDP", Some(ports(udp.source_port, udp.destination_port))),
        Some(L4::Sctp(sctp)) => m.value("SCTP", Some(ports(sctp.source_port, sctp.destination_port))),
        Some(L4::IcmPv4(icmp)) => m.value("ICMPv4", Some(message(icmp.r#type, icmp.code))),
        Some(L4::IcmPv6(icmp)) => m.value("ICMPv6", Some(message(icmp.r#type, icmp.code))),
        Some(L4::Vrrp(_) | L4::Igmp(_)) | None => {}
    })
}

fn tcp_flags(flags: &pb::TcpFlags) -> Value {
    object(|m| {
        m.flag("FIN", flags.fin);
        m.flag("SYN", flags.syn);
        m.flag("RST", flags.rst);
        m.flag("PSH", flags.psh);
        m.flag("ACK", flags.ack);
        m.flag("URG", flags.urg);
        m.flag("ECE", flags.ece);
        m.flag("CWR", flags.cwr);
    })
}

fn endpoint(end: &pb::Endpoint) -> Value {
    object(|m| {
        m.number("ID", end.id);
        m.number("identity", end.identity);
        m.text("namespace", &end.namespace);
        m.texts("labels", &end.labels);
        m.text("pod_name", &end.pod_name);
        m.list("workloads", &end.workloads, |workload| {
            object(|m| {
                m.text("name", &workload.name);
                m.text("kind", &workload.kind);
            })
        });
        m.text("cluster_name", &end.cluster_name);
    })
}

fn layer7(layer: &pb::Layer7) -> Value {
    object(|m| {
        m.one_of("type", layer.r#type, layer.r#type().as_str_name());
        m.big("latency_ns", layer.latency_ns);
        match &layer.record {
            Some(Record::Dns(dns)) => m.value(
                "dns",
                Some(object(|m| {
                    m.text("query", &dns.query);
                    m.texts("ips", &dns.ips);
                    m.text("observation_source", &dns.observation_source);
                    m.number("rcode", dns.rcode);
                    m.texts("qtypes", &dns.qtypes);
                    m.texts("rrtypes", &dns.rrtypes);
                })),
            ),
            Some(Record::Http(http)) => m.value(
                "http",
                Some(object(|m| {
                    m.number("code", http.code);
                    m.text("method", &http.method);
                    m.text("url", &http.url);
                    m.text("protocol", &http.protocol);
                })),
            ),
            // No proxy of ours records anything else.
            _ => {}
        }
    })
}

fn event_type(event: &pb::CiliumEventType) -> Value {
    object(|m| {
        m.number("type", event.r#type);
        m.number("sub_type", event.sub_type);
    })
}

fn service(service: &pb::Service) -> Value {
    object(|m| {
        m.text("name", &service.name);
        m.text("namespace", &service.namespace);
    })
}

fn interface(interface: &pb::NetworkInterface) -> Value {
    object(|m| {
        m.number("index", interface.index);
        m.text("name", &interface.name);
    })
}

fn policy(policy: &pb::Policy) -> Value {
    object(|m| {
        m.text("name", &policy.name);
        m.text("namespace", &policy.namespace);
        m.texts("labels", &policy.labels);
        m.big("revision", policy.revision);
        m.text("kind", &policy.kind);
    })
}

fn aggregate(sum: &pb::Aggregate) -> Value {
    object(|m| {
        m.number("ingress_flow_count", sum.ingress_flow_count);
        m.number("egress_flow_count", sum.egress_flow_count);
        m.number("unknown_direction_flow_count", sum.unknown_direction_flow_count);
    })
}

fn ours(ours: &detail::FlowDetail) -> Value {
    object(|m| {
        m.text("drop_reason", &ours.drop_reason);
        m.one_of("decision", ours.decision, ours.decision().as_str_name());
        m.list("rules", &ours.rules, |part| {
            object(|m| {
                m.text("kind", &part.kind);
                m.text("namespace", &part.namespace);
                m.text("name", &part.name);
                m.texts("rules", &part.rules);
            })
        });
        // Optional: an empty name was said.
        m.value("tls_server_name", ours.tls_server_name.as_ref().map(|name| json!(name)));
        m.text("source_node", &ours.source_node);
        m.text("destination_node", &ours.destination_node);
        m.number("length", ours.length);
        m.text("service_address", &ours.service_address);
        m.number("service_port", ours.service_port);
        m.number("protocol", ours.protocol);
        m.texts("http_mismatches", &ours.http_mismatches);
    })
}

/// Addresses of a DNS answer that the compact form has room for.
const SHOWN_ANSWERS: usize = 3;

/// Headers that are not as a rule wants them; nothing where there are none.
pub fn mismatched(names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    if names.is_empty() { String::new() } else { format!(", header mismatch: {}", names.join(" ")) }
}

/// The last column of the compact form.
pub fn summary(flow: &Flow) -> String {
    match flow.l7.as_deref() {
        Some(L7::Http { method, path, host, status, mismatches, .. }) => {
            format!("HTTP {method} http://{host}{path} {status}{}", mismatched(mismatches))
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

#[cfg(test)]
#[path = "flow_json_tests.rs"]
mod tests;
