//! The allocator of cluster-scoped numbers, in memory, with state that can be saved and loaded.
//!
//! Contract: one label set has one number; a number that the last user released stays with its
//! labels for the grace period and is given to others only after it; no free number is an error,
//! never a shared number. Time is an argument ([`MemoryAllocator::advance`]), so that tests and
//! the simulation decide it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{AllocateError, IdentityAllocator};
use crate::model::{Identity, Labels};

/// What survives a restart. Users are not part of it: after a restart each user allocates again,
/// and what nobody asks for ends with its grace period.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AllocatorState {
    pub identities: Vec<(Identity, Labels)>,
    /// The number after the last one that was given out.
    pub next: u32,
}

/// A saved state that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("identity {0} is outside of the cluster scope")]
    OutOfScope(Identity),
    #[error("identity {0} stands for two label sets")]
    DuplicateNumber(Identity),
    #[error("the labels {labels} have two identities, {first} and {second}")]
    DuplicateLabels { labels: Labels, first: Identity, second: Identity },
}

#[derive(Debug)]
struct Slot {
    labels: Labels,
    users: usize,
    /// Set while nobody uses it: when the number becomes free.
    free_at: Option<Duration>,
}

/// See the module's contract.
#[derive(Debug)]
pub struct MemoryAllocator {
    grace: Duration,
    now: Duration,
    next: u32,
    last: u32,
    by_labels: HashMap<Labels, Identity>,
    slots: BTreeMap<Identity, Slot>,
}

impl MemoryAllocator {
    pub fn new(grace: Duration) -> MemoryAllocator {
        MemoryAllocator {
            grace,
            now: Duration::ZERO,
            next: Identity::CLUSTER_MIN,
            last: Identity::CLUSTER_MAX,
            by_labels: HashMap::new(),
            slots: BTreeMap::new(),
        }
    }

    /// Only numbers up to `last`: a share of the scope, or a small one for tests.
    #[must_use]
    pub fn limited_to(mut self, last: u32) -> MemoryAllocator {
        self.last = last.clamp(Identity::CLUSTER_MIN, Identity::CLUSTER_MAX);
        self
    }

    /// Continues from a saved state, whole or not at all. Every loaded number starts its grace
    /// period.
    pub fn restore(
        grace: Duration,
        now: Duration,
        state: AllocatorState,
    ) -> Result<MemoryAllocator, StateError> {
        let mut allocator = MemoryAllocator::new(grace);
        allocator.now = now;
        if (Identity::CLUSTER_MIN..=Identity::CLUSTER_MAX).contains(&state.next) {
            allocator.next = state.next;
        }
        for (id, labels) in state.identities {
            if !id.is_cluster_scope() {
                return Err(StateError::OutOfScope(id));
            }
            if let Some(first) = allocator.by_labels.insert(labels.clone(), id) {
                return Err(StateError::DuplicateLabels { labels, first, second: id });
            }
            let slot = Slot { labels, users: 0, free_at: Some(now.saturating_add(grace)) };
            if allocator.slots.insert(id, slot).is_some() {
                return Err(StateError::DuplicateNumber(id));
            }
        }
        Ok(allocator)
    }

    pub fn state(&self) -> AllocatorState {
        AllocatorState {
            identities: self.slots.iter().map(|(id, slot)| (*id, slot.labels.clone())).collect(),
            next: self.next,
        }
    }

    /// Moves the clock (never back) and collects numbers whose grace period has ended.
    pub fn advance(&mut self, now: Duration) -> Vec<Identity> {
        self.now = self.now.max(now);
        let now = self.now;
        let freed: Vec<Identity> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.free_at.is_some_and(|free_at| free_at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in &freed {
            if let Some(slot) = self.slots.remove(id) {
                self.by_labels.remove(&slot.labels);
            }
        }
        freed
    }

    /// The labels of a number in use or in its grace period.
    pub fn labels(&self, id: Identity) -> Option<&Labels> {
        self.slots.get(&id).map(|slot| &slot.labels)
    }

    fn free_number(&self) -> Option<Identity> {
        // Round robin: a freed number rests as long as possible.
        let first = self.next.clamp(Identity::CLUSTER_MIN, self.last);
        (first..=self.last)
            .chain(Identity::CLUSTER_MIN..first)
            .map(Identity)
            .find(|id| !self.slots.contains_key(id))
    }
}

impl IdentityAllocator for MemoryAllocator {
    fn allocate(&mut self, labels: &Labels) -> Result<Identity, AllocateError> {
        if let Some(id) = self.by_labels.get(labels).copied() {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.users += 1;
                slot.free_at = None;
            }
            return Ok(id);
        }
        let capacity = (self.last - Identity::CLUSTER_MIN + 1) as usize;
        let exhausted = || AllocateError::Exhausted { capacity, labels: labels.clone() };
        if self.slots.len() >= capacity {
            return Err(exhausted());
        }
        let id = self.free_number().ok_or_else(exhausted)?;
        self.next = if id.0 >= self.last { Identity::CLUSTER_MIN } else { id.0 + 1 };
        self.by_labels.insert(labels.clone(), id);
        self.slots.insert(id, Slot { labels: labels.clone(), users: 1, free_at: None });
        Ok(id)
    }

