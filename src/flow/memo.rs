//! The last value of a key, as hashes: a small table that stays in the CPU's cache.
//!
//! A place holds the last pair of a key and a value that fell on it. Two pairs with one hash of 64 bits are taken for the same, and what is
//! forgotten is done once more: fit for what costs nothing but time when done twice, and nothing but a display when it is
//! left out.

use std::hash::{BuildHasher as _, Hash};

use foldhash::fast::RandomState;

/// See the module.
#[derive(Debug)]
pub(super) struct Memo {
    hasher: RandomState,
    /// A power of two of them, each of keys that fall there; 0 is empty.
    places: Box<[u64]>,
}

impl Memo {
    pub(super) fn new(places: usize) -> Memo {
        Memo { hasher: RandomState::default(), places: vec![0; places.next_power_of_two()].into() }
    }

    fn place(&mut self, of: &impl Hash) -> &mut u64 {
        let index = self.hasher.hash_one(of) as usize & (self.places.len() - 1);
        &mut self.places[index]
    }

    fn hash(&self, key: &impl Hash, value: &impl Hash) -> u64 {
        self.hasher.hash_one((key, value)).max(1)
    }

    /// Whether the key has another value than it had last; it has this one from now on.
    pub(super) fn is_new(&mut self, key: &impl Hash, value: &impl Hash) -> bool {
        let hash = self.hash(key, value);
        std::mem::replace(self.place(key), hash) != hash
    }

    pub(super) fn has(&mut self, key: &impl Hash, value: &impl Hash) -> bool {
        let hash = self.hash(key, value);
        *self.place(key) == hash
    }

    pub(super) fn forget(&mut self, key: &impl Hash) {
        *self.place(key) = 0;
    }

    pub(super) fn clear(&mut self) {
        self.places.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_known_until_it_is_forgotten() {
        let mut memo = Memo::new(1000);
        assert!(memo.is_new(&"a", &1) && !memo.is_new(&"a", &1) && memo.has(&"a", &1));
        assert!(!memo.has(&"a", &2) && memo.is_new(&"a", &2) && memo.is_new(&"a", &1));
        memo.forget(&"a");
        assert!(!memo.has(&"a", &1) && memo.is_new(&"a", &1));
        memo.clear();
        assert!(memo.is_new(&"a", &1));
    }
}
