//! Every scenario file is read, and every `apply` block is judged as the scenario expects.

use std::path::{Path, PathBuf};

use crate::k8s::tree::{Node, Value};
use crate::k8s::{Origin, ParseOptions, parse, parse_at};

pub(super) fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/scenarios");
    let mut files = Vec::new();
    for folder in ["l4", "l7"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            files.push(entry.unwrap().path());
        }
    }
    files.sort();
    assert!(files.len() >= 51, "{} scenario files", files.len());
    files
}

fn steps(scenario: &Node) -> &[Node] {
    match &scenario.get("spec").and_then(|spec| spec.get("steps")).unwrap().value {
        Value::Sequence(steps) => steps,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_scenario_file_is_read_without_problems() {
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let manifest = parse(&file.display().to_string(), &text, &ParseOptions::default());
        assert!(manifest.is_valid(), "{:#?}", manifest.problems);
        assert!(manifest.skipped.is_empty(), "{:#?}", manifest.skipped);
        assert_eq!(manifest.others.len(), 1, "{}", file.display());
        assert_eq!(manifest.others[0].kind, "Scenario");
        assert_eq!(manifest.others[0].api_version, "sluice.dev/v1alpha1");
    }
}

#[test]
fn apply_blocks_are_accepted_or_rejected_as_expected() {
    let (mut accepted, mut rejected) = (0, 0);
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let manifest = parse(&file.display().to_string(), &text, &ParseOptions::default());
        for step in steps(&manifest.others[0].node) {
            let Some(apply) = step.get("apply") else { continue };
            let Value::Text(block) = &apply.value else { panic!("{apply:?}") };
            let origin = Origin {
                file: file.display().to_string().into(),
                lines_before: block.content_line - 1,
                columns_before: block.content_column - 1,
            };
            let applied = parse_at(&origin, &block.text, &ParseOptions::default());
            if step.get("expect").and_then(Node::as_str) == Some("invalid") {
                rejected += 1;
                assert!(!applied.is_valid(), "{}:{} was accepted", file.display(), apply.line);
                for problem in &applied.problems {
                    assert!(problem.position.line > apply.line, "{problem}");
                    assert!(problem.object.is_some(), "{problem}");
                }
            } else {
                accepted += 1;
                assert!(applied.is_valid(), "{:#?}", applied.problems);
                assert!(!applied.documents.is_empty());
            }
        }
    }
    assert_eq!(rejected, 18);
    assert!(accepted >= 30, "{accepted}");
}

#[test]
fn a_problem_in_an_apply_block_has_its_place_in_the_file() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/scenarios/l4/invalid-01-networkpolicy.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let manifest = parse("s.yaml", &text, &ParseOptions::default());
    let apply = steps(&manifest.others[0].node)[3].get("apply").unwrap();
    let Value::Text(block) = &apply.value else { panic!("{apply:?}") };
    let origin = Origin {
        file: "s.yaml".into(),
        lines_before: block.content_line - 1,
        columns_before: block.content_column - 1,
    };
    let problem = &parse_at(&origin, &block.text, &ParseOptions::default()).problems[0];
    let line = text.lines().nth(problem.position.line as usize - 1).unwrap();
    assert!(line[problem.position.column as usize - 1..].starts_with("endPort: 8000"), "{problem}: {line}");
}
