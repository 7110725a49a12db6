//! `sluice observe` and `sluice monitor`: flows, as they come or from memory.

use std::io::Write as _;

use serde_json::Value;

use super::connect::{Connection, block_on, encode};
use super::print::plain;
use super::{CliError, CliResult, Exit};

/// How flows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FlowOutput {
    /// One line a flow
    #[default]
    Compact,
    /// JSON lines as Hubble prints them
    #[value(alias = "jsonpb")]
    Json,
    /// Several lines a flow
    Dict,
}

/// Filters: a repeated flag is ORed, different flags are ANDed.
#[derive(Debug, clap::Args)]
pub struct ObserveArgs {
    #[command(flatten)]
    connection: Connection,
    /// Keep printing flows as they come
    #[arg(short, long)]
    follow: bool,
    /// Only the last N flows of those in memory [20; with --follow 0]
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// All flows in memory (with --since: in history too)
    #[arg(long, conflicts_with = "last")]
    all: bool,
    /// NAMESPACE/POD at either end (a prefix of the pod's name is enough)
    #[arg(long, value_name = "POD")]
    pod: Vec<String>,
    #[arg(long, value_name = "POD")]
    from_pod: Vec<String>,
    #[arg(long, value_name = "POD")]
    to_pod: Vec<String>,
    /// Namespace at either end
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    #[arg(long, value_name = "NAMESPACE")]
    from_namespace: Vec<String>,
    #[arg(long, value_name = "NAMESPACE")]
    to_namespace: Vec<String>,
    /// Label at either end, such as app=web
    #[arg(short, long, value_name = "LABEL")]
    label: Vec<String>,
    #[arg(long, value_name = "LABEL")]
    from_label: Vec<String>,
    #[arg(long, value_name = "LABEL")]
    to_label: Vec<String>,
    /// Identity at either end: a number, or a reserved name such as world-ipv4
    #[arg(long, value_name = "IDENTITY")]
    identity: Vec<String>,
    #[arg(long, value_name = "IDENTITY")]
    from_identity: Vec<String>,
    #[arg(long, value_name = "IDENTITY")]
    to_identity: Vec<String>,
    /// Address or CIDR at either end
    #[arg(long, value_name = "IP")]
    ip: Vec<String>,
    #[arg(long, value_name = "IP")]
    from_ip: Vec<String>,
    #[arg(long, value_name = "IP")]
    to_ip: Vec<String>,
    /// Port at either end
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    #[arg(long, value_name = "PORT")]
    from_port: Vec<String>,
    #[arg(long, value_name = "PORT")]
    to_port: Vec<String>,
    /// DNS name at either end, such as *.example.com
    #[arg(long, value_name = "NAME")]
    fqdn: Vec<String>,
    #[arg(long, value_name = "NAME")]
    to_fqdn: Vec<String>,
    /// tcp, udp, sctp, icmp, icmpv6, http, dns or tls
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Vec<String>,
    /// FORWARDED, DROPPED, REDIRECTED, AUDIT or ERROR
    #[arg(long, value_name = "VERDICT")]
    verdict: Vec<String>,
    /// Drop reason, such as POLICY_DENIED
    #[arg(long, value_name = "REASON")]
    drop_reason: Vec<String>,
    /// drop, policy-verdict, trace or l7
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kind: Vec<String>,
    /// Policy that decided: NAMESPACE/NAME, or NAME
    #[arg(long, value_name = "POLICY")]
    policy: Vec<String>,
    /// Exclude instead: name=value of any filter above, such as --not pod=kube-system/
    #[arg(long, value_name = "FILTER=VALUE")]
    not: Vec<String>,
    /// Flows after this: 10m, 2h, or an RFC 3339 time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Flows before this
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value_t)]
    output: FlowOutput,
}

#[derive(Debug, clap::Args)]
pub struct MonitorArgs {
    #[command(flatten)]
    connection: Connection,
    /// drop, policy-verdict, trace or l7 (repeat)
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kind: Vec<String>,
    /// Only what comes from or goes to this pod
    #[arg(long, value_name = "NAMESPACE/POD")]
    related_to: Option<String>,
    /// Output form
    #[arg(short, long, value_enum, default_value_t)]
    output: FlowOutput,
}

