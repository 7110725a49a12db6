//! `sluice http-proxy`: the HTTP and TLS-SNI proxy, mostly started by the agent.

use std::path::PathBuf;

use super::{CliResult, Exit, logs};
use crate::agent::http_proxy::{self, HttpProxyConfig};
use crate::config::LogFormat;
use crate::httpproxy::options::{Options, SETTINGS};

#[derive(Debug, clap::Args)]
#[command(after_help = settings())]
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
    /// A setting (see below); repeat or comma separated
    #[arg(long = "set", env = "SLUICE_HTTP_PROXY", value_name = "NAME=VALUE", value_delimiter = ',')]
    settings: Vec<String>,
}

fn settings() -> String {
    let lines = SETTINGS.iter().map(|(name, what)| format!("  {name:<20} {what}\n"));
    format!("Settings, with their defaults:\n{}", lines.collect::<String>())
}

pub fn run(args: HttpProxyArgs) -> CliResult {
    logs::init(LogFormat::Text, &args.log)?;
    let options = match Options::parse(&args.settings) {
        Ok(options) => options,
        Err(wrong) => {
            wrong.iter().for_each(|problem| eprintln!("error: {problem}"));
            return Ok(Exit::Invalid);
        }
    };
    http_proxy::run(HttpProxyConfig { run_dir: args.run_dir, bpffs: args.bpffs, options })?;
    Ok(Exit::Done)
}
