//! Filter flags become `FlowFilter`s.
//!
//! As in Hubble: a flag about *either* end makes two filters, one for flows from it and one for flows to it;
//! several such flags speak of the same end. Values of one flag are alternatives, flags are ANDed.

use crate::api::hubble::json;
use crate::api::hubble::pb::flow as pb;
use crate::api::hubble::pb::flow::FlowFilter;
use crate::api::hubble::pb::sluice::flow::v1::FilterDetail;
use crate::model::{DropReason, Identity};

/// Flags about an end; each has a `--from-` and a `--to-` form.
pub const ENDS: &[&str] = &[
    "pod",
    "namespace",
    "label",
    "ip",
    "identity",
    "fqdn",
    "port",
    "service",
    "workload",
    "cluster",
    "node",
];

/// The filters of one list while flags are read.
#[derive(Debug, Default)]
pub struct Builder {
    /// Flows from what the flags say.
    from: FlowFilter,
    /// Flows to it.
    to: FlowFilter,
    has_either: bool,
    /// Namespaces at either end that bare pod names are completed with.
    bare_pods: Vec<(Side, String)>,
    namespaces: Vec<(Side, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Either,
    Source,
    Destination,
}

fn split(name: &str) -> (Side, &str) {
    if let Some(rest) = name.strip_prefix("from-") {
        (Side::Source, rest)
    } else if let Some(rest) = name.strip_prefix("to-") {
        (Side::Destination, rest)
    } else {
        (Side::Either, name)
    }
}

impl Builder {
    /// A flag by its long name.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        let (side, end) = split(name);
        if ENDS.contains(&end) { self.end(side, end, value) } else { self.other(name, value) }
            .map_err(|what| format!("--{name} {value}: {what}"))
    }

    /// Puts a value into the members of an end.
    fn put<T: Clone>(
        &mut self,
        side: Side,
        value: T,
        source: fn(&mut FlowFilter) -> &mut Vec<T>,
        destination: fn(&mut FlowFilter) -> &mut Vec<T>,
    ) {
        match side {
            Side::Either => {
                self.has_either = true;
                source(&mut self.from).push(value.clone());
                destination(&mut self.to).push(value);
            }
            Side::Source => {
                source(&mut self.from).push(value.clone());
                source(&mut self.to).push(value);
            }
            Side::Destination => {
                destination(&mut self.from).push(value.clone());
                destination(&mut self.to).push(value);
            }
        }
    }

    fn end(&mut self, side: Side, end: &str, value: &str) -> Result<(), String> {
        let text = value.to_owned();
        match end {
            "pod" if !value.contains('/') => self.bare_pods.push((side, text)),
            "pod" => self.put(side, text, |f| &mut f.source_pod, |f| &mut f.destination_pod),
            "namespace" => self.namespaces.push((side, text)),
            "label" => self.put(side, text, |f| &mut f.source_label, |f| &mut f.destination_label),
            "ip" => self.put(side, text, |f| &mut f.source_ip, |f| &mut f.destination_ip),
            "fqdn" => self.put(side, text, |f| &mut f.source_fqdn, |f| &mut f.destination_fqdn),
            "port" => {
                value.parse::<u16>().map_err(|_| "expected a port")?;
                self.put(side, text, |f| &mut f.source_port, |f| &mut f.destination_port);
            }
            "identity" => {
                let identity = identity(value).ok_or("expected a number or a reserved name")?;
                self.put(side, identity, |f| &mut f.source_identity, |f| &mut f.destination_identity);
            }
            "service" => {
                let text = if value.contains('/') { text } else { format!("/{text}") };
                self.put(side, text, |f| &mut f.source_service, |f| &mut f.destination_service);
            }
            "workload" => {
                let (kind, name) = value.split_once('/').unwrap_or(("", value));
                let workload = pb::Workload { kind: kind.to_owned(), name: name.to_owned() };
                self.put(side, workload, |f| &mut f.source_workload, |f| &mut f.destination_workload);
            }
            "cluster" => {
                self.put(side, text, |f| &mut f.source_cluster_name, |f| &mut f.destination_cluster_name);
            }
            _ => self.put(side, text, |f| &mut own(f).source_node, |f| &mut own(f).destination_node),
        }
        Ok(())
    }