pub fn observe(args: ObserveArgs) -> CliResult {
    let mut query: Vec<(String, String)> = Vec::new();
    let lists: [(&str, &[String]); 25] = [
        ("pod", &args.pod),
        ("from-pod", &args.from_pod),
        ("to-pod", &args.to_pod),
        ("namespace", &args.namespace),
        ("from-namespace", &args.from_namespace),
        ("to-namespace", &args.to_namespace),
        ("label", &args.label),
        ("from-label", &args.from_label),
        ("to-label", &args.to_label),
        ("identity", &args.identity),
        ("from-identity", &args.from_identity),
        ("to-identity", &args.to_identity),
        ("ip", &args.ip),
        ("from-ip", &args.from_ip),
        ("to-ip", &args.to_ip),
        ("port", &args.port),
        ("from-port", &args.from_port),
        ("to-port", &args.to_port),
        ("fqdn", &args.fqdn),
        ("to-fqdn", &args.to_fqdn),
        ("protocol", &args.protocol),
        ("verdict", &args.verdict),
        ("drop-reason", &args.drop_reason),
        ("type", &args.kind),
        ("policy", &args.policy),
    ];
    for (name, values) in lists {
        query.extend(values.iter().map(|value| (name.to_owned(), value.clone())));
    }
    for excluded in &args.not {
        let Some((name, value)) = excluded.split_once('=') else {
            return Err(CliError::Invalid(format!(
                "--not {excluded}: expected FILTER=VALUE, such as pod=kube-system/"
            )));
        };
        query.push((format!("not-{name}"), value.to_owned()));
    }
    for (name, value) in [("since", &args.since), ("until", &args.until)] {
        if let Some(text) = value {
            query.push((name.to_owned(), absolute_time(text)?));
        }
    }
    let last = match (args.all, args.last, args.follow) {
        (true, _, _) => None,
        (false, Some(last), _) => Some(last),
        (false, None, true) => Some(0),
        (false, None, false) => Some(20),
    };
    query.extend(last.map(|last| ("last".to_owned(), last.to_string())));
    query.extend(args.follow.then(|| ("follow".to_owned(), "true".to_owned())));
    stream(&args.connection, &query, args.output)
}

pub fn monitor(args: MonitorArgs) -> CliResult {
    let mut query: Vec<_> = args.kind.iter().map(|kind| ("type".to_owned(), kind.clone())).collect();
    query.extend(args.related_to.map(|pod| ("pod".to_owned(), pod)));
    query.push(("last".to_owned(), "0".to_owned()));
    query.push(("follow".to_owned(), "true".to_owned()));
    stream(&args.connection, &query, args.output)
}

/// RFC 3339 as it is; `10m`, `2h30m` before now.
fn absolute_time(text: &str) -> Result<String, CliError> {
    if text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(text.to_owned());
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|age| jiff::Timestamp::now().checked_sub(age).ok())
        .map(|time| time.to_string())
        .ok_or_else(|| {
            CliError::Invalid(format!("{text}: expected an age such as 10m or 2h, or an RFC 3339 time"))
        })
}

