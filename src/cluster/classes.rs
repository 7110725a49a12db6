//! Address classes: addresses that no `ipBlock` or `networks` rule tells apart.
//!
//! Such a rule matches addresses, pods' and nodes' included, so a class is known by the longest prefix of a
//! rule around the address. Where a rule for addresses also names ports, the numbers depend on the pod that
//! has the address: then each address of a pod with such names is a class of its prefix *and* of its ports.

use std::net::IpAddr;

use ipnet::IpNet;

use super::derive::Derived;
use super::dirty::Dirty;
use super::ids::EngineOp;
use super::objects::Objects;
use super::options::ViewError;
use crate::identity::pod::Relevance as _;
use crate::model::{Identity, Kind, Label};

/// What rules can tell about an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassKey {
    /// The longest prefix of a rule around it.
    pub(super) prefix: IpNet,
    /// Port names of its pod, as identity labels.
    pub(super) ports: Vec<Label>,
}

impl Derived {
    pub(super) fn derive_classes(
        &mut self,
        objects: &Objects,
        dirty: &mut Dirty,
        ops: &mut Vec<EngineOp>,
    ) -> Result<(), ViewError> {
        let changes = self.uses.classes.take_changes();
        let toggled = !self.uses.names_at_addresses.take_changes().is_empty();
        for (prefix, _) in &changes {
            if self.uses.classes.contains(prefix) {
                self.class_prefixes.insert(*prefix, ());
            } else {
                self.class_prefixes.remove(*prefix);
            }
        }
        if toggled || (self.uses.names_at_addresses.contains(&()) && !changes.is_empty()) {
            let pods = self.pods.values().filter(|state| !state.pod.ports.is_empty());
            let addresses = pods.flat_map(|state| &state.pod.addresses).copied().map(IpNet::from);
            dirty.classes.extend(addresses);
        }
        dirty.classes.extend(changes.into_iter().map(|(prefix, _)| prefix));
        for prefix in &dirty.classes {
            let new = self.class_key(*prefix, objects);
            if self.classes.get(*prefix) == new.as_ref() {
                continue;
            }
            let old = match new {
                Some(new) => {
                    self.ids.acquire_class(&new, ops)?;
                    self.classes.insert(*prefix, new)
                }
                None => self.classes.remove(*prefix),
            };
            if let Some(old) = old {
                self.ids.release_class(&old);
            }
        }
        Ok(())
    }

    /// Pods came to or left these addresses, or have other ports.
    pub(super) fn mark_classes(&self, addresses: &[IpAddr], dirty: &mut Dirty) {
        let prefixes = addresses.iter().copied().map(IpNet::from);
        let matters = |prefix: &IpNet| {
            self.uses.names_at_addresses.contains(&()) || self.classes.get(*prefix).is_some()
        };
        dirty.classes.extend(prefixes.filter(matters));
    }

    fn class_key(&self, prefix: IpNet, objects: &Objects) -> Option<ClassKey> {
        let is_single = prefix.prefix_len() == prefix.max_prefix_len();
        let ports = match is_single && self.uses.names_at_addresses.contains(&()) {
            true => self.ports_at(prefix.addr(), objects),
            false => Vec::new(),
        };
        if ports.is_empty() && !self.uses.classes.contains(&prefix) {
            return None;
        }
        let (prefix, ()) = self.class_prefixes.longest_match(prefix)?;
        Some(ClassKey { prefix, ports })
    }

    fn ports_at(&self, address: IpAddr, objects: &Objects) -> Vec<Label> {
        objects
            .owners(address)
            .filter(|owner| owner.kind == Kind::Pod)
            .find_map(|owner| self.pods.get(owner))
            .map(|state| self.uses.port_labels(&state.pod.ports))
            .unwrap_or_default()
    }

    /// The identity of the class at a prefix of the class trie.
    pub(super) fn class(&self, prefix: IpNet) -> Option<Identity> {
        self.classes.get(prefix).and_then(|key| self.ids.class(key))
    }
}
