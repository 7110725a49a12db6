//! Who is behind an address: the copy of the node's knowledge that enrichment reads.
//!
//! The owner of the node's state writes what has changed, address by address, and never waits for flows to
//! be enriched; enrichment reads it without a question to the owner. Parties that were made are kept and
//! shared until something about their address changes. Everything that traffic can make grow is bounded.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::memo::Memo;
use super::recent::Recent;
use super::{Interface, Party};
use crate::model::{Identity, Labels, Workload};

/// Addresses whose parties, names and used names are remembered.
const REMEMBERED: usize = 32_768;
/// Names that are remembered for one address.
const NAMES: usize = 8;
const INTERFACES: usize = 4_096;
const MISSED: usize = 4_096;
const SPARE: usize = 4_096;
/// Pairs that use no name and are known to.
const NAMELESS: usize = 4_096;

/// The pod or node that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    Pod {
        namespace: Arc<str>,
        name: Arc<str>,
        workload: Workload,
        /// Number of the endpoint, on its own node.
        endpoint: Option<u16>,
    },
    Node(Arc<str>),
}

/// What traffic told about an address.
#[derive(Debug, Default)]
struct Known {
    /// Newest first.
    names: SmallVec<[Arc<str>; 1]>,
    /// Under its identities.
    parties: SmallVec<[Arc<Party>; 1]>,
    parties_of: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Directory {
    owners: HashMap<IpAddr, Owner>,
    labels: HashMap<Identity, Labels>,
    /// So many identities make it worth while to look which are still in use.
    look_through_at: usize,
    /// Identities that were asked for before their labels were known.
    missed: Recent<Identity, ()>,
    addresses: Recent<IpAddr, Known>,
    /// Parties that were made under another number are made anew.
    parties_of: u64,
    /// (who asked, an address of the answer) -> the name that was asked for.
    used: Recent<(IpAddr, IpAddr), Arc<str>>,
    /// What was noted since `addresses` and `used` last forgot something: most answers are heard again and again.
    noted_names: Memo,
    noted_uses: Memo,
    noted_in: u64,
    /// Pairs that are surely not in `used`.
    nameless: Memo,
    interfaces: Recent<u32, Arc<Interface>>,
}

impl Default for Directory {
    fn default() -> Directory {
        Directory {
            owners: HashMap::new(),
            labels: HashMap::new(),
            look_through_at: SPARE,
            missed: Recent::new(MISSED),
            addresses: Recent::new(REMEMBERED),
            parties_of: 0,
            used: Recent::new(REMEMBERED),
            noted_names: Memo::new(REMEMBERED / 2),
            noted_uses: Memo::new(REMEMBERED / 2),
            noted_in: 0,
            nameless: Memo::new(NAMELESS),
            interfaces: Recent::new(INTERFACES),
        }
    }
}

impl Directory {
    /// Says who has an address from now on.
    pub fn set_owner(&mut self, address: IpAddr, owner: Option<Owner>) {
        match owner {
            Some(owner) => self.owners.insert(address, owner),
            None => self.owners.remove(&address),
        };
        if let Some(known) = self.addresses.get(&address) {
            known.parties.clear();
        }
    }

    /// Says what an identity stands for. Numbers are rarely given another meaning.
    pub fn set_labels(&mut self, identity: Identity, labels: &Labels) {
        let known = self.labels.get(&identity);
        if known == Some(labels) {
            return;
        }
        // Parties were made with the old ones, or too early.
        if known.is_some() || self.missed.get(&identity).is_some() {
            self.parties_of += 1;
            self.missed.clear();
        }
        self.labels.insert(identity, labels.clone());
    }

    /// Forgets the labels of identities that are no longer in use, once in a while.
    pub fn forget_identities(&mut self, is_in_use: impl Fn(Identity) -> bool) {
        if self.labels.len() > self.look_through_at {
            self.labels.retain(|identity, _| is_in_use(*identity));
            self.look_through_at = 2 * self.labels.len() + SPARE;
        }
    }

