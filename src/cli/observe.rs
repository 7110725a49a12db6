//! `sluice observe` and `sluice monitor`: flows of an agent or a relay, as they come or from memory.
//!
//! The flags are those of `hubble observe`, and more.

mod columns;
pub mod filters;
mod parquet;
pub mod stats;
pub mod text;

use std::io::{IsTerminal as _, Write as _};

use clap::ValueHint;

use self::columns::{Table, csv_header, csv_row};
use self::filters::Builder;
use self::stats::Stats;
use self::text::{Addresses, Shown, Style, TimeFormat};
use super::connect::block_on;
use super::flow_server::FlowServer;
use super::print::{Output, rows};
use super::{CliError, CliResult, Exit};
use crate::api::hubble::convert::timestamp;
use crate::api::hubble::json;
use crate::api::hubble::pb::flow as pb;
use crate::api::hubble::pb::flow::FlowFilter;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::api::hubble::pb::observer::{GetFlowsRequest, GetFlowsResponse};

const EXAMPLES: &str = "\
Examples:
  sluice observe --verdict DROPPED --follow
  sluice observe --namespace shop --protocol http --to-label app=backend --http-status 5+
  sluice observe --from-pod shop/frontend --not --to-port 53 --since 2h --until 10m
  sluice observe --stats --since 1h
  sluice observe --all -o parquet > flows.parquet";

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
    /// Aligned columns
    #[value(alias = "tab")]
    Table,
    /// Comma separated, with a header
    Csv,
    /// Apache Parquet, for data frames
    Parquet,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Colour {
    #[default]
    Auto,
    Always,
    Never,
}

/// Filters: a repeated flag is ORed, different flags are ANDed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ObserveArgs {
    #[command(flatten)]
    server: FlowServer,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    filters: FilterArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value_t, help_heading = "Output")]
    output: FlowOutput,
    /// Top talkers, and top drops with the policy that is missing, instead of flows
    #[arg(long, help_heading = "Output")]
    stats: bool,
    /// Colours in compact and dict
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", help_heading = "Output")]
    color: Colour,
    /// Print the node that observed the flow
    #[arg(long, help_heading = "Output")]
    print_node_name: bool,
    /// Hubble's flag; policies are always printed
    #[arg(long, hide = true)]
    print_policy_names: bool,
    /// Print filters as JSON instead of flows, for --allowlist and --denylist
    #[arg(long, help_heading = "Output")]
    print_raw_filters: bool,
    /// Names instead of addresses
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", value_name = "BOOL", help_heading = "Output")]
    ip_translation: bool,
    /// Form of times; JSON always has RFC 3339
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Output")]
    time_format: TimeFormat,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Which")]
struct Range {
    /// Keep printing flows as they come
    #[arg(short, long)]
    follow: bool,
    /// Only the newest N flows [20; with --follow, --since or --until all of them]
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "first"])]
    last: Option<u64>,
    /// Only the oldest N flows
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "follow"])]
    first: Option<u64>,
    /// All flows in memory
    #[arg(long)]
    all: bool,
    /// Flows after this: 10m, 2h, 3d, or a time such as 2026-01-02 or 2026-01-02T15:04:05Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Flows before this
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

