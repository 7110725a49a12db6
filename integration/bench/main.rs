//! Benchmarks with bars: `scripts/bench`. Never part of the tests: figures depend on the machine.
//!
//! Every alternative is measured in one invocation, a run of each in turn, so that what the machine
//! does besides hits all of them; compared are the medians of the ratios of neighbouring runs.

mod agent;
mod cluster;
mod datapath;
mod dns;
mod flows;
mod http;
mod load;
mod node;
mod place;
mod pods;
mod policy;
mod report;
mod stats;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use report::Report;

/// Measures sluice against its alternatives. Needs root.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure
    what: What,
    /// Where to write JSON [default: in the target directory]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Runs of each alternative
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// The binary to measure, such as the one that `scripts/bench size` builds [default: of the release profile]
    #[arg(long, value_name = "FILE")]
    program: Option<String>,
    /// `cargo bench` passes it
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// From policy text to what the kernel enforces; start and memory of the agent
    Policy,
    /// Latency and throughput between pods; the cost of a verdict
    Datapath,
    /// The HTTP proxy against nginx and haproxy
    Http,
    /// What observation costs and holds; history
    Flows,
    /// The cost of a verdict alone
    Verdict,
    /// The DNS proxy and learning names
    Dns,
    /// The shipped binary's size alone
    Size,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(program) = args.program {
        agent::choose(program);
    }
    let place = place::Place::enter()?;
    let mut report = Report::default();
    let rounds = args.rounds as usize;
    match args.what {
        What::Policy => policy::run(&place, rounds, &mut report)?,
        What::Datapath => datapath::run(&place, rounds, &mut report)?,
        What::Http => http::run(&place, rounds, &mut report)?,
        What::Flows => flows::run(&place, rounds, &mut report)?,
        What::Verdict => verdict::run(rounds, &mut report)?,
        What::Dns => dns::run(&place, rounds, &mut report)?,
        What::Size => policy::binary_size(&mut report)?,
    }
    let name = format!("{:?}", args.what).to_lowercase();
    let target = Path::new(agent::BUILT).parent().and_then(Path::parent);
    let default = || target.unwrap_or(Path::new(".")).join(format!("bench-{name}.json"));
    let output = args.output.unwrap_or_else(default);
    report.write(&output, &format!("scripts/bench {name}"))?;
    print!("{}", report.table());
    println!("\nmachine: {}\nwritten: {}", report::machine(), output.display());
    Ok(if report.missed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
