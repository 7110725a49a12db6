//! The use that is made of policies: whom they select, which rules decide something, which never did.

use std::collections::{BTreeMap, BTreeSet};

use super::core::Core;
use crate::api::ui::source::{PolicyUse, RuleUse};
use crate::model::{Direction, Identity};
use crate::policy::map_state::RuleSetId;
use crate::policy::rule::{Action, RuleRef, Subject};

/// Rules of the local subjects that have entries in the kernel, with what these decided.
struct Uses {
    entries: BTreeSet<RuleRef>,
    /// Absent where the kernel cannot be read.
    hits: Option<BTreeMap<RuleRef, u64>>,
}

impl Core {
    pub fn policy_uses(&self) -> Vec<PolicyUse> {
        let uses = self.uses();
        let engine = self.view.engine();
        let locals: Vec<(String, Identity)> =
            self.view.endpoints().map(|local| (local.pod.path(), local.identity)).collect();
        let selects = |subject: &Subject, identity: Identity| match subject {
            Subject::Pods(Some(selector)) => {
                engine.identity(identity).is_some_and(|record| selector.matches(&record.labels))
            }
            Subject::Pods(None) | Subject::Nodes(_) => false,
        };
        let use_of = |policy: &crate::policy::rule::Policy| {
            let rule_use = |(spec, rule): (usize, usize)| {
                let reference = RuleRef { object: policy.object.clone(), spec, rule };
                let rule = &policy.specs[spec].rules[rule];
                RuleUse {
                    path: rule.path.to_string(),
                    direction: rule.direction,
                    action: match rule.action {
                        Action::Allow => "allow",
                        Action::Deny => "deny",
                        Action::Pass => "pass",
                    }
                    .to_owned(),
                    hits: uses.hits.as_ref().map(|hits| hits.get(&reference).copied().unwrap_or(0)),
                    idle: !uses.entries.contains(&reference),
                }
            };
            let places = policy.specs.iter().enumerate();
            PolicyUse {
                selects: locals
                    .iter()
                    .filter(|(_, identity)| policy.specs.iter().any(|spec| selects(&spec.subject, *identity)))
                    .map(|(pod, _)| pod.clone())
                    .collect(),
                default_deny: Direction::BOTH
                    .into_iter()
                    .filter(|direction| policy.specs.iter().any(|spec| spec.default_deny(*direction)))
                    .collect(),
                rules: places
                    .flat_map(|(spec, content)| (0..content.rules.len()).map(move |rule| (spec, rule)))
                    .map(rule_use)
                    .collect(),
                object: policy.object.clone(),
            }
        };
        engine.policies().map(|policy| use_of(policy)).collect()
    }

    fn uses(&self) -> Uses {
        let engine = self.view.engine();
        let sets: BTreeSet<RuleSetId> = engine
            .subjects()
            .flat_map(|subject| engine.entries(subject))
            .flat_map(|entry| [entry.entry.admin, entry.entry.normal])
            .flatten()
            .map(|slot| slot.rules)
            .collect();
        let entries = sets.iter().flat_map(|set| engine.rules_of(*set)).cloned().collect();
        let sets: Vec<RuleSetId> = sets.into_iter().collect();
        let counted = self.kernel.inspect().and_then(|inspector| inspector.rule_hits(&sets));
        let hits = counted.ok().map(|counted| {
            let mut hits: BTreeMap<RuleRef, u64> = BTreeMap::new();
            for (set, count) in counted {
                for rule in engine.rules_of(set) {
                    *hits.entry(rule.clone()).or_default() += count;
                }
            }
            hits
        });
        Uses { entries, hits }
    }
}
