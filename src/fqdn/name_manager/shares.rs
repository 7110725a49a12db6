//! Who asked for which names, and whose name makes room for another.
//!
//! Contract: every client that asked for a name has a claim on it; a name goes when its last claim goes. Where there is
//! no room, names that no rule wants go first, whoever asked. After them, the client with the most claims loses its
//! oldest one, to clients that have fewer. So a client with less than its equal part of the room (the limit divided by the
//! clients that there are) is never refused a name that a rule wants, and never loses one: while the room is full, somebody
//! has at least an equal part.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

/// Most claims on one name; beyond, the largest client among them makes room.
const MOST_CLAIMS: usize = 8;

/// Who was given an answer. Absent: nobody knows any more, as after a restart. All of these count as one client.
pub(super) type Client = Option<IpAddr>;

/// What a name is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Worth {
    /// No rule has a pattern for it: it is kept for rules that come later.
    Spare,
    Wanted,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    Names,
    Addresses,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    client: Client,
    /// Larger is younger.
    age: u64,
}

/// The claims on one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(SmallVec<[Claim; 1]>);

impl Claims {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = Client> {
        self.0.iter().map(|claim| claim.client)
    }
}

#[derive(Debug, Default)]
struct Account {
    /// By the age of the claim.
    names: BTreeMap<u64, Arc<str>>,
    /// Of all of them.
    addresses: usize,
}

impl Account {
    fn size(&self, short_of: Shortage) -> usize {
        match short_of {
            Shortage::Names => self.names.len(),
            Shortage::Addresses => self.addresses,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shares {
    spare: HashMap<Client, Account>,
    wanted: HashMap<Client, Account>,
    age: u64,
}

impl Shares {
    fn accounts(&self, worth: Worth) -> &HashMap<Client, Account> {
        match worth {
            Worth::Spare => &self.spare,
            Worth::Wanted => &self.wanted,
        }
    }

    fn accounts_mut(&mut self, worth: Worth) -> &mut HashMap<Client, Account> {
        match worth {
            Worth::Spare => &mut self.spare,
            Worth::Wanted => &mut self.wanted,
        }
    }

    fn size(&self, worth: Worth, client: Client, short_of: Shortage) -> usize {
        self.accounts(worth).get(&client).map_or(0, |account| account.size(short_of))
    }

    /// The client has asked for the name, which has so many addresses: its claim is the youngest.
    pub(super) fn claim(
        &mut self,
        name: &Arc<str>,
        worth: Worth,
        addresses: usize,
        claims: &mut Claims,
        client: Client,
    ) {
        // Whoever is known takes the place of those who are not.
        let known = claims.0.iter().position(|claim| claim.client == client || claim.client.is_none());
        if let Some(place) = known {
            let old = claims.0.swap_remove(place);
            self.leave(worth, old, addresses);
        } else if claims.0.len() >= MOST_CLAIMS {
            let sizes = claims.0.iter().map(|claim| self.size(worth, claim.client, Shortage::Names));
            let largest = sizes.enumerate().max_by_key(|(_, size)| *size);
            match largest {
                Some((place, size)) if size > self.size(worth, client, Shortage::Names) => {
                    let old = claims.0.swap_remove(place);
                    self.leave(worth, old, addresses);
                }
                _ => return,
            }
        }
        self.age += 1;
        let claim = Claim { client, age: self.age };
        self.enter(name, worth, claim, addresses);
        claims.0.push(claim);
    }

    fn enter(&mut self, name: &Arc<str>, worth: Worth, claim: Claim, addresses: usize) {
        let account = self.accounts_mut(worth).entry(claim.client).or_default();
        account.names.insert(claim.age, Arc::clone(name));
        account.addresses += addresses;
    }

    fn leave(&mut self, worth: Worth, claim: Claim, addresses: usize) {
        let accounts = self.accounts_mut(worth);
        if let Some(account) = accounts.get_mut(&claim.client) {
            account.names.remove(&claim.age);
            account.addresses -= addresses;
            if account.names.is_empty() {
                accounts.remove(&claim.client);
            }
        }
    }

    /// A rule begins or ceases to want the name.
    pub(super) fn revalue(
        &mut self,
        name: &Arc<str>,
        from: Worth,
        to: Worth,
        addresses: usize,
        claims: &Claims,
    ) {
        for claim in &claims.0 {
            self.leave(from, *claim, addresses);
            self.enter(name, to, *claim, addresses);
        }
    }

    /// The name has more or fewer addresses than before.
    pub(super) fn resize(&mut self, worth: Worth, from: usize, to: usize, claims: &Claims) {
        for claim in &claims.0 {
            if let Some(account) = self.accounts_mut(worth).get_mut(&claim.client) {
                account.addresses = account.addresses + to - from;
            }
        }
    }

    /// One client gives the name up.
    pub(super) fn give_up(&mut self, worth: Worth, client: Client, addresses: usize, claims: &mut Claims) {
        if let Some(place) = claims.0.iter().position(|claim| claim.client == client) {
            let claim = claims.0.swap_remove(place);
            self.leave(worth, claim, addresses);
        }
    }

    /// The name goes.
    pub(super) fn drop_all(&mut self, worth: Worth, addresses: usize, claims: &Claims) {
        claims.0.iter().for_each(|claim| self.leave(worth, *claim, addresses));
    }

    /// Whose claim on which name goes next, so that these clients may bring so much more of what is short for `newcomer`.
    /// Absent: nobody has to make room for them.
    pub(super) fn next_to_go(
        &self,
        short_of: Shortage,
        worth: Worth,
        clients: &[Client],
        more: usize,
        newcomer: &Arc<str>,
    ) -> Option<(Worth, Client, Arc<str>)> {
        let of = |worth| {
            let accounts = self.accounts(worth).iter().filter_map(|(client, account)| {
                let oldest = account.names.values().find(|name| *name != newcomer)?;
                Some((worth, *client, oldest, account.size(short_of)))
            });
            accounts.max_by_key(|(.., size)| *size)
        };
        if let Some((worth, client, name, _)) = of(Worth::Spare) {
            return Some((worth, client, Arc::clone(name)));
        }
        if worth == Worth::Spare {
            return None;
        }
        let own = clients.iter().map(|client| self.size(worth, *client, short_of)).min().unwrap_or(0);
        let (worth, client, name, size) = of(Worth::Wanted)?;
        (size >= own + more).then(|| (worth, client, Arc::clone(name)))
    }
}
