//! `sluice preflight`: is this machine fit, and what to do if not.

use std::path::PathBuf;

use serde_json::json;

use super::connect::block_on;
use super::print::{Output, plain};
use super::{CliResult, Exit};
use crate::datapath::preflight::{self, Status};

#[derive(Debug, clap::Args)]
pub struct PreflightArgs {
    /// Where the agent will pin its programs and maps
    #[arg(long, env = "SLUICE_BPFFS", default_value = "/sys/fs/bpf/sluice", value_name = "DIR")]
    bpffs: PathBuf,
    /// Device towards other nodes and the world
    #[arg(long, env = "SLUICE_UPLINK", value_name = "DEVICE")]
    uplink: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub fn run(args: PreflightArgs) -> CliResult {
    let checks = block_on(async { Ok(preflight::run(&args.bpffs, args.uplink.as_deref()).await) })?;
    let name = |status: Status| match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Failed => "failed",
    };
    match args.output {
        Output::Json => {
            let rows: Vec<_> = checks
                .iter()
                .map(|check| json!({"check": check.name, "status": name(check.status), "found": check.found, "advice": check.advice}))
                .collect();
            anstream::println!("{}", serde_json::to_string_pretty(&rows).map_err(anyhow::Error::from)?);
        }
        Output::Table => {
            for check in &checks {
                let colour = match check.status {
                    Status::Ok => "\x1b[32m",
                    Status::Degraded => "\x1b[33m",
                    Status::Failed => "\x1b[31m",
                };
                anstream::println!(
                    "{colour}{:<9}\x1b[0m {:<14} {}",
                    name(check.status),
                    check.name,
                    plain(&check.found)
                );
                if !check.advice.is_empty() {
                    anstream::println!("{:<24} -> {}", "", plain(&check.advice));
                }
            }
        }
    }
    let failed = checks.iter().any(|check| check.status == Status::Failed);
    Ok(if failed { Exit::Negative } else { Exit::Done })
}
