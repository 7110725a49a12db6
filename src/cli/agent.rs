//! `sluice agent`: runs the node's agent.

use std::path::PathBuf;

use super::{CliError, CliResult, Exit};
use crate::config::{AgentConfig, AgentSettings, LogFormat};

#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Configuration file; its keys are the names of the flags below without dashes in front
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: AgentSettings,
}

/// Read when no --config is given and it exists.
const DEFAULT_FILE: &str = "/etc/sluice/config.yaml";

pub fn run(args: AgentArgs) -> CliResult {
    let invalid = |error: crate::config::ConfigError| CliError::Invalid(error.to_string());
    let file = args.config.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
    let lower = file.as_deref().map(AgentSettings::read).transpose().map_err(invalid)?.unwrap_or_default();
    let host = host_name()?;
    let config = AgentConfig::resolve(args.settings.over(lower), &host).map_err(invalid)?;
    init_logs(config.log_format, &config.log)?;
    crate::agent::run(config)?;
    Ok(Exit::Done)
}

/// Logs go to standard error.
pub fn init_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let targets: tracing_subscriber::filter::Targets = filter.parse()?;
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => registry.with(layer.with_target(false)).try_init()?,
        LogFormat::Json => registry.with(layer.json()).try_init()?,
    }
    Ok(())
}

/// The kernel's name for this machine.
fn host_name() -> anyhow::Result<String> {
    let name = nix::sys::utsname::uname()?;
    Ok(name.nodename().to_string_lossy().into_owned())
}
