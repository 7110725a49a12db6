//! Addresses that the DNS proxy opened by itself and that no agent has heard of.
//!
//! An agent closes what it learned. Of what was put into the kernel while it hung it knows nothing:
//!
//! ```text
//! pod        proxy                         agent
//! lookup  -> asks                          (busy)
//!            waits in vain, opens A itself
//! answer  <-
//!            A's time is over              (busy)
//!            what is fresh is told      -> is back, and hears nothing of A: it stays open
//! ```
//!
//! Contract: such an address is noted before it is opened, and told to the next agent that speaks, over or not; the note goes
//! when the agent has answered. What cannot be noted, because there is too much, is not to be opened. While no agent is there
//! at all, older notes go: the one that starts has the kernel hold what it knows.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fqdn::{Given, Learned, TtlBounds};

/// Most addresses that are noted, one of two names twice.
const MOST: usize = 65_536;
/// An agent that starts listens this soon after it has made the kernel hold what it knows.
const START: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Note {
    /// Tells it from later ones of the name.
    serial: u64,
    /// When some of it was opened last.
    at: Instant,
    /// With the ends of their TTLs.
    addresses: BTreeMap<IpAddr, Instant>,
}

#[derive(Debug, Default)]
struct Notes {
    by_name: HashMap<Arc<str>, Note>,
    count: usize,
    serial: u64,
    /// When old notes were looked for.
    swept: Option<Instant>,
}

/// What an agent is told of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    serial: u64,
    /// What is still fresh.
    pub given: Given,
    /// What was opened.
    pub addresses: Vec<IpAddr>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OpenedAlone {
    ttl: TtlBounds,
    notes: Mutex<Notes>,
}

impl OpenedAlone {
    pub(super) fn new(ttl: TtlBounds) -> OpenedAlone {
        OpenedAlone { ttl, notes: Mutex::default() }
    }

    /// To be called before the addresses of an answer are opened. `false`: there is no room, and they may not be.
    pub(super) fn note(&self, learned: &Learned, now: Instant) -> bool {
        let mut notes = self.notes.lock();
        if notes.count + learned.addresses.len() > MOST {
            return false;
        }
        notes.serial += 1;
        let serial = notes.serial;
        let note = notes.by_name.entry(learned.name.clone());
        let note = note.or_insert_with(|| Note { serial, at: now, addresses: BTreeMap::new() });
        (note.serial, note.at) = (serial, now);
        let before = note.addresses.len();
        for (address, ttl) in &learned.addresses {
            let end = now + self.ttl.of(*ttl);
            let known = note.addresses.entry(*address).or_insert(end);
            *known = end.max(*known);
        }
        let more = note.addresses.len() - before;
        notes.count += more;
        true
    }

    /// No agent is there: the next one starts anew.
    pub(super) fn nobody_is_there(&self, now: Instant) {
        let mut notes = self.notes.lock();
        if notes.swept.is_some_and(|last| now < last + START) {
            return;
        }
        notes.swept = Some(now);
        notes.by_name.retain(|_, note| now < note.at + START);
        notes.count = notes.by_name.values().map(|note| note.addresses.len()).sum();
    }

    /// All that an agent is to hear.
    pub(super) fn all(&self, now: Instant) -> Vec<Opened> {
        let notes = self.notes.lock();
        let opened = notes.by_name.iter().map(|(name, note)| {
            let left = |(address, end): (&IpAddr, &Instant)| (*address, end.saturating_duration_since(now));
            let fresh = note.addresses.iter().map(left).filter(|(_, left)| *left > Duration::ZERO).collect();
            Opened {
                serial: note.serial,
                given: Given {
                    learned: Learned { name: name.clone(), addresses: fresh },
                    clients: Vec::new(),
                },
                addresses: note.addresses.keys().copied().collect(),
            }
        });
        opened.collect()
    }

    /// An agent has heard it.
    pub(super) fn heard(&self, opened: &Opened) {
        let mut notes = self.notes.lock();
        let name = &opened.given.learned.name;
        if notes.by_name.get(name).is_some_and(|note| note.serial == opened.serial)
            && let Some(note) = notes.by_name.remove(name)
        {
            notes.count -= note.addresses.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &str, addresses: &[IpAddr]) -> Learned {
        let addresses = addresses.iter().map(|address| (*address, Duration::from_secs(5)));
        Learned { name: name.into(), addresses: addresses.collect() }
    }

    #[test]
    fn what_was_opened_is_told_until_it_was_heard_though_it_is_over() {
        let (alone, now) = (OpenedAlone::new(TtlBounds::default()), Instant::now());
        let [first, second] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        assert!(alone.note(&answer("a", &[first]), now));
        let told = alone.all(now + Duration::from_secs(2));
        assert_eq!(told[0].given.learned.addresses, [(first, Duration::from_secs(3))]);
        let told = alone.all(now + Duration::from_secs(6));
        assert_eq!((&told[0].given.learned.addresses[..], &told[0].addresses[..]), (&[][..], &[first][..]));
        // Opened again while the agent was being told.
        assert!(alone.note(&answer("a", &[first, second]), now));
        alone.heard(&told[0]);
        let told = alone.all(now);
        assert_eq!(told[0].addresses, [first, second]);
        alone.heard(&told[0]);
        assert_eq!((alone.all(now), alone.notes.lock().count), (vec![], 0));
    }

    #[test]
    fn without_any_agent_what_is_old_makes_room() {
        let (alone, now) = (OpenedAlone::new(TtlBounds::default()), Instant::now());
        let address = IpAddr::from([192, 0, 2, 1]);
        assert!(alone.note(&answer("old", &[address]), now));
        assert!(alone.note(&answer("new", &[address]), now + START / 2));
        alone.nobody_is_there(now + START);
        let left = alone.all(now);
        assert_eq!(left.iter().map(|opened| &*opened.given.learned.name).collect::<Vec<_>>(), ["new"]);
        assert_eq!(alone.notes.lock().count, 1);
    }

    #[test]
    fn what_cannot_be_noted_is_not_to_be_opened() {
        let (alone, now) = (OpenedAlone::new(TtlBounds::default()), Instant::now());
        let many: Vec<IpAddr> = (0..MOST as u32).map(|n| IpAddr::from(n.to_be_bytes())).collect();
        assert!(alone.note(&answer("many", &many), now));
        assert!(!alone.note(&answer("one", &many[..1]), now));
        alone.heard(&alone.all(now)[0]);
        assert!(alone.note(&answer("one", &many[..1]), now));
    }
}
