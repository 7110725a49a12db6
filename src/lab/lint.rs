//! `lint:` of a scenario's `apply`, the same for both judges.

use std::collections::BTreeSet;

use super::report::Status;
use crate::k8s::{self, ParseOptions};

/// Compares what the linter says about the objects of an `apply` with what is expected, as sets.
pub fn check(text: &str, expected: &[String]) -> Status {
    let manifest = k8s::parse("apply", text, &ParseOptions::default());
    let traps = k8s::traps(&manifest);
    let found: BTreeSet<&str> = traps.iter().map(|trap| trap.code.as_str()).collect();
    if found == expected.iter().map(String::as_str).collect() {
        return Status::Passed;
    }
    let list = |codes: Vec<&str>| if codes.is_empty() { "no trap".to_owned() } else { codes.join(", ") };
    let why: Vec<String> = traps.iter().map(ToString::to_string).collect();
    Status::Failed {
        expected: format!("lint {}", list(expected.iter().map(String::as_str).collect())),
        got: list(found.into_iter().collect()),
        because: why.join("; "),
    }
}
