//! A bounded memory of what was used lately: two generations, the older one goes as a whole.
//!
//! Holds at least the `capacity` entries that were used last and at most twice as many; an operation costs
//! one or two hash lookups. Whoever fills it from outside (addresses, names) cannot make it grow.

use std::borrow::Borrow;
use std::hash::Hash;

use hashbrown::HashMap;

/// See the module.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    pub(super) fn new(capacity: usize) -> Recent<K, V> {
        Recent { young: HashMap::new(), old: HashMap::new(), capacity: capacity.max(1) }
    }

    /// Looks up and marks as used.
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
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
