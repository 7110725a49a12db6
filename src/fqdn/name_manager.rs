//! Names, their fresh addresses, and the `toFQDNs` patterns that match them.
//!
//! Contract: an address counts for a pattern while a name that the pattern matches has a fresh
//! answer with it. A pattern that comes later sees the answers that are still fresh. Every
//! operation returns the addresses whose set of patterns may have changed. Time is an argument on
//! any monotonic scale. Memory is bounded by limits of names, of addresses for a name and of all addresses; no client
//! can use the room up for others (`shares`). An answer without room is not learned.
//!
//! Connections that outlive the answer are kept by conntrack, not here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

pub use self::options::{NameManagerOptions, NameManagerStats};
use self::shares::{Claims, Client, Shares, Shortage, Worth};
use super::TtlBounds;
use super::answer::Learned;
use super::pattern_text;
use crate::policy::l7::DnsPattern;
use crate::policy::l7::names::NameSet;

mod options;
mod room;
mod shares;

/// Fresh answers, for persistence. Times are what is left of the TTL.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    pub names: BTreeMap<Arc<str>, BTreeMap<IpAddr, Duration>>,
}

/// Addresses whose patterns may have changed.
pub type Touched = BTreeSet<IpAddr>;

/// What [`NameManager::expire`] dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    pub touched: Touched,
    answers: Vec<(Arc<str>, IpAddr, Duration)>,
}

/// Names and addresses that were dropped early to make room. Some may have been learned again since.
pub type Lost = Vec<(Arc<str>, IpAddr)>;

/// What [`NameManager::learn`] did.
#[derive(Clone, Debug, Default)]
pub struct Learnt {
    pub touched: Touched,
    pub lost: Lost,
    /// What names were before, in the order of their changes.
    before: Vec<(Arc<str>, Before)>,
}

#[derive(Clone, Debug, Default)]
struct Before {
    addresses: BTreeMap<IpAddr, Duration>,
    clients: SmallVec<[Client; 1]>,
}

#[derive(Debug, Default)]
struct Name {
    /// Address -> end of its TTL.
    addresses: BTreeMap<IpAddr, Duration>,
    /// Patterns in use that match the name.
    patterns: BTreeSet<DnsPattern>,
    claims: Claims,
}

impl Name {
    fn worth(&self) -> Worth {
        if self.patterns.is_empty() { Worth::Spare } else { Worth::Wanted }
    }
}

/// See the module's contract.
#[derive(Debug, Default)]
pub struct NameManager {
    options: NameManagerOptions,
    names: HashMap<Arc<str>, Name>,
    owners: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    ends: BTreeSet<(Duration, Arc<str>, IpAddr)>,
    patterns: BTreeSet<DnsPattern>,
    /// The same, found by name.
    matching: NameSet<DnsPattern>,
    shares: Shares,
    stats: NameManagerStats,
}

impl NameManager {
    pub fn new(options: NameManagerOptions) -> NameManager {
        NameManager { options, ..NameManager::default() }
    }

    /// Takes in an answer that these clients are given; a later end of an address that is already known counts.
    /// Expires nothing.
    pub fn learn(&mut self, now: Duration, answer: &Learned, clients: &[IpAddr]) -> Learnt {
        self.learn_within(self.options.ttl, now, answer, clients)
    }

    fn learn_within(
        &mut self,
        ttl: TtlBounds,
        now: Duration,
        answer: &Learned,
        clients: &[IpAddr],
    ) -> Learnt {
        let ends =
            answer.addresses.iter().map(|(address, left)| (*address, now.saturating_add(ttl.of(*left))));
        let clients: SmallVec<[Client; 1]> = clients.iter().copied().map(Some).collect();
        self.set_ends(&answer.name, ends.filter(|(_, end)| *end > now).collect(), &clients)
    }

