//! `sluice dns-proxy`: the DNS proxy. The agent starts it; nobody else needs to.

use std::path::PathBuf;
use std::time::Duration;

use super::{CliError, CliResult, Exit, logs};
use crate::agent::dns_proxy::{self, Settings};
use crate::config::LogFormat;
use crate::dnsproxy::limits::Most;
use crate::dnsproxy::proxy::{Options, RefusalCode};

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
    if args.upstream_timeout == 0 || args.queries_per_pod == 0 {
        return Err(CliError::Invalid("--upstream-timeout and --queries-per-pod: at least 1".into()));
    }
    logs::init(LogFormat::Text, &args.log)?;
    let defaults = Options::default();
    let options = Options {
        refusal: match args.refusal {
            Refusal::Refused => RefusalCode::Refused,
            Refusal::Nxdomain => RefusalCode::NxDomain,
        },
        upstream_timeout: Duration::from_millis(args.upstream_timeout),
        queries: Most { of_one: args.queries_per_pod, ..defaults.queries },
        ..defaults
    };
    dns_proxy::run(Settings {
        run_dir: args.run_dir,
        bpffs: args.bpffs,
        options,
        records_per_second: args.records_per_second,
    })?;
    Ok(Exit::Done)
}
