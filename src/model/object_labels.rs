//! Plain Kubernetes labels of an object, as small as they can be kept: a cluster has tens of thousands of these maps,
//! each with a few entries, and a tree's first node alone is half a kilobyte.

use std::collections::BTreeMap;

/// Labels without a source: key -> value, sorted by key, each key once. Of equal keys the last one counts.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubeLabels(Box<[(Box<str>, Box<str>)]>);

impl KubeLabels {
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        Some(&self.0[found].1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// By key.
    pub fn iter(&self) -> Iter<'_> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Adds a label; the value that it had before is returned.
    pub fn insert(&mut self, key: String, value: String) -> Option<String> {
        let place = self.0.binary_search_by(|(known, _)| (**known).cmp(&key));
        match place {
            Ok(index) => Some(std::mem::replace(&mut self.0[index].1, value.into()).into()),
            Err(index) => {
                let mut labels = std::mem::take(&mut self.0).into_vec();
                labels.insert(index, (key.into(), value.into()));
                self.0 = labels.into();
                None
            }
        }
    }
}

/// See [`KubeLabels::iter`].
pub type Iter<'a> = std::iter::Map<
    std::slice::Iter<'a, (Box<str>, Box<str>)>,
    fn(&'a (Box<str>, Box<str>)) -> (&'a str, &'a str),
>;

impl<'a> IntoIterator for &'a KubeLabels {
    type Item = (&'a str, &'a str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl std::ops::Index<&str> for KubeLabels {
    type Output = str;

    /// # Panics
    /// Without such a label.
    fn index(&self, key: &str) -> &str {
        self.get(key).unwrap_or_else(|| panic!("no label {key}"))
    }
}

impl Extend<(String, String)> for KubeLabels {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, labels: I) {
        for (key, value) in labels {
            self.insert(key, value);
        }
    }
}

impl serde::Serialize for KubeLabels {
    /// As a mapping.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl std::fmt::Debug for KubeLabels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl From<BTreeMap<String, String>> for KubeLabels {
    fn from(labels: BTreeMap<String, String>) -> KubeLabels {
        KubeLabels(labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for KubeLabels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> KubeLabels {
        let sorted: BTreeMap<String, String> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        sorted.into()
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for KubeLabels {
    fn from(labels: [(K, V); N]) -> KubeLabels {
        labels.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_value_and_keys_are_sorted() {
        let mut labels = KubeLabels::from([("b", "1"), ("a", "2"), ("b", "3")]);
        labels.insert("c".into(), "4".into());
        labels.insert("a".into(), "5".into());
        labels.insert("aa".into(), "".into());
        let all: Vec<_> = labels.iter().collect();
        assert_eq!(all, [("a", "5"), ("aa", ""), ("b", "3"), ("c", "4")]);
        assert_eq!((labels.get("b"), labels.get("d")), (Some("3"), None));
    }
}
