//! Security identities: a number for a set of labels.
//!
//! The numbers that everybody in the field knows keep their meaning (Cilium,
//! `pkg/identity/reserved`). Scopes: 256..=65535 belong to the cluster; 1<<24.. to this node's
//! CIDR and FQDN identities; 2<<24.. to this node's view of other nodes; 3<<24.. are address
//! classes (see [`IdentityKind::AddressClass`]); 4<<24.. stand for groups of identities in compiled policies
//! ([`super::IdentityGroup`]) and are never given out.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::Labels;

/// A numeric security identity.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Identity(pub u32);

impl Identity {
    pub const UNKNOWN: Identity = Identity(0);
    pub const HOST: Identity = Identity(1);
    pub const WORLD: Identity = Identity(2);
    pub const UNMANAGED: Identity = Identity(3);
    pub const HEALTH: Identity = Identity(4);
    pub const INIT: Identity = Identity(5);
    pub const REMOTE_NODE: Identity = Identity(6);
    pub const KUBE_APISERVER: Identity = Identity(7);
    pub const INGRESS: Identity = Identity(8);
    pub const WORLD_IPV4: Identity = Identity(9);
    pub const WORLD_IPV6: Identity = Identity(10);

    /// First and last number of the cluster scope.
    pub const CLUSTER_MIN: u32 = 256;
    pub const CLUSTER_MAX: u32 = 65535;
    /// First number of the scope of CIDR and FQDN identities.
    pub const LOCAL_CIDR_MIN: u32 = 1 << 24;
    /// First number of the scope of remote nodes.
    pub const REMOTE_NODE_MIN: u32 = 2 << 24;
    /// First number of the scope of address classes.
    pub const ADDRESS_CLASS_MIN: u32 = 3 << 24;
    /// First number of the scope of group keys.
    pub const GROUP_MIN: u32 = 4 << 24;

    /// The fixed identities with their names (the value of the `reserved:` label).
    pub const RESERVED: &'static [(Identity, &'static str)] = &[
        (Identity::UNKNOWN, "unknown"),
        (Identity::HOST, "host"),
        (Identity::WORLD, "world"),
        (Identity::UNMANAGED, "unmanaged"),
        (Identity::HEALTH, "health"),
        (Identity::INIT, "init"),
        (Identity::REMOTE_NODE, "remote-node"),
        (Identity::KUBE_APISERVER, "kube-apiserver"),
        (Identity::INGRESS, "ingress"),
        (Identity::WORLD_IPV4, "world-ipv4"),
        (Identity::WORLD_IPV6, "world-ipv6"),
    ];

    /// The name of a reserved number.
    pub fn reserved_name(self) -> Option<&'static str> {
        Self::RESERVED.iter().find(|(id, _)| *id == self).map(|(_, name)| *name)
    }

    /// Allocated for the whole cluster, not by this node alone.
    pub fn is_cluster_scope(self) -> bool {
        (Self::CLUSTER_MIN..=Self::CLUSTER_MAX).contains(&self.0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What an identity stands for. Selection works on this, never on the number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IdentityKind {
    /// Pods with these labels (cluster scope), or one of the fixed identities without more to say
    /// (`init`, `health`, `unmanaged`, `ingress`, `world*`, `kube-apiserver` outside the cluster).
    Labels,
    /// A node: the local one (identity 1) or a remote one. Labels carry `reserved:host` or
    /// `reserved:remote-node`, `reserved:kube-apiserver` where it runs there, and `node:` labels.
    /// `addresses` are its own addresses, for `cidrMatchMode: nodes`.
    Node { addresses: BTreeSet<std::net::IpAddr> },
    /// Addresses outside the cluster; see [`CidrScope`].
    Cidr(CidrScope),
    /// Every address (pods and nodes included) whose longest prefix among those that `ipBlock`
    /// and `networks` rules name is this one. Looked up in a trie of its own and judged beside the
    /// label identity, so that address rules see pods without pods losing their labels.
    AddressClass(IpNet),
}

/// A set of addresses of the world that no loaded rule can tell apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CidrScope {
    /// Longest prefix named by a CIDR rule (`except` prefixes count) that covers the addresses.
    /// A rule `{cidr, except}` matches when this lies inside `cidr` and inside no `except`: the
    /// same answer as for each single address, because no named prefix is longer.
    pub prefix: Option<IpNet>,
    /// `toFQDNs` patterns (their canonical text) for which a fresh answer holds these addresses.
    pub fqdns: BTreeSet<Arc<str>>,
    /// IPv6 addresses; tells `world-ipv4` from `world-ipv6` where `prefix` is absent.
    pub ipv6: bool,
}

/// An identity with all that selectors look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRecord {
    pub id: Identity,
    pub labels: Labels,
    pub kind: IdentityKind,
}
