//! Flows as counters: `hubble_*`.

use smallvec::smallvec;

use super::context::Context;
use super::table::{Table, Text, Values};
use super::{DEFAULT_BUCKETS, Family, Format, Histogram, Kind, Page};
use crate::flow::{DecidedBy, EventKind, Flow, HttpVersion, L7, Observation, Verdict};
use crate::model::{Direction, Family as AddressFamily, Identity, Protocol};
use crate::policy::rule::RuleMatch;

/// See the module.
#[derive(Debug)]
pub struct FlowMetrics {
    context: Context,
    processed: Table<u64>,
    drops: Table<u64>,
    verdicts: Table<u64>,
    tcp_flags: Table<u64>,
    ports: Table<u64>,
    icmp: Table<u64>,
    to_world: Table<u64>,
    dns_queries: Table<u64>,
    dns_responses: Table<u64>,
    dns_response_types: Table<u64>,
    http_requests: Table<u64>,
    http_duration: Table<Histogram>,
    lost: Table<u64>,
}

const OVERFLOW: Family = Family {
    name: "sluice_metrics_overflow_total",
    kind: Kind::Counter,
    help: "Events counted under the label value overflow, because their metric has as many series as it may.",
};

/// Where flows are lost, as Hubble names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostAt {
    /// The kernel's ring was full.
    Kernel,
    /// Metrics were behind, and the agent's ring went over them.
    Ring,
}

impl FlowMetrics {
    /// Each metric has at most `most` series.
    pub fn new(context: Context, most: usize) -> FlowMetrics {
        let table = |name, help, labels: &[&'static str]| {
            let labels = labels.iter().copied().chain(context.names()).collect();
            Table::counter(name, help, labels, most)
        };
        let duration = Family {
            name: "hubble_http_request_duration_seconds",
            kind: Kind::Histogram,
            help: "Time from a request to its answer, in seconds.",
        };
        let labels = ["method", "reporter"].into_iter().chain(context.names()).collect();
        FlowMetrics {
            processed: table(
                "hubble_flows_processed_total",
                "Flows that were observed.",
                &["protocol", "type", "subtype", "verdict"],
            ),
            drops: table("hubble_drop_total", "Packets that were dropped.", &["reason", "protocol"]),
            verdicts: table(
                "hubble_policy_verdicts_total",
                "Verdicts of policy on connections and requests.",
                &["direction", "match", "action"],
            ),
            tcp_flags: table("hubble_tcp_flags_total", "TCP packets with a flag.", &["flag", "family"]),
            ports: table(
                "hubble_port_distribution_total",
                "Flows by destination port.",
                &["protocol", "port"],
            ),
            icmp: table("hubble_icmp_total", "ICMP messages.", &["family", "type"]),
            to_world: table(
                "hubble_flows_to_world_total",
                "Flows to addresses outside the cluster.",
                &["protocol", "verdict"],
            ),
            dns_queries: table(
                "hubble_dns_queries_total",
                "DNS queries.",
                &["rcode", "qtypes", "ips_returned"],
            ),
            dns_responses: table(
                "hubble_dns_responses_total",
                "DNS answers.",
                &["rcode", "qtypes", "ips_returned"],
            ),
            dns_response_types: table(
                "hubble_dns_response_types_total",
                "Records of DNS answers.",
                &["type", "qtypes"],
            ),
            http_requests: table(
                "hubble_http_requests_total",
                "HTTP requests with their answers.",
                &["method", "protocol", "status", "reporter"],
            ),
            http_duration: Table::new(duration, labels, most),
            lost: Table::counter(
                "hubble_lost_events_total",
                "Events that were lost, by the place.",
                vec!["source"],
                16,
            ),
            context,
        }
    }

