//! Several sources may speak about one prefix; the strongest one is believed.
//!
//! Contract: what the cluster knows about its own addresses comes before what rules and DNS say
//! about the world, so no CIDR rule and no DNS answer can give a pod or a node another identity.

use std::collections::HashMap;

use ipnet::IpNet;

/// Strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Pod,
    Node,
    /// Addresses with a fixed identity, such as a node's gateway.
    Fixed,
    /// The cluster's own ranges: unknown, never world.
    ClusterRange,
    /// A single address of the world of which more is known: API server, DNS answers.
    Address,
    /// A prefix that a CIDR rule names.
    Cidr,
    /// Everything else.
    World,
}

/// What one source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<T> {
    pub source: Source,
    pub value: T,
}

/// Claims about prefixes, each source at most once for a prefix.
#[derive(Clone, Debug)]
pub struct Layers<T> {
    /// Mostly one claim for a prefix; sorted by source.
    claims: HashMap<IpNet, smallvec::SmallVec<[Claim<T>; 1]>>,
}

impl<T> Default for Layers<T> {
    fn default() -> Layers<T> {
        Layers { claims: HashMap::new() }
    }
}

impl<T: PartialEq> Layers<T> {
    /// Sets (or with `None` withdraws) what `source` says about `prefix`. Returns whether anything
    /// changed.
    pub fn set(&mut self, prefix: IpNet, source: Source, value: Option<T>) -> bool {
        let claims = self.claims.entry(prefix).or_default();
        let position = claims.binary_search_by_key(&source, |claim| claim.source);
        let changed = match (position, value) {
            (Ok(index), Some(value)) if claims[index].value == value => false,
            (Ok(index), Some(value)) => {
                claims[index].value = value;
                true
            }
            (Err(index), Some(value)) => {
                claims.insert(index, Claim { source, value });
                true
            }
            (Ok(index), None) => {
                claims.remove(index);
                true
            }
            (Err(_), None) => false,
        };
        if claims.is_empty() {
            self.claims.remove(&prefix);
        }
        changed
    }

    /// The claim that is believed.
    pub fn best(&self, prefix: IpNet) -> Option<&Claim<T>> {
        self.claims.get(&prefix).and_then(|claims| claims.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_source_is_believed_and_the_next_one_after_it() {
        let prefix: IpNet = "10.0.0.1/32".parse().unwrap();
        let mut layers = Layers::default();
        assert!(layers.set(prefix, Source::Cidr, Some("cidr")));
        assert!(layers.set(prefix, Source::Pod, Some("pod")));
        assert!(!layers.set(prefix, Source::Pod, Some("pod")));
        assert_eq!(layers.best(prefix).unwrap().value, "pod");
        assert!(layers.set(prefix, Source::Node, Some("node")));
        assert!(layers.set(prefix, Source::Pod, None));
        assert_eq!(layers.best(prefix).unwrap().value, "node");
        layers.set(prefix, Source::Node, None);
        assert_eq!(layers.best(prefix).unwrap().value, "cidr");
        layers.set(prefix, Source::Cidr, None);
        assert!(layers.best(prefix).is_none());
    }
}
