//! The policy engine. PURE: identities and rules in, map states and verdicts out.
//!
//! - [`rule`]: what a policy says, in types; `k8s` produces it, nothing here knows YAML.
//! - [`selector`]: label selectors.
//! - [`l7`]: HTTP, DNS and TLS rules (types here, matching in the same module).
//! - [`map_state`]: the compiled form: keys, entries, precedence; `datapath` converts it.
//! - [`engine`]: repository, selector cache and resolved subjects, kept up to date by deltas.
//! - [`named_port`]: port names as identity labels.
//! - [`oracle`]: a naive evaluator, which the compiled policy is compared with.
//! - [`lint`]: traps in policies that load.
//! - [`decision`]: verdicts with the rules behind them.

pub mod decision;
pub mod engine;
pub mod l7;
pub mod lint;
pub mod map_state;
pub mod named_port;
pub mod oracle;
pub mod rule;
pub mod selector;
