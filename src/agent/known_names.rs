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

use crate::fqdn::{Given, Learned, TtlBounds};

/// Most names that are remembered; others are told each time.
const MOST: usize = 65_536;
/// Most clients of a name that the agent is told: from then on it is nobody's alone.
const MOST_CLIENTS: usize = 8;
/// An answer is not released on the strength of what ends sooner than this.
const MARGIN: Duration = Duration::from_millis(400);
/// How often it is looked whether something has ended that makes room: that is a look at everything, under the lock that
/// every answer needs.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Address {
    address: IpAddr,
    /// When it closes, as was told.
    told: Instant,
    /// When it is to close.
    end: Instant,
}

/// For whom the answers of a name were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Nobody counts: no rule wants the name.
    Anyone,
    /// These, and whoever is too many to be remembered.
    These(SmallVec<[IpAddr; 1]>),
}

impl Clients {
    fn has(&self, client: IpAddr) -> bool {
        match self {
            Clients::Anyone => true,
            Clients::These(clients) => clients.contains(&client) || clients.len() >= MOST_CLIENTS,
        }
    }

    fn add(&mut self, others: &Clients) {
        match (&mut *self, others) {
            (Clients::These(clients), Clients::These(others)) => {
                for client in others {
                    if !clients.contains(client) && clients.len() < MOST_CLIENTS {
                        clients.push(*client);
                    }
                }
            }
            _ => *self = others.clone(),
        }
    }

    fn list(&self) -> Vec<IpAddr> {
        match self {
            Clients::Anyone => Vec::new(),
            Clients::These(clients) => clients.to_vec(),
        }
    }
}

/// Whether an answer may go out without another word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    No,
    /// It may, but the agent does not know that this client asked.
    NewClient,
    Yes,
}

#[derive(Debug)]
struct Entry {
    generation: u64,
    clients: Clients,
    /// Beside the name, so that the usual answer costs one look.
    addresses: SmallVec<[Address; 2]>,
    /// Its place among what is owed.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct Names {
    entries: HashMap<Arc<str>, Entry>,
    owed: BTreeSet<(Instant, Arc<str>)>,
    /// When it was looked last for what has ended.
    swept: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct KnownNames {
    /// How long answers are fresh.
    ttl: TtlBounds,
    names: Mutex<Names>,
}

impl KnownNames {
    pub fn new(ttl: TtlBounds) -> KnownNames {
        KnownNames { ttl, names: Mutex::default() }
    }

