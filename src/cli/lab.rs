//! `sluice lab`: a whole cluster in network namespaces on this machine.

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::print::{self, Output};
use super::{CliError, CliResult, Exit};
use crate::api::client::Client;
use crate::api::types::Status;
use crate::lab::LabError;
use crate::lab::control::{ControlError, agent_socket};
use crate::lab::fabric::State;
use crate::lab::links::PodRoutes;
use crate::lab::runner::{Ending, RunError, StepReport};
use crate::lab::scenario::cluster::Cluster;
use crate::lab::scenario::{PreparedScenario, ScenarioFile, read};
use crate::lab::session::{Mode, Session};
use crate::lab::state::{self, StateDir};
use crate::lab::topology::Site;
use crate::lab::{exec, runner, workload};

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
struct TestArgs {
    /// Scenario files, or directories of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
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
    match StateDir::claim(lab) {
        Ok(directory) => directory.remove()?,
        Err(LabError::Absent(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Err(CliError::Failed(anyhow::anyhow!("interrupted; the lab is removed")))
}

fn up(args: &UpArgs) -> CliResult {
    let (file, text) = match &args.file {
        None => ("the default cluster".to_owned(), DEFAULT_CLUSTER.to_owned()),
        Some(path) => (path.display().to_string(), read_text(path)?),
    };
    let scenarios = scenarios_of(&file, &text)?;
    let prepared = scenarios
        .first()
        .ok_or_else(|| CliError::Invalid(format!("{file}: no Scenario, so no cluster to start")))?;
    let mode = mode(args.no_agent)?;
    let program = std::env::current_exe().context("find the sluice executable")?;
    runtime()?.block_on(until_interrupted(&args.name, async {
        let documents = &prepared.manifest.documents;
        let cluster = Cluster::new(&prepared.scenario, documents);
        let session =
            Session::start(&args.name, &mode, &prepared.scenario.options, &cluster, documents).await?;
        session.leave_running(&program)?;
        Ok(())
    }))?;
    let pod = State::read(&args.name)?.topology.pods.first().map(|pod| pod.path()).unwrap_or_default();
    anstream::println!(
        "the lab `{0}` is up\n  sluice lab status {0}\n  sluice lab exec --name {0} {pod} -- PROGRAM\n  sluice lab down {0}",
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

fn read_text(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|e| CliError::Invalid(format!("{}: {e}", path.display())))
}

/// The scenarios of a text; every problem is printed.
fn scenarios_of(file: &str, text: &str) -> Result<Vec<PreparedScenario>, CliError> {
    let ScenarioFile { scenarios, notes, warnings, problems } = read(file, text);
    for note in notes {
        anstream::eprintln!("{}", print::plain(&format!("{note:?}")));
    }
    for warning in warnings {
        anstream::eprintln!("{}", print::plain(&warning.to_string()));
    }
    if problems.is_empty() {
        return Ok(scenarios);
    }
    let problems: Vec<String> = problems.iter().map(|problem| print::plain(&problem.to_string())).collect();
    Err(CliError::Invalid(problems.join("\n")))
}

/// YAML files below the paths, sorted.
fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found: Vec<PathBuf> = std::fs::read_dir(path)
            .with_context(|| format!("read {}", path.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "yaml" || e == "yml"))
            .collect();
        found.sort();
        files.extend(files_of(&found)?);
    }
    Ok(files)
}

fn test(args: &TestArgs) -> CliResult {
    let mut prepared = Vec::new();
    for path in files_of(&args.paths)? {
        let file = path.display().to_string();
        prepared.extend(
            scenarios_of(&file, &read_text(&path)?)?.into_iter().map(|scenario| (file.clone(), scenario)),
        );
    }
    let mode = mode(args.no_agent)?;
    let lab = format!("test-{}", std::process::id());
    let mut counts = [0usize; 3];
    runtime()?.block_on(until_interrupted(&lab, async {
        for (file, prepared) in &prepared {
            for family in &prepared.scenario.options.families {
                anstream::println!("{file}: {} ({family:?})", prepared.scenario.name);
                let result =
                    runner::run(prepared, *family, &lab, &mode, |report| count(file, &report, &mut counts))
                        .await;
                if let Err(error) = result {
                    counts[1] += 1;
                    anstream::println!("  FAIL the run ended: {error}");
                    clean(&lab, &error)?;
                }
            }
        }
        Ok(())
    }))?;
    let [passed, failed, skipped] = counts;
    anstream::println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed > 0 { Exit::Negative } else { Exit::Done })
}

/// A run that ended early may have left its lab.
fn clean(lab: &str, error: &RunError) -> Result<(), CliError> {
    match StateDir::claim(lab) {
        Ok(directory) => Ok(directory.remove()?),
        Err(LabError::Absent(_)) => Ok(()),
        Err(other) => Err(CliError::Failed(anyhow::anyhow!("{error}; then {other}"))),
    }
}

fn count(file: &str, report: &StepReport, counts: &mut [usize; 3]) {
    let StepReport { title, line, .. } = report;
    let title = print::plain(title);
    match &report.ending {
        Ending::Passed => {
            counts[0] += 1;
            anstream::println!("  ok   {title}");
        }
        Ending::Failed { expected, got } => {
            counts[1] += 1;
            anstream::println!("  FAIL {file}:{line} {title}: expected {expected}, got {got}");
        }
        Ending::Skipped { reason } => {
            counts[2] += 1;
            anstream::println!("  skip {title}: {reason}");
        }
        Ending::Done => anstream::println!("       {title}"),
        Ending::OtherFamily => {}
    }
}
