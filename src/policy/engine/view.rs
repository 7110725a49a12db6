//! What callers ask the engine, and what it answers.

use std::sync::Arc;

use crate::model::{Direction, Identity, ObjectRef, Protocol};
use crate::policy::decision::Outcome;
use crate::policy::l7::L7Rules;
use crate::policy::map_state::{PolicyEntry, PolicyKey, Proxy};
use crate::policy::rule::RuleRef;

/// The other side of a connection, as the two lookups of its address gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerView {
    /// Label identity; [`Identity::UNKNOWN`] when nothing is known about the address.
    pub identity: Identity,
    /// Class of the address in the trie of `ipBlock` and `networks` prefixes.
    pub address_class: Option<Identity>,
}

impl From<Identity> for PeerView {
    fn from(identity: Identity) -> PeerView {
        PeerView { identity, address_class: None }
    }
}

/// The L4 part of a connection, after Service translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct L4Flow {
    pub protocol: Protocol,
    /// Destination port; type for ICMP and ICMPv6; 0 for protocols without ports.
    pub port: u16,
}

/// What a proxy needs to judge one connection (semantics, section 6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L7Policy {
    /// Verdict of L3/L4. Only for [`Outcome::Redirect`] does any of the rest restrict something.
    pub outcome: Outcome,
    /// Allow rules of the normal tier that match at L3/L4, in the order of objects; `None` is a
    /// rule without an L7 part. Empty where an admin or deny rule ended the evaluation.
    pub rules: Vec<(RuleRef, Option<Arc<L7Rules>>)>,
    /// A rule without an L7 part matches too: HTTP and DNS rules refuse nothing, requests and
    /// answers are recorded all the same. `serverNames` still refuse.
    pub lifted: bool,
    /// Default deny is on for the direction. Where it is off, no L7 rule refuses anything.
    pub enforced: bool,
}

impl L7Policy {
    /// Something is refused: what the rules for this side's proxy do not list, and what is of another protocol.
    pub fn refuses(&self) -> bool {
        match self.outcome {
            Outcome::Allow => false,
            Outcome::Deny => true,
            Outcome::Redirect(Proxy::Tls) => self.refuses_server_names(),
            Outcome::Redirect(Proxy::Http | Proxy::Dns) => self.refuses_requests(),
        }
    }

    /// HTTP and DNS rules refuse what none of them matches.
    pub fn refuses_requests(&self) -> bool {
        self.enforced && !self.lifted
    }

    /// `serverNames` rules refuse what none of them matches.
    pub fn refuses_server_names(&self) -> bool {
        self.enforced
    }
}

/// One compiled entry, for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView {
    pub subject: Identity,
    pub key: PolicyKey,
    pub entry: PolicyEntry,
}

/// Every rule of one side that bears on a flow, with the verdict and how near the others came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub decision: crate::policy::decision::SideDecision,
    /// Rules that match at L3/L4, best rank first. Those of lower rank were overruled.
    pub matching: Vec<MatchedRule>,
    /// Objects that turned default deny on for the direction.
    pub default_deny: Vec<ObjectRef>,
    /// The allow rule that came closest. Only when the verdict is deny.
    pub near_miss: Option<NearMiss>,
}

/// A rule that matches at L3/L4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedRule {
    pub rule: RuleRef,
    pub tier: crate::policy::rule::Tier,
    pub action: crate::policy::rule::Action,
    /// Field path inside the object.
    pub path: Arc<str>,
    /// It is among the rules that decided.
    pub decided: bool,
}

/// An allow rule that almost matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    pub rule: RuleRef,
    pub path: Arc<str>,
    pub missed: Missed,
}

/// What kept a rule from matching; smaller is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missed {
    /// Peer and protocol match, another port is allowed.
    Port,
    /// The peer matches, other protocols are allowed.
    Protocol,
    /// Protocol and port match, other peers are allowed.
    Peer,
    /// Peer, and port or protocol.
    PeerAndPort,
}

impl std::fmt::Display for Missed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Missed::Port => "the port is not one that it allows",
            Missed::Protocol => "the protocol is not one that it allows",
            Missed::Peer => "the peer is not one that it selects",
            Missed::PeerAndPort => "neither the peer nor the port is one that it allows",
        })
    }
}

/// The rules that bear on one direction of a subject; for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectStats {
    pub subject: Identity,
    pub entries: usize,
    pub rules: [usize; 2],
    pub default_deny: [bool; 2],
}

impl SubjectStats {
    pub fn rules_in(&self, direction: Direction) -> usize {
        self.rules[direction as usize]
    }
}