macro_rules! filter_flags {
    ($($(#[$attribute:meta])* $field:ident: $name:literal),* $(,)?) => {
        /// Every filter that has a value.
        #[derive(Debug, Default, clap::Args)]
        #[command(next_help_heading = "Filters")]
        pub struct FilterArgs {
            $($(#[$attribute])* #[arg(long)] $field: Vec<String>,)*
            /// Only replies
            #[arg(long, conflicts_with = "not_reply")]
            reply: bool,
            /// Only what is no reply
            #[arg(long)]
            not_reply: bool,
            /// Only IPv4
            #[arg(short = '4', long)]
            ipv4: bool,
            /// Only IPv6
            #[arg(short = '6', long)]
            ipv6: bool,
            /// Flows of every namespace (that is the default)
            #[arg(short = 'A', long)]
            all_namespaces: bool,
            /// Only flows that sluice has not encrypted (all of them)
            #[arg(long)]
            unencrypted: bool,
            /// Turns the next filter around: --not --from-pod shop/web; or --not FILTER=VALUE
            #[arg(long, value_name = "FILTER")]
            not: Vec<String>,
            /// A FlowFilter as JSON; flows have to match one of these
            #[arg(long, value_name = "JSON")]
            allowlist: Vec<String>,
            /// A FlowFilter as JSON; flows that match one of these are left out
            #[arg(long, value_name = "JSON")]
            denylist: Vec<String>,
        }

        impl FilterArgs {
            /// Long names and values of the flags that were given.
            fn given(&self) -> Vec<(&'static str, &str)> {
                let mut given = Vec::new();
                $(given.extend(self.$field.iter().map(|value| ($name, value.as_str())));)*
                given.extend(self.reply.then_some(("reply", "true")));
                given.extend(self.not_reply.then_some(("reply", "false")));
                given.extend(self.ipv4.then_some(("ip-version", "v4")));
                given.extend(self.ipv6.then_some(("ip-version", "v6")));
                given.extend(self.unencrypted.then_some(("encrypted", "false")));
                given
            }
        }
    };
}

filter_flags! {
    /// [NAMESPACE/]POD at either end; a prefix is enough
    #[arg(value_name = "POD")] pod: "pod",
    #[arg(value_name = "POD")] from_pod: "from-pod",
    #[arg(value_name = "POD")] to_pod: "to-pod",
    /// Namespace at either end
    #[arg(short, value_name = "NAMESPACE")] namespace: "namespace",
    #[arg(value_name = "NAMESPACE")] from_namespace: "from-namespace",
    #[arg(value_name = "NAMESPACE")] to_namespace: "to-namespace",
    /// Label selector at either end, such as app=web or 'tier in (a,b)'
    #[arg(short, value_name = "SELECTOR")] label: "label",
    #[arg(value_name = "SELECTOR")] from_label: "from-label",
    #[arg(value_name = "SELECTOR")] to_label: "to-label",
    /// Identity at either end: a number, or a reserved name such as world-ipv4
    #[arg(value_name = "IDENTITY")] identity: "identity",
    #[arg(value_name = "IDENTITY")] from_identity: "from-identity",
    #[arg(value_name = "IDENTITY")] to_identity: "to-identity",
    /// Address or CIDR at either end
    #[arg(value_name = "IP")] ip: "ip",
    #[arg(value_name = "IP")] from_ip: "from-ip",
    #[arg(value_name = "IP")] to_ip: "to-ip",
    /// Port at either end
    #[arg(value_name = "PORT")] port: "port",
    #[arg(value_name = "PORT")] from_port: "from-port",
    #[arg(value_name = "PORT")] to_port: "to-port",
    /// DNS name at either end, such as *.example.com
    #[arg(value_name = "NAME", value_hint = ValueHint::Hostname)] fqdn: "fqdn",
    #[arg(value_name = "NAME", value_hint = ValueHint::Hostname)] from_fqdn: "from-fqdn",
    #[arg(value_name = "NAME", value_hint = ValueHint::Hostname)] to_fqdn: "to-fqdn",
    /// [NAMESPACE/]SERVICE that was addressed
    #[arg(value_name = "SERVICE")] service: "service",
    #[arg(value_name = "SERVICE")] from_service: "from-service",
    #[arg(value_name = "SERVICE")] to_service: "to-service",
    /// [KIND/]NAME of the workload at either end, such as Deployment/web
    #[arg(value_name = "WORKLOAD")] workload: "workload",
    #[arg(value_name = "WORKLOAD")] from_workload: "from-workload",
    #[arg(value_name = "WORKLOAD")] to_workload: "to-workload",
    /// Cluster of either end
    #[arg(value_name = "CLUSTER")] cluster: "cluster",
    #[arg(value_name = "CLUSTER")] from_cluster: "from-cluster",
    #[arg(value_name = "CLUSTER")] to_cluster: "to-cluster",
    /// Node that is itself an end
    #[arg(value_name = "NODE")] from_node: "from-node",
    #[arg(value_name = "NODE")] to_node: "to-node",
    /// Node that observed the flow; * for any characters
    #[arg(alias = "node", value_name = "NODE")] node_name: "node-name",
    #[arg(value_name = "SELECTOR", hide = true)] node_label: "node-label",
    /// tcp, udp, sctp, icmp, icmpv4, icmpv6, http, dns or tls
    #[arg(value_name = "PROTOCOL", value_parser = clap::builder::PossibleValuesParser::new(
        ["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "http", "dns", "tls", "vrrp", "igmp"]), ignore_case = true,
        hide_possible_values = true)]
    protocol: "protocol",
    /// FORWARDED, DROPPED, REDIRECTED, AUDIT or ERROR
    #[arg(value_name = "VERDICT", value_parser = clap::builder::PossibleValuesParser::new(
        ["FORWARDED", "DROPPED", "REDIRECTED", "AUDIT", "ERROR", "TRACED", "TRANSLATED"]), ignore_case = true,
        hide_possible_values = true)]
    verdict: "verdict",
    /// Drop reason, such as POLICY_DENIED
    #[arg(value_name = "REASON")] drop_reason: "drop-reason",
    /// Drop reason in Hubble's words
    #[arg(value_name = "REASON", hide = true)] drop_reason_desc: "drop-reason-desc",
    /// drop, policy-verdict, l7, or trace[:POINT] such as trace:to-endpoint
    #[arg(short = 't', value_name = "TYPE")] r#type: "type",
    /// Policy that decided: NAMESPACE/NAME, or NAME
    #[arg(value_name = "POLICY")] policy: "policy",
    /// ingress or egress, seen from the pod whose policy decided
    #[arg(value_name = "DIRECTION", value_parser = clap::builder::PossibleValuesParser::new(["ingress", "egress"]),
          ignore_case = true, hide_possible_values = true)]
    traffic_direction: "traffic-direction",
    /// v4 or v6
    #[arg(value_name = "VERSION")] ip_version: "ip-version",
    /// TCP flags that are set: syn, or syn,ack for both
    #[arg(value_name = "FLAGS")] tcp_flags: "tcp-flags",
    #[arg(value_name = "METHOD")] http_method: "http-method",
    /// Regular expression for the path
    #[arg(value_name = "REGEX")] http_path: "http-path",
    /// Regular expression for the whole URL
    #[arg(value_name = "REGEX")] http_url: "http-url",
    /// Status such as 404, or a prefix such as 5+
    #[arg(value_name = "STATUS")] http_status: "http-status",
    #[arg(value_name = "KEY:VALUE", hide = true)] http_header: "http-header",
    /// Regular expression for the name that was looked up
    #[arg(value_name = "REGEX")] dns_query: "dns-query",
    /// TLS server name; * for any characters
    #[arg(value_name = "NAME")] server_name: "server-name",
    /// Device that the packet was seen on
    #[arg(value_name = "DEVICE")] interface: "interface",
    /// The one flow with this identifier
    #[arg(value_name = "UUID")] uuid: "uuid",
    #[arg(value_name = "IP", hide = true)] snat_ip: "snat-ip",
    #[arg(value_name = "ID", hide = true)] trace_id: "trace-id",
    #[arg(value_name = "ID", hide = true)] ip_trace_id: "ip-trace-id",
    /// CEL expression over the flow as it is in -o json: '_flow.verdict == Verdict.DROPPED'
    #[arg(value_name = "CEL")] cel_expression: "cel-expression",
}

