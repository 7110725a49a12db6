//! The kernel against a full state.

use hashbrown::HashMap;

use super::Inspector;
use super::rows::Divergence;
use crate::cluster::delta::{Delta, Presence, ServiceFrontend};
use crate::datapath::DatapathError;
use crate::datapath::addresses::AddressPlan;
use crate::datapath::identities;
use crate::datapath::reconcile::{Wanted, compare};
use crate::datapath::tables::name;
use crate::model::{Backend, Identity};

impl Inspector {
    /// Compares the kernel with a full state (a delta from nothing).
    pub fn diff(&self, full: &Delta) -> Result<Vec<Divergence>, DatapathError> {
        let mut rows = Vec::new();
        let mut ids: HashMap<Identity, u32> = HashMap::new();
        self.tables.policy_info.for_each(&mut |id, info| {
            if info.subject_identity != 0 {
                ids.insert(Identity(info.subject_identity), *id);
            }
        })?;
        let mut wanted = HashMap::new();
        for subject in full.policies.iter().filter(|subject| !subject.removed) {
            match ids.get(&subject.subject) {
                Some(id) => {
                    wanted.insert(*id, Wanted::of(*id, subject));
                }
                None => rows.push(Divergence {
                    map: name::POLICY_INFO,
                    what: format!("identity {} has no policy", subject.subject),
                }),
            }
        }
        let subjects: HashMap<u32, Identity> = ids.iter().map(|(subject, id)| (*id, *subject)).collect();
        for (id, difference) in compare(&self.tables, &mut wanted)? {
            if difference.is_empty() {
                continue;
            }
            let subject = subjects.get(&id).copied().unwrap_or_default();
            rows.push(Divergence {
                map: name::POLICY,
                what: format!(
                    "policy {id} of identity {subject}: {} missing, {} different, {} too many{}",
                    difference.missing,
                    difference.changed,
                    difference.stale_cells.len() + difference.stale_ports.len(),
                    if difference.flags { ", flags differ" } else { "" },
                ),
            });
        }
        let addresses = AddressPlan::new(&full.ipcache, &full.address_classes).with_defaults();
        let mut add = |map, missing: usize, stale: usize| {
            if missing + stale > 0 {
                rows.push(Divergence {
                    map,
                    what: format!("{missing} missing or different, {stale} too many"),
                });
            }
        };
        let exact = addresses.exact.exactly(&*self.tables.ipcache_exact)?;
        add(name::IPCACHE_EXACT, exact.keys.len(), exact.deletes.len());
        let prefixes = addresses.prefixes.exactly(&*self.tables.ipcache_lpm)?;
        add(name::IPCACHE_LPM, prefixes.keys.len(), prefixes.deletes.len());
        let classes = addresses.classes.exactly(&*self.tables.address_classes)?;
        add(name::ADDR_CLASS, classes.keys.len(), classes.deletes.len());
        let changes = identities::changes(&self.tables, &full.identities)?;
        let missing = changes.iter().filter(|(_, presence)| *presence == Presence::Known).count();
        add(name::IDENTITIES, missing, changes.len() - missing);
        rows.extend(self.diff_services(full)?);
        rows.sort_by(|a, b| (a.map, &a.what).cmp(&(b.map, &b.what)));
        Ok(rows)
    }

    fn diff_services(&self, full: &Delta) -> Result<Vec<Divergence>, DatapathError> {
        let mut found: HashMap<ServiceFrontend, Vec<Backend>> =
            self.services()?.into_iter().map(|row| (row.frontend, row.backends)).collect();
        let mut rows = Vec::new();
        let mut add = |frontend: &ServiceFrontend, what: &str| {
            let ServiceFrontend { address, port, protocol } = frontend;
            rows.push(Divergence {
                map: name::SERVICES,
                what: format!("{address} {port}/{protocol}: {what}"),
            });
        };
        for (frontend, entry) in &full.services {
            let Some(entry) = entry else { continue };
            match found.remove(frontend) {
                None => add(frontend, "missing"),
                Some(mut backends) => {
                    let mut wanted = entry.backends.clone();
                    backends.sort();
                    wanted.sort();
                    wanted.dedup();
                    if backends != wanted {
                        add(frontend, "backends differ");
                    }
                }
            }
        }
        found.keys().for_each(|frontend| add(frontend, "too many"));
        Ok(rows)
    }
}
