//! One allocation for equal strings of labels. PURE.
//!
//! Ten thousand pods have a few hundred different keys and values between them; each pod's labels are made from its
//! own object, so that every string would be there once for every pod.

use std::sync::Arc;

use hashbrown::HashSet;

use super::{Label, Labels};

/// Below this number nothing is worth looking for what nobody uses.
const FEW: usize = 1024;

/// See the module. Forgets strings that nobody else holds, in time that is small change.
#[derive(Debug, Default)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
    /// Number of strings at which the unused ones are looked for.
    look_at: usize,
}

impl Interner {
    /// Equal labels whose strings are shared with all others that came from here.
    pub fn labels(&mut self, labels: &Labels) -> Labels {
        let shared = labels.iter().map(|label| Label {
            source: label.source,
            key: self.string(&label.key),
            value: self.string(&label.value),
        });
        shared.collect()
    }

    fn string(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return known.clone();
        }
        if self.strings.len() >= self.look_at.max(FEW) {
            self.strings.retain(|string| Arc::strong_count(string) > 1);
            self.look_at = 2 * self.strings.len();
        }
        self.strings.insert(text.clone());
        text.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one() {
        let mut strings = Interner::default();
        let labels =
            || -> Labels { [Label::k8s("app", "web"), Label::k8s("web", "app")].into_iter().collect() };
        let (one, two) = (strings.labels(&labels()), strings.labels(&labels()));
        assert_eq!((&one, &two), (&labels(), &labels()));
        for (a, b) in one.iter().zip(two.iter()) {
            assert!(Arc::ptr_eq(&a.key, &b.key) && Arc::ptr_eq(&a.value, &b.value));
        }
    }

    #[test]
    fn strings_that_nobody_holds_are_forgotten() {
        let mut strings = Interner::default();
        let kept = strings.labels(&[Label::k8s("kept", "")].into_iter().collect());
        for index in 0..10 * FEW {
            strings.labels(&[Label::k8s("index", &index.to_string())].into_iter().collect());
        }
        assert!(strings.strings.len() <= 2 * FEW, "{}", strings.strings.len());
        let again = strings.labels(&[Label::k8s("kept", "")].into_iter().collect());
        assert!(kept.iter().zip(again.iter()).all(|(a, b)| Arc::ptr_eq(&a.key, &b.key)));
    }
}
