//! A verdict straight from the rules: no cells, no precedence numbers, no indexes. What decides is
//! written in the order of the semantics; only the match of one peer element is the engine's own
//! (it has tests of its own, and `policy::oracle` does not share it).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Direction, Family, Identity, IdentityRecord, ObjectRef, Protocol};
use crate::policy::decision::Outcome;
use crate::policy::engine::matching::{peer_matches, subject_matches};
use crate::policy::engine::{AllowLocalhost, Enforcement, EngineOptions, L4Flow, PeerView};
use crate::policy::l7::L7Rules;
use crate::policy::map_state::Proxy;
use crate::policy::named_port;
use crate::policy::rule::{Action, Entity, Peer, Peers, Policy, PortMatch, Ports, Rule, Spec, Tier};

/// Everything that is loaded.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) options: EngineOptions,
    pub(super) identities: BTreeMap<Identity, IdentityRecord>,
    pub(super) policies: BTreeMap<ObjectRef, Arc<Policy>>,
}

impl World {
    /// The verdict on one side of a subject that exists.
    pub(super) fn judge(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Outcome {
        let mode = self.options.enforcement;
        if mode == Enforcement::Never {
            return Outcome::Allow;
        }
        let Some(record) = self.identities.get(&subject) else { return Outcome::Deny };
        let specs: Vec<&Spec> = self
            .policies
            .values()
            .flat_map(|policy| &policy.specs)
            .filter(|spec| subject_matches(&spec.subject, record))
            .collect();
        let turned_on = specs.iter().any(|spec| spec.default_deny(direction));
        let has_rules = specs.iter().any(|spec| spec.rules.iter().any(|rule| rule.direction == direction));
        let enforced = turned_on || has_rules || mode == Enforcement::Always;
        if enforced
            && direction == Direction::Ingress
            && peer.identity == Identity::HOST
            && subject != Identity::HOST
            && self.options.allow_localhost == AllowLocalhost::Always
        {
            return Outcome::Allow;
        }
        let matching = |tier: fn(Tier) -> Option<u16>| {
            let mut specs: Vec<(u16, &Spec)> =
                specs.iter().filter_map(|spec| Some((tier(spec.tier)?, *spec))).collect();
            specs.sort_by_key(|(priority, _)| *priority); // stable: names, then specs
            specs
                .into_iter()
                .flat_map(|(_, spec)| &spec.rules)
                .filter(|rule| rule.direction == direction && self.matches(rule, record, peer, flow))
                .collect::<Vec<&Rule>>()
        };
        let admin = matching(|tier| match tier {
            Tier::Admin { priority } => Some(priority),
            _ => None,
        });
        match admin.first().map(|rule| rule.action) {
            Some(Action::Allow) => return Outcome::Allow,
            Some(Action::Deny) => return Outcome::Deny,
            Some(Action::Pass) | None => {}
        }
        let normal = matching(|tier| (tier == Tier::Normal).then_some(0));
        if normal.iter().any(|rule| rule.action == Action::Deny) {
            return Outcome::Deny;
        }
        for proxy in [Proxy::Tls, Proxy::Dns, Proxy::Http] {
            if normal.iter().any(|rule| rule.l7.as_deref().is_some_and(|l7| proxy_of(l7) == proxy)) {
                return Outcome::Redirect(proxy);
            }
        }
        if !normal.is_empty() {
            return Outcome::Allow;
        }
        if turned_on {
            return Outcome::Deny;
        }
        let baseline = matching(|tier| match tier {
            Tier::Baseline { priority } => Some(priority),
            _ => None,
        });
        match baseline.first().map(|rule| rule.action) {
            Some(Action::Deny) => Outcome::Deny,
            Some(_) => Outcome::Allow,
            None if mode == Enforcement::Always => Outcome::Deny,
            None => Outcome::Allow,
        }
    }

    fn matches(&self, rule: &Rule, subject: &IdentityRecord, peer: PeerView, flow: L4Flow) -> bool {
        let peers: Vec<&IdentityRecord> = [Some(peer.identity), peer.address_class]
            .into_iter()
            .flatten()
            .filter_map(|id| self.identities.get(&id))
            .collect();
        let peer_fits = match &rule.peers {
            Peers::Any => true,
            Peers::OneOf(elements) if elements.contains(&Peer::Entity(Entity::All)) => true,
            Peers::OneOf(elements) => elements.iter().any(|element| {
                peers.iter().any(|record| peer_matches(element, record, self.options.cidr_match))
            }),
        };
        let destination = match rule.direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => self.identities.get(&peer.identity),
        };
        let port_fits = match &rule.ports {
            Ports::Any => true,
            Ports::OneOf(ports) => ports.iter().any(|port| match port {
                PortMatch::Protocol(protocol) => flow.protocol == *protocol,
                PortMatch::Range(protocol, range) => flow.protocol == *protocol && range.contains(flow.port),
                PortMatch::Named(protocol, name) => {
                    let ports =
                        destination.map_or_else(Vec::new, |record| named_port::decode(&record.labels));
                    flow.protocol == *protocol
                        && ports.iter().any(|port| {
                            port.name == *name && port.protocol == *protocol && port.port == flow.port
                        })
                }
                PortMatch::IcmpType(family, kind) => {
                    let protocol = match family {
                        Family::IPv4 => Protocol::Icmp,
                        Family::IPv6 => Protocol::Icmpv6,
                    };
                    flow.protocol == protocol && flow.port == u16::from(*kind)
                }
            }),
        };
        peer_fits && port_fits
    }
}

fn proxy_of(l7: &L7Rules) -> Proxy {
    match l7 {
        L7Rules::Http(_) => Proxy::Http,
        L7Rules::Dns(_) => Proxy::Dns,
        L7Rules::Tls(_) => Proxy::Tls,
    }
}
