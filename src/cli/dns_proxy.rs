//! `sluice dns-proxy`: the DNS proxy. The agent starts it; nobody else needs to.

use std::path::PathBuf;
use std::time::Duration;

use super::{CliError, CliResult, Exit, logs};
use crate::admission::Most;
use crate::agent::dns_proxy::{self, Settings};
use crate::config::{LogFormat, default_workers};
use crate::dnsproxy::proxy::{Options, RefusalCode};
use crate::fqdn::TtlBounds;

#[derive(Debug, clap::Args)]
pub struct DnsProxyArgs {
    /// The agent's directory of sockets
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
    /// The agent's directory of BPF pins
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
    /// What a refused query is answered with
    #[arg(long, value_enum, env = "SLUICE_DNS_REFUSAL", default_value_t)]
    refusal: Refusal,
    /// Milliseconds after which a query that the server does not answer gets SERVFAIL
    #[arg(long, value_name = "MS", env = "SLUICE_DNS_TIMEOUT", default_value_t = 4000)]
    upstream_timeout: u64,
    /// Most open queries of one pod
    #[arg(long, value_name = "N", env = "SLUICE_DNS_QUERIES_PER_POD", default_value_t = 512)]
    queries_per_pod: usize,
    /// Most open queries of all pods
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    queries: usize,
    /// Most connections of one pod
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections_per_pod: usize,
    /// Most connections of all pods
    #[arg(long, value_name = "N", default_value_t = 4096)]
    connections: usize,
    /// Threads that serve datagrams
    #[arg(long, value_name = "N", default_value_t = default_workers())]
    workers: usize,
    /// Seconds that answers are fresh at least, as for the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    min_ttl: u64,
    /// Seconds that answers are fresh at most, as for the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    max_ttl: u64,
    /// Most records a second that are reported to the agent
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    records_per_second: u32,
    /// Level or filter of the log
    #[arg(long, default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Refusal {
    #[default]
    Refused,
    Nxdomain,
}

pub fn run(args: DnsProxyArgs) -> CliResult {
    let limits = [
        ("--upstream-timeout", args.upstream_timeout == 0),
        ("--queries-per-pod", args.queries_per_pod == 0),
        ("--queries", args.queries == 0),
        ("--connections-per-pod", args.connections_per_pod == 0),
        ("--connections", args.connections == 0),
        ("--workers", !(1..=64).contains(&args.workers)),
    ];
    let wrong: Vec<&str> = limits.into_iter().filter(|(_, wrong)| *wrong).map(|(name, _)| name).collect();
    if !wrong.is_empty() {
        return Err(CliError::Invalid(format!("{}: at least 1 (64 workers at most)", wrong.join(", "))));
    }
    logs::init(LogFormat::Text, &args.log)?;
    let options = Options {
        refusal: match args.refusal {
            Refusal::Refused => RefusalCode::Refused,
            Refusal::Nxdomain => RefusalCode::NxDomain,
        },
        upstream_timeout: Duration::from_millis(args.upstream_timeout),
        queries: Most { of_one: args.queries_per_pod, of_all: args.queries },
        connections: Most { of_one: args.connections_per_pod, of_all: args.connections },
        ..Options::default()
    };
    dns_proxy::run(Settings {
        run_dir: args.run_dir,
        bpffs: args.bpffs,
        options,
        ttl: TtlBounds::new(Duration::from_secs(args.min_ttl), Duration::from_secs(args.max_ttl)),
        workers: args.workers,
        records_per_second: args.records_per_second,
    })?;
    Ok(Exit::Done)
}
