//! What the loaded rules make a difference by: label keys, port names, prefixes, name patterns.
//!
//! Only what some rule uses is tracked anywhere else: a label that no selector names and the
//! filter drops, a port name that no rule has, a prefix that nobody wrote cost nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::counted::Counted;
use super::expand::peers;
use crate::identity::pod::Relevance;
use crate::model::{ContainerPort, Direction, Label, LabelSource};
use crate::policy::l7::DnsPattern;
use crate::policy::named_port;
use crate::policy::rule::{CidrSet, Peer, Peers, Policy, PortMatch, Ports, Rule, Subject};
use crate::policy::selector::LabelSelector;

/// What one expanded policy uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    /// Keys of pod labels that selectors name.
    keys: BTreeSet<Arc<str>>,
    port_names: BTreeSet<Arc<str>>,
    /// Prefixes of CIDR rules, `except` included.
    prefixes: BTreeSet<IpNet>,
    /// Prefixes of address rules, `except` included.
    classes: BTreeSet<IpNet>,
    patterns: BTreeSet<DnsPattern>,
    /// Some egress rule names ports of peers that it matches by address.
    names_at_addresses: bool,
}

impl Uses {
    pub(super) fn of(policy: &Policy) -> Uses {
        let mut uses = Uses::default();
        for spec in &policy.specs {
            if let Subject::Pods(Some(selector)) = &spec.subject {
                uses.add_keys(selector);
            }
            for rule in &spec.rules {
                uses.names_at_addresses |= names_at_addresses(rule);
                if let Ports::OneOf(ports) = &rule.ports {
                    uses.port_names.extend(ports.iter().filter_map(|port| match port {
                        PortMatch::Named(_, name) => Some(name.clone()),
                        _ => None,
                    }));
                }
            }
        }
        for peer in peers(policy) {
            match peer {
                Peer::Pods(selector) => uses.add_keys(selector),
                Peer::Cidr(set) => uses.prefixes.extend(named_prefixes(set)),
                Peer::Address(set) => uses.classes.extend(named_prefixes(set)),
                Peer::Fqdn(pattern) => {
                    uses.patterns.insert(pattern.clone());
                }
                Peer::Nodes(_) | Peer::Entity(_) | Peer::CidrGroup(_) | Peer::Service(_) => {}
            }
        }
        uses
    }

    fn add_keys(&mut self, selector: &LabelSelector) {
        let keys = selector.requirements().iter().map(|requirement| &requirement.key);
        let of_pods = keys.filter(|key| key.source.is_none_or(|source| source == LabelSource::K8s));
        self.keys.extend(of_pods.map(|key| key.key.clone()));
    }
}

fn names_at_addresses(rule: &Rule) -> bool {
    let (Peers::OneOf(peers), Ports::OneOf(ports)) = (&rule.peers, &rule.ports) else { return false };
    rule.direction == Direction::Egress
        && peers.iter().any(|peer| matches!(peer, Peer::Address(_)))
        && ports.iter().any(|port| matches!(port, PortMatch::Named(..)))
}

fn named_prefixes(set: &CidrSet) -> impl Iterator<Item = IpNet> {
    std::iter::once(set.cidr).chain(set.except.iter().copied()).map(|prefix| prefix.trunc())
}

/// What all policies together use.
#[derive(Debug, Default)]
pub(super) struct AllUses {
    pub(super) keys: Counted<Arc<str>>,
    pub(super) port_names: Counted<Arc<str>>,
    pub(super) prefixes: Counted<IpNet>,
    pub(super) classes: Counted<IpNet>,
    pub(super) patterns: Counted<DnsPattern>,
    pub(super) names_at_addresses: Counted<()>,
}

impl AllUses {
    pub(super) fn add(&mut self, uses: &Uses) {
        uses.keys.iter().for_each(|key| self.keys.add(key));
        uses.port_names.iter().for_each(|name| self.port_names.add(name));
        uses.prefixes.iter().for_each(|prefix| self.prefixes.add(prefix));
        uses.classes.iter().for_each(|prefix| self.classes.add(prefix));
        uses.patterns.iter().for_each(|pattern| self.patterns.add(pattern));
        if uses.names_at_addresses {
            self.names_at_addresses.add(&());
        }
    }

    pub(super) fn remove(&mut self, uses: &Uses) {
        uses.keys.iter().for_each(|key| self.keys.remove(key));
        uses.port_names.iter().for_each(|name| self.port_names.remove(name));
        uses.prefixes.iter().for_each(|prefix| self.prefixes.remove(prefix));
        uses.classes.iter().for_each(|prefix| self.classes.remove(prefix));
        uses.patterns.iter().for_each(|pattern| self.patterns.remove(pattern));
        if uses.names_at_addresses {
            self.names_at_addresses.remove(&());
        }
    }
}

impl Relevance for AllUses {
    fn names_key(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    fn port_labels(&self, ports: &[ContainerPort]) -> Vec<Label> {
        let names: BTreeSet<&str> = ports.iter().filter_map(|port| port.name.as_deref()).collect();
        names
            .into_iter()
            .filter(|name| self.port_names.contains(*name))
            .filter_map(|name| named_port::label(name, ports))
            .collect()
    }
}
