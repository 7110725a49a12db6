//! Finds the selectors that can match a set of labels without testing all of them.
//!
//! A selector that requires `key in values` can only match labels that hold one of these pairs, so
//! it is filed under each pair; one that requires a key to be there is filed under the key; the
//! rest is tested always. What is found still has to be tested in full.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::model::Labels;
use crate::policy::selector::{LabelSelector, Operator};

/// The requirement that a selector is filed under. Sources are left to the full test.
enum Anchor<'a> {
    Pairs(&'a Arc<str>, &'a BTreeSet<Arc<str>>),
    Key(&'a Arc<str>),
    None,
}

/// The most telling requirement: `In` with the fewest values, else `Exists`.
fn anchor(selector: &LabelSelector) -> Anchor<'_> {
    let requirements = selector.requirements();
    let pairs = requirements
        .iter()
        .filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&requirement.key.key, values)),
            _ => None,
        })
        .min_by_key(|(_, values)| values.len());
    if let Some((key, values)) = pairs {
        return Anchor::Pairs(key, values);
    }
    requirements
        .iter()
        .find(|requirement| requirement.operator == Operator::Exists)
        .map_or(Anchor::None, |requirement| Anchor::Key(&requirement.key.key))
}

/// Selectors by their anchor, each known by a number of the caller.
#[derive(Debug, Default)]
pub(super) struct LabelIndex {
    keys: HashMap<Arc<str>, Filed>,
    rest: Vec<u32>,
}

#[derive(Debug, Default)]
struct Filed {
    values: HashMap<Arc<str>, Vec<u32>>,
    present: Vec<u32>,
}

impl LabelIndex {
    pub(super) fn insert(&mut self, number: u32, selector: &LabelSelector) {
        match anchor(selector) {
            Anchor::Pairs(key, values) => {
                let filed = self.keys.entry(key.clone()).or_default();
                for value in values {
                    filed.values.entry(value.clone()).or_default().push(number);
                }
            }
            Anchor::Key(key) => self.keys.entry(key.clone()).or_default().present.push(number),
            Anchor::None => self.rest.push(number),
        }
    }

    pub(super) fn remove(&mut self, number: u32, selector: &LabelSelector) {
        let without = |list: &mut Vec<u32>| list.retain(|other| *other != number);
        let (key, values) = match anchor(selector) {
            Anchor::None => return without(&mut self.rest),
            Anchor::Pairs(key, values) => (key, Some(values)),
            Anchor::Key(key) => (key, None),
        };
        let Some(filed) = self.keys.get_mut(key) else { return };
        match values {
            None => without(&mut filed.present),
            Some(values) => {
                for value in values {
                    if let Some(list) = filed.values.get_mut(value) {
                        without(list);
                        if list.is_empty() {
                            filed.values.remove(value);
                        }
                    }
                }
            }
        }
        if filed.values.is_empty() && filed.present.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Every selector that can match, in ascending order.
    pub(super) fn candidates(&self, labels: &Labels) -> Vec<u32> {
        let mut found = self.rest.clone();
        for label in labels.iter() {
            if let Some(filed) = self.keys.get(&label.key) {
                found.extend_from_slice(&filed.present);
                found.extend(filed.values.get(&label.value).into_iter().flatten());
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}
