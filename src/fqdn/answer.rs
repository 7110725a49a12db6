//! Which addresses of an answer belong to the name that was asked for.
//!
//! Contract: the asked name owns the addresses at the end of its CNAME chain; the other names of
//! the chain own nothing, and records outside of the chain are ignored, so that an answer cannot
//! smuggle in addresses for names that nobody asked for. An address is fresh for the smallest TTL
//! on its way, and for [`BRIEFEST`] at least. Loops and records of other types give nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::l7::names::{canonical, canonical_shared};

/// What a TTL of zero comes to. It means that the answer is not to be kept, not that it is not to be used: it is good "for the
/// transaction in progress" (RFC 1035, section 3.2.1), which is the connection that the client opens next.
pub const BRIEFEST: Duration = Duration::from_secs(1);

/// One record of the answer section. Names may have any case and a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub owner: Arc<str>,
    pub ttl: Duration,
    pub data: RecordData,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordData {
    Address(IpAddr),
    Cname(String),
}

/// Addresses that an answer gives to the name that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Canonical: lower case, no trailing dot.
    pub name: Arc<str>,
    pub addresses: Vec<(IpAddr, Duration)>,
}

/// An answer and the clients that it is for. Without clients: nobody knows any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub learned: Learned,
    pub clients: Vec<IpAddr>,
}

impl Learned {
    /// Follows the chain from `queried` through the answer section.
    pub fn from_answer(queried: &Arc<str>, records: &[Record]) -> Learned {
        if let Some(addresses) = plain(queried, records) {
            return Learned { name: canonical_shared(queried), addresses };
        }
        let name = canonical(queried);
        let mut by_owner: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
        for record in records {
            by_owner.entry(canonical(&record.owner)).or_default().push(record);
        }
        let mut addresses: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        let mut seen = BTreeSet::from([name.clone()]);
        let mut todo = vec![(name.clone(), Duration::MAX)];
        while let Some((owner, limit)) = todo.pop() {
            for record in by_owner.get(&owner).into_iter().flatten() {
                let ttl = record.ttl.min(limit);
                match &record.data {
                    RecordData::Address(address) => {
                        let known = addresses.entry(*address).or_insert(ttl);
                        *known = ttl.max(*known);
                    }
                    RecordData::Cname(target) => {
                        let target = canonical(target);
                        if seen.insert(target.clone()) {
                            todo.push((target, ttl));
                        }
                    }
                }
            }
        }
        let addresses = addresses.into_iter().map(|(address, ttl)| (address, ttl.max(BRIEFEST)));
        Learned { name: name.into(), addresses: addresses.collect() }
    }
}

/// The usual answer, addresses of the asked name alone, without the machinery.
fn plain(queried: &str, records: &[Record]) -> Option<Vec<(IpAddr, Duration)>> {
    let mut addresses = Vec::with_capacity(records.len());
    for record in records {
        match &record.data {
            RecordData::Address(address) if *record.owner == *queried => {
                addresses.push((*address, record.ttl.max(BRIEFEST)))
            }
            _ => return None,
        }
    }
    // Of two TTLs of one address the longer one counts.
    addresses.sort_unstable_by_key(|(address, ttl)| (*address, std::cmp::Reverse(*ttl)));
    addresses.dedup_by_key(|(address, _)| *address);
    Some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(owner: &str, ttl: u64, address: &str) -> Record {
        let data = RecordData::Address(address.parse().unwrap());
        Record { owner: owner.into(), ttl: Duration::from_secs(ttl), data }
    }

    fn cname(owner: &str, ttl: u64, target: &str) -> Record {
        Record { owner: owner.into(), ttl: Duration::from_secs(ttl), data: RecordData::Cname(target.into()) }
    }

    #[test]
    fn the_queried_name_owns_the_end_of_the_chain_for_the_smallest_ttl() {
        let learned = Learned::from_answer(
            &"WWW.Example.".into(),
            &[
                cname("www.example.", 60, "b.cdn."),
                cname("B.cdn", 5, "c.cdn"),
                address("c.cdn", 300, "192.0.2.1"),
            ],
        );
        assert_eq!(&*learned.name, "www.example");
        assert_eq!(learned.addresses, [("192.0.2.1".parse().unwrap(), Duration::from_secs(5))]);
    }

    #[test]
    fn records_that_nobody_asked_for_are_ignored() {
        let learned = Learned::from_answer(
            &"a.example".into(),
            &[address("a.example", 1, "192.0.2.1"), address("bank.example", 1, "192.0.2.66")],
        );
        assert_eq!(learned.addresses.len(), 1);
    }

    /// Released, and closed before anybody could connect.
    #[test]
    fn an_answer_with_ttl_zero_is_fresh_for_a_second() {
        let alone = [address("a", 0, "192.0.2.1")];
        let chain = [cname("a", 0, "b"), address("b", 60, "192.0.2.1")];
        for records in [&alone[..], &chain[..]] {
            let learned = Learned::from_answer(&"a".into(), records);
            assert_eq!(learned.addresses, [("192.0.2.1".parse().unwrap(), Duration::from_secs(1))]);
        }
    }

    #[test]
    fn the_short_way_gives_what_the_long_way_gives() {
        let mut records = [(9, "192.0.2.2"), (5, "192.0.2.1"), (7, "192.0.2.2")]
            .map(|(ttl, ip)| address("a", ttl, ip))
            .to_vec();
        let short = Learned::from_answer(&"a".into(), &records);
        records.push(cname("other", 1, "a"));
        assert_eq!(short, Learned::from_answer(&"a".into(), &records));
        assert_eq!(short.addresses.len(), 2);
    }

    #[test]
    fn a_loop_ends() {
        let learned = Learned::from_answer(&"a".into(), &[cname("a", 1, "b"), cname("b", 1, "a")]);
        assert!(learned.addresses.is_empty());
    }
}