    fn both(&mut self, edit: impl Fn(&mut FlowFilter)) {
        edit(&mut self.from);
        edit(&mut self.to);
    }

    fn other(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = value.to_owned();
        match name {
            "protocol" => self.both(|f| f.protocol.push(text.clone())),
            "verdict" => {
                let verdict = pb::Verdict::from_str_name(&value.to_ascii_uppercase())
                    .ok_or("expected FORWARDED, DROPPED, REDIRECTED, AUDIT, ERROR, TRACED or TRANSLATED")?;
                self.both(|f| f.verdict.push(verdict.into()));
            }
            "drop-reason" => {
                let reason = DropReason::ALL
                    .iter()
                    .find(|reason| reason.name().eq_ignore_ascii_case(value))
                    .ok_or_else(|| format!("expected one of {}", reasons()))?;
                self.both(|f| own(f).drop_reason.push(reason.name().to_owned()));
            }
            "drop-reason-desc" => {
                let reason = pb::DropReason::from_str_name(&value.to_ascii_uppercase())
                    .ok_or("expected a drop reason of Hubble, such as POLICY_DENIED")?;
                self.both(|f| f.drop_reason_desc.push(reason.into()));
            }
            "type" => {
                let event = event(value)?;
                self.both(|f| f.event_type.push(event));
            }
            "policy" => self.both(|f| own(f).policy.push(text.clone())),
            "server-name" => self.both(|f| own(f).tls_server_name.push(text.clone())),
            "node-name" => self.both(|f| f.node_name.push(text.clone())),
            "node-label" => self.both(|f| f.node_labels.push(text.clone())),
            "http-method" => self.both(|f| f.http_method.push(text.clone())),
            "http-path" => self.both(|f| f.http_path.push(text.clone())),
            "http-url" => self.both(|f| f.http_url.push(text.clone())),
            "http-status" => self.both(|f| f.http_status_code.push(text.clone())),
            "http-header" => {
                let (key, value) = value.split_once(':').ok_or("expected KEY:VALUE")?;
                let header = pb::HttpHeader { key: key.to_owned(), value: value.to_owned() };
                self.both(|f| f.http_header.push(header.clone()));
            }
            "dns-query" => self.both(|f| f.dns_query.push(text.clone())),
            "tcp-flags" => {
                let flags = tcp_flags(value)?;
                self.both(|f| f.tcp_flags.push(flags));
            }
            "traffic-direction" => {
                let direction = pb::TrafficDirection::from_str_name(&value.to_ascii_uppercase())
                    .ok_or("expected ingress or egress")?;
                self.both(|f| f.traffic_direction.push(direction.into()));
            }
            "ip-version" => {
                let version = match value.to_ascii_lowercase().as_str() {
                    "4" | "v4" | "ipv4" => pb::IpVersion::IPv4,
                    "6" | "v6" | "ipv6" => pb::IpVersion::IPv6,
                    "none" => pb::IpVersion::IpNotUsed,
                    _ => return Err("expected v4, v6 or none".into()),
                };
                self.both(|f| f.ip_version.push(version.into()));
            }
            "reply" => {
                let reply = value.parse().map_err(|_| "expected true or false")?;
                self.both(|f| f.reply.push(reply));
            }
            "encrypted" => {
                let encrypted = value.parse().map_err(|_| "expected true or false")?;
                self.both(|f| f.encrypted.push(encrypted));
            }
            "interface" => {
                let interface = pb::NetworkInterface { index: 0, name: text };
                self.both(|f| f.interface.push(interface.clone()));
            }
            "snat-ip" => self.both(|f| f.source_ip_xlated.push(text.clone())),
            "uuid" => self.both(|f| f.uuid.push(text.clone())),
            "trace-id" => self.both(|f| f.trace_id.push(text.clone())),
            "ip-trace-id" => {
                let id = value.parse().map_err(|_| "expected a number")?;
                self.both(|f| f.ip_trace_id.push(id));
            }
            "cel-expression" => self.both(|f| {
                f.experimental.get_or_insert_default().cel_expression.push(text.clone());
            }),
            _ => return Err("no such filter".into()),
        }
        Ok(())
    }

