//! `sluice http-proxy`: the HTTP and TLS-SNI proxy, mostly started by the agent.

use std::path::PathBuf;
use std::time::Duration;

use super::{CliResult, Exit, logs};
use crate::agent::http_proxy::{self, HttpProxyConfig};
use crate::config::LogFormat;
use crate::httpproxy::{Limits, RecordedPath};

#[derive(Debug, clap::Args)]
pub struct HttpProxyArgs {
    /// Directory of the agent's sockets and policy feed
    #[arg(long, env = "SLUICE_RUN_DIR", value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
    /// BPF file system directory of the agent
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
    /// Log level or filter, such as info or sluice=debug
    #[arg(long, env = "SLUICE_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Threads; 0 is one for each CPU
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    threads: usize,
    /// Most bytes of one message head
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().header_bytes)]
    header_bytes: usize,
    /// Seconds from the first byte of a head to its last
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().header_timeout.as_secs())]
    header_timeout: u64,
    /// Seconds between two requests of a connection
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().idle_timeout.as_secs())]
    idle_timeout: u64,
    /// Seconds without any progress of a body
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().body_timeout.as_secs())]
    body_timeout: u64,
    /// Seconds until a server begins to answer
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().response_timeout.as_secs())]
    response_timeout: u64,
    /// Seconds for a connection to a server
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().connect_timeout.as_secs())]
    connect_timeout: u64,
    /// Seconds for running requests when the process is to end
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().drain_timeout.as_secs())]
    drain_timeout: u64,
    /// Bytes of a refused request's body that are read to keep its connection
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().refused_body_bytes)]
    refused_body_bytes: u64,
    /// HTTP/2 streams of one connection at a time
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().streams)]
    streams: u32,
    /// Connections at a time, for each protocol and address family
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().connections)]
    connections: usize,
    /// Flow records a second; more are counted and dropped
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    records_per_second: u32,
    /// Record query strings too
    #[arg(long)]
    record_queries: bool,
}

pub fn run(args: HttpProxyArgs) -> CliResult {
    logs::init(LogFormat::Text, &args.log)?;
    let limits = Limits {
        header_bytes: args.header_bytes,
        header_timeout: Duration::from_secs(args.header_timeout),
        idle_timeout: Duration::from_secs(args.idle_timeout),
        body_timeout: Duration::from_secs(args.body_timeout),
        response_timeout: Duration::from_secs(args.response_timeout),
        connect_timeout: Duration::from_secs(args.connect_timeout),
        refused_body_bytes: args.refused_body_bytes,
        streams: args.streams,
        connections: args.connections,
        drain_timeout: Duration::from_secs(args.drain_timeout),
    };
    http_proxy::run(HttpProxyConfig {
        run_dir: args.run_dir,
        bpffs: args.bpffs,
        limits,
        recorded_path: if args.record_queries { RecordedPath::WithQuery } else { RecordedPath::WithoutQuery },
        records_per_second: args.records_per_second,
        threads: args.threads,
    })?;
    Ok(Exit::Done)
}