impl FilterArgs {
    /// Allowlist and denylist.
    pub fn lists(&self) -> Result<(Vec<FlowFilter>, Vec<FlowFilter>), CliError> {
        let mut builder = Builder::default();
        for (name, value) in self.given() {
            builder.add(name, value).map_err(CliError::Invalid)?;
        }
        let mut allow = builder.finish();
        allow.extend(filters::raw("allowlist", &self.allowlist).map_err(CliError::Invalid)?);
        let mut deny = filters::raw("denylist", &self.denylist).map_err(CliError::Invalid)?;
        for excluded in &self.not {
            let (name, value) = excluded.split_once('=').ok_or_else(|| {
                CliError::Invalid(format!("--not {excluded}: expected a filter after it, or FILTER=VALUE"))
            })?;
            let mut builder = Builder::default();
            builder.add(name, value).map_err(|error| CliError::Invalid(format!("--not {error}")))?;
            deny.extend(builder.finish());
        }
        Ok((allow, deny))
    }
}

#[derive(Debug, clap::Args)]
pub struct MonitorArgs {
    #[command(flatten)]
    server: FlowServer,
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

impl Range {
    fn request(&self, stats: Shown) -> Result<GetFlowsRequest, CliError> {
        let time = |text: &Option<String>| text.as_deref().map(|text| absolute_time(text, now())).transpose();
        let has_range = self.since.is_some() || self.until.is_some();
        let number = match (self.first.or(self.last), self.all) {
            (Some(number), _) => number,
            (None, true) => 0,
            (None, false) if self.follow || has_range || stats == Shown::Yes => 0,
            (None, false) => 20,
        };
        // `--last 0` shows nothing of the past, where the API's 0 is no limit.
        if self.last == Some(0) && !self.follow {
            return Err(CliError::Invalid("--last 0 without --follow shows nothing".into()));
        }
        // Everything in memory, and then on.
        let since = match (time(&self.since)?, self.all && self.follow) {
            (None, true) => Some(timestamp(0)),
            (since, _) => since,
        };
        Ok(GetFlowsRequest {
            number,
            first: self.first.is_some(),
            follow: self.follow,
            since,
            until: time(&self.until)?,
            ..GetFlowsRequest::default()
        })
    }
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// An age (`10m`, `2h30m`, `3d`) before `now`, a day, or a time in local or given time zone.
fn absolute_time(text: &str, now: jiff::Timestamp) -> Result<prost_types::Timestamp, CliError> {
    let age = || {
        let days = text.strip_suffix('d')?.parse::<i64>().ok()?.checked_mul(24)?;
        Some(jiff::SignedDuration::from_hours(days))
    };
    let before = |age: jiff::SignedDuration| now.checked_sub(age).ok();
    let local = || {
        let date = text.parse::<jiff::civil::DateTime>().ok()?;
        Some(date.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
    };
    let rfc1123 = || Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp());
    text.parse::<jiff::Timestamp>()
        .ok()
        .or_else(|| text.parse::<jiff::SignedDuration>().ok().or_else(age).and_then(before))
        .or_else(local)
        .or_else(rfc1123)
        .and_then(|time| u64::try_from(time.as_nanosecond()).ok())
        .map(timestamp)
        .ok_or_else(|| {
            CliError::Invalid(format!(
                "{text}: expected an age such as 10m, 2h or 3d, or a time such as 2026-01-02T15:04:05Z"
            ))
        })
}

/// Where flows go.
enum Sink {
    Text { output: FlowOutput, style: Style },
    Rows { style: Style, rows: Vec<Vec<String>> },
    Csv,
    Parquet(Table),
    Stats(Stats, FlowOutput),
}

/// Rows that `-o table` aligns together.
const TABLE_ROWS: usize = 100_000;

impl Sink {
    fn new(output: FlowOutput, style: Style, stats: Shown) -> Sink {
        match (stats, output) {
            (Shown::Yes, output) => Sink::Stats(Stats::default(), output),
            (Shown::No, FlowOutput::Table) => Sink::Rows { style, rows: Vec::new() },
            (Shown::No, FlowOutput::Csv) => Sink::Csv,
            (Shown::No, FlowOutput::Parquet) => Sink::Parquet(Table::default()),
            (Shown::No, output) => Sink::Text { output, style },
        }
    }

