//! `sluice observe nodes`-like questions: which nodes and namespaces a relay knows.

use crate::api::hubble::json;
use crate::api::hubble::pb::observer::{GetNodesRequest, GetNodesResponse};
use crate::cli::connect::block_on;
use crate::cli::flow_server::FlowServer;
use crate::cli::print::{self, Output};
use crate::cli::{CliError, CliResult, Exit};

/// Arguments of the question.
#[derive(Debug, clap::Args)]
pub struct NodesArgs {
    #[command(flatten)]
    server: FlowServer,
    /// Output form
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Nodes whose flows can be seen.
pub fn nodes(args: NodesArgs) -> CliResult {
    block_on(async {
        let answer = server_nodes(&args.server).await?;
        if args.output == Output::Json {
            let text = json::to_json(&answer).map_err(|error| CliError::Failed(anyhow::anyhow!(error)))?;
            anstream::println!("{text}");
            return Ok(Exit::Done);
        }
        let lines = answer.nodes.iter().map(|node| {
            vec![
                node.name.clone(),
                node.state().as_str_name().trim_start_matches("NODE_").to_lowercase(),
                print::age(node.uptime_ns / 1_000_000_000),
                format!("{}/{}", node.num_flows, node.max_flows),
                node.address.clone(),
                node.version.clone(),
            ]
        });
        print::rows(Output::Table, &(), &["name", "state", "age", "flows", "address", "version"], lines)?;
        Ok(Exit::Done)
    })
}

async fn server_nodes(server: &FlowServer) -> Result<GetNodesResponse, CliError> {
    Ok(server.connect().await?.get_nodes(GetNodesRequest {}).await?.into_inner())
}
