//! A bounded memory of what was used lately: two generations, the older one goes as a whole.
//!
//! Holds at least the `capacity` entries that were used last and at most twice as many; an operation costs
//! one or two hash lookups. Whoever fills it from outside (addresses, names) cannot make it grow.

use std::hash::Hash;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

/// See the module.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
    generations: u64,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    pub(super) fn new(capacity: usize) -> Recent<K, V> {
        Recent { young: HashMap::new(), old: HashMap::new(), capacity: capacity.max(1), generations: 0 }
    }

    /// Grows when what was not used lately has gone.
    pub(super) fn generations(&self) -> u64 {
        self.generations
    }

    /// Looks up and marks as used.
    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        if self.young.len() >= self.capacity && !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.insert(key.clone(), value);
            return self.young.get_mut(key);
        }
        match self.young.entry(key.clone()) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(place) => Some(place.insert(self.old.remove(key)?)),
        }
    }

    /// What is there, or a default one.
    pub(super) fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            let value = self.old.remove(&key).unwrap_or_default();
            self.rotate();
            return self.young.entry(key).or_insert(value);
        }
        match self.young.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(place) => {
                let value = self.old.remove(place.key()).unwrap_or_default();
                place.insert(value)
            }
        }
    }

    /// An older value may stay behind: it is never found before this one, and goes with its generation.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            self.rotate();
        }
        self.young.insert(key, value);
    }

    fn rotate(&mut self) {
        self.old = std::mem::take(&mut self.young);
        self.generations += 1;
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let mut recent = Recent::new(10);
        recent.insert(0, "kept");
        for key in 1..1000 {
            recent.insert(key, "passing");
            assert_eq!(recent.get(&0), Some(&mut "kept"), "after {key}");
        }
        assert!(recent.len() <= 20, "{}", recent.len());
        assert_eq!(recent.get(&1), None);
    }

    #[test]
    fn a_removed_entry_is_gone_from_both_generations() {
        let mut recent = Recent::new(1);
        recent.insert(1, 'a');
        recent.insert(2, 'b');
        recent.remove(&1);
        recent.remove(&2);
        assert_eq!(recent.get(&1), None);
        assert_eq!(recent.get(&2), None);
        assert_eq!(recent.len(), 0);
    }
}
