//! A flow as a line, a row or a paragraph for people.
//!
//! The compact line is Hubble's (scripts grep it), with the policies that decided after the verdict.

use super::FlowOutput;
use crate::api::flow_json;
use crate::api::hubble::convert::{identity_text, nanoseconds};
use crate::api::hubble::pb::flow as pb;
use crate::api::hubble::pb::flow::Http;
use crate::api::hubble::pb::flow::layer4::Protocol;
use crate::api::hubble::pb::flow::layer7::Record;
use crate::api::hubble::pb::observer::GetFlowsResponse;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::api::hubble::pb::relay::NodeState;
use crate::api::hubble::pb::sluice::flow::v1::Decision;
use crate::cli::print::plain;
use crate::model::DropReason;

/// Choices of how to print.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub node: Shown,
    pub addresses: Addresses,
    pub time: TimeFormat,
}

/// Whether something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Pods, Services and DNS names where they are known.
    Names,
    Numbers,
}

/// `--time-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeFormat {
    #[default]
    #[value(name = "StampMilli")]
    StampMilli,
    #[value(name = "RFC3339")]
    Rfc3339,
    #[value(name = "RFC3339Milli")]
    Rfc3339Milli,
    #[value(name = "RFC3339Micro")]
    Rfc3339Micro,
    #[value(name = "RFC3339Nano")]
    Rfc3339Nano,
    #[value(name = "RFC1123Z")]
    Rfc1123Z,
}

impl TimeFormat {
    /// In local time.
    pub fn format(self, time: Option<&prost_types::Timestamp>) -> String {
        let Some(time) = time.and_then(nanoseconds) else { return "N/A".to_owned() };
        let Ok(time) = jiff::Timestamp::from_nanosecond(i128::from(time)) else { return "N/A".to_owned() };
        let pattern = match self {
            TimeFormat::StampMilli => "%b %e %H:%M:%S%.3f",
            TimeFormat::Rfc3339 => "%Y-%m-%dT%H:%M:%S%:z",
            TimeFormat::Rfc3339Milli => "%Y-%m-%dT%H:%M:%S%.3f%:z",
            TimeFormat::Rfc3339Micro => "%Y-%m-%dT%H:%M:%S%.6f%:z",
            TimeFormat::Rfc3339Nano => "%Y-%m-%dT%H:%M:%S%.9f%:z",
            TimeFormat::Rfc1123Z => "%a, %d %b %Y %H:%M:%S %z",
        };
        time.to_zoned(jiff::tz::TimeZone::system()).strftime(pattern).to_string()
    }
}

/// The columns that every form has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    pub time: String,
    pub node: String,
    pub source: String,
    pub source_identity: String,
    pub destination: String,
    pub destination_identity: String,
    pub kind: String,
    pub verdict: &'static str,
    /// ` by shop/web-in spec.ingress[0]`, or nothing.
    pub reason: String,
    pub summary: String,
    pub is_reply: Option<bool>,
    colour: &'static str,
}

/// Ports of the flow.
pub fn ports(flow: &pb::Flow) -> Option<(u32, u32)> {
    match flow.l4.as_ref()?.protocol.as_ref()? {
        Protocol::Tcp(l4) => Some((l4.source_port, l4.destination_port)),
        Protocol::Udp(l4) => Some((l4.source_port, l4.destination_port)),
        Protocol::Sctp(l4) => Some((l4.source_port, l4.destination_port)),
        _ => None,
    }
}

/// `TCP`, `UDP` ...
pub fn protocol(flow: &pb::Flow) -> String {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(_)) => "TCP".into(),
        Some(Protocol::Udp(_)) => "UDP".into(),
        Some(Protocol::Sctp(_)) => "SCTP".into(),
        Some(Protocol::IcmPv4(_)) => "ICMP".into(),
        Some(Protocol::IcmPv6(_)) => "ICMPv6".into(),
        Some(Protocol::Vrrp(_)) => "VRRP".into(),
        Some(Protocol::Igmp(_)) => "IGMP".into(),
        None => flow.sluice.as_ref().map(|detail| detail.protocol.to_string()).unwrap_or_default(),
    }
}

