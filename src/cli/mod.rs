//! Arguments in, an exit code out: parses, calls one room, prints.
//!
//! Exit codes (documented in `docs/cli.md`): 0 done; 1 the answer is no (a test failed, a check
//! found a problem, the thing asked for is not there); 2 the input is invalid or the command line
//! is wrong; 3 the agent or server cannot be reached; 4 not permitted.

mod agent;
mod choices;
mod connect;
mod dns_proxy;
mod endpoint;
mod flow_server;
mod http_proxy;
mod lab;
mod lint;
mod logs;
mod manifests;
mod objects;
mod observe;
mod policy_test;
mod preflight;
mod print;
mod relay;
mod server;
mod status;
mod style;
mod tables;
mod token;
mod top;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// What a command ends with.
pub type CliResult = Result<Exit, CliError>;

/// The ordinary ends of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// The answer is no.
    Negative,
    /// Invalid input; every problem has been printed.
    Invalid,
}

/// A failure, with the exit code that scripts may rely on.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    NotPermitted(String),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            CliError::Failed(_) => 1,
            CliError::Invalid(_) => 2,
            CliError::Unreachable(_) => 3,
            CliError::NotPermitted(_) => 4,
        }
    }
}

/// Zero-trust pod networking in one binary.
#[derive(Debug, Parser)]
#[command(name = "sluice", version = version(), about, help_template = style::TEMPLATE, after_help = style::TOUR,
          disable_help_subcommand = true, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node's agent
    Agent(Box<agent::AgentArgs>),
    /// Manage and test policies
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Check whether this machine is fit to run an agent
    Preflight(preflight::PreflightArgs),
    /// Show whether the agent is well
    Status(status::StatusArgs),
    /// Local pods under policy
    Endpoint(endpoint::EndpointArgs),
    /// Security identities
    Identity(tables::IdentityArgs),
    /// Addresses and their identities
    Ipcache(tables::ListArgs),
    /// Names that pods looked up, and the addresses that they were given
    Fqdn(tables::ListArgs),
    /// Service frontends and backends
    Service(tables::ListArgs),
    /// What is really in the kernel
    Bpf(tables::BpfArgs),
    /// Print flows, from memory or as they come
    Observe(Box<observe::ObserveArgs>),
    /// Print drops and verdicts as they come
    Monitor(observe::MonitorArgs),
    /// Watch who talks to whom, full screen
    Top(Box<top::TopArgs>),
    /// Nodes whose flows an agent or a relay shows
    Nodes(observe::NodesArgs),
    /// Join the flows of all nodes and serve them as one
    Relay(Box<relay::RelayArgs>),
    /// Run the HTTP and TLS-SNI proxy; the agent starts it
    HttpProxy(Box<http_proxy::HttpProxyArgs>),
    /// Print where the web UI is
    Ui(ui::UiArgs),
    /// A whole cluster in network namespaces on this machine
    Lab(lab::LabArgs),
    /// Run the server of a small cluster, or manage its nodes and token
    Server(Box<server::ServerArgs>),
    /// The DNS proxy of a node; started by its agent
    #[command(hide = true)]
    DnsProxy(dns_proxy::DnsProxyArgs),
    /// Print a shell completion script
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    Manpages { directory: std::path::PathBuf },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Apply manifests: all of them, or nothing
    Apply(objects::ApplyArgs),
    /// List policies, or print one
    Get(objects::GetArgs),
    /// Delete an object
    Delete(objects::DeleteArgs),
    /// Say what happens to a connection, and why
    Explain(objects::ExplainArgs),
    /// Find traps in policies that load
    Lint(lint::LintArgs),
    /// Judge scenario files offline, without root
    Test(policy_test::TestArgs),
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(observe::filters::fold_not(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // Nothing can be done about a closed terminal.
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    match run(cli.command) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Negative) => ExitCode::from(1),
        Ok(Exit::Invalid) => ExitCode::from(2),
        Err(error) => {
            anstream::eprintln!("{}error:{} {error}", style::ERROR, style::RESET);
            ExitCode::from(error.code())
        }
    }
}

fn run(command: Command) -> CliResult {
    match command {
        Command::Agent(args) => agent::run(*args),
        Command::HttpProxy(args) => http_proxy::run(*args),
        Command::Policy { command } => match command {
            PolicyCommand::Apply(args) => objects::apply(args),
            PolicyCommand::Get(args) => objects::get(args),
            PolicyCommand::Delete(args) => objects::delete(args),
            PolicyCommand::Explain(args) => objects::explain(args),
            PolicyCommand::Lint(args) => lint::run(args),
            PolicyCommand::Test(args) => policy_test::run(args),
        },
        Command::Preflight(args) => preflight::run(args),
        Command::Status(args) => status::run(args),
        Command::Endpoint(args) => endpoint::run(args),
        Command::Identity(args) => tables::identity(args),
        Command::Ipcache(args) => tables::ipcache(args),
        Command::Fqdn(args) => tables::fqdn(args),
        Command::Service(args) => tables::service(args),
        Command::Bpf(args) => tables::bpf(args),
        Command::Observe(args) => observe::observe(*args),
        Command::Monitor(args) => observe::monitor(args),
        Command::Ui(args) => ui::run(args),
        Command::Top(args) => top::run(*args),
        Command::Nodes(args) => observe::nodes(args),
        Command::Relay(args) => relay::run(*args),
        Command::Lab(args) => lab::run(args),
        Command::Server(args) => server::run(*args),
        Command::DnsProxy(args) => dns_proxy::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut std::io::stdout());
            Ok(Exit::Done)
        }
        Command::Manpages { directory } => manpages(&directory),
    }
}

fn manpages(directory: &std::path::Path) -> CliResult {
    use anyhow::Context as _;
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("write man pages into {}", directory.display()))?;
    Ok(Exit::Done)
}

/// `0.1.0 (commit 0123456789ab, BPF ABI 1)`.
fn version() -> String {
    format!(
        "{} (commit {}, BPF ABI {})",
        env!("CARGO_PKG_VERSION"),
        env!("SLUICE_COMMIT"),
        crate::datapath::abi::ABI_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_tour_names_every_command() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let line = format!("\n  {} ", command.get_name());
            assert!(style::TOUR.contains(&line), "`sluice --help` does not mention {}", command.get_name());
        }
    }
}
