//! What the proxies need of the engine: one document that the agent writes and they read.
//!
//! Contract: [`Snapshot::policy`] gives what [`Engine::l7`] gives, for every flow on a port that an L7
//! rule of that side names; `None` for all others, which are the kernel's business alone. The engine makes
//! the sides ([`Engine::l7_sides`]), whoever owns it adds addresses and Secrets. A side holds every rule
//! that shares a port with one of its L7 rules, whatever its tier and action, with port names resolved,
//! so that verdicts follow by the engine's own order: the highest precedence decides.
//!
//! What the agent writes is never behind the kernel: before the kernel learns of a change, the document holds the
//! rules after it *and* those before it ([`Snapshot::before`]), and the old ones go when the kernel has let go of them.
//! So where no side has rules for a connection, the kernel judges all of it by addresses and ports.
//!
//! The document holds values of Secrets: it is for root's eyes.
//!
//! [`Engine::l7`]: crate::policy::engine::Engine::l7
//! [`Engine::l7_sides`]: crate::policy::engine::Engine::l7_sides

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{DnsPattern, L7Rules};
use crate::model::{Direction, Identity};
use crate::policy::decision::Outcome;
use crate::policy::engine::{L4Flow, L7Policy, PeerView};
use crate::policy::map_state::{Precedence, SlotAction};
use crate::policy::rule::RuleRef;

/// States that a kernel may be between.
const MOST_BEFORE: usize = 8;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Policy revision that the kernel enforces already, as far as nothing is on its way.
    pub revision: u64,
    /// Name of the node.
    pub node: Arc<str>,
    /// Local pods by address.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    pub sides: Sides,
    /// Sides that the kernel may still redirect by, the newest last: they count where [`Snapshot::sides`] say nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Sides>,
    /// Values that `headerMatches.secret` refers to.
    pub secrets: Vec<SecretValue>,
    /// `toFQDNs` patterns that some rule uses: answers for other names open nothing.
    #[serde(default)]
    pub patterns: Vec<DnsPattern>,
    /// Identities that addresses of the world have, as long as there are patterns.
    #[serde(default)]
    pub scopes: Vec<Scope>,
}

/// What an identity of the world stands for; see [`CidrScope`].
///
/// [`CidrScope`]: crate::model::CidrScope
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub identity: Identity,
    pub prefix: Option<IpNet>,
    pub ipv6: bool,
    /// Patterns for which a fresh answer holds its addresses.
    pub patterns: BTreeSet<Arc<str>>,
}

/// A local pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `namespace/name`.
    pub pod: Arc<str>,
    pub identity: Identity,
    /// Identities by which the kernel may still know the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Identity>,
}

/// Subjects and directions with L7 rules, and the tables that their rules share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sides {
    /// In the order of subject and direction.
    pub all: Vec<Side>,
    /// Identities and address classes, ascending; see [`PeerSet::OneOf`].
    pub peers: Vec<Vec<Identity>>,
    /// See [`SideRule::l7`].
    pub l7: Vec<Arc<L7Rules>>,
}

/// One direction of a subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    pub subject: Identity,
    pub direction: Direction,
    /// Default deny is on.
    pub default_deny: bool,
    /// The node reaches its own pods whatever rules say.
    pub localhost: bool,
    /// Ports that some L7 rule names.
    pub ports: Vec<PortSpan>,
    /// In the order of rules.
    pub rules: Vec<SideRule>,
}

/// A rule as it bears on one side. One rule may be here several times: a port name is another number
/// at other peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SideRule {
    pub rule: RuleRef,
    /// Field path inside the object.
    pub path: Arc<str>,
    pub tier: RuleTier,
    pub action: SlotAction,
    pub precedence: Precedence,
    pub peers: PeerSet,
    /// ORed; empty is every protocol and port.
    pub ports: Vec<PortSpan>,
    /// Index into [`Sides::l7`].
    pub l7: Option<usize>,
}