    /// What the name has now.
    pub fn addresses(&self, name: &str) -> BTreeMap<IpAddr, Duration> {
        self.names.get(name).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// When the address ends for the name; absent, if it does not have it.
    pub fn end_of(&self, name: &str, address: IpAddr) -> Option<Duration> {
        self.names.get(name)?.addresses.get(&address).copied()
    }

    /// Whether every address of an answer that was learned at `now` counts for as long as the answer says, where some
    /// rule wants its name.
    pub fn holds(&self, now: Duration, answer: &Learned) -> bool {
        let is_held = |(address, ttl): &(IpAddr, Duration)| {
            let end = now.saturating_add(self.options.ttl.of(*ttl));
            self.end_of(&answer.name, *address).is_some_and(|held| held >= end)
        };
        self.matching.lookup(&answer.name).next().is_none() || answer.addresses.iter().all(is_held)
    }

    /// Takes back what was learned last, such as an answer that the datapath has no room for: names have what they
    /// had before.
    pub fn take_back(&mut self, learnt: &Learnt) -> Touched {
        let mut touched = Touched::new();
        for (name, before) in learnt.before.iter().rev() {
            touched.extend(self.forget_name(name));
            self.put(name, &before.addresses, &before.clients, &mut touched);
        }
        touched
    }

    /// Drops a name; returns what it had.
    pub fn forget_name(&mut self, name: &Arc<str>) -> Touched {
        let addresses = self.addresses(name);
        addresses.iter().for_each(|(address, end)| self.forget(*end, name.clone(), *address));
        addresses.into_keys().collect()
    }

    fn set_ends(
        &mut self,
        name: &Arc<str>,
        mut ends: BTreeMap<IpAddr, Duration>,
        clients: &[Client],
    ) -> Learnt {
        let mut learnt = Learnt::default();
        if ends.is_empty() {
            return learnt;
        }
        if self.names.contains_key(name) {
            learnt.before.push((name.clone(), self.before(name)));
            self.claim(name, clients);
        }
        match self.make_room(name, &ends, clients, &mut learnt) {
            Ok(()) if !self.names.contains_key(name) => learnt.before.push((name.clone(), Before::default())),
            Ok(()) => {}
            Err(Shortage::Names) => {
                self.stats.refused_names += 1;
                return learnt;
            }
            Err(Shortage::Addresses) => {
                self.stats.refused_addresses += 1;
                // What it has already may stay longer.
                ends.retain(|address, _| self.end_of(name, *address).is_some());
            }
        }
        self.put(name, &ends, clients, &mut learnt.touched);
        self.evict(name, &mut learnt);
        learnt
    }

    /// Without a look at the limits.
    fn put(
        &mut self,
        name: &Arc<str>,
        ends: &BTreeMap<IpAddr, Duration>,
        clients: &[Client],
        touched: &mut Touched,
    ) {
        if ends.is_empty() {
            return;
        }
        if !self.names.contains_key(name) {
            let patterns = self.matching.lookup(name).cloned().collect();
            self.names.insert(name.clone(), Name { patterns, ..Name::default() });
            self.claim(name, clients);
        }
        for (address, end) in ends {
            if self.set_end(name, *address, *end) {
                touched.insert(*address);
            }
        }
    }

    fn before(&self, name: &str) -> Before {
        let before = |entry: &Name| Before {
            addresses: entry.addresses.clone(),
            clients: entry.claims.clients().collect(),
        };
        self.names.get(name).map(before).unwrap_or_default()
    }

    /// Whether the address is new for the name.
    fn set_end(&mut self, name: &Arc<str>, address: IpAddr, end: Duration) -> bool {
        let Some(entry) = self.names.get_mut(name) else { return false };
        let old = entry.addresses.get(&address).copied();
        if old.is_some_and(|old| old >= end) {
            return false;
        }
        let before = entry.addresses.len();
        entry.addresses.insert(address, end);
        self.shares.resize(entry.worth(), before, entry.addresses.len(), &entry.claims);
        if let Some(old) = old {
            self.ends.remove(&(old, name.clone(), address));
        } else {
            self.owners.entry(address).or_default().insert(name.clone());
        }
        self.ends.insert((end, name.clone(), address));
        old.is_none()
    }

    fn forget(&mut self, end: Duration, name: Arc<str>, address: IpAddr) {
        if let Some(entry) = self.names.get_mut(&name) {
            let before = entry.addresses.len();
            entry.addresses.remove(&address);
            let left = entry.addresses.len();
            self.shares.resize(entry.worth(), before, left, &entry.claims);
            if left == 0 {
                self.shares.drop_all(entry.worth(), left, &entry.claims);
                self.names.remove(&name);
            }
        }
        if let Some(owners) = self.owners.get_mut(&address) {
            owners.remove(&name);
            if owners.is_empty() {
                self.owners.remove(&address);
            }
        }
        self.ends.remove(&(end, name, address));
    }

    /// Drops what ended at `now` or before.
    pub fn expire(&mut self, now: Duration) -> Expired {
        let mut expired = Expired::default();
        while let Some((end, name, address)) = self.ends.first().cloned().filter(|(end, ..)| *end <= now) {
            self.forget(end, name.clone(), address);
            self.stats.expired += 1;
            expired.touched.insert(address);
            expired.answers.push((name, address, end));
        }
        expired
    }

    /// Takes an expiry back.
    pub fn reinstate(&mut self, expired: &Expired) {
        for (name, address, end) in &expired.answers {
            self.put(name, &BTreeMap::from([(*address, *end)]), &[], &mut Touched::new());
        }
    }

    /// Drops every answer with one of these addresses.
    pub fn forget_addresses(&mut self, addresses: &Touched) {
        for address in addresses {
            for name in self.owners.get(address).cloned().unwrap_or_default() {
                if let Some(end) = self.end_of(&name, *address) {
                    self.forget(end, name, *address);
                    self.stats.evicted += 1;
                }
            }
        }
    }

    /// When the next address ends.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.ends.first().map(|(end, _, _)| *end)
    }

