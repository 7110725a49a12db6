//! What the DNS proxy has told already: answers that need not be told again before they go out.
//!
//! Contract: an address counts as open only if it was told under the same generation (same patterns, same
//! agent), and only as long as it stays open without another word. An answer that makes it stay open longer is
//! owed to the agent, and due well before the earlier end. Memory is bounded.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::fqdn::Learned;

/// Most names that are remembered; others are told each time.
const MOST: usize = 65_536;
/// An answer is not released on the strength of what ends sooner than this.
const MARGIN: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug)]
struct Address {
    address: IpAddr,
    /// When it closes, as was told.
    told: Instant,
    /// When it is to close.
    end: Instant,
}

#[derive(Debug)]
struct Entry {
    generation: u64,
    /// Beside the name, so that the usual answer costs one look.
    addresses: SmallVec<[Address; 2]>,
    /// Its place among what is owed.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct Names {
    entries: HashMap<Arc<str>, Entry>,
    owed: BTreeSet<(Instant, Arc<str>)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct KnownNames {
    /// Answers are fresh at least this long.
    floor: Duration,
    names: Mutex<Names>,
}

impl KnownNames {
    pub fn new(floor: Duration) -> KnownNames {
        KnownNames { floor, names: Mutex::default() }
    }

    /// Every address of the answer is open and will stay so for as long as the answer says.
    pub fn covers(&self, learned: &Learned, generation: u64, now: Instant) -> bool {
        let mut names = self.names.lock();
        let Names { entries, owed } = &mut *names;
        let Some(entry) = entries.get_mut(&learned.name).filter(|entry| entry.generation == generation)
        else {
            return false;
        };
        let known = |entry: &Entry, address: &IpAddr| {
            entry.addresses.iter().position(|known| known.address == *address)
        };
        // First look, then change.
        for (address, ttl) in &learned.addresses {
            // What is fresh for no time is never opened.
            if ttl.max(&self.floor).is_zero() {
                continue;
            }
            match known(entry, address).map(|place| entry.addresses[place].told) {
                Some(told) if told >= now + MARGIN => {}
                _ => return false,
            }
        }
        let mut due = entry.due;
        for (address, ttl) in &learned.addresses {
            let Some(place) = known(entry, address) else { continue };
            let address = &mut entry.addresses[place];
            let ttl = (*ttl).max(self.floor);
            let end = now + ttl;
            if end > address.end {
                address.end = end;
                // Half of the time before it would close.
                let when = address.told.checked_sub(ttl / 2).unwrap_or(now).max(now);
                due = Some(due.map_or(when, |due| due.min(when)));
            }
        }
        if due != entry.due {
            if let Some(old) = entry.due {
                owed.remove(&(old, learned.name.clone()));
            }
            owed.extend(due.map(|due| (due, learned.name.clone())));
            entry.due = due;
        }
        true
    }

    /// The answer was told, and its addresses are open.
    pub fn told(&self, learned: &Learned, generation: u64, now: Instant) {
        let mut names = self.names.lock();
        let Names { entries, owed } = &mut *names;
        if entries.len() >= MOST && !entries.contains_key(&learned.name) {
            entries.retain(|_, entry| entry.addresses.iter().any(|address| address.end > now));
            owed.retain(|(_, name)| entries.contains_key(name));
            if entries.len() >= MOST {
                return;
            }
        }
        let entry = entries.entry(learned.name.clone()).or_insert(Entry {
            generation,
            addresses: SmallVec::new(),
            due: None,
        });
        if entry.generation != generation {
            entry.generation = generation;
            entry.addresses.clear();
        }
        entry.addresses.retain(|address| address.end > now);
        for (address, ttl) in &learned.addresses {
            let end = now + (*ttl).max(self.floor);
            match entry.addresses.iter_mut().find(|known| known.address == *address) {
                Some(known) => {
                    known.told = known.told.max(end);
                    known.end = known.end.max(end);
                }
                None => entry.addresses.push(Address { address: *address, told: end, end }),
            }
        }
    }

