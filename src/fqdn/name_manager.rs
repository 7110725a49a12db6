//! Names, their fresh addresses, and the `toFQDNs` patterns that match them.
//!
//! Contract: an address counts for a pattern while a name that the pattern matches has a fresh
//! answer with it. A pattern that comes later sees the answers that are still fresh. Every
//! operation returns the addresses whose set of patterns may have changed. Time is an argument on
//! any monotonic scale; memory is bounded by a limit of addresses for a name and of names.
//!
//! Connections that outlive the answer are kept by conntrack, not here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Learned;
use super::pattern_text;
use crate::policy::l7::DnsPattern;
use crate::policy::l7::names::NameSet;

/// Limits and the TTL floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameManagerOptions {
    /// Answers are fresh at least this long.
    pub min_ttl: Duration,
    /// Most addresses of one name; the ones that end first make room.
    pub max_addresses: usize,
    /// Most names; an answer for one more is not learned.
    pub max_names: usize,
}

impl Default for NameManagerOptions {
    fn default() -> NameManagerOptions {
        NameManagerOptions { min_ttl: Duration::ZERO, max_addresses: 1000, max_names: 50_000 }
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameManagerStats {
    /// Addresses that were dropped early because their name had too many.
    pub evicted: u64,
    /// Answers that were not learned because there are too many names.
    pub refused_names: u64,
    pub expired: u64,
}

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

#[derive(Debug, Default)]
struct Name {
    /// Address -> end of its TTL.
    addresses: BTreeMap<IpAddr, Duration>,
    /// Patterns in use that match the name.
    patterns: BTreeSet<DnsPattern>,
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
    stats: NameManagerStats,
}

impl NameManager {
    pub fn new(options: NameManagerOptions) -> NameManager {
        NameManager { options, ..NameManager::default() }
    }

    /// Takes in an answer; a later end of an address that is already known counts. Expires
    /// nothing.
    pub fn learn(&mut self, now: Duration, answer: &Learned) -> Touched {
        let min_ttl = self.options.min_ttl;
        let ends =
            answer.addresses.iter().map(|(address, ttl)| (*address, now.saturating_add((*ttl).max(min_ttl))));
        self.set_ends(&answer.name, ends.filter(|(_, end)| *end > now).collect())
    }

    /// What the name has now, for [`NameManager::put_back`].
    pub fn addresses(&self, name: &str) -> BTreeMap<IpAddr, Duration> {
        self.names.get(name).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// Takes an answer back, such as one that the datapath has no room for: the name has what it
    /// had before.
    pub fn put_back(&mut self, name: &Arc<str>, before: BTreeMap<IpAddr, Duration>) -> Touched {
        let mut touched = Touched::new();
        for (address, end) in self.addresses(name) {
            self.forget(end, name.clone(), address);
            touched.insert(address);
        }
        touched.extend(self.set_ends(name, before));
        touched
    }

    fn set_ends(&mut self, name: &Arc<str>, ends: BTreeMap<IpAddr, Duration>) -> Touched {
        let mut touched = Touched::new();
        if ends.is_empty() {
            return touched;
        }
        if !self.names.contains_key(name) {
            if self.names.len() >= self.options.max_names {
                self.stats.refused_names += 1;
                return touched;
            }
            let patterns = self.matching.lookup(name).cloned().collect();
            self.names.insert(name.clone(), Name { addresses: BTreeMap::new(), patterns });
        }
        for (address, end) in ends {
            if self.set_end(name, address, end) {
                touched.insert(address);
            }
        }
        self.evict(name, &mut touched);
        touched
    }

    /// Whether the address is new for the name.
    fn set_end(&mut self, name: &Arc<str>, address: IpAddr, end: Duration) -> bool {
        let Some(entry) = self.names.get_mut(name) else { return false };
        let old = entry.addresses.get(&address).copied();
        if old.is_some_and(|old| old >= end) {
            return false;
        }
        entry.addresses.insert(address, end);
        if let Some(old) = old {
            self.ends.remove(&(old, name.clone(), address));
        } else {
            self.owners.entry(address).or_default().insert(name.clone());
        }
        self.ends.insert((end, name.clone(), address));
        old.is_none()
    }

    fn evict(&mut self, name: &Arc<str>, touched: &mut Touched) {
        let Some(entry) = self.names.get(name) else { return };
        let surplus = entry.addresses.len().saturating_sub(self.options.max_addresses);
        if surplus == 0 {
            return;
        }
        let mut by_end: Vec<(Duration, IpAddr)> =
            entry.addresses.iter().map(|(address, end)| (*end, *address)).collect();
        by_end.sort_unstable();
        for (end, address) in by_end.into_iter().take(surplus) {
            self.forget(end, name.clone(), address);
            self.stats.evicted += 1;
            touched.insert(address);
        }
    }

    fn forget(&mut self, end: Duration, name: Arc<str>, address: IpAddr) {
        if let Some(entry) = self.names.get_mut(&name) {
            entry.addresses.remove(&address);
            if entry.addresses.is_empty() {
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
            self.set_ends(name, BTreeMap::from([(*address, *end)]));
        }
    }

    /// Drops every answer with one of these addresses.
    pub fn forget_addresses(&mut self, addresses: &Touched) {
        for address in addresses {
            for name in self.owners.get(address).cloned().unwrap_or_default() {
                let end = self.names.get(&name).and_then(|entry| entry.addresses.get(address)).copied();
                if let Some(end) = end {
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
                    entry.patterns.insert(pattern.clone());
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
            for entry in self.names.values_mut() {
                if entry.patterns.remove(pattern) {
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
        let min_ttl = std::mem::take(&mut self.options.min_ttl);
        for (name, addresses) in &snapshot.names {
            let addresses = addresses
                .iter()
                .filter(|(_, left)| **left > elapsed)
                .map(|(address, left)| (*address, *left - elapsed))
                .collect();
            touched.extend(self.learn(now, &Learned { name: name.clone(), addresses }));
        }
        self.options.min_ttl = min_ttl;
        touched
    }
}

#[cfg(test)]
mod tests;
