//! The compiled policy of one subject: what a packet is looked up in.
//!
//! A verdict is the best entry of at most fifteen cells:
//!
//! ```text
//! {peer identity, its group, address class of the peer, its group, any}
//!     x {(protocol, port), (protocol, any), (any, any)}
//! ```
//!
//! Each cell holds at most one entry with two slots. Among the admin slots of the cells found the
//! highest precedence decides; `Pass` or nothing leaves it to the highest precedence of the normal
//! slots (baseline rules are normal slots with lower precedences); `Pass` or nothing there leaves it to
//! the default of the direction. Because a slot holds the maximum over all rules of its cell, and a
//! packet's cells together cover exactly the rules that match it, the maximum over the cells is the
//! maximum over all matching rules: no rule order, prefix length or port width can hide a deny.
//!
//! Groups ([`IdentityGroup`](crate::model::IdentityGroup): every pod, every remote node, the world of one
//! family): a rule that matches all identities of a group has its cells under the group alone, so that it
//! costs one entry a port and subject however many identities there are. It follows from the number of an
//! identity and the family of the address which group a packet is looked up in. Port names are an exception:
//! they differ from peer to peer, and have cells under each peer that has the name.
//!
//! Port ranges: the ports of a protocol are cut into classes that no rule tells apart. A port that
//! no range covers is its own class (`PortClass::Exact`).

use crate::model::{Direction, Identity, PortRange, Protocol};

/// The port member of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortClass {
    /// Every port (and, with `protocol: None`, every protocol).
    Any,
    /// A destination port, or an ICMP type.
    Exact(u16),
    /// Ports covered by the same set of ranges; numbered for each subject.
    Class(u32),
}

/// A cell. `protocol: None` goes with `PortClass::Any` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    pub direction: Direction,
    /// Peer identity, address class, or key of a group of either; [`Identity::UNKNOWN`] (0) is any peer.
    pub identity: Identity,
    pub protocol: Option<Protocol>,
    pub port: PortClass,
}

/// Higher wins. 0 is never used. Inside the normal tier: deny, redirect, allow, then baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Precedence(pub u32);

/// Which rules an entry came from: index into the engine's table, and of the kernel's hit counters.
/// 0 is no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleSetId(pub u32);

/// Which proxy takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Proxy {
    Http,
    Dns,
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum SlotAction {
    Allow,
    Deny,
    /// No verdict: of an admin rule, the normal slot goes on; of a baseline rule, the default decides.
    Pass,
    Redirect(Proxy),
}

/// What a slot speaks of, and so how long a connection lasts that it let pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Basis {
    /// The peer as it is: when the address becomes another's, the connection is judged as that one's.
    #[default]
    Peer,
    /// A `toFQDNs` rule is among the rules: the connection outlives the answer that gave the address its name, though
    /// not the rule.
    Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub precedence: Precedence,
    pub action: SlotAction,
    pub rules: RuleSetId,
    pub basis: Basis,
}

/// Never both `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyEntry {
    pub admin: Option<Slot>,
    pub normal: Option<Slot>,
}

/// Facts about one direction of a subject's policy that the datapath keeps beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionInfo {
    /// Nothing matched: drop.
    pub default_deny: bool,
    /// Some entry's identity is an address class or a group of them.
    pub address_classes: bool,
    /// Some entry's port is a `PortClass::Class`.
    pub ranges: bool,
    /// Which kinds of cells exist (a lookup skips the others).
    pub cells: CellKinds,
}

impl DirectionInfo {
    /// Policy applies at all: default deny is on, or there are entries. Where it does, a peer
    /// without an identity is denied (`SLUICE_PF_ENFORCED`).
    pub fn enforced(self) -> bool {
        self.default_deny || self.cells != CellKinds::default()
    }
}

/// See `SLUICE_PF_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CellKinds {
    pub id_exact: bool,
    pub id_protocol: bool,
    pub id_any: bool,
    pub group_exact: bool,
    pub group_protocol: bool,
    pub group_any: bool,
    pub any_exact: bool,
    pub any_protocol: bool,
    pub any_any: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyInfo {
    pub ingress: DirectionInfo,
    pub egress: DirectionInfo,
}

/// Ports `range` of `protocol` belong to class `class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortClassRange {
    pub direction: Direction,
    pub protocol: Protocol,
    pub range: PortRange,
    pub class: u32,
}

/// Change of one subject's compiled policy. Applied in this order, so that at every moment a
/// packet meets the old rules, the new rules, or their union: upserts, class upserts, the info,
/// class deletes, deletes, then the epoch. A class that is new has its entries before a port is in
/// it, and one that goes keeps them until no port is.
///
/// Upserts are in the order in which they are to be written: entries that hold a deny first, so
/// that a deny that moves from one cell to another is in both for a moment and never in none. Deletes
/// are the other way round: entries that hold a deny last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectDelta {
    /// Identity of the endpoints that have this policy; [`Identity::HOST`] for the node itself.
    pub subject: Identity,
    pub info: PolicyInfo,
    pub upserts: Vec<(PolicyKey, PolicyEntry)>,
    /// Entries that hold a deny last, else in the order of keys.
    pub deletes: Vec<PolicyKey>,
    /// Blocks of ports whose size is a power of two that divides their first port: each is one
    /// prefix of a trie over ports. A block whose class alone changes is an upsert.
    pub class_upserts: Vec<PortClassRange>,
    pub class_deletes: Vec<PortClassRange>,
    /// The subject is gone: everything of it is to be deleted.
    pub removed: bool,
}