/// `ns/pod`, a node, a DNS name, or the address.
pub fn name(endpoint: Option<&pb::Endpoint>, names: &[String], node: &str, address: &str) -> String {
    match endpoint {
        Some(end) if !end.pod_name.is_empty() => format!("{}/{}", end.namespace, end.pod_name),
        _ if !node.is_empty() => node.to_owned(),
        _ => names.first().map_or(address, String::as_str).to_owned(),
    }
}

/// Both ends without ports.
pub fn ends(flow: &pb::Flow, addresses: Addresses) -> (String, String) {
    let ip = flow.ip.clone().unwrap_or_default();
    if addresses == Addresses::Numbers {
        return (ip.source, ip.destination);
    }
    let detail = flow.sluice.clone().unwrap_or_default();
    (
        name(flow.source.as_ref(), &flow.source_names, &detail.source_node, &ip.source),
        name(flow.destination.as_ref(), &flow.destination_names, &detail.destination_node, &ip.destination),
    )
}

fn with_port(host: &str, port: Option<u32>) -> String {
    let host = plain(host);
    match port.filter(|port| *port != 0) {
        None => host,
        Some(port) if host.contains(':') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
    }
}

/// Our name of the drop reason, else Hubble's.
pub fn drop_reason(flow: &pb::Flow) -> Option<String> {
    let own = flow.sluice.as_ref().map(|detail| detail.drop_reason.as_str()).unwrap_or_default();
    match own {
        "" if flow.verdict() == pb::Verdict::Dropped => {
            Some(flow.drop_reason_desc().as_str_name().to_owned())
        }
        "" => None,
        own => Some(own.to_owned()),
    }
}

