//! Verdicts with what made them.

use super::map_state::Proxy;
use super::rule::RuleRef;
use crate::model::{Direction, ObjectRef};

/// Why a side decided as it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// These rules decided (all of the same rank; any may be named).
    Rules(Vec<RuleRef>),
    /// No rule matched and the direction is default-deny; the objects that turned it on (empty:
    /// the enforcement mode did).
    DefaultDeny(Vec<ObjectRef>),
    /// No policy turned default deny on and nothing matched.
    NoPolicy,
    /// Traffic of the local node to its own pods, allowed unless `--allow-localhost=policy`.
    AllowLocalhost,
    /// A pod reaches itself.
    Hairpin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Allow,
    Deny,
    /// Allowed at L3/L4, and a proxy judges further.
    Redirect(Proxy),
}

/// The verdict of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideDecision {
    pub direction: Direction,
    pub outcome: Outcome,
    pub because: Because,
}
