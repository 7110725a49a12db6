//! Addresses in the kernel: the ipcache (single addresses and prefixes) and the address classes.
//!
//! IPv4 lives inside IPv6, so `::/0` would cover IPv4 addresses too. Therefore the tries always hold a
//! default for each family: world in the ipcache, "no class" (0) in the classes. Deleting such a
//! prefix puts its default back.

use ipnet::IpNet;

use super::DatapathError;
use super::abi::convert::single_address;
use super::abi::*;
use super::table::Table;
use super::tables::Tables;
use super::transition::Moves;
use crate::cluster::delta::{AddressKind, IpcacheEntry};
use crate::model::Identity;

/// No address class.
const NO_CLASS: u32 = 0;

/// Prefix of all of IPv4, and of all of IPv6.
fn families() -> [LpmKey; 2] {
    [
        LpmKey { prefix_len: 96, addr: std::net::IpAddr::from([0, 0, 0, 0]).into() },
        LpmKey { prefix_len: 0, addr: Addr::NONE },
    ]
}

/// What an address is when nobody says anything about it.
fn default_entry(key: &LpmKey) -> Option<IpcacheValue> {
    let [v4, v6] = families();
    let identity = if *key == v4 {
        Identity::WORLD_IPV4
    } else if *key == v6 {
        Identity::WORLD_IPV6
    } else {
        return None;
    };
    Some(IpcacheValue { identity: identity.0, flags: 0, tunnel_ep: Addr::NONE })
}

fn default_class(key: &LpmKey) -> Option<u32> {
    default_entry(key).map(|_| NO_CLASS)
}

impl From<IpcacheEntry> for IpcacheValue {
    fn from(entry: IpcacheEntry) -> IpcacheValue {
        let flags = match entry.class {
            AddressKind::Pod if entry.tunnel_endpoint.is_some() => IPC_CLUSTER | IPC_REMOTE,
            AddressKind::Pod | AddressKind::ClusterRange => IPC_CLUSTER,
            AddressKind::Node => IPC_CLUSTER | IPC_NODE,
            AddressKind::World => 0,
            AddressKind::Learned => IPC_LEARNED,
        };
        let tunnel_ep = entry.tunnel_endpoint.map_or(Addr::NONE, Addr::from);
        IpcacheValue { identity: entry.identity.0, flags, tunnel_ep }
    }
}

/// Upserts and deletes of one map.
#[derive(Debug)]
pub struct Writes<K, V> {
    pub keys: Vec<K>,
    pub values: Vec<V>,
    pub deletes: Vec<K>,
}

impl<K, V> Default for Writes<K, V> {
    fn default() -> Self {
        Writes { keys: Vec::new(), values: Vec::new(), deletes: Vec::new() }
    }
}

impl<K: super::table::Key, V: super::table::Value> Writes<K, V> {
    pub fn put(&mut self, key: K, value: V) {
        self.keys.push(key);
        self.values.push(value);
    }

    /// Puts `value`, or deletes for `None`.
    fn change(&mut self, key: K, value: Option<V>) {
        match value {
            Some(value) => self.put(key, value),
            None => self.deletes.push(key),
        }
    }

    /// Keeps the upserts of some keys only.
    fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let kept: Vec<_> =
            self.keys.iter().copied().zip(self.values.iter().copied()).filter(|(k, _)| keep(k)).collect();
        (self.keys, self.values) = kept.into_iter().unzip();
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.deletes.is_empty()
    }

    pub fn upsert(&self, table: &dyn Table<K, V>) -> Result<(), DatapathError> {
        table.upsert(&self.keys, &self.values)
    }

    pub fn delete(&self, table: &dyn Table<K, V>) -> Result<(), DatapathError> {
        table.delete(&self.deletes)
    }

    /// Makes `table` hold exactly `self.keys`: what is equal is left alone, what is too many is
    /// deleted.
    pub fn exactly(mut self, table: &dyn Table<K, V>) -> Result<Writes<K, V>, DatapathError> {
        let mut missing: std::collections::BTreeMap<K, V> =
            self.keys.drain(..).zip(self.values.drain(..)).collect();
        let mut deletes = Vec::new();
        let mut kept = Vec::new();
        table.for_each(&mut |key, value| match missing.get(key) {
            Some(wanted) if wanted == value => kept.push(*key),
            Some(_) => {}
            None => deletes.push(*key),
        })?;
        for key in &kept {
            missing.remove(key);
        }
        let (keys, values) = missing.into_iter().unzip();
        Ok(Writes { keys, values, deletes })
    }
}