    /// What is due by `limit`, up to `most` answers: from here on it counts as told.
    pub fn due(&self, limit: Instant, now: Instant, most: usize) -> Vec<Learned> {
        let mut names = self.names.lock();
        let Names { entries, owed } = &mut *names;
        let mut answers = Vec::new();
        while answers.len() < most
            && let Some((_, name)) = owed.first().cloned().filter(|(due, _)| *due <= limit)
        {
            owed.pop_first();
            let Some(entry) = entries.get_mut(&name) else { continue };
            entry.due = None;
            answers.extend(remaining(&name, entry, now));
            entry.addresses.iter_mut().for_each(|address| address.told = address.end);
        }
        answers
    }

    /// Everything that is still fresh, for an agent that may not know it.
    pub fn fresh(&self, now: Instant) -> Vec<Learned> {
        let names = self.names.lock();
        names.entries.iter().filter_map(|(name, entry)| remaining(name, entry, now)).collect()
    }
}

fn remaining(name: &Arc<str>, entry: &Entry, now: Instant) -> Option<Learned> {
    let left = |address: &Address| {
        let left = address.end.saturating_duration_since(now);
        (!left.is_zero()).then_some((address.address, left))
    };
    let addresses: Vec<_> = entry.addresses.iter().filter_map(left).collect();
    (!addresses.is_empty()).then(|| Learned { name: name.clone(), addresses })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &str, ttl: u64, addresses: &[&str]) -> Learned {
        let ttl = Duration::from_secs(ttl);
        Learned {
            name: name.into(),
            addresses: addresses.iter().map(|text| (text.parse().unwrap(), ttl)).collect(),
        }
    }

    #[test]
    fn an_answer_is_covered_by_what_was_told_under_the_same_generation() {
        let (known, now) = (KnownNames::default(), Instant::now());
        let first = answer("a", 60, &["192.0.2.1", "192.0.2.2"]);
        assert!(!known.covers(&first, 1, now));
        known.told(&first, 1, now);
        assert!(known.covers(&first, 1, now));
        assert!(known.covers(&answer("a", 60, &["192.0.2.2"]), 1, now));
        assert!(!known.covers(&answer("a", 60, &["192.0.2.3"]), 1, now), "a new address");
        assert!(!known.covers(&answer("b", 60, &["192.0.2.1"]), 1, now), "another name");
        assert!(!known.covers(&first, 2, now), "another generation");
        assert!(!known.covers(&first, 1, now + Duration::from_secs(60)), "it is closed by then");
    }

    #[test]
    fn a_later_end_is_owed_and_due_before_the_earlier_one() {
        let (known, now) = (KnownNames::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let first = answer("a", 60, &["192.0.2.1"]);
        known.told(&first, 1, now);
        assert!(known.covers(&first, 1, now));
        assert!(known.due(after(59), after(59), 9).is_empty(), "nothing was promised beyond what was told");
        assert!(known.covers(&first, 1, after(20)));
        assert!(known.covers(&first, 1, after(25)));
        assert!(known.due(after(29), after(29), 9).is_empty());
        let due = known.due(after(30), after(30), 9);
        assert_eq!(due, [answer("a", 55, &["192.0.2.1"])]);
        assert!(known.due(after(59), after(59), 9).is_empty(), "once");
        assert!(known.covers(&first, 1, after(70)), "it was told");
        assert_eq!(known.fresh(after(100)), [answer("a", 30, &["192.0.2.1"])]);
        assert!(known.fresh(after(130)).is_empty());
    }

    #[test]
    fn the_floor_counts_and_what_is_fresh_for_no_time_is_never_open() {
        let now = Instant::now();
        let stale = answer("a", 0, &["192.0.2.1"]);
        let known = KnownNames::default();
        known.told(&stale, 1, now);
        assert!(known.covers(&stale, 1, now), "there is nothing to wait for");
        let known = KnownNames::new(Duration::from_secs(5));
        known.told(&stale, 1, now);
        assert!(known.covers(&stale, 1, now + Duration::from_secs(4)));
        assert!(!known.covers(&stale, 1, now + Duration::from_secs(5)));
    }

    #[test]
    fn memory_is_bounded() {
        let (known, now) = (KnownNames::default(), Instant::now());
        for n in 0..MOST + 10 {
            known.told(&answer(&format!("n{n}"), 60, &["192.0.2.1"]), 1, now);
        }
        assert_eq!(known.names.lock().entries.len(), MOST);
        known.told(&answer("later", 60, &["192.0.2.1"]), 1, now + Duration::from_secs(61));
        assert_eq!(known.names.lock().entries.len(), 1, "what has ended made room");
    }
}
