//! In which order one policy's change is written, so that no packet finds a hole.
//!
//! Cells, address tries and port tries are different maps and cannot change at once. A packet may meet
//! any state in between; it must pass only if the old or the new state passes it. With *allows* and
//! *denies* for the cells that a packet's address and port lead to, this holds in two situations:
//!
//! - its address and port do not move: denies are added first, then allows are added, then old allows
//!   go, and only then old denies. Whoever passes is allowed by the old or the new cells, and meets no
//!   deny of the same side.
//! - its address (or port class) moves from one identity to another (a CIDR rule cuts a prefix, a name
//!   learns an address, a pod is relabelled). Identities that lose no address are written whole *before*
//!   the move. Those that lose some, and "any", only get tighter before it: denies come, allows go. Where
//!   the packet still is, it meets less than the old state allows; where it arrives, less than the new.
//!   What loosens comes after the move.
//!
//! When both move in one transaction, a packet may meet the old identity under the new port class, for
//! which nobody wrote cells. Then the policy is shut while they move: for a moment, new flows of its
//! endpoints are dropped. Established flows do not notice: their epoch stays.
//!
//! Default deny is the lowest allow of a direction, and is treated as one. The new epoch comes last; a
//! transaction of names has none, so that connections outlive the TTL of the address they were opened to.
//! Not covered: a transaction that renumbers precedences of a live policy; the engine does not.

use hashbrown::HashSet;

use super::DatapathError;
use super::abi::convert::{CELL_FLAGS, direction_flags, port_prefixes};
use super::abi::*;
use super::policies::Policies;
use super::tables::Tables;
use crate::cluster::delta::Cause;
use crate::model::Direction;
use crate::policy::map_state::{PolicyInfo, PolicyKey, PortClass, PortClassRange, SubjectDelta};

type CellEntry = (PolicyMapKey, PolicyMapEntry);

/// Which identities lose addresses in this transaction.
#[derive(Debug, Default)]
pub struct Moves {
    /// Some address moves at all.
    pub any: bool,
    /// Identities (and classes) that addresses leave.
    pub losing: HashSet<u32>,
}

/// Writes to cells, in the order of the fields.
#[derive(Debug, Default)]
pub struct Stage {
    /// Cells that only make more packets drop.
    tighten: Vec<CellEntry>,
    /// Cells that let more pass and take no deny away.
    allow: Vec<CellEntry>,
    /// Cells without a deny.
    remove_allows: Vec<PolicyMapKey>,
    /// Cells in place of a deny.
    replace_denies: Vec<CellEntry>,
    remove_denies: Vec<PolicyMapKey>,
}

/// The writes of one subject.
#[derive(Debug)]
pub struct Transition {
    id: u32,
    /// Before the move.
    settle: Stage,
    /// The move, as far as it is this policy's.
    pub ports: Vec<(PortClassKey, u32)>,
    pub port_deletes: Vec<PortClassKey>,
    /// After the move.
    finish: Stage,
    /// While old and new cells exist: the kinds of both, default deny of either.
    widened: [u32; 2],
    /// In the end.
    flags: [u32; 2],
    /// Addresses and ports move.
    shut: bool,
}

/// Flags of a policy that drops every new flow.
const SHUT: u32 = PF_DEFAULT_DENY | PF_ENFORCED;

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

/// `new` in place of `old` can only make more packets drop.
fn tightens(old: &PolicyMapEntry, new: &PolicyMapEntry) -> bool {
    let slot = |old: &PolicySlot, new: &PolicySlot| {
        let hidden = matches!(old.action, ACTION_DENY | ACTION_PASS) && new.precedence < old.precedence;
        new == old || new.action == ACTION_DENY && !hidden
    };
    slot(&old.admin, &new.admin) && slot(&old.normal, &new.normal)
}

/// Taking the entry away can only make more packets drop: it allows or redirects, and nothing else.
fn only_allows(entry: &PolicyMapEntry) -> bool {
    [entry.admin, entry.normal].iter().all(|slot| !matches!(slot.action, ACTION_DENY | ACTION_PASS))
}

/// Which port members of keys lose ports in this transaction.
struct PortMoves<'a> {
    delta: &'a SubjectDelta,
}

impl PortMoves<'_> {
    fn loses(&self, key: &PolicyKey) -> bool {
        let mine = |range: &&PortClassRange| {
            range.direction == key.direction && Some(range.protocol) == key.protocol
        };
        match key.port {
            PortClass::Any => false,
            // An exact port becomes part of a class.
            PortClass::Exact(port) => {
                self.delta.class_upserts.iter().filter(mine).any(|range| range.range.contains(port))
            }
            PortClass::Class(class) => {
                self.delta.class_deletes.iter().filter(mine).any(|range| range.class == class)
            }
        }
    }
}

