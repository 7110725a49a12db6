//! `lint:` of a scenario's `apply`, the same for both judges.

use std::collections::BTreeSet;

use super::report::Status;
use super::scenario::ExpectedTraps;
use crate::k8s;

/// Compares what the linter says about the objects of an `apply` with what is expected, as sets.
pub fn check(text: &str, expected: &ExpectedTraps) -> Status {
    let manifest = k8s::parse("apply", text, &expected.parse);
    let traps = k8s::traps(&manifest, expected.enforcement);
    let found: BTreeSet<&str> = traps.iter().map(|trap| trap.code.as_str()).collect();
    let wanted: BTreeSet<&str> = expected.codes.iter().map(String::as_str).collect();
    if found == wanted {
        return Status::Passed;
    }
    let list = |codes: BTreeSet<&str>| match codes.is_empty() {
        true => "no trap".to_owned(),
        false => codes.into_iter().collect::<Vec<_>>().join(", "),
    };
    let why: Vec<String> = traps.iter().map(ToString::to_string).collect();
    Status::Failed { expected: format!("lint {}", list(wanted)), got: list(found), because: why.join("; ") }
}
