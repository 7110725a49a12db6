//! `sluice policy test`: judges scenario files offline, without root.
//!
//! Exit codes: 0 every step passed (or was skipped), 1 a step failed, 2 a file is invalid. Problems
//! go to standard error, results to standard output.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::print::Output;
use super::{CliError, CliResult, Exit};
use crate::lab::judge;
use crate::lab::report::{self, ScenarioResult, Totals};
use crate::lab::scenario;

#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// Scenario files, and directories that are searched for *.yaml and *.yml
    #[arg(required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Write a JUnit XML report, too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub fn run(args: TestArgs) -> CliResult {
    let mut results = Vec::new();
    let mut invalid = false;
    for path in scenario_paths(&args.files)? {
        match judge_file(&path)? {
            Some(scenarios) => {
                if args.output == Output::Table {
                    scenarios.iter().for_each(print_lines);
                }
                results.extend(scenarios);
            }
            None => invalid = true,
        }
    }
    if let Some(path) = &args.junit {
        std::fs::write(path, report::junit(&results)).with_context(|| format!("write {}", path.display()))?;
    }
    let totals = Totals::of(&results);
    match args.output {
        Output::Json => anstream::println!("{}", report::json(&results).context("encode the report")?),
        Output::Table => anstream::println!("{totals}"),
    }
    Ok(if invalid {
        Exit::Invalid
    } else if totals.failed > 0 {
        Exit::Negative
    } else {
        Exit::Done
    })
}

fn print_lines(scenario: &ScenarioResult) {
    anstream::println!("{}", scenario.heading());
    for step in &scenario.steps {
        anstream::println!("{}", step.line());
    }
}

/// `None`: the file is invalid, and its problems have been printed.
fn judge_file(path: &Path) -> Result<Option<Vec<ScenarioResult>>, CliError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| format!("read {name}"))?;
    let Ok(text) = String::from_utf8(bytes) else {
        anstream::eprintln!("{name}: error: the file is not UTF-8 text");
        return Ok(None);
    };
    let file = scenario::read(&name, &text);
    for note in &file.notes {
        anstream::eprintln!("{note}");
    }
    for problem in file.warnings.iter().chain(&file.problems) {
        anstream::eprintln!("{problem}");
    }
    if !file.problems.is_empty() {
        return Ok(None);
    }
    let mut results = Vec::new();
    for prepared in &file.scenarios {
        match judge::run(&name, prepared) {
            Ok(result) => results.push(result),
            Err(refused) => {
                anstream::eprintln!("{refused}");
                return Ok(None);
            }
        }
    }
    Ok(Some(results))
}

/// The files that are named, and the YAML files below the directories, in order.
fn scenario_paths(given: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut paths = Vec::new();
    for path in given {
        if path.is_dir() {
            let before = paths.len();
            collect(path, &mut paths)?;
            if paths.len() == before {
                return Err(CliError::Invalid(format!(
                    "{}: no *.yaml or *.yml in this directory",
                    path.display()
                )));
            }
        } else if path.exists() {
            paths.push(path.clone());
        } else {
            return Err(CliError::Invalid(format!("{}: no such file or directory", path.display())));
        }
    }
    Ok(paths)
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let read = || format!("read the directory {}", directory.display());
    let entries = std::fs::read_dir(directory).with_context(read)?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().with_context(read)?;
    entries.sort();
    for path in entries {
        // A link to a directory could lead back up.
        if path.is_dir() && !path.is_symlink() {
            collect(&path, paths)?;
        } else if path.is_file() && path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
            paths.push(path);
        }
    }
    Ok(())
}