    /// An answer for this name held these addresses.
    pub fn add_name(&mut self, name: &Arc<str>, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            self.noted_names.forget(&address);
            self.put_name(name, address);
        }
    }

    fn put_name(&mut self, name: &Arc<str>, address: IpAddr) {
        let known = self.addresses.get_or_default(address);
        if known.names.first() != Some(name) {
            known.names.retain(|other| other != name);
            known.names.insert(0, Arc::clone(name));
            known.names.truncate(NAMES);
            known.parties.clear();
        }
    }

    /// `client` was told that these are the addresses of `name`.
    pub fn add_used_name(&mut self, client: IpAddr, name: &Arc<str>, addresses: &[IpAddr]) {
        let generations = self.addresses.generations() + self.used.generations();
        if generations != self.noted_in {
            self.noted_in = generations;
            self.noted_names.clear();
            self.noted_uses.clear();
        }
        for address in addresses {
            let pair = (client, *address);
            if self.noted_uses.is_new(&pair, name) {
                self.nameless.forget(&pair);
                self.used.insert(pair, Arc::clone(name));
            }
            if self.noted_names.is_new(address, name) {
                self.put_name(name, *address);
            }
        }
    }

    /// The name by which `client` last looked this address up.
    pub fn used_name(&mut self, client: IpAddr, address: IpAddr) -> Option<Arc<str>> {
        let pair = (client, address);
        if self.nameless.has(&pair, &()) {
            return None;
        }
        let name = self.used.get(&pair).cloned();
        if name.is_none() {
            self.nameless.is_new(&pair, &());
        }
        name
    }

    /// The shared party of an address under an identity.
    pub fn party(&mut self, address: IpAddr, identity: Identity) -> Arc<Party> {
        let parties_of = self.parties_of;
        if let Some(known) = self.addresses.get(&address).filter(|known| known.parties_of == parties_of)
            && let Some(party) = known.parties.iter().find(|party| party.identity == identity)
        {
            return Arc::clone(party);
        }
        let party = Arc::new(self.new_party(address, identity));
        let known = self.addresses.get_or_default(address);
        // An address seldom has two identities, and never many that matter.
        if known.parties_of != parties_of || known.parties.len() >= 4 {
            known.parties.clear();
            known.parties_of = parties_of;
        }
        known.parties.push(Arc::clone(&party));
        party
    }

    fn new_party(&mut self, address: IpAddr, identity: Identity) -> Party {
        let mut party = Party::unknown(address, identity);
        match self.labels.get(&identity) {
            Some(labels) => party.labels = labels.clone(),
            None => self.missed.insert(identity, ()),
        }
        party.names = self.addresses.get(&address).map(|known| known.names.to_vec()).unwrap_or_default();
        match self.owners.get(&address) {
            Some(Owner::Pod { namespace, name, workload, endpoint }) => {
                party.namespace = Some(Arc::clone(namespace));
                party.pod = Some(Arc::clone(name));
                party.workload = Some(workload.clone());
                party.endpoint = *endpoint;
            }
            Some(Owner::Node(name)) => party.node = Some(Arc::clone(name)),
            None => {}
        }
        party
    }

    /// The device with this index; `name` is asked once.
    pub fn interface(&mut self, index: u32, name: impl FnOnce() -> Option<Arc<str>>) -> Arc<Interface> {
        if let Some(known) = self.interfaces.get(&index) {
            return Arc::clone(known);
        }
        let found = Arc::new(Interface { index, name: name() });
        // A device that has gone may come back under its number.
        if found.name.is_some() {
            self.interfaces.insert(index, Arc::clone(&found));
        }
        found
    }