    fn release(&mut self, id: Identity) {
        let free_at = self.now.saturating_add(self.grace);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.users = slot.users.saturating_sub(1);
            if slot.users == 0 {
                slot.free_at = Some(free_at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Label;
    use proptest::prelude::*;

    fn labels(app: u32) -> Labels {
        [Label::k8s("app", &app.to_string())].into_iter().collect()
    }

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn the_same_labels_have_the_same_number() {
        let mut allocator = MemoryAllocator::new(GRACE);
        let one = allocator.allocate(&labels(1)).unwrap();
        assert_eq!(allocator.allocate(&labels(1)).unwrap(), one);
        assert_ne!(allocator.allocate(&labels(2)).unwrap(), one);
        assert!(one.is_cluster_scope());
    }

    #[test]
    fn a_released_number_stays_with_its_labels_for_the_grace_period() {
        let mut allocator = MemoryAllocator::new(GRACE).limited_to(Identity::CLUSTER_MIN);
        let one = allocator.allocate(&labels(1)).unwrap();
        allocator.release(one);
        allocator.advance(GRACE / 2);
        assert!(matches!(allocator.allocate(&labels(2)), Err(AllocateError::Exhausted { capacity: 1, .. })));
        assert_eq!(allocator.allocate(&labels(1)).unwrap(), one, "taken up again");
        allocator.release(one);
        assert_eq!(allocator.advance(GRACE * 2), vec![one]);
        assert_eq!(allocator.allocate(&labels(2)).unwrap(), one);
    }

    #[test]
    fn a_number_with_two_users_outlives_the_first_release() {
        let mut allocator = MemoryAllocator::new(GRACE);
        let one = allocator.allocate(&labels(1)).unwrap();
        allocator.allocate(&labels(1)).unwrap();
        allocator.release(one);
        assert!(allocator.advance(GRACE * 5).is_empty());
    }

    #[test]
    fn a_restored_state_gives_the_same_numbers() {
        let mut allocator = MemoryAllocator::new(GRACE);
        let numbers: Vec<Identity> = (0..5).map(|app| allocator.allocate(&labels(app)).unwrap()).collect();
        let text = serde_json::to_string(&allocator.state()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let mut restored = MemoryAllocator::restore(GRACE, Duration::ZERO, state).unwrap();
        for app in (0..5).rev() {
            assert_eq!(restored.allocate(&labels(app)).unwrap(), numbers[app as usize]);
        }
        assert!(!numbers.contains(&restored.allocate(&labels(9)).unwrap()));
    }

    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        let restore = |identities| {
            MemoryAllocator::restore(GRACE, Duration::ZERO, AllocatorState { identities, next: 256 })
                .err()
                .unwrap()
        };
        let (one, two) = (Identity(256), Identity(257));
        assert_eq!(restore(vec![(Identity(2), labels(1))]), StateError::OutOfScope(Identity(2)));
        assert_eq!(restore(vec![(one, labels(1)), (one, labels(2))]), StateError::DuplicateNumber(one));
        assert!(matches!(
            restore(vec![(one, labels(1)), (two, labels(1))]),
            StateError::DuplicateLabels { .. }
        ));
    }

    proptest! {
        /// Simulation: whatever users and the clock do, no number stands for two label sets that
        /// are in use or in grace, and none is reused early.
        #[test]
        fn numbers_are_unique_and_rest(steps in proptest::collection::vec((0u8..3, 0u32..6, 0u64..8), 1..120)) {
            let mut allocator = MemoryAllocator::new(GRACE).limited_to(Identity::CLUSTER_MIN + 3);
            let mut users: HashMap<u32, Vec<Identity>> = HashMap::new();
            let mut released: HashMap<Identity, (u32, Duration)> = HashMap::new();
            let mut now = Duration::ZERO;
            for (step, app, seconds) in steps {
                match step {
                    0 => if let Ok(id) = allocator.allocate(&labels(app)) {
                        for (other, ids) in &users {
                            prop_assert!(*other == app || !ids.contains(&id));
                        }
                        if let Some((owner, at)) = released.remove(&id) {
                            prop_assert!(owner == app || now >= at + GRACE, "{id} reused early");
                        }
                        users.entry(app).or_default().push(id);
                    },
                    1 => if let Some(id) = users.get_mut(&app).and_then(Vec::pop) {
                        allocator.release(id);
                        if users[&app].is_empty() {
                            released.insert(id, (app, now));
                        }
                    },
                    _ => {
                        now += Duration::from_secs(seconds);
                        allocator.advance(now);
                    }
                }
            }
        }
    }
}
