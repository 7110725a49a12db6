//! The offline judge: what would happen, without a packet.
//!
//! Contract: every connection, request, query and ClientHello of a scenario is judged twice, by
//! the compiled views that the agent itself runs ([`crate::cluster::View`], one for each node) and
//! by the naive evaluator ([`crate::policy::oracle`]). If the two differ in verdict or reason, the
//! step fails with "judges disagree", whatever it expects. Time passes only in `wait` steps.
//!
//! - `world`: the cluster as it is now, on both sides;
//! - `verdict`: one connection through both judges;
//! - `layer7`: requests, queries and ClientHellos through both judges;
//! - `names`: the cluster DNS and the DNS proxies;
//! - `traffic`: what a sender sees;
//! - `check`: expectations;
//! - `run`: steps.

mod check;
mod layer7;
mod names;
mod run;
mod traffic;
mod verdict;
mod world;

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

pub use run::{Refused, run, run_with};

use crate::cluster::View;
use crate::policy::oracle::Flow;

/// Two judges differ: a defect of sluice, not of the scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("judges disagree on {subject}: {one}, {other}")]
pub struct Disagreement {
    pub subject: String,
    /// What a judge says, and which judge: "the evaluator says ...".
    pub one: String,
    pub other: String,
}

/// What [`check`] calls the outcome of a step on which judges disagree.
pub const DISAGREE: &str = "judges disagree";

/// One more judge of every connection: the kernel's programs, where a test can run them.
pub trait ThirdJudge: std::fmt::Debug {
    /// Judges a new connection on the node of `view`, as [`View::decide`] does.
    ///
    /// # Errors
    /// What is decided differently, or for another reason.
    fn judge(&self, view: &View, flow: &Flow) -> Result<(), Disagreement>;
}