    /// A device with this index has come or gone.
    pub fn forget_interface(&mut self, index: u32) {
        self.interfaces.remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Label;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

    fn owner(name: &str) -> Owner {
        Owner::Pod {
            namespace: "shop".into(),
            name: name.into(),
            workload: Workload::new("Pod", name),
            endpoint: Some(1),
        }
    }

    #[test]
    fn flows_of_one_address_share_a_party_until_something_changes() {
        let mut directory = Directory::default();
        directory.set_owner(POD, Some(owner("a")));
        let first = directory.party(POD, Identity(300));
        assert!(Arc::ptr_eq(&first, &directory.party(POD, Identity(300))));
        assert_eq!(first.pod.as_deref(), Some("a"));
        directory.set_owner(POD, Some(owner("b")));
        assert_eq!(directory.party(POD, Identity(300)).pod.as_deref(), Some("b"));
        directory.set_labels(Identity(300), &[Label::k8s("app", "b")].into_iter().collect());
        assert_eq!(directory.party(POD, Identity(300)).labels.len(), 1);
        directory.set_owner(POD, None);
        assert_eq!(directory.party(POD, Identity(300)).pod, None);
    }

    #[test]
    fn an_address_under_two_identities_is_two_parties() {
        let mut directory = Directory::default();
        let (one, two) = (directory.party(POD, Identity(300)), directory.party(POD, Identity(301)));
        assert_eq!((one.identity, two.identity), (Identity(300), Identity(301)));
        assert!(Arc::ptr_eq(&one, &directory.party(POD, Identity(300))));
    }

    #[test]
    fn the_newest_name_comes_first_and_each_pod_has_its_own() {
        let mut directory = Directory::default();
        let other = IpAddr::from([10, 0, 0, 2]);
        directory.add_used_name(POD, &"a.example".into(), &[OUTSIDE]);
        directory.add_used_name(other, &"b.example".into(), &[OUTSIDE]);
        assert_eq!(directory.used_name(POD, OUTSIDE).as_deref(), Some("a.example"));
        assert_eq!(directory.used_name(other, OUTSIDE).as_deref(), Some("b.example"));
        let names = directory.party(OUTSIDE, Identity::WORLD).names.clone();
        assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["b.example", "a.example"]);
    }

    #[test]
    fn what_is_heard_again_is_what_counts() {
        let mut directory = Directory::default();
        let other = IpAddr::from([10, 0, 0, 2]);
        let first =
            |directory: &mut Directory| directory.party(OUTSIDE, Identity::WORLD).names[0].to_string();
        assert_eq!(directory.used_name(POD, OUTSIDE), None);
        for name in ["a.example", "b.example", "a.example", "a.example"] {
            directory.add_used_name(POD, &name.into(), &[OUTSIDE]);
            assert_eq!(directory.used_name(POD, OUTSIDE).as_deref(), Some(name));
            assert_eq!(first(&mut directory), name);
        }
        directory.add_used_name(other, &"b.example".into(), &[OUTSIDE]);
        directory.add_used_name(POD, &"a.example".into(), &[OUTSIDE]);
        assert_eq!(first(&mut directory), "a.example");
        // Until all of it is forgotten, and heard again.
        for number in 0..4 * REMEMBERED as u32 {
            let address = IpAddr::from(std::net::Ipv4Addr::from(0x0b00_0000 + number));
            directory.add_used_name(POD, &"flood.example".into(), &[address]);
        }
        assert_eq!(directory.used_name(POD, OUTSIDE), None);
        directory.add_used_name(POD, &"a.example".into(), &[OUTSIDE]);
        assert_eq!(directory.used_name(POD, OUTSIDE).as_deref(), Some("a.example"));
    }

    #[test]
    fn a_flood_of_addresses_stays_bounded_and_the_pod_keeps_its_name() {
        let mut directory = Directory::default();
        directory.set_owner(POD, Some(owner("a")));
        for number in 0..4 * REMEMBERED as u32 {
            let address = IpAddr::from(std::net::Ipv4Addr::from(0x0b00_0000 + number));
            directory.party(address, Identity::WORLD);
            directory.add_used_name(POD, &"flood.example".into(), &[address]);
        }
        assert_eq!(directory.party(POD, Identity(300)).pod.as_deref(), Some("a"));
    }
}
