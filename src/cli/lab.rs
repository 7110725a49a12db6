//! `sluice lab`: a whole cluster in network namespaces on this machine.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::policy_test::{ScenarioArgs, read_file};
use super::print::{self, Output};
use super::{CliError, CliResult, Exit};
use crate::api::client::Client;
use crate::api::types::Status;
use crate::lab::LabError;
use crate::lab::control::{ControlError, agent_socket};
use crate::lab::fabric::State;
use crate::lab::links::PodRoutes;
use crate::lab::scenario::cluster::Cluster;
use crate::lab::session::{Mode, Session};
use crate::lab::state::{self, StateDir};
use crate::lab::topology::Site;
use crate::lab::ui::Page;
use crate::lab::{exec, relay, runner, scenario, ui as pages, workload};

/// Started when no file is given.
const DEFAULT_CLUSTER: &str = include_str!("../../assets/lab/cluster.yaml");

#[derive(Debug, clap::Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, clap::Subcommand)]
enum LabCommand {
    /// Start a cluster and leave it running
    Up(UpArgs),
    /// Remove a lab and everything in it
    Down(DownArgs),
    /// Show nodes, pods and the agents' health
    Status(StatusArgs),
    /// Run a program inside a pod
    Exec(ExecArgs),
    /// Serve the web UIs of a lab's agents and of its relay on this machine's loopback, until interrupted
    Ui(UiArgs),
    /// Run scenario files with real traffic
    Test(TestArgs),
    #[command(hide = true)]
    Workload { name: String },
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// Scenario or manifest file whose cluster is started [default: a small shop]
    file: Option<PathBuf>,
    /// Name of the lab; labs with different names run side by side
    #[arg(long, default_value = "lab")]
    name: String,
    /// Plain routing without agents: everything is allowed
    #[arg(long, hide = true)]
    no_agent: bool,
}