    /// A rule begins to use this pattern.
    pub fn add_pattern(&mut self, pattern: &DnsPattern) -> Touched {
        let mut touched = Touched::new();
        if self.patterns.insert(pattern.clone()) {
            self.matching.insert(pattern.clone(), pattern.clone());
            for (name, entry) in &mut self.names {
                if pattern.matches(name) {
                    let (worth, addresses) = (entry.worth(), entry.addresses.len());
                    entry.patterns.insert(pattern.clone());
                    self.shares.revalue(name, worth, Worth::Wanted, addresses, &entry.claims);
                    touched.extend(entry.addresses.keys().copied());
                }
            }
        }
        touched
    }

    /// No rule uses this pattern any more.
    pub fn remove_pattern(&mut self, pattern: &DnsPattern) -> Touched {
        let mut touched = Touched::new();
        if self.patterns.remove(pattern) {
            self.matching.remove(pattern);
            for (name, entry) in &mut self.names {
                let (worth, addresses) = (entry.worth(), entry.addresses.len());
                if entry.patterns.remove(pattern) {
                    self.shares.revalue(name, worth, entry.worth(), addresses, &entry.claims);
                    touched.extend(entry.addresses.keys().copied());
                }
            }
        }
        touched
    }

    /// Patterns that some rule uses.
    pub fn patterns(&self) -> impl Iterator<Item = &DnsPattern> {
        self.patterns.iter()
    }

    /// Canonical texts of the patterns for which a fresh answer holds the address.
    pub fn patterns_of(&self, address: IpAddr) -> BTreeSet<Arc<str>> {
        self.owners
            .get(&address)
            .into_iter()
            .flatten()
            .filter_map(|name| self.names.get(name))
            .flat_map(|name| &name.patterns)
            .map(|pattern| pattern_text(pattern).clone())
            .collect()
    }

    /// Names with a fresh answer that holds the address; for flows and tables.
    pub fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        self.owners.get(&address).into_iter().flatten()
    }

    /// Names with their addresses and the ends of their TTLs, in no order.
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, &BTreeMap<IpAddr, Duration>)> {
        self.names.iter().map(|(name, entry)| (name, &entry.addresses))
    }

    pub fn stats(&self) -> NameManagerStats {
        self.stats
    }

    pub fn snapshot(&self, now: Duration) -> Snapshot {
        let mut names: BTreeMap<Arc<str>, BTreeMap<IpAddr, Duration>> = BTreeMap::new();
        for (end, name, address) in &self.ends {
            if *end > now {
                names.entry(name.clone()).or_default().insert(*address, *end - now);
            }
        }
        Snapshot { names }
    }

    /// Takes in a snapshot. `elapsed` is the time since it was made: what ended meanwhile is
    /// not restored.
    pub fn restore(&mut self, now: Duration, elapsed: Duration, snapshot: &Snapshot) -> Touched {
        let mut touched = Touched::new();
        let ttl = self.options.ttl.without_floor();
        for (name, addresses) in &snapshot.names {
            let addresses = addresses
                .iter()
                .filter(|(_, left)| **left > elapsed)
                .map(|(address, left)| (*address, *left - elapsed))
                .collect();
            let answer = Learned { name: name.clone(), addresses };
            touched.extend(self.learn_within(ttl, now, &answer, &[]).touched);
        }
        touched
    }
}

#[cfg(test)]
mod tests;
