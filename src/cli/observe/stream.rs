//! Flows from a server into a [`Sink`], until either has had enough.

use std::io::Write as _;

use super::FlowOutput;
use super::sink::Sink;
use super::text;
use crate::api::hubble::json;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::api::hubble::pb::observer::{GetFlowsRequest, GetFlowsResponse};
use crate::cli::connect::block_on;
use crate::cli::flow_server::FlowServer;
use crate::cli::{CliError, CliResult, Exit};

/// Prints what the server answers; a question to follow ends with SIGINT.
pub(super) fn stream(server: &FlowServer, request: GetFlowsRequest, mut sink: Sink) -> CliResult {
    let is_json = matches!(sink, Sink::Text { output: FlowOutput::Json, .. });
    let is_live = request.follow;
    block_on(async {
        let mut flows = server.connect().await?.get_flows(request).await?.into_inner();
        let mut out = std::io::BufWriter::new(sink.destination());
        sink.begin(&mut out).map_err(anyhow::Error::from)?;
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            let response = tokio::select! {
                response = flows.message() => response?,
                // What has been counted so far is printed.
                _ = &mut interrupted => None,
            };
            let Some(response) = response else { break };
            let written =
                if is_json { json_line(&response, &mut out) } else { one(&response, &mut sink, &mut out) };
            // A reader that has gone (`| head`) ends the stream without a complaint.
            if written.and_then(|()| if is_live { out.flush() } else { Ok(()) }).is_err() {
                return Ok(Exit::Done);
            }
        }
        match sink.finish(&mut out).and_then(|()| Ok(out.flush()?)) {
            Err(error) if is_broken_pipe(&error) => Ok(Exit::Done),
            Err(error) => Err(CliError::Failed(error)),
            Ok(()) => Ok(Exit::Done),
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn json_line(response: &GetFlowsResponse, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let line = json::to_json(response).map_err(std::io::Error::other)?;
    writeln!(out, "{line}")
}

fn one(response: &GetFlowsResponse, sink: &mut Sink, out: &mut impl std::io::Write) -> std::io::Result<()> {
    if let Some(ResponseTypes::Flow(flow)) = &response.response_types {
        return sink.flow(flow, out);
    }
    if let Some(remark) = text::remark(response) {
        out.flush()?;
        anstream::eprintln!("{remark}");
    }
    Ok(())
}
