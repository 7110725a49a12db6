//! Logs of the long-running commands: to standard error, coloured only on a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::agent::telemetry::LogCounter;
use crate::config::LogFormat;

/// Starts logging; `filter` is a level, or `target=level` pairs separated by commas.
///
/// # Errors
///
/// The filter is not understood, or logging has been started before.
pub fn init(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let targets: tracing_subscriber::filter::Targets = filter.parse()?;
    let registry = tracing_subscriber::registry().with(targets).with(LogCounter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => registry.with(layer.with_target(false)).try_init()?,
        LogFormat::Json => registry.with(layer.json()).try_init()?,
    }
    Ok(())
}
