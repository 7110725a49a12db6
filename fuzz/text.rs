//! YAML: manifests and scenarios. Whatever is written, a reader answers with objects or with positions.

use std::path::Path;

use sluice::cluster::{Change, View, ViewOptions};
use sluice::identity::MemoryAllocator;
use sluice::k8s::{self, ParseOptions};
use sluice::lab::{judge, scenario};

use crate::Target;

fn scenarios() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/scenarios");
    let mut files: Vec<_> = ["l4", "l7"]
        .iter()
        .flat_map(|part| std::fs::read_dir(directory.join(part)).expect("the scenarios"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).expect("a scenario")).collect()
}

/// Without control characters: what a problem says goes to terminals.
fn is_printable(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() && c != '\n')
}

/// Manifests; what is valid is compiled.
pub struct Manifests;

impl Target for Manifests {
    fn name(&self) -> &'static str {
        "manifests"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        scenarios()
    }

    fn check(&mut self, input: &[u8]) {
        let text = String::from_utf8_lossy(input);
        let manifest = k8s::parse("fuzz.yaml", &text, &ParseOptions::default());
        for problem in &manifest.problems {
            assert!(is_printable(&problem.to_string()), "{problem:?}");
        }
        let options = ViewOptions { node: "node1".into(), ..ViewOptions::default() };
        let grace = std::time::Duration::from_secs(1);
        let mut view = View::new(options, Box::new(MemoryAllocator::new(grace)));
        let changes = manifest.documents.iter().map(|document| Change::Upsert(document.resource.clone()));
        let before = view.full();
        if view.apply(changes.collect()).is_err() {
            assert_eq!(view.full(), before, "a refused transaction left a trace");
        }
    }
}

/// Scenarios; what is valid is judged.
pub struct Scenarios;

impl Target for Scenarios {
    fn name(&self) -> &'static str {
        "scenarios"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        scenarios()
    }

    fn check(&mut self, input: &[u8]) {
        let text = String::from_utf8_lossy(input);
        let file = scenario::read("fuzz.yaml", &text);
        for problem in &file.problems {
            assert!(is_printable(&problem.to_string()), "{problem:?}");
        }
        if file.problems.is_empty() {
            for prepared in &file.scenarios {
                // Steps may fail, and a cluster may be refused.
                let _ = judge::run("fuzz.yaml", prepared);
            }
        }
    }
}
