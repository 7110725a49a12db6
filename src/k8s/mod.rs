//! Kubernetes objects, from YAML text or from the API server, -> validated model types.
//!
//! This room alone knows Kubernetes wire types. What leaves it is valid: an object with any problem
//! is rejected whole, with every problem listed (file, line, column, field path, what was found and
//! what was expected). Nothing here panics, whatever the input.
//!
//! - [`parse`]: a text with any number of documents -> [`Manifest`].
//! - [`parse_object`]: one object of the API server.
//! - [`watch`]: the objects of an API server as a stream of changes.
//! - [`tree`], [`cursor`]: positioned values and how to read them; the lab reads its Scenarios so.
//!
//! Decisions where the policy semantics leave a case open are listed in the module that makes them.

mod cidr;
mod cilium;
mod cluster_network_policy;
pub mod cursor;
mod lint;
mod manifest;
mod meta;
mod near;
mod network_policy;
mod objects;
mod problem;
mod scalar;
mod selector;
mod services;
pub mod suggest;
pub mod tree;
pub mod watch;
mod yaml;

pub use lint::{Trap, traps};
pub use manifest::{Document, Manifest, Origin, OtherDocument, parse, parse_at, parse_object};
pub use problem::{Note, Position, Problem, Severity};
pub use yaml::{MAX_ALIASED_NODES, MAX_DEPTH, MAX_INPUT_BYTES, MAX_NODES, MAX_OBJECT_BYTES};

/// What `ingress: []` and `egress: []` of a CNP or CCNP mean (`--empty-rule-lists`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmptyRuleLists {
    /// The list turns default deny on. Fails closed.
    #[default]
    Deny,
    /// The list does nothing, with a warning: what Cilium does.
    Ignore,
}

/// What a field that no schema knows means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// The object is invalid: files that people write.
    #[default]
    Error,
    /// It is skipped: objects of an API server, which has pruned what it does not know.
    Ignore,
}

#[derive(Clone, Debug)]
pub struct ParseOptions {
    pub empty_rule_lists: EmptyRuleLists,
    /// Namespace of namespaced objects that name none.
    pub default_namespace: String,
    pub unknown_fields: UnknownFields,
}

impl Default for ParseOptions {
    fn default() -> Self {
        ParseOptions {
            empty_rule_lists: EmptyRuleLists::default(),
            default_namespace: "default".to_owned(),
            unknown_fields: UnknownFields::default(),
        }
    }
}

#[cfg(test)]
mod tests;