/// The address part of a transaction.
#[derive(Debug, Default)]
pub struct AddressPlan {
    pub exact: Writes<Addr, IpcacheValue>,
    pub prefixes: Writes<LpmKey, IpcacheValue>,
    pub classes: Writes<LpmKey, u32>,
}

/// IPv6 by its form, but in the tables (where IPv4 is stored IPv4-mapped) it would be an IPv4 prefix, and change what
/// that one has. No packet has such an address, so nothing is left out.
fn is_disguised(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.network().to_ipv4_mapped().is_some())
}

impl AddressPlan {
    /// Encodes the changes.
    pub fn new(
        ipcache: &[(IpNet, Option<IpcacheEntry>)],
        classes: &[(IpNet, Option<Identity>)],
    ) -> AddressPlan {
        let mut plan = AddressPlan::default();
        for (net, entry) in ipcache.iter().filter(|(net, _)| !is_disguised(*net)) {
            let value = entry.map(IpcacheValue::from);
            match single_address(*net) {
                Some(address) => plan.exact.change(address.into(), value),
                None => {
                    let key = LpmKey::from(*net);
                    plan.prefixes.change(key, value.or_else(|| default_entry(&key)));
                }
            }
        }
        for (net, class) in classes.iter().filter(|(net, _)| !is_disguised(*net)) {
            let key = LpmKey::from(*net);
            plan.classes.change(key, class.map(|class| class.0).or_else(|| default_class(&key)));
        }
        plan
    }

    /// Adds the defaults, unless they are given.
    pub fn with_defaults(mut self) -> AddressPlan {
        for key in families() {
            if let Some(entry) = default_entry(&key).filter(|_| !self.prefixes.keys.contains(&key)) {
                self.prefixes.put(key, entry);
            }
            if !self.classes.keys.contains(&key) {
                self.classes.put(key, NO_CLASS);
            }
        }
        self
    }

    /// The defaults that the maps do not hold yet, nor something better in their place.
    pub fn missing_defaults(tables: &Tables) -> Result<AddressPlan, DatapathError> {
        let mut plan = AddressPlan::default().with_defaults();
        // A trie cannot be asked for one exact prefix: a lookup may answer with a wider one.
        let mut present = Vec::new();
        tables.ipcache_lpm.for_each(&mut |key, _| present.extend(default_entry(key).map(|_| *key)))?;
        plan.prefixes.retain(|key| !present.contains(key));
        present.clear();
        tables.address_classes.for_each(&mut |key, _| present.extend(default_class(key).map(|_| *key)))?;
        plan.classes.retain(|key| !present.contains(key));
        Ok(plan)
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.classes.is_empty()
    }

    /// Number of elements that it writes or deletes.
    pub fn changes(&self) -> usize {
        let Self { exact, prefixes, classes } = self;
        let upserts = exact.keys.len() + prefixes.keys.len() + classes.keys.len();
        upserts + exact.deletes.len() + prefixes.deletes.len() + classes.deletes.len()
    }

    /// Fails when it cannot fit.
    pub fn check_room(&self, tables: &Tables) -> Result<(), DatapathError> {
        let what = |kind: &'static str, count: usize| move || format!("{count} {kind} to be written");
        let exact = &self.exact.keys;
        tables.ipcache_exact.check_room(exact, &what("addresses", exact.len()))?;
        let prefixes = &self.prefixes.keys;
        tables.ipcache_lpm.check_room(prefixes, &what("prefixes", prefixes.len()))?;
        let classes = &self.classes.keys;
        tables.address_classes.check_room(classes, &what("address classes", classes.len()))
    }

    /// Which identities and classes lose addresses when this is applied. A trie answers with the
    /// longest prefix that covers a key, which is exactly the one that a new longer prefix takes
    /// addresses from.
    pub fn moves(&self, tables: &Tables) -> Result<Moves, DatapathError> {
        let mut moves = Moves { any: !self.is_empty(), ..Default::default() };
        for addr in self.exact.keys.iter().chain(&self.exact.deletes) {
            let found = match tables.ipcache_exact.get(addr)? {
                Some(value) => Some(value),
                None => tables.ipcache_lpm.get(&LpmKey { prefix_len: 128, addr: *addr })?,
            };
            moves.losing.extend(found.map(|value| value.identity));
        }
        for key in self.prefixes.keys.iter().chain(&self.prefixes.deletes) {
            moves.losing.extend(tables.ipcache_lpm.get(key)?.map(|value| value.identity));
        }
        for key in self.classes.keys.iter().chain(&self.classes.deletes) {
            moves.losing.extend(tables.address_classes.get(key)?);
        }
        Ok(moves)
    }

