//! Policies in the kernel: ids, epochs, and which cells each one has.
//!
//! A policy belongs to one subject identity; its id is an index of `sl_policy_info`, where it is
//! found again after a restart. Id 0 means "no policy" to the kernel side; its element keeps the
//! epoch counter: an upper bound of every epoch that was ever given out, so that no epoch is used
//! twice, not even for a policy that is gone when the agent restarts (a conntrack entry that still
//! holds it would match another policy's content).

use hashbrown::{HashMap, HashSet};

use super::DatapathError;
use super::abi::*;
use super::tables::Tables;
use crate::model::Identity;

/// A policy key without its policy id: 12 bytes, because there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    identity: u32,
    port_class: u32,
    protocol: u8,
    direction: u8,
}

impl Cell {
    fn of(key: &PolicyMapKey) -> Cell {
        Cell {
            identity: key.identity,
            port_class: key.port_class,
            protocol: key.protocol,
            direction: key.direction,
        }
    }

    fn key(self, policy_id: u32) -> PolicyMapKey {
        PolicyMapKey {
            policy_id,
            identity: self.identity,
            port_class: self.port_class,
            protocol: self.protocol,
            direction: self.direction,
            pad: 0,
        }
    }
}

/// What is in the kernel for one policy id. Keys only: the kernel has the values.
#[derive(Debug)]
pub struct PolicyState {
    pub info: PolicyInfoValue,
    pub cells: HashSet<Cell>,
    pub port_prefixes: HashSet<PortClassKey>,
}

impl PolicyState {
    /// Packets are judged by it; before, they are dropped (`ENDPOINT_NOT_READY`).
    pub fn is_live(&self) -> bool {
        self.info.epoch != 0
    }

    pub fn has(&self, key: &PolicyMapKey) -> bool {
        self.cells.contains(&Cell::of(key))
    }
}

/// Epochs are reserved in blocks, so that the counter is not written for each.
const EPOCH_BLOCK: u32 = 1024;

/// All policies of this node.
#[derive(Debug)]
pub struct Policies {
    ids: HashMap<Identity, u32>,
    states: HashMap<u32, PolicyState>,
    free: Vec<u32>,
    next_id: u32,
    limit: u32,
    cells: usize,
    epoch: u32,
    reserved: u32,
}

impl Policies {
    /// Reads back what is in the kernel; deletes what belongs to no policy (an interrupted removal).
    pub fn read_back(tables: &Tables) -> Result<Policies, DatapathError> {
        let limit = tables.policy_info.max_entries();
        let mut policies = Policies {
            ids: HashMap::new(),
            states: HashMap::new(),
            free: Vec::new(),
            next_id: 1,
            limit,
            cells: 0,
            epoch: 0,
            reserved: 0,
        };
        tables.policy_info.for_each(&mut |id, info| policies.found(*id, *info))?;
        policies.reserved = policies.epoch;
        policies.free = (1..policies.next_id).filter(|id| !policies.states.contains_key(id)).collect();

        let mut orphans = Vec::new();
        tables.policy.for_each(&mut |key, _| match policies.states.get_mut(&key.policy_id) {
            Some(state) => policies.cells += usize::from(state.cells.insert(Cell::of(key))),
            None => orphans.push(*key),
        })?;
        tables.policy.delete(&orphans)?;
        let mut orphans = Vec::new();
        tables.port_classes.for_each(&mut |key, _| match policies.states.get_mut(&key.policy_id) {
            Some(state) => {
                state.port_prefixes.insert(*key);
            }
            None => orphans.push(*key),
        })?;
        tables.port_classes.delete(&orphans)?;
        Ok(policies)
    }

    fn found(&mut self, id: u32, info: PolicyInfoValue) {
        self.epoch = self.epoch.max(info.epoch);
        if id == 0 || info.subject_identity == 0 {
            return;
        }
        self.next_id = self.next_id.max(id + 1);
        self.ids.insert(Identity(info.subject_identity), id);
        self.states.insert(id, PolicyState::new(info));
    }

    /// The id of a subject's policy, if it has one.
    pub fn id(&self, subject: Identity) -> Option<u32> {
        self.ids.get(&subject).copied()
    }

