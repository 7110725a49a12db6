//! Rule sets: which rules a slot came from, as one number.
//!
//! Equal sets share a number in all subjects. A number that is no longer used keeps its meaning
//! until it is given out again, which happens as late as possible: hit counters and events that
//! are still on their way name it.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::LOCALHOST_RULES;
use crate::policy::map_state::RuleSetId;
use crate::policy::rule::RuleRef;

/// Stands for a [`RuleRef`] for as long as its object exists; never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RuleNumber(pub(super) u64);

/// So many unused sets are kept before one is reused.
const KEPT: usize = 4096;

#[derive(Debug)]
struct RuleSet {
    key: Arc<[RuleNumber]>,
    rules: Box<[RuleRef]>,
    /// Slots that name it.
    uses: u32,
    /// It waits in `unused` or `released`.
    waiting: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RuleSets {
    sets: Vec<RuleSet>,
    by_key: HashMap<Arc<[RuleNumber]>, u32>,
    /// Unused since the last delta; old entries may name them.
    released: Vec<u32>,
    /// Unused; first one first to be reused.
    unused: VecDeque<u32>,
}

impl Default for RuleSets {
    fn default() -> RuleSets {
        let reserved = || RuleSet { key: Arc::from([]), rules: Box::from([]), uses: 1, waiting: false };
        RuleSets {
            sets: (0..=LOCALHOST_RULES.0).map(|_| reserved()).collect(),
            by_key: HashMap::new(),
            released: Vec::new(),
            unused: VecDeque::new(),
        }
    }
}

impl RuleSets {
    /// The number of a set, one more use of it. `key` is sorted; `rules` gives its content.
    pub(super) fn acquire(
        &mut self,
        key: &[RuleNumber],
        rules: impl FnOnce() -> Box<[RuleRef]>,
    ) -> RuleSetId {
        if let Some(&number) = self.by_key.get(key) {
            let set = &mut self.sets[number as usize];
            set.uses += 1;
            return RuleSetId(number);
        }
        let key: Arc<[RuleNumber]> = key.into();
        let set = RuleSet { key: key.clone(), rules: rules(), uses: 1, waiting: false };
        let number = match self.reusable() {
            Some(number) => {
                let old = std::mem::replace(&mut self.sets[number as usize], set);
                self.by_key.remove(&old.key);
                number
            }
            None => {
                self.sets.push(set);
                (self.sets.len() - 1) as u32
            }
        };
        self.by_key.insert(key, number);
        RuleSetId(number)
    }

    fn reusable(&mut self) -> Option<u32> {
        while self.unused.len() > KEPT {
            let number = self.unused.pop_front()?;
            let set = &mut self.sets[number as usize];
            set.waiting = false;
            if set.uses == 0 {
                return Some(number);
            }
        }
        None
    }

    /// One use less.
    pub(super) fn release(&mut self, id: RuleSetId) {
        let Some(set) = self.sets.get_mut(id.0 as usize).filter(|_| id > LOCALHOST_RULES) else { return };
        set.uses -= 1;
        if set.uses == 0 && !set.waiting {
            set.waiting = true;
            self.released.push(id.0);
        }
    }

    /// No old entry names released sets any more.
    pub(super) fn delta_taken(&mut self) {
        self.unused.extend(self.released.drain(..));
    }

    pub(super) fn rules(&self, id: RuleSetId) -> &[RuleRef] {
        self.sets.get(id.0 as usize).map_or(&[], |set| &set.rules)
    }

    /// How long a table of all numbers must be.
    pub(super) fn highest(&self) -> usize {
        self.sets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectRef};

    fn content(rule: usize) -> Box<[RuleRef]> {
        let object = ObjectRef::new(Kind::NetworkPolicy, "ns", "name");
        Box::from([RuleRef { object, spec: 0, rule }])
    }

    #[test]
    fn equal_sets_share_a_number_and_a_released_one_keeps_its_meaning() {
        let mut sets = RuleSets::default();
        let one = sets.acquire(&[RuleNumber(1)], || content(1));
        assert_eq!(sets.acquire(&[RuleNumber(1)], || content(1)), one);
        assert!(one > LOCALHOST_RULES);
        sets.release(one);
        sets.release(one);
        sets.delta_taken();
        let two = sets.acquire(&[RuleNumber(2)], || content(2));
        assert_ne!(one, two);
        assert_eq!(sets.rules(one)[0].rule, 1);
        assert_eq!(sets.acquire(&[RuleNumber(1)], || content(1)), one);
    }

    #[test]
    fn numbers_are_reused_only_when_many_wait() {
        let mut sets = RuleSets::default();
        let count = KEPT as u64 + 2;
        let ids: Vec<RuleSetId> =
            (0..count).map(|number| sets.acquire(&[RuleNumber(number)], || content(0))).collect();
        ids.iter().for_each(|id| sets.release(*id));
        assert!(sets.acquire(&[RuleNumber(count)], || content(1)) > *ids.last().unwrap());
        sets.delta_taken();
        let reused = sets.acquire(&[RuleNumber(count + 1)], || content(7));
        assert_eq!(reused, ids[0]);
        assert_eq!(sets.rules(reused)[0].rule, 7);
        assert_ne!(sets.acquire(&[RuleNumber(0)], || content(3)), reused);
        assert_eq!(sets.highest(), 2 + KEPT + 3);
    }
}
