//! What the operator chooses about policy, and what the engine refuses.

use std::sync::Arc;

use crate::model::{Identity, ObjectRef};

/// `--policy-enforcement` (semantics 4.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Default deny where a policy turns it on.
    #[default]
    Default,
    /// Default deny for every endpoint, after Baseline.
    Always,
    /// Everything is allowed.
    Never,
}

/// What CIDR rules of CNP and CCNP match beside the world (`cidrMatchMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CidrMatch {
    #[default]
    World,
    /// Nodes with an address in the range too.
    WorldAndNodes,
}

/// `--allow-localhost`: traffic of the local node to its own pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowLocalhost {
    #[default]
    Always,
    /// Judged like any other peer.
    Policy,
}

/// Fixed for the life of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    pub enforcement: Enforcement,
    pub cidr_match: CidrMatch,
    pub allow_localhost: AllowLocalhost,
    /// Most entries of one subject.
    pub max_entries: usize,
    /// Most entries of all subjects together: the size of the kernel's map.
    pub max_total_entries: usize,
    /// Most rule sets: the size of the kernel's table of hit counters.
    pub max_rule_sets: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            enforcement: Enforcement::default(),
            cidr_match: CidrMatch::default(),
            allow_localhost: AllowLocalhost::default(),
            max_entries: 262_144,
            max_total_entries: 1_048_576,
            max_rule_sets: 262_144,
        }
    }
}

/// A state that does not fit the datapath's tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("the policy of identity {subject} needs {needed} map entries, the limit is {limit}")]
    SubjectEntries { subject: Identity, needed: usize, limit: usize, most: Option<Culprit> },
    #[error("all policies together need {needed} map entries, the limit is {limit}")]
    TotalEntries { needed: usize, limit: usize, most: Option<Culprit> },
    #[error("the policies need {needed} rule sets, the limit is {limit}")]
    RuleSets { needed: usize, limit: usize },
    #[error("the overlapping port ranges of identity {subject} make more than {limit} port classes")]
    PortClasses { subject: Identity, limit: usize, most: Option<Culprit> },
    #[error("{rules} rules of ClusterNetworkPolicies share priority {priority}, the limit is {limit}")]
    PriorityCrowded { priority: u16, rules: usize, limit: usize },
}

/// The rule that needs most of the room, of those that the transaction changed if there are any: where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    pub object: ObjectRef,
    /// Field path inside the object.
    pub path: Arc<str>,
}

impl EngineError {
    /// Where to look; `None` where no single rule is to blame.
    pub fn culprit(&self) -> Option<&Culprit> {
        match self {
            EngineError::SubjectEntries { most, .. }
            | EngineError::TotalEntries { most, .. }
            | EngineError::PortClasses { most, .. } => most.as_ref(),
            EngineError::RuleSets { .. } | EngineError::PriorityCrowded { .. } => None,
        }
    }
}
