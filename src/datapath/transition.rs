//! In which order one policy's change is written, so that no packet finds a hole.
//!
//! A change may come together with addresses that move from one identity to another (a CIDR rule cuts
//! a prefix, a name learns an address, a pod is relabelled). Cells and addresses live in different
//! maps and cannot change at once. While both are on their way, a packet may be judged by the new cells
//! of the identity that its address is about to leave. So everything is done in three steps:
//!
//! 1. *Settle* the identities that lose no address: their new cells and deletes. For the identities
//!    that do lose addresses, and for "any", only what tightens (new denies, default deny).
//! 2. *Move*: port classes, ipcache, address classes.
//! 3. *Finish*: what loosens, the remaining deletes, the final flags, and last the new epoch.
//!
//! Whatever a packet meets in between, it passes only if the old or the new state passes it.
//! Not covered: a transaction that gives a class number of a live policy another meaning, or that
//! renumbers precedences; the engine does neither.

use hashbrown::HashSet;

use super::DatapathError;
use super::abi::convert::{CELL_FLAGS, direction_flags, port_prefixes};
use super::abi::*;
use super::policies::Policies;
use super::tables::Tables;
use crate::model::{Direction, Identity};
use crate::policy::map_state::{PolicyInfo, PortClassRange, SubjectDelta};

type CellEntry = (PolicyMapKey, PolicyMapEntry);

/// Which identities lose addresses in this transaction.
#[derive(Debug, Default)]
pub struct Moves {
    /// Some address moves at all.
    pub any: bool,
    /// Identities (and classes) that addresses leave.
    pub losing: HashSet<u32>,
}

/// The writes of one subject, in the order of the fields.
#[derive(Debug)]
pub struct Transition {
    pub id: u32,
    pub subject: Identity,
    /// Step 1.
    pub settle: Vec<CellEntry>,
    pub settle_deletes: Vec<PolicyMapKey>,
    /// Step 2.
    pub ports: Vec<(PortClassKey, u32)>,
    pub port_deletes: Vec<PortClassKey>,
    /// Step 3.
    pub finish: Vec<CellEntry>,
    pub finish_deletes: Vec<PolicyMapKey>,
    /// In the end.
    pub flags: [u32; 2],
}

/// `SLUICE_PF_*` of both directions.
pub fn info_flags(info: &PolicyInfo) -> [u32; 2] {
    let mut flags = [0; 2];
    flags[DIR_EGRESS as usize] = direction_flags(info.egress);
    flags[DIR_INGRESS as usize] = direction_flags(info.ingress);
    flags
}

/// The trie keys of a range of ports.
pub fn range_keys(policy_id: u32, range: &PortClassRange) -> impl Iterator<Item = PortClassKey> {
    let (direction, protocol): (Direction, _) = (range.direction, range.protocol);
    port_prefixes(range.range)
        .map(move |(port, bits)| PortClassKey::new(policy_id, direction, protocol, port, bits))
}

/// `new` in place of `old` (or of nothing) can only make more packets drop.
fn tightens(old: Option<PolicyMapEntry>, new: &PolicyMapEntry) -> bool {
    let old = old.unwrap_or_default();
    let slot = |old: &PolicySlot, new: &PolicySlot| new == old || new.action == ACTION_DENY;
    slot(&old.admin, &new.admin) && slot(&old.normal, &new.normal)
}

