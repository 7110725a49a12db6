//! `sluice ui`: where the web UI is.

use super::connect::{Connection, block_on};
use super::print::plain;
use super::{CliError, CliResult, Exit};
use crate::api::types::Status;

#[derive(Debug, clap::Args)]
pub struct UiArgs {
    #[command(flatten)]
    connection: Connection,
}

pub fn run(args: UiArgs) -> CliResult {
    let status: Status = block_on(async { Ok(args.connection.client().get::<Status>("/v1/status").await?) })?;
    if let Some(url) = &status.ui {
        anstream::println!("{}", plain(url));
        return Ok(Exit::Done);
    }
    let trouble = status.components.iter().find(|component| component.name == "web ui");
    Err(CliError::Failed(match trouble {
        Some(component) => anyhow::anyhow!("the web UI is not open: {}", component.message),
        None => anyhow::anyhow!("the web UI is off: see `ui-listen` in docs/cli.md"),
    }))
}
