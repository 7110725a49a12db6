//! A map from prefixes to values with longest-prefix lookup.
//!
//! Contract: both families live in one order (IPv4 as IPv4-mapped IPv6, as in the kernel's maps)
//! but never match each other. A lookup costs one map access for each prefix length in use.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use ipnet::IpNet;

/// First address and length, both as IPv6. The order puts a prefix before all that it contains.
type Key = (u128, u8);

const MAPPED: u128 = 0xffff_0000_0000;

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => MAPPED | u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn key(prefix: IpNet) -> Key {
    let offset = if matches!(prefix, IpNet::V4(_)) { 96 } else { 0 };
    (bits(prefix.network()), offset + prefix.prefix_len())
}

fn prefix((bits, length): Key) -> IpNet {
    let is_v4 = length >= 96 && bits >> 32 == MAPPED >> 32;
    let (address, length) = if is_v4 {
        (IpAddr::V4(Ipv4Addr::from(bits as u32)), length - 96)
    } else {
        (IpAddr::V6(Ipv6Addr::from(bits)), length)
    };
    IpNet::new(address, length).expect("the key was made from a prefix")
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// See the module's contract.
#[derive(Clone, Debug)]
pub struct PrefixMap<T> {
    entries: BTreeMap<Key, T>,
    /// Entries of each length.
    lengths: BTreeMap<u8, usize>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> PrefixMap<T> {
        PrefixMap { entries: BTreeMap::new(), lengths: BTreeMap::new() }
    }
}

impl<T> PrefixMap<T> {
    /// Host bits of `net` are ignored.
    pub fn insert(&mut self, net: IpNet, value: T) -> Option<T> {
        let key = key(net);
        let old = self.entries.insert(key, value);
        if old.is_none() {
            *self.lengths.entry(key.1).or_default() += 1;
        }
        old
    }

    pub fn remove(&mut self, net: IpNet) -> Option<T> {
        let key = key(net);
        let old = self.entries.remove(&key)?;
        if let Some(count) = self.lengths.get_mut(&key.1) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key.1);
            }
        }
        Some(old)
    }

    pub fn get(&self, net: IpNet) -> Option<&T> {
        self.entries.get(&key(net))
    }

    /// The entry of the longest prefix that covers all of `net`, itself included.
    pub fn longest_match(&self, net: IpNet) -> Option<(IpNet, &T)> {
        let (bits, longest) = key(net);
        let shortest = if matches!(net, IpNet::V4(_)) { 96 } else { 0 };
        self.lengths.range(shortest..=longest).rev().find_map(|(length, _)| {
            let key = (bits & mask(*length), *length);
            self.entries
                .get(&key)
                .map(|value| (prefix(key), value))
                .filter(|(found, _)| matches!(found, IpNet::V4(_)) == matches!(net, IpNet::V4(_)))
        })
    }

    /// The entry of the longest prefix that covers an address.
    pub fn lookup(&self, address: IpAddr) -> Option<(IpNet, &T)> {
        self.longest_match(IpNet::from(address))
    }

    /// Every entry inside `net`, itself included.
    pub fn within(&self, net: IpNet) -> impl Iterator<Item = (IpNet, &T)> {
        let (first, length) = key(net);
        let last = first | !mask(length);
        self.entries
            .range((Bound::Included((first, length)), Bound::Included((last, u8::MAX))))
            .map(|(key, value)| (prefix(*key), value))
            .filter(move |(found, _)| net.contains(found))
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        self.entries.iter().map(|(key, value)| (prefix(*key), value))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_families_do_not_mix() {
        let mut map = PrefixMap::default();
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8"] {
            map.insert(net(text), text);
        }
        let lookup = |address: &str| map.lookup(address.parse().unwrap()).map(|(_, value)| *value);
        assert_eq!(lookup("10.1.2.3"), Some("10.1.2.3/32"));
        assert_eq!(lookup("10.1.2.4"), Some("10.1.0.0/16"));
        assert_eq!(lookup("10.2.2.4"), Some("10.0.0.0/8"));
        assert_eq!(lookup("11.2.2.4"), Some("0.0.0.0/0"));
        assert_eq!(lookup("fd00::1"), Some("fd00::/8"));
        assert_eq!(lookup("2001:db8::1"), Some("::/0"));
        map.remove(net("0.0.0.0/0"));
        assert_eq!(map.lookup("11.0.0.1".parse().unwrap()), None, "not ::/0");
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0u32..64, 0u8..=32).prop_map(|(bits, length)| {
                IpNet::new(IpAddr::V4(Ipv4Addr::from(bits.reverse_bits())), length).unwrap().trunc()
            }),
            (0u128..64, 0u8..=128).prop_map(|(bits, length)| {
                IpNet::new(IpAddr::V6(Ipv6Addr::from(bits.reverse_bits())), length).unwrap().trunc()
            }),
        ]
    }

    proptest! {
        #[test]
        fn equals_a_scan(nets in proptest::collection::vec(any_net(), 0..20), drop in 0usize..5, probe in any_net()) {
            let mut map = PrefixMap::default();
            let mut list: std::collections::BTreeSet<IpNet> = nets.iter().copied().collect();
            nets.iter().for_each(|net| { map.insert(*net, *net); });
            for net in nets.iter().take(drop) {
                map.remove(*net);
                list.remove(net);
            }
            let expected = list.iter().filter(|net| net.contains(&probe)).max_by_key(|net| net.prefix_len()).copied();
            prop_assert_eq!(map.longest_match(probe).map(|(net, _)| net), expected);
            let inside: std::collections::BTreeSet<IpNet> = map.within(probe).map(|(net, _)| net).collect();
            prop_assert_eq!(inside, list.iter().copied().filter(|net| probe.contains(net)).collect());
            prop_assert_eq!(map.len(), list.len());
        }
    }
}