    /// One filter, two where a flag spoke of either end, none where there was no flag.
    pub fn finish(mut self) -> Vec<FlowFilter> {
        let pods = std::mem::take(&mut self.bare_pods);
        let namespaces = std::mem::take(&mut self.namespaces);
        let mut completed = Vec::new();
        for (side, pod) in &pods {
            let of_side: Vec<_> = namespaces.iter().filter(|(other, _)| other == side).collect();
            // A name alone is one of any namespace.
            let texts = match of_side.is_empty() {
                true => vec![format!("/{pod}")],
                false => of_side.iter().map(|(_, namespace)| format!("{namespace}/{pod}")).collect(),
            };
            completed.push(*side);
            for text in texts {
                self.put(*side, text, |f| &mut f.source_pod, |f| &mut f.destination_pod);
            }
        }
        for (side, namespace) in namespaces.iter().filter(|(side, _)| !completed.contains(side)) {
            self.put(*side, format!("{namespace}/"), |f| &mut f.source_pod, |f| &mut f.destination_pod);
        }
        match (self.from == FlowFilter::default(), self.has_either) {
            (true, false) => Vec::new(),
            (false, false) => vec![self.from],
            (_, true) => vec![self.from, self.to],
        }
    }
}

fn own(filter: &mut FlowFilter) -> &mut FilterDetail {
    filter.sluice.get_or_insert_default()
}

fn reasons() -> String {
    DropReason::ALL.iter().map(|reason| reason.name()).collect::<Vec<_>>().join(", ")
}

fn identity(value: &str) -> Option<u32> {
    let value = value.strip_prefix("reserved:").unwrap_or(value);
    let reserved = Identity::RESERVED.iter().find(|(_, name)| *name == value);
    value.parse().ok().or(reserved.map(|(identity, _)| identity.0))
}

/// `TYPE[:SUBTYPE]`.
fn event(value: &str) -> Result<pb::EventTypeFilter, String> {
    let (kind, detail) = value.split_once(':').map_or((value, None), |(kind, detail)| (kind, Some(detail)));
    let number = match kind {
        "drop" => 1,
        "debug" => 2,
        "capture" => 3,
        "trace" => 4,
        "policy-verdict" => 5,
        "trace-sock" => 7,
        "l7" => 129,
        _ => return Err("expected drop, policy-verdict, trace, trace-sock, capture or l7".into()),
    };
    let points = [
        "to-endpoint",
        "to-proxy",
        "to-host",
        "to-stack",
        "to-overlay",
        "from-endpoint",
        "from-proxy",
        "from-host",
        "from-stack",
        "from-overlay",
        "from-network",
        "to-network",
        "from-crypto",
        "to-crypto",
    ];
    let sub_type = match (kind, detail) {
        (_, None) => None,
        ("trace", Some(detail)) => {
            let point = points.iter().position(|point| *point == detail);
            Some(point.ok_or_else(|| format!("expected one of {}", points.join(", ")))?)
        }
        (_, Some(detail)) => Some(detail.parse::<usize>().map_err(|_| "this type has no such subtype")?),
    };
    Ok(pb::EventTypeFilter {
        r#type: number,
        match_sub_type: sub_type.is_some(),
        sub_type: sub_type.and_then(|number| i32::try_from(number).ok()).unwrap_or(0),
    })
}

/// `syn`, or `syn,ack`: all of them.
fn tcp_flags(value: &str) -> Result<pb::TcpFlags, String> {
    let mut flags = pb::TcpFlags::default();
    for flag in value.split([',', '+']).map(str::trim) {
        let member = match flag.to_ascii_lowercase().as_str() {
            "fin" => &mut flags.fin,
            "syn" => &mut flags.syn,
            "rst" => &mut flags.rst,
            "psh" => &mut flags.psh,
            "ack" => &mut flags.ack,
            "urg" => &mut flags.urg,
            "ece" => &mut flags.ece,
            "cwr" => &mut flags.cwr,
            "ns" => &mut flags.ns,
            _ => return Err(format!("{flag:?}: expected fin, syn, rst, psh, ack, urg, ece, cwr or ns")),
        };
        *member = true;
    }
    Ok(flags)
}

/// Filters as JSON, as `--allowlist` and `--denylist` take them.
pub fn raw(flag: &str, texts: &[String]) -> Result<Vec<FlowFilter>, String> {
    let mut filters = Vec::new();
    for text in texts {
        // One filter, or several after each other, one a line.
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            filters.push(json::from_json(line).map_err(|error| format!("--{flag}: {error}"))?);
        }
    }
    Ok(filters)
}