    /// Counts a flow.
    pub fn count(&mut self, flow: &Flow) {
        let count = u64::from(flow.count);
        let with_context = |mut values: Values| {
            self.context.values(flow, &mut values);
            values
        };
        let protocol = protocol(flow);
        let verdict = verdict(flow.verdict);
        let (kind, subtype) = kind(flow);
        self.processed.add(
            with_context(smallvec![protocol.clone(), kind.into(), subtype.into(), verdict.into()]),
            count,
        );
        if let Verdict::Dropped(reason) = flow.verdict {
            self.drops.add(with_context(smallvec![reason.name().into(), protocol.clone()]), count);
        }
        if matches!(flow.kind, EventKind::PolicyVerdict | EventKind::L7 | EventKind::Drop)
            && let Some(found) = policy_match(flow)
        {
            let direction = match flow.direction {
                Direction::Egress => "egress",
                Direction::Ingress => "ingress",
            };
            let action = match flow.verdict {
                Verdict::Forwarded => "forwarded",
                Verdict::Dropped(_) => "dropped",
                Verdict::Redirected => "redirected",
                Verdict::Audit => "audit",
                Verdict::Error => "error",
            };
            self.verdicts.add(with_context(smallvec![direction.into(), found.into(), action.into()]), count);
        }
        if flow.protocol == Protocol::Tcp && flow.l7.is_none() {
            for flag in tcp_flags(flow.tcp_flags) {
                self.tcp_flags.add(with_context(smallvec![flag.into(), family(flow)]), count);
            }
        }
        if let Some((message, _)) = flow.icmp {
            let values = smallvec![family(flow), Text::Number(message.into())];
            self.icmp.add(with_context(values), count);
        }
        // Replies go to ports that mean nothing.
        if let Some(port) = flow.destination_port.filter(|_| !flow.is_reply && flow.kind != EventKind::Trace)
        {
            let values = smallvec![protocol.clone(), Text::Number(port.into())];
            self.ports.add(with_context(values), count);
        }
        if is_world(flow.destination.identity) && !flow.is_reply {
            self.to_world.add(with_context(smallvec![protocol, verdict.into()]), count);
        }
        match flow.l7.as_deref() {
            Some(L7::Dns { query_type, rcode, answers, .. }) => {
                let values: Values = smallvec![
                    Text::Shared(rcode.clone()),
                    Text::Shared(query_type.clone()),
                    Text::Number(u32::try_from(answers.len()).unwrap_or(u32::MAX)),
                ];
                self.dns_queries.add(with_context(values.clone()), count);
                // A refused query has no answer of a server.
                if flow.verdict == Verdict::Forwarded {
                    self.dns_responses.add(with_context(values), count);
                    for (kind, of) in [("A", AddressFamily::IPv4), ("AAAA", AddressFamily::IPv6)] {
                        let found =
                            answers.iter().filter(|address| AddressFamily::of(**address) == of).count();
                        if found > 0 {
                            let values = smallvec![kind.into(), Text::Shared(query_type.clone())];
                            self.dns_response_types.add(with_context(values), found as u64 * count);
                        }
                    }
                }
            }
            Some(L7::Http { method, status, latency_us, version, .. }) => {
                let reporter: Text = match flow.direction {
                    Direction::Egress => "client".into(),
                    Direction::Ingress => "server".into(),
                };
                let method = Text::Shared(method.clone());
                let status = Text::Number((*status).into());
                let values = smallvec![method.clone(), http_version(*version), status, reporter.clone()];
                self.http_requests.add(with_context(values), count);
                let values = with_context(smallvec![method, reporter]);
                let cell = self.http_duration.at(values, || Histogram::new(DEFAULT_BUCKETS));
                cell.observe(*latency_us as f64 / 1e6);
            }
            Some(L7::Tls { .. }) | None => {}
        }
    }

    /// Events were lost.
    pub fn lose(&mut self, at: LostAt, count: u64) {
        let source = match at {
            LostAt::Kernel => "perf_event_ring_buffer",
            LostAt::Ring => "hubble_ring_buffer",
        };
        self.lost.add(smallvec![source.into()], count);
    }

    fn counters(&self) -> [&Table<u64>; 12] {
        [
            &self.processed,
            &self.drops,
            &self.verdicts,
            &self.tcp_flags,
            &self.ports,
            &self.icmp,
            &self.to_world,
            &self.dns_queries,
            &self.dns_responses,
            &self.dns_response_types,
            &self.http_requests,
            &self.lost,
        ]
    }

    /// The whole page.
    pub fn page(&self, format: Format) -> String {
        let mut page = Page::new(format);
        self.counters().iter().for_each(|table| table.write(&mut page));
        self.http_duration.write(&mut page);
        let overflows = self.counters().map(|table| (table.family().name, table.overflowed()));
        let duration = (self.http_duration.family().name, self.http_duration.overflowed());
        let overflows = overflows.into_iter().chain([duration]);
        page.all(&OVERFLOW, overflows.map(|(name, count)| (vec![("metric", name.to_owned())], count as f64)));
        page.finish()
    }
}