/// Where a rule stands in the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleTier {
    Admin,
    Normal,
    Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerSet {
    Any,
    /// Index into [`Sides::peers`].
    OneOf(usize),
}

/// Ports (or ICMP types) `first..=last` of an IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortSpan {
    pub protocol: u8,
    pub first: u16,
    pub last: u16,
}

impl PortSpan {
    fn covers(self, flow: L4Flow) -> bool {
        self.protocol == flow.protocol.number() && (self.first..=self.last).contains(&flow.port)
    }

    /// Some port is in both.
    pub fn meets(self, other: PortSpan) -> bool {
        self.protocol == other.protocol && self.first <= other.last && other.first <= self.last
    }
}

/// One value of a Secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValue {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// `None`: the only key.
    pub key: Option<Arc<str>>,
    pub value: Vec<u8>,
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}/{} key {:?}", self.namespace, self.name, self.key)
    }
}

impl Snapshot {
    /// Some `toFQDNs` rule matches the canonical name.
    pub fn is_wanted(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// The identity of a local pod.
    pub fn local(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints.get(&address)
    }

    /// The local pod at this address, as the subject of what [`Snapshot::policy`] says about such a flow: under the
    /// identity that has L7 rules for it, if the address is changing hands.
    pub fn subject(&self, address: IpAddr, direction: Direction, flow: L4Flow) -> Option<Identity> {
        let endpoint = self.local(address)?;
        let has_rules = |identity: &Identity| self.side(*identity, direction, flow).is_some();
        let known = std::iter::once(&endpoint.identity).chain(endpoint.before.iter().rev());
        Some(known.copied().find(has_rules).unwrap_or(endpoint.identity))
    }

    /// What a proxy is to enforce on a connection; `None`: no L7 rule of this side names the port.
    pub fn policy(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Option<L7Policy> {
        let (sides, side) = self.side(subject, direction, flow)?;
        Some(sides.judge(side, peer, flow))
    }

    fn side(&self, subject: Identity, direction: Direction, flow: L4Flow) -> Option<(&Sides, &Side)> {
        std::iter::once(&self.sides).chain(self.before.iter().rev()).find_map(|sides| {
            let side = sides.find(subject, direction)?;
            side.ports.iter().any(|span| span.covers(flow)).then_some((sides, side))
        })
    }

    /// The document between two: what this one says, and what the kernel, which has still the state of `old`, may need.
    pub fn after(&self, old: &Snapshot) -> Snapshot {
        let mut both = self.clone();
        both.revision = old.revision;
        both.before.clone_from(&old.before);
        if old.sides != self.sides && !both.before.contains(&old.sides) {
            both.before.push(old.sides.clone());
            // While the kernel takes nothing it has the oldest, and at most a part of the newest.
            if both.before.len() > MOST_BEFORE {
                both.before.remove(1);
            }
        }
        for (address, endpoint) in &old.endpoints {
            let new = both.endpoints.entry(*address).or_insert_with(|| endpoint.clone());
            new.before = endpoint.before.iter().chain([&endpoint.identity]).copied().collect();
            new.before.retain(|identity| *identity != new.identity);
        }
        let is_new = |value: &&SecretValue| {
            let place =
                |secret: &SecretValue| (secret.namespace.clone(), secret.name.clone(), secret.key.clone());
            !self.secrets.iter().any(|known| place(known) == place(value))
        };
        both.secrets.extend(old.secrets.iter().filter(is_new).cloned());
        both.patterns.extend(old.patterns.iter().filter(|known| !self.patterns.contains(known)).cloned());
        let scopes = old.scopes.iter();
        both.scopes.extend(
            scopes.filter(|old| !self.scopes.iter().any(|new| new.identity == old.identity)).cloned(),
        );
        both
    }

    /// Both say the same, by whatever revision.
    pub fn says_what(&self, other: &Snapshot) -> bool {
        let Snapshot { revision: _, node, endpoints, sides, before, secrets, patterns, scopes } = self;
        (node, endpoints, sides) == (&other.node, &other.endpoints, &other.sides)
            && (before, secrets) == (&other.before, &other.secrets)
            && (patterns, scopes) == (&other.patterns, &other.scopes)
    }

    /// Field path of a rule, for records.
    pub fn rule_path(&self, subject: Identity, direction: Direction, rule: &RuleRef) -> Option<&Arc<str>> {
        std::iter::once(&self.sides).chain(&self.before).find_map(|sides| {
            let rules = &sides.find(subject, direction)?.rules;
            rules.iter().find(|known| known.rule == *rule).map(|known| &known.path)
        })
    }

    /// The value of a Secret: namespace, name, key (`None`: the only key).
    pub fn secret(&self, namespace: &str, name: &str, key: Option<&str>) -> Option<Vec<u8>> {
        let found = self.secrets.iter().find(|secret| {
            (&*secret.namespace, &*secret.name, secret.key.as_deref()) == (namespace, name, key)
        })?;
        Some(found.value.clone())
    }
}

impl Sides {
    fn find(&self, subject: Identity, direction: Direction) -> Option<&Side> {
        let place =
            self.all.binary_search_by_key(&(subject, direction), |side| (side.subject, side.direction));
        self.all.get(place.ok()?)
    }

    fn selects(&self, peers: PeerSet, peer: PeerView) -> bool {
        let PeerSet::OneOf(index) = peers else { return true };
        let Some(set) = self.peers.get(index) else { return false };
        let known = [Some(peer.identity), peer.address_class];
        known.into_iter().flatten().any(|id| id != Identity::UNKNOWN && set.binary_search(&id).is_ok())
    }

    fn judge(&self, side: &Side, peer: PeerView, flow: L4Flow) -> L7Policy {
        let deny =
            |outcome| L7Policy { outcome, rules: Vec::new(), lifted: false, enforced: side.default_deny };
        if peer.identity == Identity::UNKNOWN {
            return deny(Outcome::Deny);
        }
        let matching: Vec<&SideRule> = side
            .rules
            .iter()
            .filter(|rule| rule.ports.is_empty() || rule.ports.iter().any(|span| span.covers(flow)))
            .filter(|rule| self.selects(rule.peers, peer))
            .collect();
        let outcome = side.outcome(&matching, peer);
        let mut policy = deny(outcome);
        if !matches!(outcome, Outcome::Redirect(_)) {
            return policy;
        }
        let allows = matching.into_iter().filter(|rule| {
            rule.tier == RuleTier::Normal
                && matches!(rule.action, SlotAction::Allow | SlotAction::Redirect(_))
        });
        for rule in allows {
            // A rule whose L7 part is lost would lift the others.
            let l7 = match rule.l7.map(|index| self.l7.get(index).cloned()) {
                Some(None) => return deny(Outcome::Deny),
                Some(Some(l7)) => Some(l7),
                None => None,
            };
            policy.lifted |= l7.is_none();
            policy.rules.push((rule.rule.clone(), l7));
        }
        policy.rules.dedup_by(|later, earlier| later.0 == earlier.0);
        policy
    }
}

impl Side {
    fn outcome(&self, matching: &[&SideRule], peer: PeerView) -> Outcome {
        if self.localhost && peer.identity == Identity::HOST {
            return Outcome::Allow;
        }
        let best = |admin: bool| {
            let of_slot = matching.iter().filter(|rule| (rule.tier == RuleTier::Admin) == admin);
            of_slot.max_by_key(|rule| rule.precedence).map(|rule| rule.action)
        };
        let decided = match best(true) {
            Some(SlotAction::Pass) | None => best(false),
            decided => decided,
        };
        match decided {
            Some(SlotAction::Allow) => Outcome::Allow,
            Some(SlotAction::Redirect(proxy)) => Outcome::Redirect(proxy),
            Some(SlotAction::Deny) => Outcome::Deny,
            Some(SlotAction::Pass) | None if self.default_deny => Outcome::Deny,
            Some(SlotAction::Pass) | None => Outcome::Allow,
        }
    }
}