impl Transition {
    /// Sorts the changes of a subject.
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
        let flags = info_flags(&delta.info);
        let state = policies.state(id);
        // Nothing is judged by a policy that is not live yet: any order will do.
        let live = state.is_some_and(|state| state.is_live());
        let old_flags = state.map_or([0; 2], |state| state.info.flags);
        let widened = [0, 1].map(|dir| {
            let default_deny = if moves.any { old_flags[dir] } else { 0 } & PF_DEFAULT_DENY;
            (old_flags[dir] & (CELL_FLAGS | PF_ENFORCED)) | default_deny | flags[dir]
        });
        let shut = live && moves.any && !(ports.is_empty() && port_deletes.is_empty());
        let mut plan = Transition {
            id,
            settle: Stage::default(),
            ports,
            port_deletes,
            finish: Stage::default(),
            widened,
            flags,
            shut,
        };
        let port_moves = PortMoves { delta };
        let loses = |key: &PolicyKey| {
            let identity = key.identity.0;
            moves.any && (identity == 0 || moves.losing.contains(&identity)) || port_moves.loses(key)
        };
        // What the kernel has at a key; asked only where it matters.
        let old = |key: &PolicyMapKey| -> Result<Option<PolicyMapEntry>, DatapathError> {
            let present = live && state.is_some_and(|state| state.has(key));
            if present { tables.policy.get(key) } else { Ok(None) }
        };
        for (key, entry) in &delta.upserts {
            let cell = (PolicyMapKey::new(id, *key), PolicyMapEntry::from(*entry));
            let before = old(&cell.0)?.unwrap_or_default();
            let after_move = live && loses(key);
            if tightens(&before, &cell.1) {
                plan.settle.tighten.push(cell);
            } else {
                let stage = if after_move { &mut plan.finish } else { &mut plan.settle };
                if only_allows(&before) { stage.allow.push(cell) } else { stage.replace_denies.push(cell) }
            }
        }
        for key in &delta.deletes {
            let map_key = PolicyMapKey::new(id, *key);
            if old(&map_key)?.is_none_or(|entry| only_allows(&entry)) {
                plan.settle.remove_allows.push(map_key);
            } else {
                let stage = if live && loses(key) { &mut plan.finish } else { &mut plan.settle };
                stage.remove_denies.push(map_key);
            }
        }
        Ok(plan)
    }

    /// Cells that are not in the kernel yet.
    pub fn new_cells(&self, policies: &Policies) -> usize {
        let state = policies.state(self.id);
        let is_new = |cell: &&CellEntry| state.is_none_or(|state| !state.has(&cell.0));
        let stages = [&self.settle, &self.finish];
        stages.iter().flat_map(|stage| stage.tighten.iter().chain(&stage.allow)).filter(is_new).count()
    }

    fn write(
        &self,
        stage: &Stage,
        flags: [u32; 2],
        tables: &Tables,
        policies: &mut Policies,
    ) -> Result<(), DatapathError> {
        policies.upsert_cells(tables, self.id, &stage.tighten)?;
        policies.upsert_cells(tables, self.id, &stage.allow)?;
        policies.set_flags(tables, self.id, flags)?;
        policies.delete_cells(tables, self.id, &stage.remove_allows)?;
        policies.upsert_cells(tables, self.id, &stage.replace_denies)?;
        policies.delete_cells(tables, self.id, &stage.remove_denies)
    }

    /// Before the move.
    pub fn settle(&self, tables: &Tables, policies: &mut Policies) -> Result<(), DatapathError> {
        if self.shut {
            return policies.set_flags(tables, self.id, [SHUT; 2]);
        }
        self.write(&self.settle, self.widened, tables, policies)
    }

    /// The move, as far as it is this policy's.
    pub fn move_ports(&self, tables: &Tables, policies: &mut Policies) -> Result<(), DatapathError> {
        policies.move_ports(tables, self.id, &self.ports, &self.port_deletes)
    }

    /// After the move.
    pub fn finish(
        &self,
        tables: &Tables,
        policies: &mut Policies,
        cause: Cause,
    ) -> Result<(), DatapathError> {
        let mut flags = [0, 1].map(|dir| (self.widened[dir] & !PF_DEFAULT_DENY) | self.flags[dir]);
        if self.shut {
            flags = [SHUT; 2];
            self.write(&self.settle, flags, tables, policies)?;
        }
        self.write(&self.finish, flags, tables, policies)?;
        let live = policies.state(self.id).is_some_and(|state| state.is_live());
        match cause {
            Cause::Names if live => policies.set_flags(tables, self.id, self.flags),
            Cause::Names | Cause::Objects => policies.publish(tables, self.id, self.flags),
        }
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
        let (none, allow, deny) =
            (PolicyMapEntry::default(), entry(slot(ACTION_ALLOW, 5)), entry(slot(ACTION_DENY, 9)));
        assert!(tightens(&none, &deny));
        assert!(tightens(&allow, &deny));
        assert!(!tightens(&none, &allow));
        assert!(!tightens(&deny, &allow));
        assert!(tightens(&allow, &allow));
        assert!(!tightens(&deny, &entry(slot(ACTION_DENY, 8))), "an allow between the two may win now");
        let pass = PolicyMapEntry { admin: slot(ACTION_PASS, 7), normal: slot(ACTION_DENY, 9) };
        assert!(!tightens(&deny, &pass), "a pass may lift an admin deny of another cell");
    }
}