fn protocol(flow: &Flow) -> Text {
    match (flow.l7.as_deref(), flow.protocol) {
        (Some(L7::Http { .. }), _) => "HTTP".into(),
        (Some(L7::Dns { .. }), _) => "DNS".into(),
        (Some(L7::Tls { .. }), _) => "TLS".into(),
        (None, Protocol::Tcp) => "TCP".into(),
        (None, Protocol::Udp) => "UDP".into(),
        (None, Protocol::Sctp) => "SCTP".into(),
        (None, Protocol::Icmp) => "ICMPv4".into(),
        (None, Protocol::Icmpv6) => "ICMPv6".into(),
        (None, _) => "other".into(),
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "FORWARDED",
        Verdict::Dropped(_) => "DROPPED",
        Verdict::Redirected => "REDIRECTED",
        Verdict::Audit => "AUDIT",
        Verdict::Error => "ERROR",
    }
}

fn kind(flow: &Flow) -> (&'static str, &'static str) {
    match flow.kind {
        EventKind::Drop => ("Drop", ""),
        EventKind::PolicyVerdict => ("PolicyVerdict", ""),
        EventKind::Trace => (
            "Trace",
            match flow.observation {
                Observation::FromEndpoint => "from-endpoint",
                Observation::ToEndpoint => "to-endpoint",
                Observation::FromNetwork => "from-network",
                Observation::ToNetwork => "to-network",
                Observation::FromOverlay => "from-overlay",
                Observation::Proxy => "from-proxy",
            },
        ),
        EventKind::L7 => (
            "L7",
            match flow.l7.as_deref() {
                Some(L7::Http { .. }) => "HTTP",
                Some(L7::Dns { .. }) => "DNS",
                Some(L7::Tls { .. }) => "TLS",
                None => "",
            },
        ),
    }
}

/// What policy matched on; `None` where no policy was asked (a malformed packet).
fn policy_match(flow: &Flow) -> Option<&'static str> {
    match (flow.l7.as_deref(), &flow.decision.by) {
        (Some(L7::Http { .. }), _) => Some("l7/http"),
        (Some(L7::Dns { .. }), _) => Some("l7/dns"),
        (Some(L7::Tls { .. }), _) => Some("l7/tls"),
        (None, DecidedBy::Rules(_)) => Some(match flow.decision.matched {
            Some(RuleMatch::L3Only) => "l3-only",
            Some(RuleMatch::L4Only) => "l4-only",
            Some(RuleMatch::All) => "all",
            Some(RuleMatch::L3Protocol) => "l3-proto",
            Some(RuleMatch::ProtocolOnly) => "proto-only",
            // Flows of history from before this was told.
            Some(RuleMatch::L3L4) | None => "l3-l4",
        }),
        (None, DecidedBy::DefaultDeny(_)) => Some("none"),
        (None, DecidedBy::NoPolicy) if flow.kind == EventKind::PolicyVerdict => Some("all"),
        (None, DecidedBy::NoPolicy) => None,
    }
}

fn http_version(version: HttpVersion) -> Text {
    match version {
        HttpVersion::Http10 => "HTTP/1.0".into(),
        HttpVersion::Http11 => "HTTP/1.1".into(),
        HttpVersion::Http2 => "HTTP/2".into(),
    }
}

/// Flags that begin or end connections.
fn tcp_flags(flags: u8) -> impl Iterator<Item = &'static str> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let opening = match (flags & SYN != 0, flags & ACK != 0) {
        (true, true) => Some("SYN-ACK"),
        (true, false) => Some("SYN"),
        (false, _) => None,
    };
    opening.into_iter().chain((flags & FIN != 0).then_some("FIN")).chain((flags & RST != 0).then_some("RST"))
}

fn family(flow: &Flow) -> Text {
    match AddressFamily::of(flow.source.address) {
        AddressFamily::IPv4 => "IPv4".into(),
        AddressFamily::IPv6 => "IPv6".into(),
    }
}