    /// Every address of the answer is open and will stay so for as long as the answer says.
    pub fn covers(&self, learned: &Learned, client: IpAddr, generation: u64, now: Instant) -> Cover {
        let mut names = self.names.lock();
        let Names { entries, owed, .. } = &mut *names;
        let Some(entry) = entries.get_mut(&learned.name).filter(|entry| entry.generation == generation)
        else {
            return Cover::No;
        };
        let known = |entry: &Entry, address: &IpAddr| {
            entry.addresses.iter().position(|known| known.address == *address)
        };
        // First look, then change.
        for (address, _) in &learned.addresses {
            match known(entry, address).map(|place| entry.addresses[place].told) {
                Some(told) if told >= now + MARGIN => {}
                _ => return Cover::No,
            }
        }
        let mut due = entry.due;
        for (address, ttl) in &learned.addresses {
            let Some(place) = known(entry, address) else { continue };
            let address = &mut entry.addresses[place];
            let ttl = self.ttl.of(*ttl);
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
        if entry.clients.has(client) { Cover::Yes } else { Cover::NewClient }
    }

    /// The agent has heard that this client asked for the name.
    pub fn add_client(&self, name: &str, client: IpAddr) {
        if let Some(entry) = self.names.lock().entries.get_mut(name) {
            entry.clients.add(&Clients::These([client].into_iter().collect()));
        }
    }

    /// What is known of the name does not hold.
    pub fn forget(&self, name: &str) {
        let mut names = self.names.lock();
        if let Some((name, Entry { due: Some(due), .. })) = names.entries.remove_entry(name) {
            names.owed.remove(&(due, name));
        }
    }

    /// The answer was told for these clients, and its addresses are open.
    pub fn told(&self, learned: &Learned, clients: &Clients, generation: u64, now: Instant) {
        let mut names = self.names.lock();
        let Names { entries, owed, swept } = &mut *names;
        if entries.len() >= MOST && !entries.contains_key(&learned.name) {
            if swept.is_none_or(|last| now >= last + SWEEP) {
                *swept = Some(now);
                entries.retain(|_, entry| entry.addresses.iter().any(|address| address.end > now));
                owed.retain(|(_, name)| entries.contains_key(name));
            }
            if entries.len() >= MOST {
                return;
            }
        }
        let entry = entries.entry(learned.name.clone()).or_insert(Entry {
            generation,
            clients: clients.clone(),
            addresses: SmallVec::new(),
            due: None,
        });
        if entry.generation != generation {
            entry.generation = generation;
            entry.addresses.clear();
            entry.clients = clients.clone();
        }
        entry.clients.add(clients);
        entry.addresses.retain(|address| address.end > now);
        for (address, ttl) in &learned.addresses {
            let end = now + self.ttl.of(*ttl);
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
    pub fn due(&self, limit: Instant, now: Instant, most: usize) -> Vec<Given> {
        let mut names = self.names.lock();
        let Names { entries, owed, .. } = &mut *names;
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
    pub fn fresh(&self, now: Instant) -> Vec<Given> {
        let names = self.names.lock();
        names.entries.iter().filter_map(|(name, entry)| remaining(name, entry, now)).collect()
    }
}

fn remaining(name: &Arc<str>, entry: &Entry, now: Instant) -> Option<Given> {
    let left = |address: &Address| {
        let left = address.end.saturating_duration_since(now);
        (!left.is_zero()).then_some((address.address, left))
    };
    let addresses: Vec<_> = entry.addresses.iter().filter_map(left).collect();
    if addresses.is_empty() {
        return None;
    }
    Some(Given { learned: Learned { name: name.clone(), addresses }, clients: entry.clients.list() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn pod() -> Clients {
        Clients::These([POD].into_iter().collect())
    }

    fn covers(known: &KnownNames, learned: &Learned, generation: u64, now: Instant) -> bool {
        known.covers(learned, POD, generation, now) == Cover::Yes
    }

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
        assert!(!covers(&known, &first, 1, now));
        known.told(&first, &pod(), 1, now);
        assert!(covers(&known, &first, 1, now));
        assert!(covers(&known, &answer("a", 60, &["192.0.2.2"]), 1, now));
        assert!(!covers(&known, &answer("a", 60, &["192.0.2.3"]), 1, now), "a new address");
        assert!(!covers(&known, &answer("b", 60, &["192.0.2.1"]), 1, now), "another name");
        assert!(!covers(&known, &first, 2, now), "another generation");
        assert!(!covers(&known, &first, 1, now + Duration::from_secs(60)), "it is closed by then");
    }

    #[test]
    fn a_later_end_is_owed_and_due_before_the_earlier_one() {
        let (known, now) = (KnownNames::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let first = answer("a", 60, &["192.0.2.1"]);
        known.told(&first, &pod(), 1, now);
        assert!(covers(&known, &first, 1, now));
        assert!(known.due(after(59), after(59), 9).is_empty(), "nothing was promised beyond what was told");
        assert!(covers(&known, &first, 1, after(20)));
        assert!(covers(&known, &first, 1, after(25)));
        assert!(known.due(after(29), after(29), 9).is_empty());
        let due = known.due(after(30), after(30), 9);
        let given = |learned| Given { learned, clients: vec![POD] };
        assert_eq!(due, [given(answer("a", 55, &["192.0.2.1"]))]);
        assert!(known.due(after(59), after(59), 9).is_empty(), "once");
        assert!(covers(&known, &first, 1, after(70)), "it was told");
        assert_eq!(known.fresh(after(100)), [given(answer("a", 30, &["192.0.2.1"]))]);
        assert!(known.fresh(after(130)).is_empty());
    }

    #[test]
    fn the_floor_counts() {
        let now = Instant::now();
        let stale = answer("a", 0, &["192.0.2.1"]);
        let known = KnownNames::new(TtlBounds::new(Duration::from_secs(5), Duration::from_secs(60)));
        known.told(&stale, &pod(), 1, now);
        assert!(covers(&known, &stale, 1, now + Duration::from_secs(4)));
        assert!(!covers(&known, &stale, 1, now + Duration::from_secs(5)));
    }

    #[test]
    fn a_client_that_the_agent_has_not_heard_of_is_told_once() {
        let (known, now, other) = (KnownNames::default(), Instant::now(), IpAddr::from([10, 0, 0, 2]));
        let first = answer("a", 60, &["192.0.2.1"]);
        known.told(&first, &pod(), 1, now);
        assert_eq!(known.covers(&first, other, 1, now), Cover::NewClient);
        known.add_client("a", other);
        assert_eq!(known.covers(&first, other, 1, now), Cover::Yes);
        assert_eq!(known.fresh(now)[0].clients, [POD, other]);
        known.told(&answer("b", 60, &["192.0.2.1"]), &Clients::Anyone, 1, now);
        assert_eq!(known.covers(&answer("b", 60, &["192.0.2.1"]), other, 1, now), Cover::Yes);
    }

    #[test]
    fn what_is_forgotten_is_neither_known_nor_owed() {
        let (known, now) = (KnownNames::default(), Instant::now());
        let first = answer("a", 60, &["192.0.2.1"]);
        known.told(&first, &pod(), 1, now);
        let later = now + Duration::from_secs(20);
        assert!(covers(&known, &first, 1, later));
        known.forget("a");
        assert!(!covers(&known, &first, 1, later));
        assert!(known.names.lock().owed.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (known, now) = (KnownNames::default(), Instant::now());
        for n in 0..MOST + 10 {
            known.told(&answer(&format!("n{n}"), 60, &["192.0.2.1"]), &pod(), 1, now);
        }
        assert_eq!(known.names.lock().entries.len(), MOST);
        // One pod that looked up as many names had all others wait for a look at them, at each of their answers.
        known.told(&answer("soon", 60, &["192.0.2.1"]), &pod(), 1, now + SWEEP / 2);
        assert_eq!(known.names.lock().swept, Some(now));
        known.told(&answer("later", 60, &["192.0.2.1"]), &pod(), 1, now + Duration::from_secs(61));
        assert_eq!(known.names.lock().entries.len(), 1, "what has ended made room");
    }
}
