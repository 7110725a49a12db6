//! Numbers in use, counted by reference, with removal that waits for the end of a transaction.
//!
//! Contract: a key keeps its number while anything refers to it. A key without references keeps
//! its number until [`Registry::settle`], so that a transaction that is rolled back, or one that
//! drops and takes up a key again, finds the same number.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::model::Identity;

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: Identity,
    references: usize,
}

/// Keys with numbers and reference counts.
#[derive(Debug)]
pub struct Registry<K> {
    slots: HashMap<K, Slot>,
    idle: BTreeSet<K>,
}

impl<K: Clone + Eq + Ord + Hash> Default for Registry<K> {
    fn default() -> Registry<K> {
        Registry { slots: HashMap::new(), idle: BTreeSet::new() }
    }
}

/// What [`Registry::acquire`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The key had no number before.
    New(Identity),
    Known(Identity),
}

impl Acquired {
    pub fn id(self) -> Identity {
        match self {
            Acquired::New(id) | Acquired::Known(id) => id,
        }
    }
}

impl<K: Clone + Eq + Ord + Hash> Registry<K> {
    /// One more reference to this key; `allocate` is asked only for a key without a number.
    pub fn acquire<E>(
        &mut self,
        key: &K,
        allocate: impl FnOnce() -> Result<Identity, E>,
    ) -> Result<Acquired, E> {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.references += 1;
            if slot.references == 1 {
                self.idle.remove(key);
            }
            return Ok(Acquired::Known(slot.id));
        }
        let id = allocate()?;
        self.slots.insert(key.clone(), Slot { id, references: 1 });
        Ok(Acquired::New(id))
    }

    /// One reference less.
    pub fn release(&mut self, key: &K) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.references = slot.references.saturating_sub(1);
            if slot.references == 0 {
                self.idle.insert(key.clone());
            }
        }
    }

    pub fn get(&self, key: &K) -> Option<Identity> {
        self.slots.get(key).map(|slot| slot.id)
    }

    /// The copy of this key that is kept, to share it.
    pub fn key(&self, key: &K) -> Option<&K> {
        self.slots.get_key_value(key).map(|(key, _)| key)
    }

    /// Keys with no reference left.
    pub fn idle(&self) -> impl Iterator<Item = (&K, Identity)> {
        self.idle.iter().map(|key| (key, self.slots[key].id))
    }

    /// Forgets keys without references and returns their numbers.
    pub fn settle(&mut self) -> Vec<Identity> {
        let slots = &mut self.slots;
        std::mem::take(&mut self.idle)
            .iter()
            .filter_map(|key| slots.remove(key))
            .map(|slot| slot.id)
            .collect()
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// Gives out numbers of a node-local scope, round robin, so that a freed number rests long before
/// it comes back: a packet in flight never meets it with another meaning.
#[derive(Debug)]
pub struct LocalNumbers {
    first: u32,
    next: u32,
    used: std::collections::HashSet<u32>,
}

/// Numbers in each node-local scope.
pub const LOCAL_SCOPE: u32 = 1 << 24;

/// A node-local scope has no free number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {LOCAL_SCOPE} node-local identities from {first} on are in use")]
pub struct LocalExhausted {
    pub first: u32,
}

impl LocalNumbers {
    /// Numbers `first..first + LOCAL_SCOPE`, starting at `offset`.
    pub fn new(first: u32, offset: u32) -> LocalNumbers {
        LocalNumbers { first, next: offset % LOCAL_SCOPE, used: std::collections::HashSet::new() }
    }

    pub fn allocate(&mut self) -> Result<Identity, LocalExhausted> {
        if self.used.len() >= LOCAL_SCOPE as usize {
            return Err(LocalExhausted { first: self.first });
        }
        while !self.used.insert(self.next) {
            self.next = (self.next + 1) % LOCAL_SCOPE;
        }
        let id = Identity(self.first + self.next);
        self.next = (self.next + 1) % LOCAL_SCOPE;
        Ok(id)
    }

    pub fn free(&mut self, id: Identity) {
        self.used.remove(&id.0.wrapping_sub(self.first));
    }

    /// Where the next number will come from, for [`LocalNumbers::new`] after a restart.
    pub fn offset(&self) -> u32 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(
        registry: &mut Registry<&'static str>,
        key: &'static str,
        numbers: &mut LocalNumbers,
    ) -> Acquired {
        registry.acquire(&key, || numbers.allocate()).unwrap()
    }

    #[test]
    fn a_key_keeps_its_number_until_the_transaction_ends() {
        let mut numbers = LocalNumbers::new(100, 0);
        let mut registry = Registry::default();
        assert_eq!(acquire(&mut registry, "a", &mut numbers), Acquired::New(Identity(100)));
        registry.release(&"a");
        assert_eq!(acquire(&mut registry, "a", &mut numbers), Acquired::Known(Identity(100)));
        assert!(registry.settle().is_empty());
        registry.release(&"a");
        assert_eq!(registry.idle().count(), 1);
        assert_eq!(registry.settle(), vec![Identity(100)]);
        assert_eq!(acquire(&mut registry, "a", &mut numbers), Acquired::New(Identity(101)));
    }

    #[test]
    fn a_freed_number_comes_back_last() {
        let mut numbers = LocalNumbers::new(100, LOCAL_SCOPE - 1);
        let last = numbers.allocate().unwrap();
        assert_eq!(last, Identity(100 + LOCAL_SCOPE - 1));
        numbers.free(last);
        assert_eq!(numbers.allocate().unwrap(), Identity(100), "wraps");
        assert_eq!(numbers.allocate().unwrap(), Identity(101));
    }
}
