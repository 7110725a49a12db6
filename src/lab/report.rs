//! What came of scenarios: one result a step, as text, JSON and JUnit XML. PURE.
//!
//! The offline judge and the lab report in the same form, so that their outputs can be compared.

use std::fmt::Write as _;

use serde::Serialize;

use crate::k8s::Position;
use crate::model::Family;

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Passed,
    /// What was expected and what came instead.
    Failed {
        expected: String,
        got: String,
        because: String,
    },
    /// This judge cannot do what the step needs.
    Skipped {
        reason: String,
    },
}

/// One step in one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepResult {
    /// Position in the list of steps, from 1.
    pub number: usize,
    pub family: Family,
    /// What the step does, in one line.
    pub title: String,
    pub position: Position,
    pub status: Status,
}

/// One scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioResult {
    pub file: String,
    pub name: String,
    pub steps: Vec<StepResult>,
}

/// The closing line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Totals {
    pub fn of(results: &[ScenarioResult]) -> Totals {
        let mut totals = Totals::default();
        for step in results.iter().flat_map(|scenario| &scenario.steps) {
            match step.status {
                Status::Passed => totals.passed += 1,
                Status::Failed { .. } => totals.failed += 1,
                Status::Skipped { .. } => totals.skipped += 1,
            }
        }
        totals
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Without control characters: file content never reaches a terminal raw.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl StepResult {
    fn family(&self) -> &'static str {
        match self.family {
            Family::IPv4 => "IPv4",
            Family::IPv6 => "IPv6",
        }
    }

    /// `ok ...`, `FAIL ...` or `skip ...`.
    pub fn line(&self) -> String {
        let head = format!("{} {} {}", self.number, self.family(), printable(&self.title));
        match &self.status {
            Status::Passed => format!("ok   {head}"),
            Status::Failed { expected, got, because } => format!(
                "FAIL {head}: expected {}, got {}, because {} ({})",
                printable(expected),
                printable(got),
                printable(because),
                self.position
            ),
            Status::Skipped { reason } => format!("skip {head}: {}", printable(reason)),
        }
    }
}

impl ScenarioResult {
    pub fn heading(&self) -> String {
        format!("# {} ({})", printable(&self.name), printable(&self.file))
    }
}

#[derive(Serialize)]
struct JsonReport<'a> {
    scenarios: Vec<JsonScenario<'a>>,
    totals: Totals,
}

#[derive(Serialize)]
struct JsonScenario<'a> {
    file: &'a str,
    name: &'a str,
    steps: Vec<JsonStep<'a>>,
}

#[derive(Serialize)]
struct JsonStep<'a> {
    number: usize,
    family: &'static str,
    title: &'a str,
    line: u32,
    column: u32,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    got: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// One JSON object for a whole run.
pub fn json(results: &[ScenarioResult]) -> serde_json::Result<String> {
    let scenarios = results
        .iter()
        .map(|scenario| JsonScenario {
            file: &scenario.file,
            name: &scenario.name,
            steps: scenario.steps.iter().map(JsonStep::of).collect(),
        })
        .collect();
    serde_json::to_string_pretty(&JsonReport { scenarios, totals: Totals::of(results) })
}

impl JsonStep<'_> {
    fn of(step: &StepResult) -> JsonStep<'_> {
        let (status, expected, got, because, reason) = match &step.status {
            Status::Passed => ("passed", None, None, None, None),
            Status::Failed { expected, got, because } => {
                ("failed", Some(expected.as_str()), Some(got.as_str()), Some(because.as_str()), None)
            }
            Status::Skipped { reason } => ("skipped", None, None, None, Some(reason.as_str())),
        };
        JsonStep {
            number: step.number,
            family: step.family(),
            title: &step.title,
            line: step.position.line,
            column: step.position.column,
            status,
            expected,
            got,
            because,
            reason,
        }
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// JUnit XML: a suite for each scenario, a case for each step and family.
pub fn junit(results: &[ScenarioResult]) -> String {
    let totals = Totals::of(results);
    let count = |totals: Totals| {
        format!(
            "tests=\"{}\" failures=\"{}\" skipped=\"{}\"",
            totals.passed + totals.failed + totals.skipped,
            totals.failed,
            totals.skipped
        )
    };
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a String does not fail.
    let _ = writeln!(xml, "<testsuites {}>", count(totals));
    for scenario in results {
        let (name, file) = (escaped(&scenario.name), escaped(&scenario.file));
        let own = count(Totals::of(std::slice::from_ref(scenario)));
        let _ = writeln!(xml, "  <testsuite name=\"{name}\" file=\"{file}\" {own}>");
        for step in &scenario.steps {
            let title = escaped(&format!("{} {} {}", step.number, step.family(), step.title));
            let line = step.position.line;
            let _ = write!(
                xml,
                "    <testcase classname=\"{name}\" name=\"{title}\" file=\"{file}\" line=\"{line}\""
            );
            let _ = match &step.status {
                Status::Passed => writeln!(xml, "/>"),
                Status::Failed { expected, got, because } => {
                    let message = escaped(&format!("expected {expected}, got {got}, because {because}"));
                    writeln!(xml, "><failure message=\"{message}\"/></testcase>")
                }
                Status::Skipped { reason } => {
                    writeln!(xml, "><skipped message=\"{}\"/></testcase>", escaped(reason))
                }
            };
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Vec<ScenarioResult> {
        let step = |number, status| StepResult {
            number,
            family: Family::IPv4,
            title: "a/b -> \"c/d\" & <e>\u{1b}[31m".to_owned(),
            position: Position { file: "f.yaml".into(), line: 3, column: 5 },
            status,
        };
        let failed = Status::Failed { expected: "allowed".into(), got: "denied".into(), because: "x".into() };
        vec![ScenarioResult {
            file: "f.yaml".into(),
            name: "s".into(),
            steps: vec![
                step(1, Status::Passed),
                step(2, failed),
                step(3, Status::Skipped { reason: "no".into() }),
            ],
        }]
    }

    #[test]
    fn a_failure_says_what_was_expected_and_where() {
        let line = results()[0].steps[1].line();
        assert!(line.starts_with("FAIL 2 IPv4 a/b"), "{line}");
        assert!(line.ends_with("expected allowed, got denied, because x (f.yaml:3:5)"), "{line}");
        assert!(!line.contains('\u{1b}'));
        assert_eq!(Totals::of(&results()).to_string(), "1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn xml_and_json_are_well_formed() {
        let xml = junit(&results());
        assert!(
            xml.contains("&lt;e&gt;") && xml.contains("tests=\"3\" failures=\"1\" skipped=\"1\""),
            "{xml}"
        );
        let json: serde_json::Value = serde_json::from_str(&json(&results()).unwrap()).unwrap();
        assert_eq!(json["totals"]["failed"], 1);
        assert_eq!(json["scenarios"][0]["steps"][1]["status"], "failed");
    }
}
