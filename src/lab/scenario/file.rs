//! A file: its objects once for each of its Scenarios, because a Scenario's options say how
//! objects are read.

use super::document::{API_VERSION, KIND, read as read_scenario};
use super::{Options, Scenario};
use crate::k8s::{self, Manifest, Note, ParseOptions, Position, Problem, Severity};

/// A Scenario with the objects of its file.
#[derive(Debug)]
pub struct PreparedScenario {
    pub scenario: Scenario,
    pub manifest: Manifest,
}

/// What a text holds.
#[derive(Debug, Default)]
pub struct ScenarioFile {
    /// In the order of the text.
    pub scenarios: Vec<PreparedScenario>,
    pub notes: Vec<Note>,
    pub warnings: Vec<Problem>,
    /// Not empty: the file is invalid, and nothing of it is run.
    pub problems: Vec<Problem>,
}

/// How the objects of a scenario are read.
pub fn parse_options(options: &Options) -> ParseOptions {
    ParseOptions { empty_rule_lists: options.empty_rule_lists, ..ParseOptions::default() }
}

/// Reads a text. `file` is the name that positions carry.
pub fn read(file: &str, text: &str) -> ScenarioFile {
    let first = k8s::parse(file, text, &ParseOptions::default());
    let mut found = ScenarioFile { notes: first.skipped.clone(), ..ScenarioFile::default() };
    for other in &first.others {
        if (other.api_version.as_str(), other.kind.as_str()) != (API_VERSION, KIND) {
            found.problems.push(Problem {
                position: other.position.clone(),
                severity: Severity::Error,
                object: None,
                code: None,
                field_path: String::new(),
                message: format!(
                    "found {:?} {:?}, expected {API_VERSION} {KIND}",
                    other.api_version, other.kind
                ),
            });
            continue;
        }
        match read_scenario(other) {
            Ok(scenario) => {
                let manifest = k8s::parse(file, text, &parse_options(&scenario.options));
                add_new(&mut found.problems, &manifest.problems);
                let warnings: Vec<Problem> = manifest.warnings().cloned().collect();
                add_new(&mut found.warnings, &warnings);
                found.scenarios.push(PreparedScenario { scenario, manifest });
            }
            Err(problems) => found.problems.extend(problems),
        }
    }
    if found.scenarios.is_empty() {
        add_new(&mut found.problems, &first.problems);
        if found.problems.is_empty() {
            let position = Position { file: file.into(), line: 1, column: 1 };
            let message = "no Scenario in this file: nothing is run".to_owned();
            found.notes.push(Note { position, message });
        }
    }
    found.problems.sort_by(|a, b| a.position.cmp(&b.position));
    if !found.problems.is_empty() {
        found.scenarios.clear();
    }
    found
}

fn add_new(problems: &mut Vec<Problem>, more: &[Problem]) {
    for problem in more {
        if !problems.contains(problem) {
            problems.push(problem.clone());
        }
    }
}