fn is_world(identity: Identity) -> bool {
    matches!(identity, Identity::WORLD | Identity::WORLD_IPV4 | Identity::WORLD_IPV6)
        || (Identity::LOCAL_CIDR_MIN..Identity::REMOTE_NODE_MIN).contains(&identity.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::problems;
    use super::*;
    use crate::flow::tests::flow;
    use crate::flow::{Decision, Party};
    use crate::model::{DropReason, Kind, ObjectRef};

    fn metrics() -> FlowMetrics {
        FlowMetrics::new("labelsContext=source_namespace,destination_workload".parse().unwrap(), 1000)
    }

    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|other| other == line), "{line}\nis not in\n{page}");
    }

    #[test]
    fn a_flow_is_counted_everywhere_it_belongs() {
        let mut metrics = metrics();
        metrics.count(&flow(80));
        let by = DecidedBy::DefaultDeny(vec![ObjectRef::new(Kind::NetworkPolicy, "shop", "deny")]);
        metrics.count(&Flow {
            kind: EventKind::Drop,
            verdict: Verdict::Dropped(DropReason::PolicyDenied),
            decision: Arc::new(Decision { by, revision: 3, matched: None }),
            destination: Arc::new(Party::unknown("203.0.113.9".parse().unwrap(), Identity::WORLD_IPV4)),
            count: 5,
            ..flow(443)
        });
        metrics.count(&Flow {
            kind: EventKind::L7,
            l7: Some(Box::new(L7::Http {
                method: "GET".into(),
                path: "/x".into(),
                host: "h".into(),
                status: 200,
                latency_us: 30_000,
                version: HttpVersion::Http2,
                mismatches: Vec::new(),
            })),
            ..flow(80)
        });
        metrics.count(&Flow {
            kind: EventKind::L7,
            protocol: Protocol::Udp,
            l7: Some(Box::new(L7::Dns {
                query: "a.example".into(),
                query_type: "A".into(),
                rcode: "NOERROR".into(),
                answers: vec!["203.0.113.9".parse().unwrap()],
                latency_us: 10,
            })),
            ..flow(53)
        });
        metrics.lose(LostAt::Kernel, 7);
        let page = metrics.page(Format::Prometheus);
        assert_eq!(problems(&page), Vec::<String>::new());
        assert_eq!(problems(&metrics.page(Format::OpenMetrics)), Vec::<String>::new());
        let ctx = "source_namespace=\"shop\",destination_workload=\"backend\"";
        let out = "source_namespace=\"shop\",destination_workload=\"\"";
        for line in [
            format!(
                "hubble_flows_processed_total{{protocol=\"TCP\",type=\"PolicyVerdict\",subtype=\"\",verdict=\"FORWARDED\",{ctx}}} 1"
            ),
            format!("hubble_drop_total{{reason=\"POLICY_DENIED\",protocol=\"TCP\",{out}}} 5"),
            format!(
                "hubble_policy_verdicts_total{{direction=\"egress\",match=\"none\",action=\"dropped\",{out}}} 5"
            ),
            format!("hubble_tcp_flags_total{{flag=\"SYN\",family=\"IPv4\",{ctx}}} 1"),
            format!("hubble_port_distribution_total{{protocol=\"TCP\",port=\"443\",{out}}} 5"),
            format!("hubble_flows_to_world_total{{protocol=\"TCP\",verdict=\"DROPPED\",{out}}} 5"),
            format!(
                "hubble_dns_responses_total{{rcode=\"NOERROR\",qtypes=\"A\",ips_returned=\"1\",{ctx}}} 1"
            ),
            format!("hubble_dns_response_types_total{{type=\"A\",qtypes=\"A\",{ctx}}} 1"),
            format!(
                "hubble_http_requests_total{{method=\"GET\",protocol=\"HTTP/2\",status=\"200\",reporter=\"client\",{ctx}}} 1"
            ),
            format!(
                "hubble_http_request_duration_seconds_bucket{{method=\"GET\",reporter=\"client\",{ctx},le=\"0.05\"}} 1"
            ),
            "hubble_lost_events_total{source=\"perf_event_ring_buffer\"} 7".to_owned(),
        ] {
            has(&page, &line);
        }
    }

    #[test]
    fn a_scan_of_ports_stays_bounded() {
        let mut metrics = FlowMetrics::new(Context::default(), 100);
        (0..5000).for_each(|port| metrics.count(&flow(port)));
        let page = metrics.page(Format::Prometheus);
        assert!(page.lines().count() < 300);
        has(&page, "hubble_port_distribution_total{protocol=\"overflow\",port=\"overflow\"} 4900");
        has(&page, "sluice_metrics_overflow_total{metric=\"hubble_port_distribution_total\"} 4900");
    }
}
