//! The use that is made of policies, as far as flows tell: whom an object decided for, which of its rules did,
//! how often. What decided nothing is in no flow and so not here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::ui::source::{PolicyUse, RuleUse};
use crate::flow::{DecidedBy, EventKind, Flow, Verdict};
use crate::model::{Direction, ObjectRef};

/// Pods that are named for one object.
const PODS: usize = 64;
/// Objects that are shown.
const OBJECTS: usize = 2000;

#[derive(Default)]
struct Seen {
    pods: BTreeSet<String>,
    default_deny: BTreeSet<Direction>,
    rules: BTreeMap<(Direction, Arc<str>), (&'static str, u64)>,
}

/// What these flows say of the policies behind them.
pub fn of(flows: &[Arc<Flow>]) -> Vec<PolicyUse> {
    let mut objects: BTreeMap<&ObjectRef, Seen> = BTreeMap::new();
    // Packets of a connection that was judged before, and answers, rest on the decision that was counted.
    for flow in flows.iter().filter(|flow| !flow.is_reply && flow.kind != EventKind::Trace) {
        let subject = match flow.direction {
            Direction::Egress => &flow.source,
            Direction::Ingress => &flow.destination,
        };
        let named: Vec<&ObjectRef> = flow.policies().collect();
        for object in named {
            if objects.len() >= OBJECTS && !objects.contains_key(object) {
                continue;
            }
            let seen = objects.entry(object).or_default();
            if seen.pods.len() < PODS && subject.pod.is_some() {
                seen.pods.insert(subject.display());
            }
            match &flow.decision.by {
                DecidedBy::DefaultDeny(_) => {
                    seen.default_deny.insert(flow.direction);
                }
                DecidedBy::Rules(parts) => {
                    let action = action(flow);
                    for rule in
                        parts.iter().filter(|part| part.object == *object).flat_map(|part| &part.rules)
                    {
                        let counted =
                            seen.rules.entry((flow.direction, Arc::clone(rule))).or_insert((action, 0));
                        counted.1 += u64::from(flow.count);
                    }
                }
                DecidedBy::NoPolicy => {}
            }
        }
    }
    objects.into_iter().map(|(object, seen)| seen.into_use(object)).collect()
}

/// What a refused request says of a rule is not that it denies: a list of allowed requests had none for it.
fn action(flow: &Flow) -> &'static str {
    match (flow.kind, flow.verdict) {
        (EventKind::L7, _) | (_, Verdict::Forwarded | Verdict::Redirected) => "allow",
        _ => "deny",
    }
}

impl Seen {
    fn into_use(self, object: &ObjectRef) -> PolicyUse {
        let rules = self.rules.into_iter().map(|((direction, path), (action, hits))| RuleUse {
            path: path.to_string(),
            direction,
            action: action.to_owned(),
            hits: Some(hits),
            idle: false,
        });
        PolicyUse {
            object: object.clone(),
            selects: self.pods.into_iter().collect(),
            default_deny: self.default_deny.into_iter().collect(),
            rules: rules.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;
    use crate::flow::{Decision, PolicyPart};
    use crate::model::{DropReason, Kind};

    #[test]
    fn flows_tell_whom_a_policy_decided_for_and_by_which_rule() {
        let object = |name: &str| ObjectRef::new(Kind::NetworkPolicy, "shop", name);
        let rules = |rule: &str| {
            let part = PolicyPart { object: object("web"), rules: vec![rule.into()] };
            Arc::new(Decision { by: DecidedBy::Rules(vec![part]), revision: 1, matched: None })
        };
        let allowed = Flow { decision: rules("spec.egress[0]"), count: 2, ..flow(80) };
        let established = Flow { kind: EventKind::Trace, ..allowed.clone() };
        let denied = Flow {
            kind: EventKind::Drop,
            verdict: Verdict::Dropped(DropReason::PolicyDenied),
            direction: Direction::Ingress,
            decision: Arc::new(Decision {
                by: DecidedBy::DefaultDeny(vec![object("deny")]),
                revision: 1,
                matched: None,
            }),
            ..flow(81)
        };
        let uses = of(&[allowed, established, denied, flow(82)].map(Arc::new));
        let [deny, web] = &uses[..] else { panic!("{uses:?}") };
        assert_eq!(
            (&deny.selects[..], &deny.default_deny[..]),
            (&["shop/backend".to_owned()][..], &[Direction::Ingress][..])
        );
        assert_eq!(web.selects, ["shop/frontend"]);
        assert_eq!(
            (&*web.rules[0].path, &*web.rules[0].action, web.rules[0].hits),
            ("spec.egress[0]", "allow", Some(2))
        );
    }
}