impl Transition {
    /// Sorts the changes of a subject into steps.
    pub fn plan(
        tables: &Tables,
        policies: &Policies,
        id: u32,
        delta: &SubjectDelta,
        moves: &Moves,
    ) -> Result<Transition, DatapathError> {
        let ports: Vec<_> = (delta.class_upserts.iter())
            .flat_map(|range| range_keys(id, range).map(|key| (key, range.class)))
            .collect();
        let kept: HashSet<PortClassKey> = ports.iter().map(|(key, _)| *key).collect();
        let port_deletes: Vec<_> = (delta.class_deletes.iter())
            .flat_map(|range| range_keys(id, range))
            .filter(|key| !kept.contains(key))
            .collect();
        let mut plan = Transition {
            id,
            subject: delta.subject,
            settle: Vec::with_capacity(delta.upserts.len()),
            settle_deletes: Vec::new(),
            ports,
            port_deletes,
            finish: Vec::new(),
            finish_deletes: Vec::with_capacity(delta.deletes.len()),
            flags: info_flags(&delta.info),
        };
        let state = policies.state(id);
        // Nothing is judged by a policy that is not live yet: any order will do.
        let live = state.is_some_and(|state| state.is_live());
        let unsettled =
            |identity: u32| live && moves.any && (identity == 0 || moves.losing.contains(&identity));
        for (key, entry) in &delta.upserts {
            let cell = (PolicyMapKey::new(id, *key), PolicyMapEntry::from(*entry));
            let early = !unsettled(cell.0.identity) || {
                let present = state.is_some_and(|state| state.has(&cell.0));
                let old = if present { tables.policy.get(&cell.0)? } else { None };
                tightens(old, &cell.1)
            };
            if early { plan.settle.push(cell) } else { plan.finish.push(cell) }
        }
        let ports_move = !plan.ports.is_empty() || !plan.port_deletes.is_empty();
        for key in &delta.deletes {
            let key = PolicyMapKey::new(id, *key);
            let early = live && moves.any && !ports_move && !unsettled(key.identity);
            if early { plan.settle_deletes.push(key) } else { plan.finish_deletes.push(key) }
        }
        Ok(plan)
    }

    /// Cells that are not in the kernel yet.
    pub fn new_cells(&self, policies: &Policies) -> usize {
        let state = policies.state(self.id);
        let is_new = |cell: &&CellEntry| state.is_none_or(|state| !state.has(&cell.0));
        self.settle.iter().chain(&self.finish).filter(is_new).count()
    }

    /// Cell kinds of both, default deny of either: what holds while both old and new cells exist.
    fn widened(&self, policies: &Policies) -> [u32; 2] {
        let old = policies.state(self.id).map_or([0; 2], |state| state.info.flags);
        [old[0] | self.flags[0], old[1] | self.flags[1]]
    }

    /// Step 1.
    pub fn settle(&self, tables: &Tables, policies: &mut Policies) -> Result<(), DatapathError> {
        policies.upsert_cells(tables, self.id, &self.settle)?;
        policies.set_flags(tables, self.id, self.widened(policies))?;
        policies.delete_cells(tables, self.id, &self.settle_deletes)
    }

    /// Step 2, the part that belongs to this policy.
    pub fn move_ports(&self, tables: &Tables, policies: &mut Policies) -> Result<(), DatapathError> {
        policies.move_ports(tables, self.id, &self.ports, &self.port_deletes)
    }

    /// Step 3.
    pub fn finish(&self, tables: &Tables, policies: &mut Policies) -> Result<(), DatapathError> {
        policies.upsert_cells(tables, self.id, &self.finish)?;
        let widened = self.widened(policies);
        // Default deny is that of the new state from here on; old cells may still exist.
        let flags =
            [0, 1].map(|dir| (widened[dir] & CELL_FLAGS) | self.flags[dir] | (widened[dir] & PF_ENFORCED));
        policies.set_flags(tables, self.id, flags)?;
        policies.delete_cells(tables, self.id, &self.finish_deletes)?;
        policies.publish(tables, self.id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(action: u32, precedence: u32) -> PolicySlot {
        PolicySlot { precedence, rule_set: 1, action }
    }

    #[test]
    fn only_denies_tighten() {
        let entry = |normal| PolicyMapEntry { admin: PolicySlot::default(), normal };
        let (allow, deny) = (entry(slot(ACTION_ALLOW, 5)), entry(slot(ACTION_DENY, 9)));
        assert!(tightens(None, &deny));
        assert!(tightens(Some(allow), &deny));
        assert!(!tightens(None, &allow));
        assert!(!tightens(Some(deny), &allow));
        assert!(tightens(Some(allow), &allow));
        let pass = PolicyMapEntry { admin: slot(ACTION_PASS, 7), normal: slot(ACTION_DENY, 9) };
        assert!(!tightens(Some(deny), &pass), "a pass may lift an admin deny of another cell");
    }
}
