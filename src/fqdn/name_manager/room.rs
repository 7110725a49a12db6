//! Room for answers: who gives something up for them, and when they are refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::shares::{Client, Shortage, Worth};
use super::{Learnt, NameManager, NameManagerOptions};

impl NameManager {
    /// Nobody has a claim only where nobody else has.
    pub(super) fn claim(&mut self, name: &Arc<str>, clients: &[Client]) {
        let Some(entry) = self.names.get_mut(name) else { return };
        let (worth, addresses) = (entry.worth(), entry.addresses.len());
        for client in clients {
            self.shares.claim(name, worth, addresses, &mut entry.claims, *client);
        }
        if entry.claims.is_empty() {
            self.shares.claim(name, worth, addresses, &mut entry.claims, None);
        }
    }

    /// Makes room for what the answer brings, or says what it is short of.
    pub(super) fn make_room(
        &mut self,
        name: &Arc<str>,
        ends: &BTreeMap<IpAddr, Duration>,
        clients: &[Client],
        learnt: &mut Learnt,
    ) -> Result<(), Shortage> {
        let NameManagerOptions { max_addresses, max_names, max_all_addresses, .. } = self.options;
        let entry = self.names.get(name);
        let has = |address| entry.is_some_and(|entry| entry.addresses.contains_key(address));
        let had = entry.map_or(0, |entry| entry.addresses.len());
        let brought = ends.keys().filter(|address| !has(address)).count();
        let more_addresses = (had + brought).min(max_addresses).saturating_sub(had);
        let more_names = usize::from(entry.is_none());
        let is_wanted = self.matching.lookup(name).next().is_some();
        let worth = if is_wanted { Worth::Wanted } else { Worth::Spare };
        let clients: SmallVec<[Client; 1]> = match (clients, entry) {
            ([], Some(entry)) => entry.claims.clients().collect(),
            ([], None) => [None].into_iter().collect(),
            (clients, _) => clients.iter().copied().collect(),
        };
        loop {
            let (short_of, more) = if self.names.len() + more_names > max_names {
                (Shortage::Names, more_names)
            } else if self.ends.len() + more_addresses > max_all_addresses {
                (Shortage::Addresses, more_addresses)
            } else {
                return Ok(());
            };
            if more == 0 {
                return Ok(());
            }
            match self.shares.next_to_go(short_of, worth, &clients, more, name) {
                Some((worth, client, other)) => self.give_up(worth, client, &other, learnt),
                None => return Err(short_of),
            }
        }
    }

    /// The name goes with its last claim.
    fn give_up(&mut self, worth: Worth, client: Client, name: &Arc<str>, learnt: &mut Learnt) {
        let before = self.before(name);
        let Some(entry) = self.names.get_mut(name) else { return };
        self.shares.give_up(worth, client, entry.addresses.len(), &mut entry.claims);
        if !entry.claims.is_empty() {
            return;
        }
        match worth {
            Worth::Spare => self.stats.evicted_spares += 1,
            Worth::Wanted => self.stats.evicted_names += 1,
        }
        learnt.before.push((name.clone(), before));
        let gone = self.forget_name(name);
        learnt.lost.extend(gone.iter().map(|address| (name.clone(), *address)));
        learnt.touched.extend(gone);
    }

    /// Drops what the name has too much of.
    pub(super) fn evict(&mut self, name: &Arc<str>, learnt: &mut Learnt) {
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
            learnt.touched.insert(address);
            learnt.lost.push((name.clone(), address));
        }
    }
}
