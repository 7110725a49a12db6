//! `sluice server token`: the join token of a running server.

use super::connect::block_on;
use super::{CliResult, Exit};
use crate::api::client::Client;

#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Replace the token: the old one is refused, nodes that have joined are not affected
    Rotate,
}

pub fn run(client: &Client, command: &TokenCommand) -> CliResult {
    match command {
        TokenCommand::Rotate => block_on(async {
            let answer: serde_json::Value = client.post("/v1/token/rotate", "").await?;
            let file = answer["tokenFile"].as_str().unwrap_or_default();
            anstream::println!("the new token is in {}", super::print::plain(file));
            Ok(Exit::Done)
        }),
    }
}
