//! Makes the kernel hold exactly a full state, and touches only what differs.
//!
//! A full state is a delta from nothing. It is turned into the delta from what the kernel holds, and
//! applied by the same code. So a restarted agent disturbs nobody: a policy whose content did not
//! change keeps its epoch, and established flows keep their verdicts.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};

use super::DatapathError;
use super::abi::*;
use super::addresses::AddressPlan;
use super::identities;
use super::tables::Tables;
use super::transition::{info_flags, range_keys};
use super::writer::{StalePorts, Writer};
use crate::cluster::delta::{Delta, EndpointChange};
use crate::model::Identity;
use crate::policy::map_state::SubjectDelta;

/// What a comparison found and changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Policies whose content changed.
    pub policies_changed: usize,
    /// Policies of subjects that are not in the full state.
    pub policies_removed: usize,
    /// ipcache entries and address classes written or deleted.
    pub addresses: usize,
    /// Endpoint addresses deleted.
    pub endpoints_removed: usize,
    /// Service frontends deleted.
    pub services_removed: usize,
}

/// Content of one policy, as the full state wants it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    cells: HashMap<PolicyMapKey, PolicyMapEntry>,
    ports: HashMap<PortClassKey, u32>,
    flags: [u32; 2],
}

impl Wanted {
    pub(super) fn of(id: u32, subject: &SubjectDelta) -> Wanted {
        let cell = |(key, entry): &(_, _)| (PolicyMapKey::new(id, *key), PolicyMapEntry::from(*entry));
        Wanted {
            cells: subject.upserts.iter().map(cell).collect(),
            ports: (subject.class_upserts.iter())
                .flat_map(|range| range_keys(id, range).map(|key| (key, range.class)))
                .collect(),
            flags: info_flags(&subject.info),
        }
    }
}

/// What one policy has too much, or wrong.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) missing: usize,
    pub(super) changed: usize,
    pub(super) stale_cells: Vec<PolicyMapKey>,
    pub(super) stale_ports: Vec<PortClassKey>,
    pub(super) flags: bool,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.missing == 0
            && self.changed == 0
            && self.stale_cells.is_empty()
            && self.stale_ports.is_empty()
            && !self.flags
    }
}

/// Compares policies with what the maps hold. The wanted ones are consumed: what is left of them
/// is what is missing or different.
pub(super) fn compare(
    tables: &Tables,
    wanted: &mut HashMap<u32, Wanted>,
) -> Result<HashMap<u32, Difference>, DatapathError> {
    let mut found: HashMap<u32, Difference> = wanted.keys().map(|id| (*id, Difference::default())).collect();
    tables.policy.for_each(&mut |key, entry| {
        let difference = found.entry(key.policy_id).or_default();
        match wanted.get_mut(&key.policy_id).map(|wanted| &mut wanted.cells) {
            Some(cells) => match cells.get(key) {
                Some(want) if want == entry => {
                    cells.remove(key);
                }
                Some(_) => difference.changed += 1,
                None => difference.stale_cells.push(*key),
            },
            None => difference.stale_cells.push(*key),
        }
    })?;
    tables.port_classes.for_each(&mut |key, class| {
        let difference = found.entry(key.policy_id).or_default();
        match wanted.get_mut(&key.policy_id).map(|wanted| &mut wanted.ports) {
            Some(ports) => match ports.get(key) {
                Some(want) if want == class => {
                    ports.remove(key);
                }
                Some(_) => difference.changed += 1,
                None => difference.stale_ports.push(*key),
            },
            None => difference.stale_ports.push(*key),
        }
    })?;
    for (id, wanted) in wanted.iter() {
        let info = tables.policy_info.get(id)?.unwrap_or_default();
        let difference = found.entry(*id).or_default();
        difference.missing = wanted.cells.len() + wanted.ports.len() - difference.changed;
        difference.flags = info.flags != wanted.flags || info.epoch == 0;
    }
    Ok(found)
}