/// `--not --pod x` becomes `--not=pod=x`, so that order does not matter any more.
pub fn fold_not(arguments: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut folded = Vec::with_capacity(arguments.len());
    let mut rest = arguments.into_iter().peekable();
    while let Some(argument) = rest.next() {
        let flag = rest.peek().and_then(|next| next.to_str()).and_then(long_name);
        match (argument.to_str(), flag) {
            (Some("--not"), Some(flag)) => {
                rest.next();
                let value = match flag.split_once('=') {
                    Some((name, value)) => format!("{name}={value}"),
                    None if flag == "reply" => "reply=true".to_owned(),
                    None => {
                        let value = rest.next().unwrap_or_default();
                        format!("{flag}={}", value.to_string_lossy())
                    }
                };
                folded.push(format!("--not={value}").into());
            }
            _ => folded.push(argument),
        }
    }
    folded
}

fn long_name(flag: &str) -> Option<String> {
    if let Some(name) = flag.strip_prefix("--") {
        return (!name.is_empty()).then(|| name.to_owned());
    }
    Some(match flag {
        "-n" => "namespace".to_owned(),
        "-l" => "label".to_owned(),
        "-t" => "type".to_owned(),
        "-4" => "ip-version=v4".to_owned(),
        "-6" => "ip-version=v6".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(flags: &[(&str, &str)]) -> Vec<FlowFilter> {
        let mut builder = Builder::default();
        for (name, value) in flags {
            builder.add(name, value).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn a_flag_about_either_end_makes_two_filters() {
        let filters = build(&[("pod", "shop/web"), ("verdict", "dropped")]);
        assert_eq!(filters.len(), 2);
        assert_eq!(
            (&filters[0].source_pod[..], &filters[1].destination_pod[..]),
            (&["shop/web".to_owned()][..], &["shop/web".to_owned()][..])
        );
        assert!(filters.iter().all(|filter| filter.verdict == [2]));
        assert!(filters[0].destination_pod.is_empty() && filters[1].source_pod.is_empty());
    }

    #[test]
    fn a_flag_about_one_end_makes_one() {
        let filters = build(&[("from-pod", "shop/web"), ("to-port", "80"), ("to-port", "81")]);
        assert_eq!(filters.len(), 1);
        assert_eq!(filters[0].destination_port, ["80", "81"]);
        assert!(build(&[]).is_empty());
    }

    #[test]
    fn a_bare_pod_takes_the_namespace_that_is_given() {
        assert_eq!(build(&[("from-pod", "web")])[0].source_pod, ["/web"]);
        let filters = build(&[("pod", "web"), ("namespace", "shop")]);
        assert_eq!(filters[0].source_pod, ["shop/web"]);
        assert_eq!(build(&[("namespace", "shop")])[1].destination_pod, ["shop/"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_the_flag() {
        for (name, value) in [
            ("port", "http"),
            ("verdict", "maybe"),
            ("drop-reason", "x"),
            ("type", "trace:nowhere"),
            ("tcp-flags", "syn,x"),
            ("identity", "nobody"),
            ("ip-version", "5"),
            ("http-header", "x"),
        ] {
            let error = Builder::default().add(name, value).unwrap_err();
            assert!(error.starts_with(&format!("--{name} {value}: ")), "{error}");
        }
    }

    #[test]
    fn not_turns_the_next_flag_around() {
        let fold = |line: &str| {
            let arguments = line.split(' ').map(Into::into).collect();
            let folded: Vec<String> =
                fold_not(arguments).into_iter().map(|text| text.into_string().unwrap()).collect();
            folded.join(" ")
        };
        assert_eq!(fold("observe --not --from-ip 2.2.2.2 -f"), "observe --not=from-ip=2.2.2.2 -f");
        assert_eq!(fold("observe --not -n kube-system"), "observe --not=namespace=kube-system");
        assert_eq!(fold("observe --not --pod=x --not --reply -f"), "observe --not=pod=x --not=reply=true -f");
        assert_eq!(fold("observe --not pod=x"), "observe --not pod=x");
    }
}