fn stream(connection: &Connection, query: &[(String, String)], output: FlowOutput) -> CliResult {
    let parameters: Vec<String> =
        query.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let path = format!("/v1/flows?{}", parameters.join("&"));
    block_on(async {
        let mut lines = connection.client().lines(&path).await?;
        let mut out = anstream::stdout();
        while let Some(line) = lines.next().await? {
            let text = match output {
                FlowOutput::Json => line,
                _ => match serde_json::from_str::<Value>(&line) {
                    Ok(value) => format(&value, output),
                    Err(error) => return Err(CliError::Failed(anyhow::anyhow!("flow record: {error}"))),
                },
            };
            // A reader that has gone (`| head`) ends the stream without a complaint.
            if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
                break;
            }
        }
        Ok(Exit::Done)
    })
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn end(flow: &Value, name: &str, ip: &str, port: Option<u64>) -> String {
    let address = text(flow, &format!("/IP/{ip}"));
    let pod = text(flow, &format!("/{name}/pod_name"));
    let shown = if !pod.is_empty() {
        format!("{}/{pod}", text(flow, &format!("/{name}/namespace")))
    } else if let Some(name) = flow.pointer(&format!("/{name}/names/0")).and_then(Value::as_str) {
        name.to_owned()
    } else {
        address.to_owned()
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let identity = flow.pointer(&format!("/{name}/identity")).and_then(Value::as_u64).unwrap_or_default();
    let reserved = u32::try_from(identity)
        .ok()
        .and_then(|number| crate::model::Identity(number).reserved_name())
        .map_or_else(|| format!("ID:{identity}"), str::to_owned);
    format!("{}{port} ({reserved})", plain(&shown))
}

fn colour(verdict: &str) -> (&'static str, &'static str) {
    match verdict {
        "FORWARDED" => ("\x1b[32m", "\x1b[0m"),
        "DROPPED" | "ERROR" => ("\x1b[31m", "\x1b[0m"),
        "AUDIT" | "REDIRECTED" => ("\x1b[33m", "\x1b[0m"),
        _ => ("", ""),
    }
}

/// Which policies decided: `by shop/web-in spec.ingress[0]`, `by default-deny of shop/web-in`.
fn reason(flow: &Value) -> String {
    let parts: Vec<String> =
        ["egress_denied_by", "ingress_denied_by", "egress_allowed_by", "ingress_allowed_by"]
            .iter()
            .filter_map(|key| flow.get(key)?.as_array())
            .flatten()
            .map(|policy| {
                let namespace = text(policy, "/namespace");
                let name = text(policy, "/name");
                let path = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
                let rules: Vec<_> = policy
                    .get("rules")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                if rules.is_empty() { path } else { format!("{path} {}", rules.join(" ")) }
            })
            .collect();
    match text(flow, "/policy_match") {
        "default-deny" if parts.is_empty() => " by default-deny (enforcement mode)".to_owned(),
        "default-deny" => format!(" by default-deny of {}", plain(&parts.join(", "))),
        "rule" => format!(" by {}", plain(&parts.join(", "))),
        _ => String::new(),
    }
}

fn format(record: &Value, output: FlowOutput) -> String {
    if let Some(lost) = record.get("lost_events") {
        return format!(
            "LOST EVENTS: {}",
            lost.get("num_events_lost").and_then(Value::as_u64).unwrap_or_default()
        );
    }
    let flow = record.get("flow").unwrap_or(record);
    let l4 =
        flow.get("l4").and_then(Value::as_object).and_then(|l4| l4.values().next()).unwrap_or(&Value::Null);
    let port = |name: &str| l4.get(name).and_then(Value::as_u64);
    let source = end(flow, "source", "source", port("source_port"));
    let destination = end(flow, "destination", "destination", port("destination_port"));
    let verdict = text(flow, "/verdict");
    let (on, off) = colour(verdict);
    let drop = text(flow, "/drop_reason_desc");
    let drop = if drop.is_empty() { String::new() } else { format!(" {drop}") };
    let direction = text(flow, "/traffic_direction").to_lowercase();
    let summary = plain(text(flow, "/Summary"));
    let service = flow
        .get("destination_service")
        .map(|service| {
            format!(" via {}/{}", plain(text(service, "/namespace")), plain(text(service, "/name")))
        })
        .unwrap_or_default();
    let arrow = if flow.get("is_reply").and_then(Value::as_bool) == Some(true) { "<-" } else { "->" };
    let time = clock(text(flow, "/time"));
    let reason = reason(flow);
    match output {
        FlowOutput::Dict => format!(
            "  TIMESTAMP: {time}\n       NODE: {}\n     SOURCE: {source}\nDESTINATION: {destination}{service}\n  DIRECTION: {direction}\n    VERDICT: {on}{verdict}{off}{drop}{reason}\n    SUMMARY: {summary}\n------------",
            plain(text(flow, "/node_name"))
        ),
        _ => format!(
            "{time}: {source} {arrow} {destination}{service} {direction} {on}{verdict}{off}{drop}{reason} ({summary})"
        ),
    }
}

/// `Nov 20 12:00:00.123` in local time.
fn clock(time: &str) -> String {
    time.parse::<jiff::Timestamp>()
        .map(|time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%b %e %H:%M:%S%.3f").to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_names_both_ends_the_reason_and_the_policy() {
        let mut flow = crate::flow::Flow {
            verdict: crate::flow::Verdict::Dropped(crate::model::DropReason::PolicyDenied),
            ..crate::flow::tests::flow(80)
        };
        let object = crate::model::ObjectRef::new(crate::model::Kind::NetworkPolicy, "shop", "deny-all");
        let by = crate::flow::DecidedBy::DefaultDeny(vec![object]);
        flow.decision = std::sync::Arc::new(crate::flow::Decision { by, revision: 3 });
        let line = format(&crate::api::flow_json::to_json(&flow), FlowOutput::Compact);
        assert!(
            line.contains("shop/frontend:40000 (ID:300) -> shop/backend:80 (ID:300) egress")
                && line.contains("POLICY_DENIED by default-deny of shop/deny-all (TCP Flags: SYN)"),
            "{line}"
        );
    }

    #[test]
    fn a_hostile_name_cannot_reach_the_terminal() {
        let mut flow = crate::flow::tests::flow(80);
        std::sync::Arc::make_mut(&mut flow.source).pod = Some("x\x1b]0;owned\x07".into());
        let line = format(&crate::api::flow_json::to_json(&flow), FlowOutput::Compact);
        assert!(!line.contains('\x07') && !line.contains("\x1b]"), "{line:?}");
    }

    #[test]
    fn an_age_becomes_a_time() {
        assert!(absolute_time("10m").unwrap().ends_with('Z'));
        assert!(absolute_time("soon").is_err());
    }
}