/// Hubble's words for where a flow comes from.
fn kind(flow: &pb::Flow) -> String {
    if let Some(l7) = &flow.l7 {
        let protocol = match &l7.record {
            Some(Record::Http(_)) => "http",
            Some(Record::Dns(_)) => "dns",
            None if server_name(flow).is_some() => "tls",
            _ => "l7",
        };
        return format!("{protocol}-{}", l7.r#type().as_str_name().to_lowercase());
    }
    match flow.event_type.map(|event| event.r#type) {
        Some(1) => {
            let text = drop_reason(flow)
                .and_then(|name| DropReason::ALL.iter().find(|reason| reason.name() == name))
                .map(|reason| reason.text().to_owned());
            text.unwrap_or_else(|| flow.drop_reason_desc().as_str_name().to_owned())
        }
        Some(4) => flow.trace_observation_point().as_str_name().to_lowercase().replace('_', "-"),
        Some(5) => {
            let matched = ["none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only"];
            let matched = usize::try_from(flow.policy_match_type).ok().and_then(|at| matched.get(at));
            let direction = flow.traffic_direction().as_str_name();
            format!("policy-verdict:{} {direction}", matched.unwrap_or(&"unknown"))
        }
        _ => "unknown".to_owned(),
    }
}

fn server_name(flow: &pb::Flow) -> Option<&str> {
    flow.sluice.as_ref()?.tls_server_name.as_deref()
}

fn verdict(flow: &pb::Flow) -> (&'static str, &'static str) {
    let is_judgement = flow.event_type.is_some_and(|event| event.r#type == 5);
    let (green, red, yellow) = ("\x1b[32m", "\x1b[31m", "\x1b[33m");
    match flow.verdict() {
        pb::Verdict::Forwarded if is_judgement => ("ALLOWED", green),
        pb::Verdict::Forwarded => ("FORWARDED", green),
        pb::Verdict::Redirected if is_judgement => ("REDIRECTED", yellow),
        pb::Verdict::Dropped if is_judgement => ("DENIED", red),
        pb::Verdict::Dropped => ("DROPPED", red),
        pb::Verdict::Error => ("ERROR", red),
        pb::Verdict::Audit if is_judgement => ("AUDITED", yellow),
        other => (other.as_str_name(), yellow),
    }
}

/// Every policy that decided.
pub fn policies(flow: &pb::Flow) -> impl Iterator<Item = &pb::Policy> {
    let lists =
        [&flow.egress_allowed_by, &flow.ingress_allowed_by, &flow.egress_denied_by, &flow.ingress_denied_by];
    lists.into_iter().flatten()
}

/// `ns/name`.
pub fn policy_path(policy: &pb::Policy) -> String {
    match policy.namespace.as_str() {
        "" => policy.name.clone(),
        namespace => format!("{namespace}/{}", policy.name),
    }
}

fn reason(flow: &pb::Flow) -> String {
    let detail = flow.sluice.clone().unwrap_or_default();
    let parts: Vec<String> = policies(flow)
        .map(|policy| {
            let rules = detail.rules.iter().find(|part| {
                part.name == policy.name && part.namespace == policy.namespace && part.kind == policy.kind
            });
            match rules.map(|part| part.rules.join(" ")).filter(|rules| !rules.is_empty()) {
                Some(rules) => format!("{} {rules}", policy_path(policy)),
                None => policy_path(policy),
            }
        })
        .collect();
    match detail.decision() {
        Decision::DefaultDeny if parts.is_empty() => " by default-deny (enforcement mode)".to_owned(),
        Decision::DefaultDeny => format!(" by default-deny of {}", plain(&parts.join(", "))),
        Decision::Rules if !parts.is_empty() => format!(" by {}", plain(&parts.join(", "))),
        Decision::Rules | Decision::NoPolicy => String::new(),
    }
}

fn summary(flow: &pb::Flow) -> String {
    let l7 = flow.l7.as_ref();
    let milliseconds = l7.map_or(0.0, |l7| l7.latency_ns as f64 / 1e6);
    match l7.and_then(|l7| l7.record.as_ref()) {
        Some(Record::Http(http)) if http.code != 0 => {
            let names = flow.sluice.as_ref().map(|ours| &ours.http_mismatches[..]).unwrap_or_default();
            let mismatched = flow_json::mismatched(names);
            let Http { protocol, code, method, url, .. } = http;
            format!("{protocol} {code} {milliseconds:.1}ms ({method} {url}){mismatched}")
        }
        #[allow(deprecated, reason = "the text is still sent for everybody")]
        _ => flow.summary.clone(),
    }
}

impl Columns {
    pub fn new(flow: &pb::Flow, style: Style) -> Columns {
        let (source, destination) = ends(flow, style.addresses);
        let ports = ports(flow);
        let identity = |end: Option<&pb::Endpoint>| identity_text(end.map_or(0, |end| end.identity));
        let (verdict, colour) = verdict(flow);
        let service = flow
            .destination_service
            .as_ref()
            .filter(|_| style.addresses == Addresses::Names)
            .map(|service| format!(" via {}/{}", plain(&service.namespace), plain(&service.name)))
            .unwrap_or_default();
        Columns {
            time: style.time.format(flow.time.as_ref()),
            node: plain(&flow.node_name),
            source: with_port(&source, ports.map(|(port, _)| port)),
            source_identity: identity(flow.source.as_ref()),
            destination: with_port(&destination, ports.map(|(_, port)| port)) + &service,
            destination_identity: identity(flow.destination.as_ref()),
            kind: plain(&kind(flow)),
            verdict,
            reason: reason(flow),
            summary: plain(&summary(flow)),
            is_reply: flow.is_reply,
            colour,
        }
    }

    fn coloured(&self) -> String {
        format!("{}{}\x1b[0m", self.colour, self.verdict)
    }

    pub fn line(&self, style: Style) -> String {
        let node = if style.node == Shown::Yes { format!(" [{}]", self.node) } else { String::new() };
        let source = format!("{} ({})", self.source, self.source_identity);
        let destination = format!("{} ({})", self.destination, self.destination_identity);
        let (left, arrow, right) = match self.is_reply {
            None => (source, "<>", destination),
            Some(false) => (source, "->", destination),
            Some(true) => (destination, "<-", source),
        };
        format!(
            "{}{node}: {left} {arrow} {right} {} {}{} ({})",
            self.time,
            self.kind,
            self.coloured(),
            self.reason,
            self.summary
        )
    }

    pub fn paragraph(&self) -> String {
        format!(
            "  TIMESTAMP: {}\n       NODE: {}\n     SOURCE: {}\nDESTINATION: {}\n       TYPE: {}\n    VERDICT: {}{}\n    SUMMARY: {}",
            self.time,
            self.node,
            self.source,
            self.destination,
            self.kind,
            self.coloured(),
            self.reason,
            self.summary
        )
    }

    pub fn row(&self) -> Vec<String> {
        let verdict = format!("{}{}", self.verdict, self.reason);
        vec![
            self.time.clone(),
            self.source.clone(),
            self.destination.clone(),
            self.kind.clone(),
            verdict,
            self.summary.clone(),
        ]
    }
}

/// What is no flow: a line for standard error.
pub fn remark(response: &GetFlowsResponse) -> Option<String> {
    match response.response_types.as_ref()? {
        ResponseTypes::Flow(_) => None,
        ResponseTypes::LostEvents(lost) => Some(format!(
            "LOST EVENTS: {} ({}) at {}",
            lost.num_events_lost,
            lost.source().as_str_name(),
            plain(&response.node_name)
        )),
        ResponseTypes::NodeStatus(status) => {
            let names = status.node_names.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", ");
            let message = match status.message.as_str() {
                "" => String::new(),
                message => format!(": {}", plain(message)),
            };
            let what = match status.state_change() {
                // That all is well is no news.
                NodeState::NodeConnected if message.is_empty() => return None,
                NodeState::NodeConnected => "connected",
                NodeState::NodeUnavailable => "not available",
                NodeState::NodeGone => "gone",
                NodeState::NodeError => "failed",
                NodeState::UnknownNodeState => "in an unknown state",
            };
            Some(format!("NODE {names} {what}{message}"))
        }
    }
}

/// One flow in a form for people.
pub fn format(flow: &pb::Flow, output: FlowOutput, style: Style) -> String {
    let columns = Columns::new(flow, style);
    match output {
        FlowOutput::Dict => format!("{}\n------------", columns.paragraph()),
        _ => columns.line(style),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;
    use crate::flow::{DecidedBy, Decision as Decided, EventKind, Flow, Verdict};
    use crate::model::{Kind, ObjectRef};

    const STYLE: Style = Style { node: Shown::No, addresses: Addresses::Names, time: TimeFormat::StampMilli };

    fn line(flow: &Flow) -> String {
        let flow = convert::flow(flow, &Naming { cluster: "default".into() });
        let line = format(&flow, FlowOutput::Compact, STYLE);
        line.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "")
    }

    #[test]
    fn a_drop_names_both_ends_the_reason_and_the_policy() {
        let objects = vec![ObjectRef::new(Kind::NetworkPolicy, "shop", "deny-all")];
        let line = line(&Flow {
            kind: EventKind::Drop,
            verdict: Verdict::Dropped(DropReason::PolicyDenied),
            decision: Decided { by: DecidedBy::DefaultDeny(objects), revision: 3, matched: None }.into(),
            ..example(80)
        });
        assert!(
            line.ends_with(
                ": shop/frontend:40000 (ID:300) -> shop/backend:80 (ID:300) Policy denied DROPPED \
                 by default-deny of shop/deny-all (TCP Flags: SYN)"
            ),
            "{line}"
        );
    }

    #[test]
    fn a_judgement_is_printed_as_hubble_does() {
        let line = line(&example(80));
        assert!(line.contains(" policy-verdict:all EGRESS ALLOWED (TCP Flags: SYN)"), "{line}");
    }

    #[test]
    fn a_hostile_name_cannot_reach_the_terminal() {
        let mut flow = convert::flow(&example(80), &Naming { cluster: "default".into() });
        let hostile = || "x\x1b]0;owned\x07".to_owned();
        flow.source.as_mut().unwrap().pod_name = hostile();
        flow.node_name = hostile();
        flow.egress_allowed_by = vec![pb::Policy { name: hostile(), ..Default::default() }];
        flow.sluice.as_mut().unwrap().set_decision(Decision::Rules);
        #[allow(deprecated, reason = "the text is still sent for everybody")]
        {
            flow.summary = hostile();
        }
        for output in [FlowOutput::Compact, FlowOutput::Dict] {
            let text = format(&flow, output, Style { node: Shown::Yes, ..STYLE });
            assert!(!text.contains('\x07') && !text.contains("\x1b]"), "{text:?}");
        }
    }

    #[test]
    fn times_have_the_forms_that_hubble_knows() {
        let time = prost_types::Timestamp { seconds: 0, nanos: 123_456_789 };
        assert!(TimeFormat::Rfc3339Nano.format(Some(&time)).contains(".123456789"));
        assert_eq!(TimeFormat::StampMilli.format(None), "N/A");
    }
}
