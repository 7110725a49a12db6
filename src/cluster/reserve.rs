//! Identities that wait for addresses: one for what the first answer for a `toFQDNs` pattern makes.
//!
//! A DNS proxy that goes on without an agent can put an address into the kernel, but it cannot make an
//! identity. So each pattern has the identities that its addresses will get, in both families, before any name
//! was looked up. Which other patterns a name matches as well is foreseen by example: a name is its own
//! example, a pattern's has a plain label for each star.
//!
//! Contract: what is reserved is a function of the patterns and prefixes that rules name, whatever the order in
//! which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::counted::Presence;
use super::ids::ExternalKey;
use crate::fqdn::pattern_text;
use crate::identity::reserved::ApiServer;
use crate::ipcache::PrefixMap;
use crate::model::{CidrScope, Family};
use crate::policy::l7::DnsPattern;

/// Above so many pairs of a pattern and a prefix, only addresses outside of all prefixes are foreseen.
const MOST: usize = 4096;
/// Stands for a star of a pattern.
const LABEL: &str = "sluice-example";

/// Addresses of one family that share their longest named prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    family: Family,
    prefix: Option<IpNet>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    names: BTreeSet<DnsPattern>,
    /// Patterns with stars, with their examples.
    wild: BTreeMap<DnsPattern, String>,
    places: Vec<Place>,
    pub(super) held: BTreeMap<DnsPattern, BTreeSet<ExternalKey>>,
}

impl Reserved {
    /// A pattern came or went. Returns those whose reservations may differ now.
    pub(super) fn change(&mut self, pattern: &DnsPattern, presence: Presence) -> Vec<DnsPattern> {
        match (pattern, presence) {
            (DnsPattern::Name(_), Presence::Present) => {
                self.names.insert(pattern.clone());
            }
            (DnsPattern::Name(_), Presence::Absent) => {
                self.names.remove(pattern);
            }
            (DnsPattern::Pattern(text), Presence::Present) => {
                self.wild.insert(pattern.clone(), example(text));
            }
            (DnsPattern::Pattern(_), Presence::Absent) => {
                self.wild.remove(pattern);
            }
        }
        let mut affected = vec![pattern.clone()];
        if matches!(pattern, DnsPattern::Pattern(_)) {
            affected.extend(self.names.iter().filter(|name| pattern.matches(pattern_text(name))).cloned());
            let wild = self.wild.iter().filter(|(_, example)| pattern.matches(example));
            affected.extend(wild.map(|(other, _)| other.clone()));
        }
        affected
    }

    /// The prefixes that rules name are now these. Returns whether that changes every reservation.
    pub(super) fn place(&mut self, named: &PrefixMap<Option<ExternalKey>>) -> bool {
        let everything = [
            (Family::IPv4, IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0)),
            (Family::IPv6, IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0)),
        ];
        let mut places: Vec<Place> = everything
            .into_iter()
            .map(|(family, all)| Place { family, prefix: named.get(all).map(|_| all) })
            .collect();
        let patterns = self.names.len() + self.wild.len();
        if patterns.saturating_mul(named.len()) <= MOST {
            // Without an identity: inside the cluster, where no answer opens anything.
            let outside = named.iter().filter(|(_, key)| key.is_some());
            places.extend(
                outside.map(|(prefix, _)| Place { family: Family::of(prefix.addr()), prefix: Some(prefix) }),
            );
        }
        places.sort_unstable();
        places.dedup();
        let differs = self.places != places;
        self.places = places;
        differs
    }

    pub(super) fn patterns(&self) -> impl Iterator<Item = &DnsPattern> {
        self.names.iter().chain(self.wild.keys())
    }

    /// What to reserve for a pattern; nothing for one that is not there.
    pub(super) fn wanted(&self, pattern: &DnsPattern) -> BTreeSet<ExternalKey> {
        let example = match pattern {
            DnsPattern::Name(name) => self.names.contains(pattern).then_some(&**name),
            DnsPattern::Pattern(_) => self.wild.get(pattern).map(String::as_str),
        };
        let Some(example) = example else { return BTreeSet::new() };
        let wild = self.wild.keys().filter(|other| other.matches(example)).map(pattern_text);
        let mut fqdns: BTreeSet<Arc<str>> = wild.cloned().collect();
        fqdns.insert(pattern_text(pattern).clone());
        let key = |place: &Place| ExternalKey {
            scope: CidrScope {
                prefix: place.prefix,
                fqdns: fqdns.clone(),
                ipv6: place.family == Family::IPv6,
            },
            api_server: ApiServer::Elsewhere,
        };
        self.places.iter().map(key).collect()
    }
}

/// A name that a pattern matches.
fn example(pattern: &str) -> String {
    match pattern.strip_prefix("**.") {
        // Two labels: with one, patterns that want exactly one would be foreseen for all.
        Some(rest) => format!("{LABEL}.{LABEL}.{}", rest.replace('*', LABEL)),
        None if matches!(pattern, "*" | "**") => format!("{LABEL}.{LABEL}.invalid"),
        None => pattern.replace('*', LABEL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> DnsPattern {
        DnsPattern::parse_pattern(text).unwrap()
    }

    fn sets(reserved: &Reserved, text: &str) -> Vec<String> {
        let keys = reserved.wanted(&pattern(text));
        let v4 = keys.iter().find(|key| !key.scope.ipv6);
        v4.map(|key| key.scope.fqdns.iter().map(|text| text.to_string()).collect()).unwrap_or_default()
    }

    #[test]
    fn what_a_name_will_match_is_foreseen() {
        let mut reserved = Reserved::default();
        for text in ["api.example.com", "*.example.com", "**.example.com", "*", "other.org"] {
            let affected = reserved.change(&pattern(text), Presence::Present);
            assert!(affected.contains(&pattern(text)));
        }
        assert!(reserved.place(&PrefixMap::default()));
        assert!(!reserved.place(&PrefixMap::default()));
        assert_eq!(
            sets(&reserved, "api.example.com"),
            ["*", "**.example.com", "*.example.com", "api.example.com"]
        );
        assert_eq!(sets(&reserved, "*.example.com"), ["*", "**.example.com", "*.example.com"]);
        assert_eq!(sets(&reserved, "**.example.com"), ["*", "**.example.com"]);
        assert_eq!(sets(&reserved, "other.org"), ["*", "other.org"]);
        let affected = reserved.change(&pattern("*"), Presence::Absent);
        assert_eq!(affected.len(), 5, "{affected:?}");
        assert_eq!(sets(&reserved, "other.org"), ["other.org"]);
        assert!(sets(&reserved, "*").is_empty(), "it is gone");
        assert_eq!(reserved.wanted(&pattern("other.org")).len(), 2, "both families");
    }
}
