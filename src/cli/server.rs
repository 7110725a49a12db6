//! `sluice server`: runs the server of a small cluster, and talks to a running one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::choices::empty_rule_lists;
use super::connect::{block_on, encode};
use super::print::{self, Output};
use super::{CliError, CliResult, Exit, logs, token};
use crate::agent::Manifests;
use crate::api::client::Client;
use crate::api::unix;
use crate::cluster::{MissingNamespaces, ViewOptions};
use crate::config::LogFormat;
use crate::k8s::{EmptyRuleLists, ParseOptions};
use crate::server::{Server, ServerConfig};
use crate::store::{OnCorrupt, system_clock};

const EXAMPLES: &str = "\
Examples:
  sluice server --advertise 192.0.2.10:7443
  sluice policy apply --socket /run/sluice/server.sock policies/
  sluice server node list

A node joins with the server's address and a copy of its token file (STATE_DIR/token, readable by
root alone):
  sluice agent --server https://192.0.2.10:7443 --token-file /etc/sluice/token";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = false)]
pub struct ServerArgs {
    #[command(subcommand)]
    command: Option<ServerCommand>,
    /// Where the admin socket (server.sock) is
    #[arg(long, env = "SLUICE_RUN_DIR", default_value = "/run/sluice", value_name = "DIR", global = true)]
    run_dir: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Where the state (server.db), the join token and the CA are kept
    #[arg(long, env = "SLUICE_STATE_DIR", default_value = "/var/lib/sluice", value_name = "DIR")]
    state_dir: PathBuf,
    /// Address and port for agents
    #[arg(long, env = "SLUICE_SERVER_LISTEN", default_value = "0.0.0.0:7443", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// HOST:PORT under which agents reach this server, where it is not the listening address, or this machine's
    /// name where that is every address
    #[arg(long, env = "SLUICE_SERVER_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Name of the cluster (label io.cilium.k8s.policy.cluster); the same on every agent
    #[arg(long, env = "SLUICE_CLUSTER_NAME", default_value = "default", value_name = "NAME")]
    cluster_name: String,
    /// `ingress: []` of a Cilium policy turns default deny on (deny) or does nothing (ignore); the same
    /// on every agent
    #[arg(long, env = "SLUICE_EMPTY_RULE_LISTS", default_value = "deny", value_name = "deny|ignore",
          value_parser = empty_rule_lists)]
    empty_rule_lists: EmptyRuleLists,
    /// Begin with an empty state if the stored one is corrupt; the corrupt file is kept beside it
    #[arg(long)]
    reset_corrupt_state: bool,
    /// Log lines: text or json
    #[arg(long, env = "SLUICE_LOG_FORMAT", default_value = "text", value_name = "text|json",
          value_parser = log_format)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,sluice::server=debug
    #[arg(long, env = "SLUICE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

#[derive(Debug, clap::Subcommand)]
enum ServerCommand {
    /// Nodes that have joined
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// The join token
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Show whether the server is well
    Status {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, clap::Subcommand)]
enum NodeCommand {
    /// List nodes, what they enforce and when they were seen last
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Release a node's name: its certificate is refused from now on, and another machine may join
    /// under the name
    Remove { name: String },
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json".to_owned()),
    }
}

pub fn run(args: ServerArgs) -> CliResult {
    let socket = args.run_dir.join("server.sock");
    let client = Client::new(&socket);
    match args.command {
        None => serve(args.run, &socket),
        Some(ServerCommand::Node { command: NodeCommand::List { output } }) => list_nodes(&client, output),
        Some(ServerCommand::Node { command: NodeCommand::Remove { name } }) => block_on(async {
            let path = format!("/v1/nodes/{}", encode(&name));
            client.delete::<serde_json::Value>(&path).await?;
            anstream::println!("node {} removed", print::plain(&name));
            Ok(Exit::Done)
        }),
        Some(ServerCommand::Token { command }) => token::run(&client, &command),
        Some(ServerCommand::Status { output }) => status(&client, output),
    }
}

/// A member of an answer as text for a table.
fn cell(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        serde_json::Value::Object(members) => members
            .iter()
            .map(|(name, value)| format!("{name}={}", cell(value)))
            .collect::<Vec<_>>()
            .join(" "),
        value => value.to_string(),
    }
}

