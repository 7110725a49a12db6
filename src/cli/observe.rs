//! `sluice observe` and `sluice monitor`: flows of an agent or a relay, as they come or from memory.
//!
//! The flags are those of `hubble observe`, and more.

mod columns;
pub mod filters;
mod flags;
mod nodes;
mod parquet;
mod range;
mod sink;
pub mod stats;
mod stream;
pub mod text;

use std::io::IsTerminal as _;

use self::filters::Builder;
pub use self::flags::FilterArgs;
pub use self::nodes::{NodesArgs, nodes};
use self::range::Range;
use self::sink::Sink;
use self::stream::stream;
use self::text::{Addresses, Shown, Style, TimeFormat};
use super::flow_server::FlowServer;
use super::{CliError, CliResult, Exit};
use crate::api::hubble::json;
use crate::api::hubble::pb::flow::FlowFilter;
use crate::api::hubble::pb::observer::GetFlowsRequest;

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