    /// An address of a pod or node gets another identity, or none: flows that were judged by the old
    /// one are to be judged again, even where no policy changes.
    pub fn changes_a_peer(&self, tables: &Tables) -> Result<bool, DatapathError> {
        let peer = |addr: &Addr| -> Result<Option<IpcacheValue>, DatapathError> {
            Ok(tables.ipcache_exact.get(addr)?.filter(|old| old.flags != 0))
        };
        for (addr, value) in self.exact.keys.iter().zip(&self.exact.values) {
            if peer(addr)?.is_some_and(|old| old.identity != value.identity) {
                return Ok(true);
            }
        }
        for addr in &self.exact.deletes {
            if peer(addr)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Longer prefixes first take over, then others go: between the two an address is never without
    /// its old or its new owner.
    pub fn apply(&self, tables: &Tables) -> Result<(), DatapathError> {
        self.classes.upsert(&*tables.address_classes)?;
        self.prefixes.upsert(&*tables.ipcache_lpm)?;
        self.exact.upsert(&*tables.ipcache_exact)?;
        self.exact.delete(&*tables.ipcache_exact)?;
        self.prefixes.delete(&*tables.ipcache_lpm)?;
        self.classes.delete(&*tables.address_classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::config::Capacity;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn world(identity: u32) -> Option<IpcacheEntry> {
        Some(IpcacheEntry { identity: Identity(identity), tunnel_endpoint: None, class: AddressKind::World })
    }

    #[test]
    fn ipv4_never_falls_into_an_ipv6_default() {
        let tables = Tables::in_memory(&Capacity::default());
        AddressPlan::default().with_defaults().apply(&tables).unwrap();
        AddressPlan::new(&[(net("::/0"), world(77))], &[(net("::/0"), Some(Identity(99)))])
            .apply(&tables)
            .unwrap();
        let v4 = families()[0];
        assert_eq!(tables.ipcache_lpm.get(&v4).unwrap().unwrap().identity, Identity::WORLD_IPV4.0);
        assert_eq!(tables.address_classes.get(&v4).unwrap(), Some(NO_CLASS));
        AddressPlan::new(&[(net("0.0.0.0/0"), world(78))], &[]).apply(&tables).unwrap();
        AddressPlan::new(&[(net("0.0.0.0/0"), None)], &[]).apply(&tables).unwrap();
        assert_eq!(tables.ipcache_lpm.get(&v4).unwrap().unwrap().identity, Identity::WORLD_IPV4.0);
    }

    #[test]
    fn single_addresses_go_to_the_exact_map() {
        let plan = AddressPlan::new(
            &[(net("10.0.0.1/32"), world(5)), (net("fd00::1/128"), world(5)), (net("10.0.0.0/31"), world(6))],
            &[],
        );
        assert_eq!((plan.exact.keys.len(), plan.prefixes.keys.len()), (2, 1));
    }

    /// An answer `AAAA ::ffff:10.0.0.1` gave its identity to the pod 10.0.0.1, and took it away at its end.
    #[test]
    fn an_ipv4_address_in_the_guise_of_ipv6_changes_nothing() {
        let tables = Tables::in_memory(&Capacity::default());
        AddressPlan::new(&[(net("10.0.0.1/32"), world(5))], &[]).apply(&tables).unwrap();
        for entry in [world(6), None] {
            let plan = AddressPlan::new(
                &[(net("::ffff:10.0.0.1/128"), entry), (net("::ffff:10.0.0.0/104"), entry)],
                &[(net("::ffff:10.0.0.1/128"), Some(Identity(99)))],
            );
            assert_eq!((plan.exact.keys.len(), plan.prefixes.keys.len(), plan.classes.keys.len()), (0, 0, 0));
            plan.apply(&tables).unwrap();
        }
        let pod = Addr::from(std::net::IpAddr::from([10, 0, 0, 1]));
        assert_eq!(tables.ipcache_exact.get(&pod).unwrap().unwrap().identity, 5);
    }

    #[test]
    fn a_relabelled_pod_has_its_flows_judged_again() {
        let tables = Tables::in_memory(&Capacity::default());
        let pod = |identity| {
            let entry =
                IpcacheEntry { identity: Identity(identity), tunnel_endpoint: None, class: AddressKind::Pod };
            AddressPlan::new(&[(net("10.0.0.1/32"), Some(entry))], &[])
        };
        assert!(!pod(300).changes_a_peer(&tables).unwrap(), "a new pod disturbs nobody");
        pod(300).apply(&tables).unwrap();
        assert!(!pod(300).changes_a_peer(&tables).unwrap());
        assert!(pod(301).changes_a_peer(&tables).unwrap());
        let gone = AddressPlan::new(&[(net("10.0.0.1/32"), None)], &[]);
        assert!(gone.changes_a_peer(&tables).unwrap());
    }
}
