//! `sluice identity`, `ipcache`, `fqdn`, `service` and `bpf`: what the agent knows, and what the kernel holds.

use serde_json::{Map, Value};

use super::connect::{Connection, block_on, encode};
use super::print::{self, Output};
use super::{CliError, CliResult, Exit};
use crate::api::types::{IdentityInfo, IpcacheInfo, NameInfo, ServiceInfo};

#[derive(Debug, clap::Args)]
pub struct IdentityArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Debug, clap::Subcommand)]
enum IdentityCommand {
    /// List identities and the labels that they stand for
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show one identity (number or reserved name)
    Get {
        identity: String,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: ListCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ListCommand {
    /// List all
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
pub struct BpfArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: BpfCommand,
}

#[derive(Debug, clap::Args)]
struct KernelArgs {
    /// Only this endpoint (NAMESPACE/POD)
    #[arg(long, value_name = "NAMESPACE/POD")]
    endpoint: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum BpfCommand {
    /// Policy entries, with the rules that they came from and their hits
    Policy(KernelArgs),
    /// Tracked connections
    Ct(KernelArgs),
    /// Address prefixes and their identities
    Ipcache(KernelArgs),
    /// Service frontends and backends
    Services(KernelArgs),
    /// Packets forwarded, and dropped by reason
    Metrics(KernelArgs),
    /// What the kernel holds and should not, and the other way round (exit code 1 when they differ)
    Diff(KernelArgs),
}

pub fn identity(args: IdentityArgs) -> CliResult {
    block_on(async {
        let identities: Vec<IdentityInfo> = args.connection.client().get("/v1/identities").await?;
        let (output, shown): (_, Vec<_>) = match args.command {
            IdentityCommand::List { output } => (output, identities),
            IdentityCommand::Get { identity, output } => {
                let number = crate::model::Identity::RESERVED
                    .iter()
                    .find(|(_, name)| *name == identity)
                    .map_or(identity.clone(), |(id, _)| id.to_string());
                let found: Vec<_> =
                    identities.into_iter().filter(|known| known.id.to_string() == number).collect();
                if found.is_empty() {
                    return Err(CliError::Failed(anyhow::anyhow!("no identity {identity}")));
                }
                (output, found)
            }
        };
        let rows = shown.iter().map(|info| {
            let labels = info.labels.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            vec![info.id.to_string(), info.scope.clone(), labels.replace('\n', " ")]
        });
        print::rows(output, &shown, &["id", "scope", "labels"], rows)?;
        Ok(Exit::Done)
    })
}

pub fn ipcache(args: ListArgs) -> CliResult {
    let ListCommand::List { output } = args.command;
    block_on(async {
        let entries: Vec<IpcacheInfo> = args.connection.client().get("/v1/ipcache").await?;
        let rows = entries.iter().map(|entry| {
            vec![
                entry.prefix.clone(),
                entry.identity.to_string(),
                entry.tunnel_endpoint.map(|address| address.to_string()).unwrap_or_default(),
                entry.labels.to_string(),
            ]
        });
        print::rows(output, &entries, &["prefix", "identity", "behind", "labels"], rows)?;
        Ok(Exit::Done)
    })
}

pub fn fqdn(args: ListArgs) -> CliResult {
    let ListCommand::List { output } = args.command;
    block_on(async {
        let names: Vec<NameInfo> = args.connection.client().get("/v1/names").await?;
        let rows = names.iter().map(|entry| {
            vec![
                entry.name.clone(),
                entry.address.to_string(),
                format!("{} s", entry.ttl_seconds),
                entry.patterns.join(" "),
                entry.identity.to_string(),
            ]
        });
        print::rows(output, &names, &["name", "address", "ttl", "patterns", "identity"], rows)?;
        Ok(Exit::Done)
    })
}

pub fn service(args: ListArgs) -> CliResult {
    let ListCommand::List { output } = args.command;
    block_on(async {
        let services: Vec<ServiceInfo> = args.connection.client().get("/v1/services").await?;
        let rows = services.iter().map(|service| {
            let backends = if service.backends.is_empty() {
                "none: connections are rejected".to_owned()
            } else {
                service.backends.join(" ")
            };
            vec![
                service.service.clone(),
                format!("{}/{}", service.frontend, service.protocol),
                backends,
                service.affinity_seconds.map(|seconds| format!("{seconds} s")).unwrap_or_default(),
            ]
        });
        print::rows(output, &services, &["service", "frontend", "backends", "affinity"], rows)?;
        Ok(Exit::Done)
    })
}

pub fn bpf(args: BpfArgs) -> CliResult {
    let (table, kernel) = match args.command {
        BpfCommand::Policy(kernel) => ("policy", kernel),
        BpfCommand::Ct(kernel) => ("ct", kernel),
        BpfCommand::Ipcache(kernel) => ("ipcache", kernel),
        BpfCommand::Services(kernel) => ("services", kernel),
        BpfCommand::Metrics(kernel) => ("metrics", kernel),
        BpfCommand::Diff(kernel) => ("diff", kernel),
    };
    block_on(async {
        let query =
            kernel.endpoint.as_deref().map(|pod| format!("?endpoint={}", encode(pod))).unwrap_or_default();
        let path = format!("/v1/kernel/{table}{query}");
        let rows: Vec<Map<String, Value>> = args.connection.client().get(&path).await?;
        let headings: Vec<&str> =
            rows.first().map(|row| row.keys().map(String::as_str).collect()).unwrap_or_default();
        let cells = rows.iter().map(|row| headings.iter().map(|name| cell(row.get(*name))).collect());
        if table == "diff" && rows.is_empty() && kernel.output == Output::Table {
            anstream::println!("the kernel holds what it should");
            return Ok(Exit::Done);
        }
        print::rows(kernel.output, &rows, &headings, cells)?;
        Ok(if table == "diff" && !rows.is_empty() { Exit::Negative } else { Exit::Done })
    })
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(" "),
        Some(other) => other.to_string(),
    }
}
