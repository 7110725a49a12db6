//! Every connection of the scenarios, judged three times.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use sluice::lab::judge;
use sluice::lab::report::Status;
use sluice::lab::scenario;

use crate::kernel::KernelJudge;

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_kernel_agrees_on_every_connection_of_the_scenarios() {
    let kernel = Rc::new(KernelJudge::new());
    let mut wrong = Vec::new();
    let directories = ["integration/scenarios/l4", "integration/scenarios/l7", "assets/lab"];
    for path in directories.into_iter().flat_map(files) {
        let name = path.display().to_string();
        let file = scenario::read(&name, &std::fs::read_to_string(&path).unwrap());
        for prepared in &file.scenarios {
            for step in judge::run_with(&name, prepared, kernel.clone()).unwrap().steps {
                if step.status != Status::Passed {
                    wrong.push(step.line());
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(kernel.judged() > 1000, "{} packets", kernel.judged());
}
