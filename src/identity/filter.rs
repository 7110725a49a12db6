//! Which labels of a pod count.
//!
//! Contract (policy semantics, section 2): labels that only tell instances apart are left out, so
//! that the replicas of a workload share one identity. A key that a loaded selector names counts
//! whatever this filter says; that is decided by the caller, see [`super::pod::identity_labels`].

/// One pattern over label keys.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyPattern {
    /// The key itself.
    Exact(String),
    /// The key starts with this text.
    Prefix(String),
    /// The text stands somewhere in the key.
    Contains(String),
}

impl KeyPattern {
    fn matches(&self, key: &str) -> bool {
        match self {
            KeyPattern::Exact(text) => key == text,
            KeyPattern::Prefix(text) => key.starts_with(text.as_str()),
            KeyPattern::Contains(text) => key.contains(text.as_str()),
        }
    }
}

/// Excludes keys; what `keep` matches stays in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelFilter {
    pub keep: Vec<KeyPattern>,
    pub exclude: Vec<KeyPattern>,
}

impl Default for LabelFilter {
    fn default() -> LabelFilter {
        let exact = |key: &str| KeyPattern::Exact(key.to_owned());
        let prefix = |key: &str| KeyPattern::Prefix(key.to_owned());
        LabelFilter {
            keep: vec![],
            exclude: vec![
                prefix("kubernetes.io"),
                prefix("k8s.io"),
                prefix("io.kubernetes"),
                prefix("annotation."),
                KeyPattern::Contains("beta.kubernetes.io".to_owned()),
                exact("pod-template-hash"),
                exact("pod-template-generation"),
                exact("controller-revision-hash"),
                exact("controller-uid"),
                exact("job-name"),
                exact("statefulset.kubernetes.io/pod-name"),
                exact("apps.kubernetes.io/pod-index"),
                exact("batch.kubernetes.io/controller-uid"),
                exact("batch.kubernetes.io/job-completion-index"),
            ],
        }
    }
}

impl LabelFilter {
    /// The key counts by itself, without a selector that names it.
    pub fn is_relevant(&self, key: &str) -> bool {
        let matches = |patterns: &[KeyPattern]| patterns.iter().any(|pattern| pattern.matches(key));
        matches(&self.keep) || !matches(&self.exclude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_only_tell_instances_apart_are_left_out() {
        let filter = LabelFilter::default();
        for key in [
            "pod-template-hash",
            "kubernetes.io/arch",
            "k8s.io/x",
            "io.kubernetes.anything",
            "annotation.x",
            "topology.beta.kubernetes.io/zone",
            "apps.kubernetes.io/pod-index",
        ] {
            assert!(!filter.is_relevant(key), "{key}");
        }
        for key in ["app", "app.kubernetes.io/name", "topology.kubernetes.io/zone", "job-name-2"] {
            assert!(filter.is_relevant(key), "{key}");
        }
    }

    #[test]
    fn keep_wins_over_exclude() {
        let mut filter = LabelFilter::default();
        filter.keep.push(KeyPattern::Exact("job-name".to_owned()));
        assert!(filter.is_relevant("job-name"));
    }
}