    /// What is no text must not be searched for colours: the bytes that look like some would be taken out.
    fn destination(&self) -> Box<dyn std::io::Write> {
        match self {
            Sink::Parquet(_) => Box::new(std::io::stdout()),
            _ => Box::new(anstream::stdout()),
        }
    }

    fn begin(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        match self {
            Sink::Csv => writeln!(out, "{}", csv_header()),
            _ => Ok(()),
        }
    }

    fn flow(&mut self, flow: &pb::Flow, out: &mut impl std::io::Write) -> std::io::Result<()> {
        match self {
            Sink::Text { output, style } => writeln!(out, "{}", text::format(flow, *output, *style)),
            Sink::Csv => writeln!(out, "{}", csv_row(flow)),
            Sink::Rows { style, rows } => {
                rows.push(text::Columns::new(flow, *style).row());
                if rows.len() == TABLE_ROWS { print_rows(rows, out) } else { Ok(()) }
            }
            Sink::Parquet(table) => table.push(flow).map_or(Ok(()), |bytes| out.write_all(&bytes)),
            Sink::Stats(stats, _) => {
                stats.add(flow);
                Ok(())
            }
        }
    }

    fn finish(self, out: &mut impl std::io::Write) -> anyhow::Result<()> {
        match self {
            Sink::Rows { mut rows, .. } => print_rows(&mut rows, out)?,
            Sink::Parquet(table) => out.write_all(&table.finish())?,
            Sink::Stats(stats, FlowOutput::Json) => writeln!(out, "{}", stats.json())?,
            Sink::Stats(stats, _) => stats.print()?,
            Sink::Text { .. } | Sink::Csv => {}
        }
        Ok(())
    }
}

fn print_rows(rows: &mut Vec<Vec<String>>, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let header = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"].map(str::to_owned);
    rows.insert(0, header.to_vec());
    let mut widths = [0; 6];
    for row in rows.iter() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows.drain(..) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("   ").trim_end())?;
    }
    Ok(())
}

