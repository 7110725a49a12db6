//! `sluice agent`: runs the node's agent.

use std::path::PathBuf;

use super::{CliError, CliResult, Exit, logs};
use crate::config::{AgentConfig, AgentSettings};
use crate::store::OnCorrupt;

#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Configuration file; its keys are the names of the flags below without dashes in front
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: AgentSettings,
    /// Begin with an empty state if the stored one is corrupt; the corrupt file is kept beside it
    #[arg(long)]
    reset_corrupt_state: bool,
}

/// Read when no --config is given and it exists.
const DEFAULT_FILE: &str = "/etc/sluice/config.yaml";

pub fn run(args: AgentArgs) -> CliResult {
    let invalid = |error: crate::config::ConfigError| CliError::Invalid(error.to_string());
    let file = args.config.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
    let lower = file.as_deref().map(AgentSettings::read).transpose().map_err(invalid)?.unwrap_or_default();
    let host = host_name()?;
    let config = AgentConfig::resolve(args.settings.over(lower), &host).map_err(invalid)?;
    logs::init(config.log_format, &config.log)?;
    let on_corrupt = if args.reset_corrupt_state { OnCorrupt::StartFresh } else { OnCorrupt::Refuse };
    crate::agent::run(config, on_corrupt)?;
    Ok(Exit::Done)
}

/// The kernel's name for this machine.
fn host_name() -> anyhow::Result<String> {
    let name = nix::sys::utsname::uname()?;
    Ok(name.nodename().to_string_lossy().into_owned())
}
