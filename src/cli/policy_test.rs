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
use crate::lab::scenario::{self, PreparedScenario};

#[derive(Debug, clap::Args)]
pub struct TestArgs {
    #[command(flatten)]
    scenarios: ScenarioArgs,
}

/// Which scenarios, and how their results are reported: the same for both judges.
#[derive(Debug, clap::Args)]
pub struct ScenarioArgs {
    /// Scenario files, and directories that are searched for *.yaml and *.yml
    #[arg(required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Write a JUnit XML report, too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// Results as they come, and what they amount to.
#[derive(Debug, Default)]
pub struct Results {
    scenarios: Vec<ScenarioResult>,
    invalid: bool,
}

pub fn run(args: TestArgs) -> CliResult {
    let (scenarios, mut results) = args.scenarios.read()?;
    for (file, prepared) in &scenarios {
        match judge::run(file, prepared) {
            Ok(result) => results.add(&args.scenarios, result),
            Err(refused) => {
                anstream::eprintln!("{refused}");
                results.invalid = true;
            }
        }
    }
    args.scenarios.finish(&results)
}

impl ScenarioArgs {
    /// The scenarios of every valid file with the file's name; problems are printed.
    pub fn read(&self) -> Result<(Vec<(String, PreparedScenario)>, Results), CliError> {
        let (mut scenarios, mut results) = (Vec::new(), Results::default());
        for path in scenario_paths(&self.files)? {
            match read_file(&path)? {
                Some(found) => {
                    scenarios.extend(found.into_iter().map(|found| (path.display().to_string(), found)));
                }
                None => results.invalid = true,
            }
        }
        Ok((scenarios, results))
    }

    /// Closing line, reports and exit code.
    pub fn finish(&self, results: &Results) -> CliResult {
        if let Some(path) = &self.junit {
            let xml = report::junit(&results.scenarios);
            std::fs::write(path, xml).with_context(|| format!("write {}", path.display()))?;
        }
        let totals = Totals::of(&results.scenarios);
        match self.output {
            Output::Json => {
                anstream::println!("{}", report::json(&results.scenarios).context("encode the report")?);
            }
            Output::Table => anstream::println!("{totals}"),
        }
        Ok(if results.invalid {
            Exit::Invalid
        } else if totals.failed > 0 {
            Exit::Negative
        } else {
            Exit::Done
        })
    }
}

impl Results {
    /// Takes a result in, and prints it unless a program reads the output.
    pub fn add(&mut self, args: &ScenarioArgs, scenario: ScenarioResult) {
        if args.output == Output::Table {
            anstream::println!("{}", scenario.heading());
            for step in &scenario.steps {
                anstream::println!("{}", step.line());
            }
        }
        self.scenarios.push(scenario);
    }
}

/// `None`: the file is invalid, and its problems have been printed.
pub fn read_file(path: &Path) -> Result<Option<Vec<PreparedScenario>>, CliError> {
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
    Ok(file.problems.is_empty().then_some(file.scenarios))
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
