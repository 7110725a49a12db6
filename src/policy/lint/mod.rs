//! The linter: traps in policies that load (semantics, section 8). PURE.
//!
//! Contract: a finding is a stable [`Code`], the object, the field path inside it and what is
//! special about this case. Positions in files are found from the path by whoever read the file.
//! Traps that only the text shows (an empty list, a number where a string is meant) are reported
//! by the reader with the same codes, through [`Finding::new`].
//!
//! What a policy does depends on how the agent enforces it ([`Enforcement`]): where default deny is always on, a spec that
//! turns it on changes nothing, and one that does not is no less in need of DNS. Where nothing is enforced, policies are
//! read as they would be by default.
//!
//! Policies are compared by what is written in them: a spec is taken to bear on another one's pods
//! when its selector asks for no more ([`covers`]). So a finding is never a matter of which pods
//! happen to run, except for [`Code::SelectsNothing`] and [`Code::ServiceAddress`], which need to
//! know them.

mod code;
mod covers;
mod egress;
mod rules;
mod selectors;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use super::engine::Enforcement;
use super::rule::{Action, Policy, Rule, Spec, Subject, Tier};
use crate::model::{Direction, Kind, Labels, ObjectRef};

pub use code::{Code, Severity};

/// One trap found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Finding {
    pub object: ObjectRef,
    /// Such as `spec.egress[0]`; empty for the whole object.
    pub path: Arc<str>,
    pub code: Code,
    pub severity: Severity,
    /// What is special about this case; empty where the code says it all.
    pub detail: String,
}

impl Finding {
    pub fn new(code: Code, object: &ObjectRef, path: &str, detail: impl Into<String>) -> Finding {
        Finding {
            object: object.clone(),
            path: path.into(),
            code,
            severity: code.severity(),
            detail: detail.into(),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}: ", self.severity, self.code, self.object)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(self.code.explanation())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        write!(f, " Suggestion: {}.", self.code.fix())
    }
}

/// Objects that a finding may depend on. What is known of one kind says nothing about the other.
#[derive(Clone, Debug, Default)]
pub struct KnownObjects {
    /// Identity labels of every pod; `None` where the pods are not known.
    pub pods: Option<Vec<Labels>>,
    /// ClusterIPs, with the Service's `namespace/name`.
    pub cluster_ips: Vec<(IpAddr, String)>,
}

/// Finds the traps in these policies. `objects: None`: nothing is known about the cluster, and
/// what would depend on it is left out. Sorted by object, path and code.
pub fn lint(
    policies: &[Arc<Policy>],
    enforcement: Enforcement,
    objects: Option<&KnownObjects>,
) -> Vec<Finding> {
    let linter = Linter { policies, enforcement };
    let mut findings = Vec::new();
    for site in linter.sites() {
        egress::check(&linter, &site, &mut findings);
        rules::check(&linter, &site, &mut findings);
        selectors::check(&site, objects, &mut findings);
    }
    findings.sort();
    findings.dedup();
    findings
}

struct Linter<'a> {
    policies: &'a [Arc<Policy>],
    enforcement: Enforcement,
}

/// Why a direction of a spec's pods is under default deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DefaultDeny {
    Off,
    /// The spec turns it on.
    BySpec,
    /// The agent does, whatever policies say.
    Always,
}

/// A spec with where it stands.
#[derive(Clone, Copy)]
struct Site<'a> {
    object: &'a ObjectRef,
    index: usize,
    /// The object has several specs.
    several: bool,
    spec: &'a Spec,
}

impl<'a> Site<'a> {
    fn rules(&self, direction: Direction, action: Action) -> impl Iterator<Item = &'a Rule> + use<'a> {
        self.spec.rules.iter().filter(move |rule| rule.direction == direction && rule.action == action)
    }

    /// Field path of the spec: rules say whether it is in `specs`.
    fn path(&self) -> String {
        let listed = self.spec.rules.first().map_or(self.several, |rule| rule.path.starts_with("specs"));
        if listed { format!("specs[{}]", self.index) } else { "spec".to_owned() }
    }

    fn is_cilium(&self) -> bool {
        matches!(self.object.kind, Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy)
    }
}

impl<'a> Linter<'a> {
    fn default_deny(&self, site: &Site<'_>, direction: Direction) -> DefaultDeny {
        match (self.enforcement, site.spec.default_deny(direction)) {
            (Enforcement::Always, _) => DefaultDeny::Always,
            (Enforcement::Default | Enforcement::Never, true) => DefaultDeny::BySpec,
            (Enforcement::Default | Enforcement::Never, false) => DefaultDeny::Off,
        }
    }

    fn sites(&self) -> impl Iterator<Item = Site<'a>> + use<'a> {
        self.policies.iter().flat_map(|policy| {
            policy.specs.iter().enumerate().map(|(index, spec)| Site {
                object: &policy.object,
                index,
                several: policy.specs.len() > 1,
                spec,
            })
        })
    }

    /// Specs of the normal tier that bear on every pod of this one, itself included.
    fn bearing_on(&self, site: &Site<'a>) -> Vec<Site<'a>> {
        let subject = &site.spec.subject;
        self.sites()
            .filter(|other| other.spec.tier == Tier::Normal && subject_covers(&other.spec.subject, subject))
            .collect()
    }
}

/// Whatever `narrow` selects, `wide` selects, too.
fn subject_covers(wide: &Subject, narrow: &Subject) -> bool {
    match (wide, narrow) {
        (Subject::Pods(Some(wide)), Subject::Pods(Some(narrow))) => covers::selector(wide, narrow),
        (Subject::Nodes(wide), Subject::Nodes(narrow)) => covers::selector(wide, narrow),
        _ => false,
    }
}