#[derive(Debug, clap::Args)]
struct DownArgs {
    /// Name of the lab
    #[arg(default_value = "lab")]
    name: String,
    /// Every lab on this machine, with what crashed ones left behind
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// Name of the lab
    #[arg(default_value = "lab")]
    name: String,
    /// table or json
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// Name of the lab
    #[arg(long, default_value = "lab")]
    name: String,
    /// namespace/pod, node:NAME or external:NAME
    site: String,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct UiArgs {
    /// Name of the lab
    #[arg(default_value = "lab")]
    name: String,
    /// Loopback address and port of the first node's page; those of the other nodes and of the relay are on the next
    /// ports
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:4246")]
    listen: std::net::SocketAddr,
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    #[command(flatten)]
    scenarios: ScenarioArgs,
    /// Plain routing without agents: only what has to be allowed is judged
    #[arg(long, hide = true)]
    no_agent: bool,
}

impl From<LabError> for CliError {
    fn from(error: LabError) -> CliError {
        match &error {
            LabError::Name(_) | LabError::Topology(_) => CliError::Invalid(error.to_string()),
            LabError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                CliError::NotPermitted(format!("{error}; the lab needs root"))
            }
            _ => CliError::Failed(anyhow::anyhow!(error.to_string())),
        }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> CliError {
        match error {
            ControlError::Lab(error) => error.into(),
            ControlError::Api(error) => error.into(),
            other => CliError::Failed(anyhow::anyhow!(other.to_string())),
        }
    }
}

/// Runs a lab command.
pub fn run(args: LabArgs) -> CliResult {
    match args.command {
        LabCommand::Up(args) => up(&args),
        LabCommand::Down(args) => down(&args),
        LabCommand::Status(args) => status(&args),
        LabCommand::Exec(args) => {
            let site = Site::parse(&args.site).ok_or_else(|| {
                CliError::Invalid(format!(
                    "{}: expected namespace/pod, node:NAME or external:NAME",
                    args.site
                ))
            })?;
            match exec::exec(&args.name, &site, &args.program)? {}
        }
        LabCommand::Ui(args) => ui(&args),
        LabCommand::Test(args) => test(&args),
        LabCommand::Workload { name } => {
            runtime()?.block_on(workload::serve(&name))?;
            Ok(Exit::Done)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn mode(no_agent: bool) -> anyhow::Result<Mode> {
    if no_agent {
        return Ok(Mode::Open);
    }
    Ok(Mode::Enforced { program: std::env::current_exe().context("find the sluice executable")? })
}

/// Runs `work` until it ends or the user interrupts, and removes the lab after an interruption.
async fn until_interrupted<T>(
    lab: &str,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    tokio::select! {
        result = work => return result,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    remove_leftovers(lab)?;
    Err(CliError::Failed(anyhow::anyhow!("interrupted; the lab is removed")))
}

fn up(args: &UpArgs) -> CliResult {
    let scenarios = match &args.file {
        Some(path) => match read_file(path)? {
            Some(scenarios) => scenarios,
            None => return Ok(Exit::Invalid),
        },
        None => scenario::read("the default cluster", DEFAULT_CLUSTER).scenarios,
    };
    let prepared = scenarios
        .first()
        .ok_or_else(|| CliError::Invalid("the file has no Scenario, so no cluster to start".to_owned()))?;
    let mode = mode(args.no_agent)?;
    let program = std::env::current_exe().context("find the sluice executable")?;
    runtime()?.block_on(until_interrupted(&args.name, async {
        let documents = &prepared.manifest.documents;
        let cluster = Cluster::new(&prepared.scenario, documents);
        let session =
            Session::start(&args.name, &mode, &prepared.scenario.options, &cluster, documents).await?;
        session.leave_running(&program).await?;
        Ok(())
    }))?;
    let pod = State::read(&args.name)?.topology.pods.first().map(|pod| pod.path()).unwrap_or_default();
    let directory = state::path_of(&args.name)?;
    anstream::println!("the lab `{}` is up", args.name);
    if relay::socket(&directory).exists() {
        anstream::println!("  sluice observe --follow --server {}", relay::address(&directory));
    }
    anstream::println!(
        "  sluice lab status {0}\n  sluice lab exec --name {0} {pod} -- PROGRAM\n  sluice lab ui {0}\n  sluice lab down {0}",
        args.name
    );
    Ok(Exit::Done)
}

fn down(args: &DownArgs) -> CliResult {
    let names = if args.all { state::list()? } else { vec![args.name.clone()] };
    for name in &names {
        StateDir::claim(name)?.remove()?;
        anstream::println!("removed the lab `{name}`");
    }
    if names.is_empty() {
        anstream::println!("there is no lab");
    }
    Ok(Exit::Done)
}

fn status(args: &StatusArgs) -> CliResult {
    let state = State::read(&args.name)?;
    let directory = state::path_of(&args.name)?;
    let addresses = |list: &[std::net::IpAddr]| -> String {
        list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut health = Exit::Done;
    let runtime = runtime()?;
    for node in &state.topology.nodes {
        let said = match state.routes {
            PodRoutes::FromAnywhere => "no agent".to_owned(),
            PodRoutes::FromExternals => {
                let client = Client::new(&agent_socket(&directory, &node.name));
                match runtime.block_on(client.get::<Status>("/v1/status")) {
                    Ok(status) => format!("{}, revision {}", status.health, status.revision.realized),
                    Err(error) => {
                        health = Exit::Negative;
                        error.to_string()
                    }
                }
            }
        };
        rows.push(vec!["node".into(), node.name.clone(), String::new(), addresses(&node.addresses), said]);
    }
    if relay::socket(&directory).exists() {
        let said = match runtime.block_on(relay::status(&directory)) {
            Ok(said) => format!("{} of {} nodes answer", relay::connected(&said), state.topology.nodes.len()),
            Err(error) => {
                health = Exit::Negative;
                error
            }
        };
        rows.push(vec!["relay".into(), String::new(), String::new(), relay::address(&directory), said]);
    }
    for pod in &state.topology.pods {
        let kind = if pod.host_network { "host pod" } else { "pod" };
        rows.push(vec![kind.into(), pod.path(), pod.node.clone(), addresses(&pod.addresses), String::new()]);
    }
    for external in &state.topology.externals {
        let names = external.names.join(" ");
        rows.push(vec![
            "external".into(),
            external.name.clone(),
            String::new(),
            addresses(&external.addresses),
            names,
        ]);
    }
    print::rows(args.output, &state.topology, &["kind", "name", "node", "addresses", "state"], rows)?;
    Ok(health)
}

/// The agents' pages, one after the other, and the relay's; the lab is left as it is.
fn ui(args: &UiArgs) -> CliResult {
    if !args.listen.ip().is_loopback() {
        return Err(CliError::Invalid(format!("{}: a lab's pages are served on loopback only", args.listen)));
    }
    let state = State::read(&args.name)?;
    let directory = state::path_of(&args.name)?;
    runtime()?.block_on(serve_ui(args, &state, &directory))
}

async fn serve_ui(args: &UiArgs, state: &State, directory: &std::path::Path) -> CliResult {
    let nodes =
        state.topology.nodes.iter().map(|node| (&*node.name, Site::Node(node.name.clone()), Page::Agent));
    let relay = relay::socket(directory).exists().then_some(("relay", Site::Fabric, Page::Relay));
    let mut carried = Vec::new();
    for (index, (name, site, page)) in (0..).zip(nodes.chain(relay)) {
        let listener = pages::listen(args.listen, index)
            .await
            .with_context(|| format!("listen near {} for the page of {name}", args.listen))?;
        let address = listener.local_addr().context("read the address")?;
        anstream::println!("{name}  http://{address}/");
        carried.push(pages::carry(listener, page, state::netns(directory, &site)));
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    tokio::select! {
        ended = futures::future::try_join_all(carried) => {
            ended.context("accept a browser's connection")?;
        }
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(Exit::Done)
}

fn test(args: &TestArgs) -> CliResult {
    let (scenarios, mut results) = args.scenarios.read()?;
    let mode = mode(args.no_agent)?;
    let lab = format!("test-{}", std::process::id());
    runtime()?.block_on(until_interrupted(&lab, async {
        for (file, prepared) in &scenarios {
            results.add(&args.scenarios, runner::run(file, prepared, &lab, &mode).await);
            remove_leftovers(&lab)?;
        }
        Ok(())
    }))?;
    args.scenarios.finish(&results)
}

/// A lab whose run broke may still be there.
fn remove_leftovers(lab: &str) -> Result<(), CliError> {
    match StateDir::claim(lab) {
        Ok(directory) => Ok(directory.remove()?),
        Err(LabError::Absent(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
