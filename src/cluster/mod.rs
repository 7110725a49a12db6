//! One node's view of the cluster. PURE: objects in, a [`delta::Delta`] for the datapath out.
//!
//! The agent and the offline judge run this same code, so that what a test says is what the node
//! does. See [`delta`] for the output, [`View`] for the transactions, and [`Resolved`] and
//! [`Sides`] for the questions.

mod classes;
mod counted;
pub mod delta;
mod derive;
mod dirty;
mod expand;
mod ids;
mod objects;
mod options;
mod publish;
mod reserve;
#[cfg(test)]
mod tests;
mod uses;
mod verdict;
mod view;

pub use options::{MissingNamespaces, ViewError, ViewOptions};
pub use publish::LocalEndpoint;
pub use verdict::{Resolved, Sides};
pub use view::View;

use crate::model::{Kind, Object, ObjectRef};
use crate::policy::rule::{CidrGroup, Policy};

/// Anything that a manifest can hold, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    Object(Object),
    Policy(Policy),
    CidrGroup(CidrGroup),
    Secret(Secret),
}

/// A Secret, for `headerMatches.secret`. Its values are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub namespace: String,
    pub name: String,
    pub data: std::collections::BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret {}/{} ({} keys)", self.namespace, self.name, self.data.len())
    }
}

impl Resource {
    pub fn reference(&self) -> ObjectRef {
        match self {
            Resource::Object(object) => object.reference(),
            Resource::Policy(policy) => policy.object.clone(),
            Resource::CidrGroup(group) => ObjectRef::new(Kind::CiliumCIDRGroup, "", &group.name),
            Resource::Secret(secret) => ObjectRef::new(Kind::Secret, &secret.namespace, &secret.name),
        }
    }
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Upsert(Resource),
    Delete(ObjectRef),
}
