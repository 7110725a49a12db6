//! How the core keeps the directory of enrichment: what a change touches, and no more.

use std::net::IpAddr;

use super::core::Core;
use crate::cluster::Change;
use crate::cluster::delta::Delta;
use crate::flow::directory::Owner;
use crate::model::{Identity, Kind, ObjectRef, Workload};

/// The pods and nodes among these changes.
pub fn touched(changes: &[Change]) -> Vec<ObjectRef> {
    let reference = |change: &Change| match change {
        Change::Upsert(resource) => resource.reference(),
        Change::Delete(reference) => reference.clone(),
    };
    let has_addresses = |reference: &ObjectRef| matches!(reference.kind, Kind::Pod | Kind::Node);
    changes.iter().map(reference).filter(has_addresses).collect()
}

impl Core {
    /// Says who has the addresses that these objects have or had. Answers that depend on objects are old
    /// from now on.
    pub fn note_owners(&mut self, touched: Vec<ObjectRef>) {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for reference in touched {
            let now = self.view.addresses_of(&reference).to_vec();
            addresses.extend_from_slice(&now);
            let before = match now.is_empty() {
                true => self.placed.remove(&reference),
                false => self.placed.insert(reference, now),
            };
            addresses.extend(before.unwrap_or_default());
        }
        let owners: Vec<_> = addresses.into_iter().map(|address| (address, self.owner(address))).collect();
        let mut directory = self.shared.directory.lock();
        owners.into_iter().for_each(|(address, owner)| directory.set_owner(address, owner));
        drop(directory);
        self.shared.changed();
    }

    fn owner(&self, address: IpAddr) -> Option<Owner> {
        let owner = self.view.resolve(address).owner?;
        if owner.kind == Kind::Node {
            return Some(Owner::Node(owner.name));
        }
        let workload = self.workload_of(&owner);
        let endpoint = self.endpoints.get(&owner.path()).map(|member| member.registration.id);
        Some(Owner::Pod { workload, namespace: owner.namespace, name: owner.name, endpoint })
    }

    /// What a pod is an instance of.
    pub fn workload_of(&self, pod: &ObjectRef) -> Workload {
        self.view.pod(pod).map_or_else(|| Workload::new("Pod", &pod.name), Workload::of)
    }

    /// Labels of the identities that addresses of this delta have.
    pub fn note_identities(&self, delta: &Delta) {
        let engine = self.view.engine();
        let mut directory = self.shared.directory.lock();
        let mut last = Identity::UNKNOWN;
        for (_, entry) in &delta.ipcache {
            let Some(identity) = entry.map(|entry| entry.identity).filter(|identity| *identity != last)
            else {
                continue;
            };
            last = identity;
            if let Some(record) = engine.identity(identity) {
                directory.set_labels(identity, &record.labels);
            }
        }
        directory.forget_identities(|identity| engine.identity(identity).is_some());
        drop(directory);
        if !delta.policies.is_empty() || !delta.services.is_empty() {
            self.shared.changed();
        }
    }

    /// All names that are known, after a start.
    pub fn note_names(&self) {
        let mut directory = self.shared.directory.lock();
        for (name, addresses) in self.view.names().names() {
            directory.add_name(name, addresses.keys().copied());
        }
    }
}
