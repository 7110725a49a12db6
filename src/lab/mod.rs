//! A whole cluster in network namespaces on this machine, for tests, demos and bug reports.
//!
//! Nodes, pods and the hosts outside are namespaces ([`topology`], [`fabric`]) that no route
//! connects to the machine's own network. Workloads answer in them ([`listener`], [`dns`]), and
//! probes are sent from them ([`probe`]).
//!
//! Everything a lab owns lies under `/run/sluice-lab/<name>/` ([`state`]); what a crash leaves
//! behind is found there and removed.

pub mod control;
pub mod dns;
pub mod exec;
pub mod fabric;
pub mod judge;
pub mod links;
mod lint;
pub mod listener;
pub mod netns;
pub mod probe;
pub mod relay;
pub mod render;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod session;
pub mod state;
pub mod topology;
pub mod ui;
pub mod witness;
pub mod workload;

use std::io;
use std::path::Path;

/// Why a lab could not be built, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("cannot {what} {object}: {source}")]
    Io { what: &'static str, object: String, source: io::Error },
    #[error("`ip` failed in {netns} at `{command}`: {message}")]
    Ip { netns: String, command: String, message: String },
    #[error("the lab cannot be built: {}", .0.join("; "))]
    Topology(Vec<String>),
    #[error("`{0}` is no name for a lab: use up to 20 of a-z, 0-9 and `-`")]
    Name(String),
    #[error("the lab `{0}` is up already: `sluice lab down {0}` removes it")]
    Exists(String),
    #[error("there is no lab `{0}`: `sluice lab up` starts one")]
    Absent(String),
    #[error("the lab `{0}` is in use by another sluice process")]
    Busy(String),
    #[error("the lab's state file {path} cannot be read: {message}")]
    State { path: String, message: String },
    #[error("TLS for the lab's workloads: {0}")]
    Tls(String),
}

impl LabError {
    pub(crate) fn io(what: &'static str, object: impl AsRef<Path>, source: io::Error) -> LabError {
        LabError::Io { what, object: object.as_ref().display().to_string(), source }
    }
}
