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

pub use run::{Refused, run};

/// The two judges differ: a defect of sluice, not of the scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("judges disagree on {subject}: the evaluator says {oracle}, the compiled policy says {compiled}")]
pub struct Disagreement {
    pub subject: String,
    pub oracle: String,
    pub compiled: String,
}
