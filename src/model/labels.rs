//! Labels: `source:key=value`.
//!
//! Only a colon separates a source from a key. In an identity every label has a source; in a
//! selector a key without one means any source (`policy::selector`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where a label comes from (Cilium, `pkg/labels`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelSource {
    Any,
    Cidr,
    CidrGroup,
    Fqdn,
    K8s,
    Node,
    Reserved,
    Unspec,
}

impl LabelSource {
    pub const ALL: [LabelSource; 8] = [
        LabelSource::Any,
        LabelSource::Cidr,
        LabelSource::CidrGroup,
        LabelSource::Fqdn,
        LabelSource::K8s,
        LabelSource::Node,
        LabelSource::Reserved,
        LabelSource::Unspec,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            LabelSource::Any => "any",
            LabelSource::Cidr => "cidr",
            LabelSource::CidrGroup => "cidrgroup",
            LabelSource::Fqdn => "fqdn",
            LabelSource::K8s => "k8s",
            LabelSource::Node => "node",
            LabelSource::Reserved => "reserved",
            LabelSource::Unspec => "unspec",
        }
    }
}

impl FromStr for LabelSource {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|source| source.as_str() == text).ok_or(())
    }
}

impl fmt::Display for LabelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One label of an identity. Ordered by source, key, value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    pub source: LabelSource,
    pub key: Arc<str>,
    pub value: Arc<str>,
}

impl Label {
    pub fn new(source: LabelSource, key: &str, value: &str) -> Label {
        Label { source, key: key.into(), value: value.into() }
    }

    pub fn k8s(key: &str, value: &str) -> Label {
        Label::new(LabelSource::K8s, key, value)
    }

    pub fn reserved(name: &str) -> Label {
        Label::new(LabelSource::Reserved, name, "")
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)?;
        if self.value.is_empty() { Ok(()) } else { write!(f, "={}", self.value) }
    }
}

/// The text is not `source:key[=value]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "label {text:?}: expected source:key[=value] with one of the sources any, cidr, cidrgroup, fqdn, k8s, node, reserved, unspec"
)]
pub struct LabelParseError {
    pub text: String,
}

impl FromStr for Label {
    type Err = LabelParseError;

    fn from_str(text: &str) -> Result<Label, LabelParseError> {
        let error = || LabelParseError { text: text.to_owned() };
        let (source, rest) = text.split_once(':').ok_or_else(error)?;
        let source = source.parse().map_err(|()| error())?;
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        if key.is_empty() {
            return Err(error());
        }
        Ok(Label::new(source, key, value))
    }
}

/// A set of labels: sorted, one value for each source and key, cheap to clone, hashable.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[Label]>);

impl Labels {
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value under this key; `source: None` looks in every source, in the order of sources.
    pub fn get(&self, source: Option<LabelSource>, key: &str) -> Option<&Label> {
        match source {
            Some(source) => self
                .0
                .binary_search_by(|label| (label.source, &*label.key).cmp(&(source, key)))
                .ok()
                .map(|index| &self.0[index]),
            None => self.0.iter().find(|label| &*label.key == key),
        }
    }

    /// The label `reserved:<name>` is there.
    pub fn has_reserved(&self, name: &str) -> bool {
        self.get(Some(LabelSource::Reserved), name).is_some()
    }

    /// Any `reserved:` label is there.
    pub fn is_reserved(&self) -> bool {
        self.0.iter().any(|label| label.source == LabelSource::Reserved)
    }
}

impl FromIterator<Label> for Labels {
    fn from_iter<I: IntoIterator<Item = Label>>(labels: I) -> Labels {
        let mut builder = LabelsBuilder::default();
        labels.into_iter().for_each(|label| builder.set(label));
        builder.build()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, label) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{label}")?;
        }
        Ok(())
    }
}

impl serde::Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Label::to_string))
    }
}

impl<'de> serde::Deserialize<'de> for Labels {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| text.parse().map_err(serde::de::Error::custom))
            .collect()
    }
}

/// Collects labels; the last value for a source and key wins.
#[derive(Debug, Default)]
pub struct LabelsBuilder(std::collections::BTreeMap<(LabelSource, Arc<str>), Arc<str>>);

impl LabelsBuilder {
    pub fn set(&mut self, label: Label) {
        self.0.insert((label.source, label.key), label.value);
    }

    pub fn build(self) -> Labels {
        Labels(self.0.into_iter().map(|((source, key), value)| Label { source, key, value }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        for text in ["k8s:app=web", "reserved:host", "k8s:io.kubernetes.pod.namespace=a:b=c"] {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
        }
        assert!("app=web".parse::<Label>().is_err());
        assert!("k8s.app=web".parse::<Label>().is_err());
    }

    #[test]
    fn the_same_set_is_equal_whatever_the_order() {
        let one: Labels = [Label::k8s("a", "1"), Label::k8s("b", "2")].into_iter().collect();
        let two: Labels =
            [Label::k8s("b", "2"), Label::k8s("a", "0"), Label::k8s("a", "1")].into_iter().collect();
        assert_eq!(one, two);
    }
}
