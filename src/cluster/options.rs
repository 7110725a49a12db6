//! What one node's view is configured with, and what it refuses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::delta::DenyResponse;
use crate::fqdn::NameManagerOptions;
use crate::identity::registry::LocalExhausted;
use crate::identity::{AllocateError, LabelFilter};
use crate::model::{Identity, ObjectRef};
use crate::policy::engine::{EngineError, EngineOptions};

/// Fixed for the life of a view.
#[derive(Clone, Debug, Default)]
pub struct ViewOptions {
    /// Name of the local node.
    pub node: String,
    pub cluster_name: String,
    pub engine: EngineOptions,
    /// Policies with `nodeSelector` govern the local node.
    pub host_firewall: bool,
    pub deny_response: DenyResponse,
    pub label_filter: LabelFilter,
    /// Ranges of the cluster's pods: an address in them that is nobody's is unknown, never world,
    /// and no CIDR rule or DNS answer gives it an identity.
    pub pod_cidrs: Vec<IpNet>,
    pub names: NameManagerOptions,
    /// Addresses with a fixed identity, such as the gateway of a node ([`Identity::INGRESS`]) or
    /// its health endpoint.
    pub fixed_addresses: BTreeMap<IpAddr, Identity>,
    pub missing_namespaces: MissingNamespaces,
    /// Where node-local numbers begin inside their scope. An agent that restarts passes what
    /// [`super::View::local_number_offset`] said before, so that entries of its predecessor that
    /// are still in the kernel never get another meaning.
    pub local_number_offset: u32,
}

/// What a pod's namespace is while no Namespace object describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingNamespaces {
    /// Not known yet: the pod waits, closed. Right where an API server has every namespace, and its
    /// labels come later.
    #[default]
    Wait,
    /// There, with no label but its name: for sources in which people need not write namespaces.
    Exist,
}

/// Why a transaction was refused. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    #[error("{second}: address {address} is already that of {first}")]
    DuplicateAddress { address: IpAddr, first: ObjectRef, second: ObjectRef },
    #[error("{second}: ClusterIP {address} is already that of {first}")]
    DuplicateClusterIp { address: IpAddr, first: ObjectRef, second: ObjectRef },
    #[error("{pod}: {source}")]
    Identity { pod: ObjectRef, source: AllocateError },
    #[error(transparent)]
    LocalIdentity(#[from] LocalExhausted),
    #[error(transparent)]
    Capacity(#[from] EngineError),
}

impl ViewError {
    /// The object of the change that is to blame, where it is one.
    pub fn object(&self) -> Option<&ObjectRef> {
        match self {
            ViewError::DuplicateAddress { second, .. } | ViewError::DuplicateClusterIp { second, .. } => {
                Some(second)
            }
            ViewError::Identity { pod, .. } => Some(pod),
            ViewError::LocalIdentity(_) => None,
            ViewError::Capacity(error) => error.culprit().map(|culprit| &culprit.object),
        }
    }
}
