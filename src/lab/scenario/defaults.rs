//! Addresses for what a scenario leaves without one.
//!
//! Deterministic, and stable over changes: who has once been given an address keeps it. Explicit
//! addresses are never given to anybody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Who needs addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Pod(String, String),
    Service(String, String),
    Node(String),
    /// The gateway entity on a node.
    Gateway(String),
}

/// The ranges of scenario-format.md.
pub const POD_RANGES: (Ipv4Net, Ipv6Net) =
    (v4([10, 244, 0, 0], 16), v6([0xfd00, 0x244, 0, 0, 0, 0, 0, 0], 48));
pub const SERVICE_RANGES: (Ipv4Net, Ipv6Net) =
    (v4([10, 96, 0, 0], 16), v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0], 108));
pub const NODE_RANGES: (Ipv4Net, Ipv6Net) =
    (v4([172, 18, 0, 0], 16), v6([0xfd00, 0x18, 0, 0, 0, 0, 0, 0], 64));

const fn v4(octets: [u8; 4], length: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(groups: [u16; 8], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = groups;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

/// The pod ranges, as a view of the cluster wants them.
pub fn pod_ranges() -> Vec<IpNet> {
    vec![POD_RANGES.0.into(), POD_RANGES.1.into()]
}

/// First number that is given out: below it are routers and the like.
const FIRST: u32 = 10;
/// Gateways are numbered in the node range, above every node.
const FIRST_GATEWAY: u32 = 0x8000;

/// Hands out addresses, IPv4 and IPv6 with the same number.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    given: BTreeMap<Owner, [IpAddr; 2]>,
    used: BTreeSet<IpAddr>,
}

impl Addresses {
    /// `address` is somebody's own: nobody is given it from now on.
    pub(super) fn reserve(&mut self, address: IpAddr) {
        self.used.insert(address);
    }

    /// What `owner` was given before, or the next free number of its range.
    pub(super) fn give(&mut self, owner: Owner) -> [IpAddr; 2] {
        if let Some(addresses) = self.given.get(&owner) {
            return *addresses;
        }
        let ((v4, v6), first) = match owner {
            Owner::Pod(..) => (POD_RANGES, FIRST),
            Owner::Service(..) => (SERVICE_RANGES, FIRST),
            Owner::Node(_) => (NODE_RANGES, FIRST),
            Owner::Gateway(_) => (NODE_RANGES, FIRST_GATEWAY),
        };
        let numbered = |number: u32| {
            [
                IpAddr::V4(Ipv4Addr::from(u32::from(v4.network()) + number)),
                IpAddr::V6(Ipv6Addr::from(u128::from(v6.network()) + u128::from(number))),
            ]
        };
        // A range holds more addresses than a file that we read can use.
        let free = |pair: &[IpAddr; 2]| pair.iter().all(|address| !self.used.contains(address));
        let pair = (first..u32::MAX >> 1).map(numbered).find(free).expect("a free number");
        self.used.extend(pair);
        self.given.insert(owner, pair);
        pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_kept() {
        let mut addresses = Addresses::default();
        addresses.reserve("10.244.0.10".parse().unwrap());
        let pod = |name: &str| Owner::Pod("a".into(), name.into());
        let first = addresses.give(pod("x"));
        assert_eq!(first.map(|address| address.to_string()), ["10.244.0.11", "fd00:244::b"]);
        assert_ne!(addresses.give(pod("y")), first);
        assert_eq!(addresses.give(pod("x")), first);
    }
}
