//! `sluice policy lint`: the traps in policies that load, with line, explanation and what to write instead.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::choices::{empty_rule_lists, enforcement};
use super::manifests::manifest_paths;
use super::print::Output;
use super::{CliResult, Exit};
use crate::k8s::{self, EmptyRuleLists, ParseOptions};
use crate::policy::engine::Enforcement;

#[derive(Debug, clap::Args)]
pub struct LintArgs {
    /// Manifests, and directories that are searched for *.yaml, *.yml and *.json
    #[arg(required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// As the agents have it: what `ingress: []` of a Cilium policy does
    #[arg(long, env = "SLUICE_EMPTY_RULE_LISTS", default_value = "deny", value_name = "deny|ignore",
          value_parser = empty_rule_lists)]
    empty_rule_lists: EmptyRuleLists,
    /// As the agents have it: where default deny is on
    #[arg(long, env = "SLUICE_POLICY_ENFORCEMENT", default_value = "default",
          value_name = "default|always|never", value_parser = enforcement)]
    policy_enforcement: Enforcement,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Exit code 1 when a trap was found, 2 when an object is invalid.
pub fn run(args: LintArgs) -> CliResult {
    let (mut found, mut invalid) = (Vec::new(), false);
    let options = ParseOptions { empty_rule_lists: args.empty_rule_lists, ..ParseOptions::default() };
    for file in &args.files {
        for path in manifest_paths(file)? {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
            let manifest = k8s::parse(&name, &text, &options);
            for problem in
                manifest.problems.iter().chain(manifest.warnings()).filter(|problem| problem.code.is_none())
            {
                anstream::eprintln!("{problem}");
            }
            invalid |= !manifest.is_valid();
            found.extend(k8s::traps(&manifest, args.policy_enforcement));
        }
    }
    match args.output {
        Output::Table => {
            for trap in &found {
                anstream::println!("{trap}");
            }
            if found.is_empty() && !invalid {
                anstream::println!("nothing found");
            }
        }
        Output::Json => {
            let rows: Vec<_> = found
                .iter()
                .map(|trap| {
                    json!({
                        "file": &*trap.position.file, "line": trap.position.line, "column": trap.position.column,
                        "code": trap.code, "severity": trap.code.severity().to_string(), "object": trap.object,
                        "path": trap.field_path, "explanation": trap.code.explanation(), "detail": trap.detail,
                        "fix": trap.code.fix(),
                    })
                })
                .collect();
            anstream::println!("{}", serde_json::to_string_pretty(&rows).map_err(anyhow::Error::from)?);
        }
    }
    Ok(match (invalid, found.is_empty()) {
        (true, _) => Exit::Invalid,
        (false, false) => Exit::Negative,
        (false, true) => Exit::Done,
    })
}