fn list_nodes(client: &Client, output: Output) -> CliResult {
    let nodes: Vec<serde_json::Value> = block_on(async { Ok(client.get("/v1/nodes").await?) })?;
    let members = ["name", "addresses", "realizedRevision", "lastSeen", "joined", "version"];
    let rows = nodes.iter().map(|node| members.iter().map(|member| cell(&node[*member])).collect());
    let headings = ["name", "addresses", "revision", "last seen", "joined", "version"];
    print::rows(output, &nodes, &headings, rows)?;
    Ok(Exit::Done)
}

fn status(client: &Client, output: Output) -> CliResult {
    let status: serde_json::Map<String, serde_json::Value> =
        block_on(async { Ok(client.get("/v1/status").await?) })?;
    let rows = status.iter().map(|(name, value)| vec![name.clone(), cell(value)]);
    print::rows(output, &status, &["what", "value"], rows)?;
    let is_well = status.get("health").is_some_and(|health| health == "ok");
    Ok(if is_well { Exit::Done } else { Exit::Negative })
}

fn serve(args: RunArgs, socket: &std::path::Path) -> CliResult {
    logs::init(args.log_format, &args.log).map_err(|error| CliError::Invalid(error.to_string()))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let advertise = args.advertise.unwrap_or_else(|| advertised(args.listen));
    let config = ServerConfig {
        state_dir: args.state_dir,
        cluster_name: args.cluster_name,
        advertise: advertise.clone(),
        on_corrupt: if args.reset_corrupt_state { OnCorrupt::StartFresh } else { OnCorrupt::Refuse },
        view: ViewOptions { missing_namespaces: MissingNamespaces::Exist, ..ViewOptions::default() },
    };
    let options = ParseOptions { empty_rule_lists: args.empty_rule_lists, ..ParseOptions::default() };
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        // What is in use elsewhere is found before anything is opened or made.
        let agents =
            TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
        let admin = unix::bind(socket).await.map_err(anyhow::Error::from)?;
        let parser = Arc::new(Manifests { options });
        let server = tokio::task::spawn_blocking(move || Server::open(config, parser, system_clock()))
            .await
            .map_err(anyhow::Error::from)?
            .map_err(anyhow::Error::from)?;
        tracing::info!(
            listen = %args.listen,
            "ready; nodes join with: sluice agent --server https://{advertise} --token-file {}",
            server.token_file().display()
        );
        // Without systemd there is nobody to tell.
        sd_notify::notify(false, &[sd_notify::NotifyState::Ready]).ok();
        server.serve(agents, admin, stop).await.map_err(anyhow::Error::from)?;
        tracing::info!("stopped");
        Ok(Exit::Done)
    })
}

/// What other machines call this one: nobody reaches `0.0.0.0` from elsewhere.
fn advertised(listen: SocketAddr) -> String {
    match nix::sys::utsname::uname() {
        Ok(name) if listen.ip().is_unspecified() => {
            format!("{}:{}", name.nodename().to_string_lossy(), listen.port())
        }
        _ => listen.to_string(),
    }
}

/// Cancelled by SIGINT and SIGTERM.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let cancelled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        server: ServerArgs,
    }

    #[test]
    fn the_run_directory_is_understood_before_and_after_a_subcommand() {
        for line in [
            &["x", "--run-dir", "/r", "node", "list"][..],
            &["x", "node", "list", "--run-dir", "/r"],
            &["x", "token", "rotate", "--run-dir", "/r"],
        ] {
            assert_eq!(Line::try_parse_from(line).unwrap().server.run_dir, PathBuf::from("/r"), "{line:?}");
        }
    }

    #[test]
    fn nodes_are_not_told_to_join_an_address_that_is_every_address() {
        assert_eq!(advertised("192.0.2.1:7443".parse().unwrap()), "192.0.2.1:7443");
        for every in ["0.0.0.0:7443", "[::]:7443"] {
            let told = advertised(every.parse().unwrap());
            assert!(told.ends_with(":7443") && told != every && told.len() > ":7443".len(), "{told}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            &["x", "--listen", "nowhere"][..],
            &["x", "--empty-rule-lists", "maybe"],
            &["x", "--log-format", "xml"],
            &["x", "node", "remove"],
        ] {
            assert!(Line::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
