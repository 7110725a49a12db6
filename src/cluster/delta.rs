//! What changes in the kernel: the output of the pure half of sluice and the input of
//! `datapath::Datapath::apply`.
//!
//! Everything is a keyed upsert or delete, so that applying a delta twice is harmless, and a full
//! state is a delta from nothing.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Backend, Identity, Protocol};
use crate::policy::map_state::SubjectDelta;

/// All changes of one transaction. The datapath applies them in an order in which no packet finds
/// a hole: upserts of policies (and port classes) first, so that no address ever points to an
/// identity that the policies do not know yet; then addresses and classes; then endpoints, the node
/// and Services; then deletes of policy entries and what else was removed. Deletes that come before
/// the addresses moved would leave the old identity without its entries. Identities that go are forgotten before all
/// that, and new ones are made known when their entries are there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Policy revision that these changes realize.
    pub revision: u64,
    pub cause: Cause,
    pub ipcache: Vec<(IpNet, Option<IpcacheEntry>)>,
    /// Prefix -> class identity, for `ipBlock` and `networks` rules.
    pub address_classes: Vec<(IpNet, Option<Identity>)>,
    pub policies: Vec<SubjectDelta>,
    /// Identities of pods that policies began or ceased to know.
    pub identities: Vec<(Identity, Presence)>,
    pub endpoints: Vec<EndpointChange>,
    pub services: Vec<(ServiceFrontend, Option<ServiceEntry>)>,
    pub node: Option<NodeSettings>,
}

impl Delta {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ipcache.is_empty()
            && self.address_classes.is_empty()
            && self.policies.is_empty()
            && self.identities.is_empty()
            && self.endpoints.is_empty()
            && self.services.is_empty()
            && self.node.is_none()
    }
}

/// What a transaction was about: which established connections it bears on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// Objects changed: every connection is judged again.
    #[default]
    Objects,
    /// Names gained or lost addresses, and nothing else changed. Established connections stay as they are:
    /// what was allowed while the address was fresh goes on until it ends, and a new address takes
    /// nothing from anyone.
    Names,
}

/// Whether policies know an identity. Until they do, a packet that claims it is dropped: a deny rule by label
/// has no entry for it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Known,
    Gone,
}

/// What an address prefix stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcacheEntry {
    pub identity: Identity,
    /// The node that a remote pod is behind.
    pub tunnel_endpoint: Option<IpAddr>,
    pub class: AddressKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    Pod,
    Node,
    /// Inside the cluster's pod range, but of no pod that we know: unknown, never world.
    ClusterRange,
    World,
    /// An address of the world that belongs to names which `toFQDNs` rules mean.
    Learned,
}

/// A local pod appears, changes or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointChange {
    /// Keyed by `namespace/name`. The device is found by the datapath's own registry: the endpoint
    /// room knows it from `endpoint add`, CNI or the lab.
    Upsert {
        pod: String,
        addresses: Vec<IpAddr>,
        identity: Identity,
    },
    Remove {
        pod: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceFrontend {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `namespace/name`, for tables.
    pub service: String,
    /// Empty: connections are rejected.
    pub backends: Vec<Backend>,
    /// `sessionAffinity: ClientIP` timeout.
    pub affinity_secs: Option<u32>,
}

/// Switches and addresses of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSettings {
    pub addresses: Vec<IpAddr>,
    pub host_firewall: bool,
    pub deny_response: DenyResponse,
}

/// What the sender of a denied packet gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DenyResponse {
    /// Silence.
    #[default]
    Drop,
    /// TCP RST, or ICMP "administratively prohibited".
    Reject,
}