pub fn observe(args: ObserveArgs) -> CliResult {
    let (whitelist, blacklist) = args.filters.lists()?;
    if args.print_raw_filters {
        return print_raw_filters(&whitelist, &blacklist);
    }
    if args.output == FlowOutput::Parquet && std::io::stdout().is_terminal() {
        return Err(CliError::Invalid("-o parquet is no text: redirect it into a file".into()));
    }
    let stats = if args.stats { Shown::Yes } else { Shown::No };
    let request = GetFlowsRequest { whitelist, blacklist, ..args.range.request(stats)? };
    let style = Style {
        node: if args.print_node_name { Shown::Yes } else { Shown::No },
        addresses: if args.ip_translation { Addresses::Names } else { Addresses::Numbers },
        time: args.time_format,
    };
    match args.color {
        Colour::Auto => {}
        Colour::Always => anstream::ColorChoice::Always.write_global(),
        Colour::Never => anstream::ColorChoice::Never.write_global(),
    }
    stream(&args.server, request, Sink::new(args.output, style, stats))
}

fn print_raw_filters(allow: &[FlowFilter], deny: &[FlowFilter]) -> CliResult {
    for (flag, filters) in [("allowlist", allow), ("denylist", deny)] {
        for filter in filters {
            let text = json::to_json(filter).map_err(|error| CliError::Failed(anyhow::anyhow!(error)))?;
            anstream::println!("--{flag} '{text}'");
        }
    }
    Ok(Exit::Done)
}

pub fn monitor(args: MonitorArgs) -> CliResult {
    let mut builder = Builder::default();
    for kind in &args.kind {
        builder.add("type", kind).map_err(CliError::Invalid)?;
    }
    if let Some(pod) = &args.related_to {
        builder.add("pod", pod).map_err(CliError::Invalid)?;
    }
    let request = GetFlowsRequest { whitelist: builder.finish(), follow: true, ..GetFlowsRequest::default() };
    let style = Style { node: Shown::No, addresses: Addresses::Names, time: TimeFormat::default() };
    stream(&args.server, request, Sink::new(args.output, style, Shown::No))
}