impl Writer {
    /// See the module's contract.
    pub fn reconcile(&mut self, full: &Delta) -> Result<Reconciled, DatapathError> {
        let mut result = Reconciled::default();
        let mut delta = full.clone();
        delta.policies.clear();
        let stale_ports = self.reconcile_policies(full, &mut delta, &mut result)?;

        let pods: HashSet<&str> = (full.endpoints.iter())
            .filter_map(|change| match change {
                EndpointChange::Upsert { pod, .. } => Some(pod.as_str()),
                EndpointChange::Remove { .. } => None,
            })
            .collect();
        let gone: Vec<String> =
            self.endpoints.placed().filter(|pod| !pods.contains(pod)).map(str::to_owned).collect();
        delta.endpoints.extend(gone.into_iter().map(|pod| EndpointChange::Remove { pod }));

        // Addresses are compared by their encoded form and handed over beside the delta.
        let wanted = AddressPlan::new(&full.ipcache, &full.address_classes).with_defaults();
        let addresses = AddressPlan {
            exact: wanted.exact.exactly(&*self.tables.ipcache_exact)?,
            prefixes: wanted.prefixes.exactly(&*self.tables.ipcache_lpm)?,
            classes: wanted.classes.exactly(&*self.tables.address_classes)?,
        };
        result.addresses = addresses.changes();
        delta.identities = identities::changes(&self.tables, &full.identities)?;
        delta.ipcache.clear();
        delta.address_classes.clear();
        self.apply_with(&delta, addresses, &stale_ports)?;

        result.services_removed = self.delete_other_services(full)?;
        let known: Vec<_> = self.unplaced_addresses(full);
        result.endpoints_removed = self.endpoints.delete_strangers(&self.tables, &known)?;
        Ok(result)
    }

    fn reconcile_policies(
        &mut self,
        full: &Delta,
        delta: &mut Delta,
        result: &mut Reconciled,
    ) -> Result<StalePorts, DatapathError> {
        let mut wanted = HashMap::new();
        let mut by_id: BTreeMap<u32, &SubjectDelta> = BTreeMap::new();
        for subject in full.policies.iter().filter(|subject| !subject.removed) {
            let id = self.policies.id_or_new(&self.tables, subject.subject)?;
            wanted.insert(id, Wanted::of(id, subject));
            by_id.insert(id, subject);
        }
        let differences = compare(&self.tables, &mut wanted)?;
        for (id, subject) in &by_id {
            let Some(difference) = differences.get(id).filter(|difference| !difference.is_empty()) else {
                continue;
            };
            let left = &wanted[id];
            let mut change = (*subject).clone();
            change.upserts.retain(|(key, _)| left.cells.contains_key(&PolicyMapKey::new(*id, *key)));
            // Whole ranges are written again when one of their prefixes differs.
            change
                .class_upserts
                .retain(|range| range_keys(*id, range).any(|key| left.ports.contains_key(&key)));
            change.deletes = difference.stale_cells.iter().filter_map(|key| key.cell()).collect();
            delta.policies.push(change);
            result.policies_changed += 1;
        }
        let stale_ports = (differences.into_iter())
            .filter(|(id, _)| by_id.contains_key(id))
            .map(|(id, difference)| (id, difference.stale_ports))
            .collect();
        let gone: Vec<Identity> = self
            .policies
            .subjects()
            .filter(|(_, id)| !by_id.contains_key(id))
            .map(|(subject, _)| subject)
            .collect();
        for subject in gone {
            let is_endpoint = full.endpoints.iter().any(
                |change| matches!(change, EndpointChange::Upsert { identity, .. } if *identity == subject),
            );
            // A policy that an endpoint waits for is not there yet: nothing to remove.
            let loaded = self.policies.id(subject).and_then(|id| self.policies.state(id));
            if !is_endpoint || loaded.is_some_and(|state| state.is_live()) {
                delta.policies.push(SubjectDelta {
                    subject,
                    info: Default::default(),
                    upserts: Vec::new(),
                    deletes: Vec::new(),
                    class_upserts: Vec::new(),
                    class_deletes: Vec::new(),
                    removed: true,
                });
                result.policies_removed += 1;
            }
        }
        Ok(stale_ports)
    }

    fn delete_other_services(&mut self, full: &Delta) -> Result<usize, DatapathError> {
        let wanted: HashSet<ServiceKey> = (full.services.iter())
            .filter(|(_, entry)| entry.is_some())
            .map(|(frontend, _)| ServiceKey::from(frontend))
            .collect();
        let mut stale = Vec::new();
        let mut ids = HashSet::new();
        self.tables.services.for_each(&mut |key, value| {
            if wanted.contains(key) {
                ids.insert(value.id);
            } else {
                stale.push(*key);
            }
        })?;
        self.tables.services.delete(&stale)?;
        let mut orphans = Vec::new();
        self.tables.backends.for_each(&mut |key, _| {
            if !ids.contains(&key.svc_id) {
                orphans.push(*key);
            }
        })?;
        self.tables.backends.delete(&orphans)?;
        Ok(stale.len())
    }

    /// Addresses of pods whose device nobody has told yet: their entries of before the restart stay.
    fn unplaced_addresses(&self, full: &Delta) -> Vec<Addr> {
        let mut addresses = Vec::new();
        for change in &full.endpoints {
            if let EndpointChange::Upsert { pod, addresses: own, .. } = change
                && !self.endpoints.has_device(pod)
            {
                addresses.extend(own.iter().map(|address| Addr::from(*address)));
            }
        }
        addresses
    }
}
