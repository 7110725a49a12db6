//! Label selectors: `matchLabels` and `matchExpressions` over identity labels.
//!
//! Contract (docs: policy semantics, section 2): requirements are ANDed; `NotIn` and
//! `DoesNotExist` match when the key is absent; no requirement matches everything in scope. A
//! selector never matches labels with a `reserved:` label (the world, nodes, ...) unless it names
//! a `reserved:` key itself; so an empty selector is "every pod".

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::{LabelSource, Labels};

/// A key with the source it must come from; `None` is any source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectorKey {
    pub source: Option<LabelSource>,
    pub key: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    In(BTreeSet<Arc<str>>),
    NotIn(BTreeSet<Arc<str>>),
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    pub key: SelectorKey,
    pub operator: Operator,
}

/// ANDed requirements in canonical (sorted) order, so that equal selectors are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl SelectorKey {
    /// `source:key` or `key`; only a colon separates a source, and only a known source counts.
    pub fn parse(text: &str) -> SelectorKey {
        if let Some((source, key)) = text.split_once(':')
            && let Ok(source) = source.parse::<LabelSource>()
        {
            let source = (source != LabelSource::Any).then_some(source);
            return SelectorKey { source, key: key.into() };
        }
        SelectorKey { source: None, key: text.into() }
    }

    fn lookup<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a str> {
        labels
            .iter()
            .filter(|label| label.key == self.key && self.source.is_none_or(|source| source == label.source))
            .map(|label| &*label.value)
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let mut values = self.key.lookup(labels);
        match &self.operator {
            Operator::In(wanted) => values.any(|value| wanted.contains(value)),
            Operator::NotIn(unwanted) => !values.any(|value| unwanted.contains(value)),
            Operator::Exists => values.next().is_some(),
            Operator::DoesNotExist => values.next().is_none(),
        }
    }
}

impl LabelSelector {
    pub fn new(mut requirements: Vec<Requirement>) -> LabelSelector {
        requirements.sort();
        requirements.dedup();
        LabelSelector { requirements }
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// With one more requirement.
    pub fn and(&self, requirement: Requirement) -> LabelSelector {
        let mut requirements = self.requirements.clone();
        requirements.push(requirement);
        LabelSelector::new(requirements)
    }

    /// A requirement on this key (any operator) is there; `source: None` in a requirement counts
    /// for every source.
    pub fn names_key(&self, matches: impl Fn(&SelectorKey) -> bool) -> bool {
        self.requirements.iter().any(|requirement| matches(&requirement.key))
    }

    /// Matches the labels of an identity; see the module's contract for `reserved:` labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        if labels.is_reserved() && !self.names_key(|key| key.source == Some(LabelSource::Reserved)) {
            return false;
        }
        self.matches_any_scope(labels)
    }

    /// For node selectors (`nodeSelector`, `fromNodes`): keys without a source, or with `k8s:`, are
    /// the node's own labels, which an identity carries under `node:`.
    pub fn matches_node(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let SelectorKey { source, key } = &requirement.key;
            match source {
                None | Some(LabelSource::K8s) => {
                    let key = SelectorKey { source: Some(LabelSource::Node), key: key.clone() };
                    Requirement { key, operator: requirement.operator.clone() }.matches(labels)
                }
                Some(_) => requirement.matches(labels),
            }
        })
    }

    /// Matches without the rule about `reserved:` labels: for selectors of nodes, whose scope the
    /// caller has checked.
    pub fn matches_any_scope(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }
}