fn stream(server: &FlowServer, request: GetFlowsRequest, mut sink: Sink) -> CliResult {
    let is_json = matches!(sink, Sink::Text { output: FlowOutput::Json, .. });
    let is_live = request.follow;
    block_on(async {
        let mut flows = server.connect().await?.get_flows(request).await?.into_inner();
        let mut out = std::io::BufWriter::new(sink.destination());
        sink.begin(&mut out).map_err(anyhow::Error::from)?;
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            let response = tokio::select! {
                response = flows.message() => response?,
                // What has been counted so far is printed.
                _ = &mut interrupted => None,
            };
            let Some(response) = response else { break };
            let written =
                if is_json { json_line(&response, &mut out) } else { one(&response, &mut sink, &mut out) };
            // A reader that has gone (`| head`) ends the stream without a complaint.
            if written.and_then(|()| if is_live { out.flush() } else { Ok(()) }).is_err() {
                return Ok(Exit::Done);
            }
        }
        match sink.finish(&mut out).and_then(|()| Ok(out.flush()?)) {
            Err(error) if is_broken_pipe(&error) => Ok(Exit::Done),
            Err(error) => Err(CliError::Failed(error)),
            Ok(()) => Ok(Exit::Done),
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn json_line(response: &GetFlowsResponse, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let line = json::to_json(response).map_err(std::io::Error::other)?;
    writeln!(out, "{line}")
}

fn one(response: &GetFlowsResponse, sink: &mut Sink, out: &mut impl std::io::Write) -> std::io::Result<()> {
    if let Some(ResponseTypes::Flow(flow)) = &response.response_types {
        return sink.flow(flow, out);
    }
    if let Some(remark) = text::remark(response) {
        out.flush()?;
        anstream::eprintln!("{remark}");
    }
    Ok(())
}

/// `sluice observe nodes`-like questions: which nodes and namespaces a relay knows.
#[derive(Debug, clap::Args)]
pub struct NodesArgs {
    #[command(flatten)]
    server: FlowServer,
    /// Output form
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Nodes whose flows can be seen.
pub fn nodes(args: NodesArgs) -> CliResult {
    block_on(async {
        let answer = server_nodes(&args.server).await?;
        if args.output == Output::Json {
            let text = json::to_json(&answer).map_err(|error| CliError::Failed(anyhow::anyhow!(error)))?;
            anstream::println!("{text}");
            return Ok(Exit::Done);
        }
        let lines = answer.nodes.iter().map(|node| {
            vec![
                node.name.clone(),
                node.state().as_str_name().trim_start_matches("NODE_").to_lowercase(),
                super::print::age(node.uptime_ns / 1_000_000_000),
                format!("{}/{}", node.num_flows, node.max_flows),
                node.address.clone(),
                node.version.clone(),
            ]
        });
        rows(Output::Table, &(), &["name", "state", "age", "flows", "address", "version"], lines)?;
        Ok(Exit::Done)
    })
}

async fn server_nodes(
    server: &FlowServer,
) -> Result<crate::api::hubble::pb::observer::GetNodesResponse, CliError> {
    let request = crate::api::hubble::pb::observer::GetNodesRequest {};
    Ok(server.connect().await?.get_nodes(request).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ages_days_or_points() {
        let now: jiff::Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        let seconds = |text: &str| absolute_time(text, now).unwrap().seconds - now.as_second();
        assert_eq!(seconds("10m"), -600);
        assert_eq!(seconds("2h30m"), -9000);
        assert_eq!(seconds("3d"), -3 * 86_400);
        assert_eq!(seconds("2026-01-10T11:59:00Z"), -60);
        assert_eq!(seconds("2026-01-10T13:59:00+02:00"), -60);
        assert!(absolute_time("2026-01-09", now).is_ok());
        assert!(absolute_time("soon", now).is_err());
    }

    #[test]
    fn the_past_is_twenty_flows_unless_something_else_is_asked_for() {
        let range = |follow, since: Option<&str>, all| Range {
            follow,
            all,
            since: since.map(str::to_owned),
            last: None,
            first: None,
            until: None,
        };
        assert_eq!(range(false, None, false).request(Shown::No).unwrap().number, 20);
        assert_eq!(range(true, None, false).request(Shown::No).unwrap().number, 0);
        assert_eq!(range(false, Some("1h"), false).request(Shown::No).unwrap().number, 0);
        assert!(range(true, None, true).request(Shown::No).unwrap().since.is_some());
    }
}
