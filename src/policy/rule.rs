//! What a policy says, validated and in one vocabulary for all kinds of policy objects.
//!
//! `k8s` builds these; references to other objects (CIDR groups, Services) are still references
//! here and are expanded by `cluster` before the engine sees them, because their content changes
//! on its own.

use std::sync::Arc;

use ipnet::IpNet;

use super::l7::{DnsPattern, L7Rules};
use super::selector::LabelSelector;
use crate::model::{Direction, Family, KubeLabels, ObjectRef, PortRange, Protocol};

/// One policy object (all entries of `specs[]` together: each becomes a [`Spec`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub object: ObjectRef,
    pub specs: Vec<Spec>,
}

/// One `spec`: who is selected, what it turns on, and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub subject: Subject,
    pub tier: Tier,
    /// Turns default deny on for the selected endpoints. Normal tier only.
    pub default_deny_ingress: bool,
    pub default_deny_egress: bool,
    /// In the order of the object; the order matters in the admin and baseline tiers.
    pub rules: Vec<Rule>,
}

impl Spec {
    pub fn default_deny(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.default_deny_ingress,
            Direction::Egress => self.default_deny_egress,
        }
    }
}

/// Which endpoints a spec governs. Namespace scoping is already part of the selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// Pods. `None` (an absent selector) selects nothing.
    Pods(Option<LabelSelector>),
    /// Nodes (CCNP `nodeSelector`), matched on `node:` labels.
    Nodes(LabelSelector),
}

/// Evaluation order: Admin, Normal, Baseline. Lower priority number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    Admin { priority: u16 },
    Normal,
    Baseline { priority: u16 },
}

/// What a matching rule does. `Pass` exists in the admin and baseline tiers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Deny,
    Pass,
}

/// L3 AND L4 AND L7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub direction: Direction,
    pub action: Action,
    pub peers: Peers,
    pub ports: Ports,
    /// Only with `Action::Allow` and ports.
    pub l7: Option<Arc<L7Rules>>,
    /// Field path inside the object, such as `spec.ingress[0].toPorts[1]`; for people.
    pub path: Arc<str>,
}

/// On what a rule matches, the least first: what Hubble calls the match type of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum RuleMatch {
    All,
    ProtocolOnly,
    L4Only,
    L3Only,
    L3Protocol,
    L3L4,
}

impl RuleMatch {
    pub const ALL: [RuleMatch; 6] = [
        RuleMatch::All,
        RuleMatch::ProtocolOnly,
        RuleMatch::L4Only,
        RuleMatch::L3Only,
        RuleMatch::L3Protocol,
        RuleMatch::L3L4,
    ];
}

impl Rule {
    /// Of a rule with ports and whole protocols the ports count: which of them a connection met is not told.
    pub fn matches_on(&self) -> RuleMatch {
        let names_peers = match &self.peers {
            Peers::Any => false,
            Peers::OneOf(peers) => !peers.contains(&Peer::Entity(Entity::All)),
        };
        let is_whole = |port: &PortMatch| matches!(port, PortMatch::Protocol(_));
        match (names_peers, &self.ports) {
            (false, Ports::Any) => RuleMatch::All,
            (true, Ports::Any) => RuleMatch::L3Only,
            (false, Ports::OneOf(ports)) if ports.iter().all(is_whole) => RuleMatch::ProtocolOnly,
            (true, Ports::OneOf(ports)) if ports.iter().all(is_whole) => RuleMatch::L3Protocol,
            (false, Ports::OneOf(_)) => RuleMatch::L4Only,
            (true, Ports::OneOf(_)) => RuleMatch::L3L4,
        }
    }
}

/// The L3 part. Empty is not absent: `Any` is every peer, `OneOf(vec![])` is none
/// (CVE-2025-64715 in a peer was the confusion of the two).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    Any,
    OneOf(Vec<Peer>),
}

/// One peer element. ORed inside [`Peers::OneOf`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by labels; may name `reserved:` keys and then matches those identities.
    Pods(LabelSelector),
    /// Nodes (local and remote) by `node:` labels.
    Nodes(LabelSelector),
    Entity(Entity),
    /// CNP/CCNP CIDR rules: the world only (and nodes with `cidrMatchMode: nodes`).
    Cidr(CidrSet),
    /// KNP `ipBlock`, ClusterNetworkPolicy `networks`: every address, pods and nodes included.
    Address(CidrSet),
    Fqdn(DnsPattern),
    /// Expanded by `cluster`.
    CidrGroup(CidrGroupRef),
    /// Expanded by `cluster`.
    Service(ServiceRef),
}

/// `cidr` minus `except`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrSet {
    /// Host bits are zero.
    pub cidr: IpNet,
    /// Each lies inside `cidr`; sorted.
    pub except: Vec<IpNet>,
}

/// CIDR groups by name or by their labels, each minus `except`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrGroupRef {
    pub groups: GroupSelect,
    pub except: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupSelect {
    Name(Arc<str>),
    Labels(LabelSelector),
}

/// A CIDR group object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrGroup {
    pub name: String,
    pub labels: KubeLabels,
    pub cidrs: Vec<IpNet>,
}

/// `toServices`. `None` is every namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceRef {
    Name { namespace: Option<Arc<str>>, name: Arc<str> },
    Labels { namespace: Option<Arc<str>>, selector: LabelSelector },
}

/// Built-in groups of identities (semantics, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    All,
    None,
    World,
    WorldIpv4,
    WorldIpv6,
    Cluster,
    Host,
    RemoteNode,
    KubeApiserver,
    Ingress,
    Health,
    Init,
    Unmanaged,
}

impl Entity {
    pub const ALL: &'static [(&'static str, Entity)] = &[
        ("all", Entity::All),
        ("none", Entity::None),
        ("world", Entity::World),
        ("world-ipv4", Entity::WorldIpv4),
        ("world-ipv6", Entity::WorldIpv6),
        ("cluster", Entity::Cluster),
        ("host", Entity::Host),
        ("remote-node", Entity::RemoteNode),
        ("kube-apiserver", Entity::KubeApiserver),
        ("ingress", Entity::Ingress),
        ("health", Entity::Health),
        ("init", Entity::Init),
        ("unmanaged", Entity::Unmanaged),
    ];

    pub fn parse(text: &str) -> Option<Entity> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, entity)| *entity)
    }
}

/// The L4 part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every protocol and port, ICMP included: an L3-only rule.
    Any,
    /// ORed. Never empty.
    OneOf(Vec<PortMatch>),
}

/// One protocol with its ports. `protocol: ANY` on a numbered port is three of these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Every port of the protocol (port "0", or a protocol without ports).
    Protocol(Protocol),
    Range(Protocol, PortRange),
    /// Resolved for each destination endpoint by its own container ports.
    Named(Protocol, Arc<str>),
    /// ICMP or ICMPv6 type.
    IcmpType(Family, u8),
}

/// A rule of a loaded policy: object, spec and rule by position. What decisions point at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct RuleRef {
    pub object: ObjectRef,
    pub spec: usize,
    pub rule: usize,
}