    /// Every subject with its id.
    pub fn subjects(&self) -> impl Iterator<Item = (Identity, u32)> {
        self.ids.iter().map(|(subject, id)| (*subject, *id))
    }

    pub fn state(&self, id: u32) -> Option<&PolicyState> {
        self.states.get(&id)
    }

    /// Number of cells of all policies.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// The id of a subject's policy; a new one drops everything until it is loaded.
    pub fn id_or_new(&mut self, tables: &Tables, subject: Identity) -> Result<u32, DatapathError> {
        if let Some(id) = self.id(subject) {
            return Ok(id);
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.next_id < self.limit => {
                self.next_id += 1;
                self.next_id - 1
            }
            None => {
                return Err(DatapathError::MapFull {
                    map: tables.policy_info.name(),
                    entries: self.limit,
                    what: format!("no policy id is left for identity {subject}"),
                });
            }
        };
        self.ids.insert(subject, id);
        self.states.insert(id, PolicyState::new(PolicyInfoValue::default()));
        self.write_info(tables, id, PolicyInfoValue { subject_identity: subject.0, ..Default::default() })?;
        Ok(id)
    }

    /// An epoch that was never used.
    fn next_epoch(&mut self, tables: &Tables) -> Result<u32, DatapathError> {
        if self.epoch == self.reserved {
            let reserved = self.epoch.checked_add(EPOCH_BLOCK).ok_or_else(|| {
                DatapathError::Other(
                    "the policy epoch counter is exhausted: remove the pins and restart".into(),
                )
            })?;
            let counter = PolicyInfoValue { epoch: reserved, ..Default::default() };
            tables.policy_info.upsert(&[0], &[counter])?;
            self.reserved = reserved;
        }
        self.epoch += 1;
        Ok(self.epoch)
    }

    fn write_info(&mut self, tables: &Tables, id: u32, info: PolicyInfoValue) -> Result<(), DatapathError> {
        tables.policy_info.upsert(&[id], &[info])?;
        if let Some(state) = self.states.get_mut(&id) {
            state.info = info;
        }
        Ok(())
    }

    /// Changes flags and nothing else: flows keep their verdicts.
    pub fn set_flags(&mut self, tables: &Tables, id: u32, flags: [u32; 2]) -> Result<(), DatapathError> {
        match self.states.get(&id).map(|state| state.info) {
            Some(info) if info.flags != flags => {
                self.write_info(tables, id, PolicyInfoValue { flags, ..info })
            }
            _ => Ok(()),
        }
    }

    /// Sets flags and a new epoch: every flow of the policy is judged again at its next packet.
    pub fn publish(&mut self, tables: &Tables, id: u32, flags: [u32; 2]) -> Result<(), DatapathError> {
        let Some(info) = self.states.get(&id).map(|state| state.info) else { return Ok(()) };
        let epoch = self.next_epoch(tables)?;
        self.write_info(tables, id, PolicyInfoValue { epoch, flags, ..info })
    }

    /// Has the flows of `id` judged again by the same content.
    pub fn rejudge(&mut self, tables: &Tables, id: u32) -> Result<(), DatapathError> {
        match self.states.get(&id) {
            Some(state) if state.is_live() => {
                let flags = state.info.flags;
                self.publish(tables, id, flags)
            }
            _ => Ok(()),
        }
    }

