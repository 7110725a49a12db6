//! Reference counts that tell, at the end of a transaction, which keys came and which went.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A multiset with a log of keys that crossed zero.
#[derive(Debug)]
pub(super) struct Counted<K> {
    counts: HashMap<K, usize>,
    /// Key -> whether it was there before the log began.
    log: BTreeMap<K, Presence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Absent,
    Present,
}

impl<K> Default for Counted<K> {
    fn default() -> Counted<K> {
        Counted { counts: HashMap::new(), log: BTreeMap::new() }
    }
}

impl<K: Clone + Eq + Ord + Hash> Counted<K> {
    pub(super) fn add(&mut self, key: &K) {
        let count = self.counts.entry(key.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.log.entry(key.clone()).or_insert(Presence::Absent);
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        let Some(count) = self.counts.get_mut(key) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(key);
            self.log.entry(key.clone()).or_insert(Presence::Present);
        }
    }

    pub(super) fn contains<Q>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.counts.contains_key(key)
    }

    /// Keys that came or went since the last call, with what they are now.
    pub(super) fn take_changes(&mut self) -> Vec<(K, Presence)> {
        std::mem::take(&mut self.log)
            .into_iter()
            .filter_map(|(key, before)| {
                let now = if self.contains(&key) { Presence::Present } else { Presence::Absent };
                (now != before).then_some((key, now))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_net_changes_are_told() {
        let mut counted = Counted::default();
        counted.add(&"a");
        counted.add(&"a");
        counted.remove(&"a");
        counted.add(&"b");
        counted.remove(&"b");
        assert_eq!(counted.take_changes(), [("a", Presence::Present)]);
        counted.remove(&"a");
        counted.add(&"a");
        assert!(counted.take_changes().is_empty());
        counted.remove(&"a");
        assert_eq!(counted.take_changes(), [("a", Presence::Absent)]);
    }
}
