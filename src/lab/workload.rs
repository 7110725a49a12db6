//! The process that serves the workloads of a lab that was left running (`sluice lab up`).
//!
//! It lives in the fabric's namespace, so that whoever removes the lab finds it, and reads what to
//! serve from the lab's state file.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::LabError;
use super::fabric::{Lab, State};
use super::listener::Workloads;
use super::state;
use super::topology::Site;

/// How long the process has to open its sockets.
const START: Duration = Duration::from_secs(10);

/// Starts the process and waits until it serves.
pub fn spawn(lab: &Lab, program: &Path) -> Result<(), LabError> {
    let directory = lab.dir().path();
    let (log, ready) = (directory.join("workload.log"), directory.join("workload.ready"));
    let failed = |source| LabError::io("start the workloads of", lab.name(), source);
    let out = File::create(&log).map_err(failed)?;
    let err = out.try_clone().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(["lab", "workload", lab.name()])
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0);
    let mut child = lab.netns(&Site::Fabric).run(|| command.spawn())?.map_err(failed)?;
    let deadline = Instant::now() + START;
    while !ready.exists() {
        if let Ok(Some(status)) = child.try_wait() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(failed(std::io::Error::other(format!("{status}: {}", text.trim()))));
        }
        if Instant::now() >= deadline {
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The process itself: serves until it is told to end.
pub async fn serve(name: &str) -> Result<(), LabError> {
    let directory = state::path_of(name)?;
    let state = State::read(name)?;
    let mut workloads = Workloads::new()?;
    workloads.converge(&state.topology, |site| state::netns(&directory, site))?;
    let ready = directory.join("workload.ready");
    File::create(&ready).map_err(|e| LabError::io("create", &ready, e))?;
    let failed = |source| LabError::io("wait for signals in", name, source);
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    terminate.recv().await;
    Ok(())
}