    /// Has every flow judged again.
    pub fn rejudge_all(&mut self, tables: &Tables) -> Result<(), DatapathError> {
        let ids: Vec<u32> = self.states.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.rejudge(tables, id))
    }

    pub fn upsert_cells(
        &mut self,
        tables: &Tables,
        id: u32,
        cells: &[(PolicyMapKey, PolicyMapEntry)],
    ) -> Result<(), DatapathError> {
        let Some(state) = self.states.get_mut(&id) else { return Ok(()) };
        let (keys, values): (Vec<_>, Vec<_>) = cells.iter().copied().unzip();
        // First remembered, then written: a failed write leaves a key too many, never one too few.
        self.cells += keys.iter().filter(|key| state.cells.insert(Cell::of(key))).count();
        tables.policy.upsert(&keys, &values)
    }

    pub fn delete_cells(
        &mut self,
        tables: &Tables,
        id: u32,
        keys: &[PolicyMapKey],
    ) -> Result<(), DatapathError> {
        tables.policy.delete(keys)?;
        let Some(state) = self.states.get_mut(&id) else { return Ok(()) };
        self.cells -= keys.iter().filter(|key| state.cells.remove(&Cell::of(key))).count();
        Ok(())
    }

    /// Moves ports between classes: what is new first, then what is left over.
    pub fn move_ports(
        &mut self,
        tables: &Tables,
        id: u32,
        upserts: &[(PortClassKey, u32)],
        deletes: &[PortClassKey],
    ) -> Result<(), DatapathError> {
        let Some(state) = self.states.get_mut(&id) else { return Ok(()) };
        let (keys, values): (Vec<_>, Vec<_>) = upserts.iter().copied().unzip();
        state.port_prefixes.extend(keys.iter().copied());
        tables.port_classes.upsert(&keys, &values)?;
        tables.port_classes.delete(deletes)?;
        for key in deletes {
            state.port_prefixes.remove(key);
        }
        Ok(())
    }

    /// Empties a policy; packets of its endpoints are dropped from the first step on. The id is kept
    /// while `in_use`, else free.
    pub fn clear(&mut self, tables: &Tables, subject: Identity, in_use: bool) -> Result<(), DatapathError> {
        let Some(id) = self.id(subject) else { return Ok(()) };
        self.write_info(tables, id, PolicyInfoValue { subject_identity: subject.0, ..Default::default() })?;
        if let Some(state) = self.states.get(&id) {
            let keys: Vec<_> = state.cells.iter().map(|cell| cell.key(id)).collect();
            let ports: Vec<_> = state.port_prefixes.iter().copied().collect();
            self.delete_cells(tables, id, &keys)?;
            self.move_ports(tables, id, &[], &ports)?;
        }
        if !in_use {
            self.write_info(tables, id, PolicyInfoValue::default())?;
            self.ids.remove(&subject);
            self.states.remove(&id);
            self.free.push(id);
        }
        Ok(())
    }
}

impl PolicyState {
    fn new(info: PolicyInfoValue) -> PolicyState {
        PolicyState { info, cells: HashSet::new(), port_prefixes: HashSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::config::Capacity;

    fn tables() -> Tables {
        Tables::in_memory(&Capacity::default())
    }

    #[test]
    fn ids_and_epochs_survive_a_restart() {
        let tables = tables();
        let mut before = Policies::read_back(&tables).unwrap();
        let a = before.id_or_new(&tables, Identity(300)).unwrap();
        let b = before.id_or_new(&tables, Identity(301)).unwrap();
        before.publish(&tables, a, [1, 1]).unwrap();
        before.publish(&tables, b, [1, 1]).unwrap();
        let highest = before.state(b).unwrap().info.epoch;
        before.clear(&tables, Identity(301), false).unwrap();

        let mut after = Policies::read_back(&tables).unwrap();
        assert_eq!(after.id(Identity(300)), Some(a));
        assert_eq!(after.id(Identity(301)), None);
        let c = after.id_or_new(&tables, Identity(302)).unwrap();
        assert_eq!(c, b, "the free id is used again");
        after.publish(&tables, c, [1, 1]).unwrap();
        assert!(after.state(c).unwrap().info.epoch > highest, "its epoch is new all the same");
    }

    #[test]
    fn a_new_policy_is_not_live() {
        let tables = tables();
        let mut policies = Policies::read_back(&tables).unwrap();
        let id = policies.id_or_new(&tables, Identity(300)).unwrap();
        assert_ne!(id, 0);
        assert!(!policies.state(id).unwrap().is_live());
        let info = tables.policy_info.get(&id).unwrap().unwrap();
        assert_eq!((info.epoch, info.subject_identity), (0, 300));
    }

    #[test]
    fn cells_of_an_interrupted_removal_are_deleted_at_start() {
        let tables = tables();
        let orphan = PolicyMapKey { policy_id: 7, ..Default::default() };
        tables.policy.upsert(&[orphan], &[PolicyMapEntry::default()]).unwrap();
        let policies = Policies::read_back(&tables).unwrap();
        assert_eq!(policies.cells(), 0);
        assert_eq!(tables.policy.count().unwrap(), 0);
    }
}
