//! Section 4 of the semantics, step by step: who is selected, what decides, and why.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::peers::Other;
use super::ports::ports_match;
use super::state::{HostFirewall, LocalhostMode, Mode, Party, State};
use super::{Flow, Verdict};
use crate::model::{Direction, ObjectRef};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::l7::L7Rules;
use crate::policy::map_state::Proxy;
use crate::policy::rule::{Action, Policy, Rule, RuleRef, Spec, Subject, Tier};

/// What one side says.
#[derive(Clone, Debug)]
pub struct Side {
    pub decision: SideDecision,
    /// Allow rules of the normal tier that match at L3/L4, if such a rule decided.
    pub allows: Vec<(RuleRef, Option<Arc<L7Rules>>)>,
    /// Default deny is on: L7 rules refuse what they do not list.
    pub enforced: bool,
}

/// A rule that matches at L3/L4, with where it stands.
struct Matching<'a> {
    tier: Tier,
    reference: RuleRef,
    rule: &'a Rule,
}

impl State {
    /// Judges a new connection.
    pub fn judge(&self, flow: &Flow) -> Verdict {
        self.judge_with_names(flow, &BTreeSet::new())
    }

    /// Judges a connection that was opened while `names` owned the destination: it may outlive
    /// their answers, not the rules that name them.
    pub fn judge_with_names(&self, flow: &Flow, names: &BTreeSet<String>) -> Verdict {
        Verdict {
            egress: self.side(Direction::Egress, flow, names),
            ingress: self.side(Direction::Ingress, flow, names),
        }
    }

    fn side(&self, direction: Direction, flow: &Flow, names: &BTreeSet<String>) -> Option<Side> {
        let (source, destination) = (self.party(flow.source), self.party(flow.destination));
        let (subject, other, other_address) = match direction {
            Direction::Egress => (source, destination, flow.destination),
            Direction::Ingress => (destination, source, flow.source),
        };
        // Pods are governed where they run, nodes where the host firewall is on; nobody else.
        let governed = match subject {
            Party::Pod(_) => true,
            Party::Node(_) => self.switches.host_firewall == HostFirewall::On,
            Party::Gateway { .. } | Party::World | Party::Unknown => false,
        };
        let viewer = subject.node().filter(|_| governed)?;
        let decided = |outcome, because| {
            Some(Side {
                decision: SideDecision { direction, outcome, because },
                allows: Vec::new(),
                enforced: false,
            })
        };
        // "Traffic between a pod and itself is always allowed"; a node and itself likewise.
        let same = match (source, destination) {
            (Party::Pod(a), Party::Pod(b)) => (&a.namespace, &a.name) == (&b.namespace, &b.name),
            (Party::Node(a), Party::Node(b)) => a.name == b.name,
            _ => false,
        };
        if same {
            return decided(Outcome::Allow, Because::Hairpin);
        }
        // "Traffic from the local node to its own pods is allowed by default."
        let from_own_node = direction == Direction::Ingress
            && matches!((subject, other), (Party::Pod(_), Party::Node(node)) if node.name == viewer);
        if from_own_node && self.switches.localhost == LocalhostMode::Always {
            return decided(Outcome::Allow, Because::AllowLocalhost);
        }
        if self.switches.mode == Mode::Never {
            return decided(Outcome::Allow, Because::NoPolicy);
        }

        let mut all_names = names.clone();
        if direction == Direction::Egress {
            all_names.extend(self.fresh_names(viewer, other_address));
        }
        let other = Other {
            party: other,
            address: other_address,
            labels: self.labels(other, other_address, viewer),
            viewer,
            names: all_names,
        };
        let selecting = self.selecting(subject, viewer);
        let matching = self.matching(&selecting, direction, flow, destination, &other);
        let unknown = matches!(other.party, Party::Unknown);
        Some(self.evaluate(direction, &selecting, matching, unknown))
    }

    /// 1. "Collect the rules that select the endpoint." Tiers other than normal are for pods.
    fn selecting(&self, subject: Party<'_>, viewer: &str) -> Vec<(&Policy, usize, &Spec)> {
        let address = std::net::IpAddr::from([0, 0, 0, 0]);
        let labels = self.labels(subject, address, viewer);
        let selects = |spec: &Spec| match (&spec.subject, subject) {
            (Subject::Pods(Some(selector)), Party::Pod(_)) => selector.matches(&labels),
            (Subject::Nodes(selector), Party::Node(_)) => {
                spec.tier == Tier::Normal && selector.matches_any_scope(&labels)
            }
            _ => false,
        };
        self.policies
            .values()
            .flat_map(|policy| {
                policy.specs.iter().enumerate().map(move |(index, spec)| (policy, index, spec))
            })
            .filter(|(_, _, spec)| selects(spec))
            .collect()
    }

    fn matching<'a>(
        &self,
        selecting: &[(&'a Policy, usize, &'a Spec)],
        direction: Direction,
        flow: &Flow,
        destination: Party<'_>,
        other: &Other<'_>,
    ) -> Vec<Matching<'a>> {
        let mut found = Vec::new();
        for (policy, index, spec) in selecting {
            for (position, rule) in spec.rules.iter().enumerate() {
                if rule.direction == direction
                    && self.peers_match(&rule.peers, other)
                    && ports_match(&rule.ports, flow, destination)
                {
                    let reference = RuleRef { object: policy.object.clone(), spec: *index, rule: position };
                    found.push(Matching { tier: spec.tier, reference, rule });
                }
            }
        }
        found
    }

    fn evaluate(
        &self,
        direction: Direction,
        selecting: &[(&Policy, usize, &Spec)],
        matching: Vec<Matching<'_>>,
        unknown: bool,
    ) -> Side {
        let isolating: BTreeSet<&ObjectRef> = selecting
            .iter()
            .filter(|(_, _, spec)| spec.default_deny(direction))
            .map(|(policy, _, _)| &policy.object)
            .collect();
        let by_policy = !isolating.is_empty();
        let enforced = by_policy || self.switches.mode == Mode::Always;
        let side = |outcome, because, allows| Side {
            decision: SideDecision { direction, outcome, because },
            allows,
            enforced,
        };

        // Section 3: who cannot be resolved is "unknown (dropped once policy applies)".
        let applies = enforced || rules_of(selecting).any(|rule| rule.direction == direction);
        if unknown && applies {
            let objects = isolating.into_iter().cloned().collect();
            return side(Outcome::Deny, Because::DefaultDeny(objects), Vec::new());
        }

        // 5. Admin first: the first matching rule by priority, name and order ends it or passes.
        let admin = first(&matching, |tier| matches!(tier, Tier::Admin { .. }));
        match admin.map(|found| (found.rule.action, found)) {
            Some((Action::Allow, found)) => return side(Outcome::Allow, rules([found]), Vec::new()),
            Some((Action::Deny, found)) => return side(Outcome::Deny, rules([found]), Vec::new()),
            Some((Action::Pass, _)) | None => {}
        }

        // 3. "Deny wins", 4. "a matching allow entry passes it".
        let normal = |action: Action| {
            matching.iter().filter(move |one| one.tier == Tier::Normal && one.rule.action == action)
        };
        if normal(Action::Deny).next().is_some() {
            return side(Outcome::Deny, rules(normal(Action::Deny)), Vec::new());
        }
        if normal(Action::Allow).next().is_some() {
            let allows: Vec<_> =
                normal(Action::Allow).map(|one| (one.reference.clone(), one.rule.l7.clone())).collect();
            let outcome = proxy(&allows).map_or(Outcome::Allow, Outcome::Redirect);
            return side(outcome, rules(normal(Action::Allow)), allows);
        }
        if by_policy {
            let objects = isolating.into_iter().cloned().collect();
            return side(Outcome::Deny, Because::DefaultDeny(objects), Vec::new());
        }

        // Baseline: "no policy turned default deny on, and no entry matched".
        if let Some(found) = first(&matching, |tier| matches!(tier, Tier::Baseline { .. })) {
            match found.rule.action {
                Action::Allow => return side(Outcome::Allow, rules([found]), Vec::new()),
                Action::Deny => return side(Outcome::Deny, rules([found]), Vec::new()),
                // The rest of the tier is skipped, and no tier comes after it: the default decides.
                Action::Pass => {}
            }
        }
        // 6. `always`: "default-deny for every endpoint (after Baseline)".
        if self.switches.mode == Mode::Always {
            return side(Outcome::Deny, Because::DefaultDeny(Vec::new()), Vec::new());
        }
        side(Outcome::Allow, Because::NoPolicy, Vec::new())
    }
}

fn rules_of<'a>(selecting: &[(&'a Policy, usize, &'a Spec)]) -> impl Iterator<Item = &'a Rule> {
    selecting.iter().flat_map(|(_, _, spec)| &spec.rules)
}

/// Lower priority first, equal ones by object name, then rules in their order.
fn first<'a, 'm>(matching: &'m [Matching<'a>], in_tier: impl Fn(Tier) -> bool) -> Option<&'m Matching<'a>> {
    matching.iter().filter(|one| in_tier(one.tier)).min_by_key(|one| {
        (one.tier, one.reference.object.name.clone(), one.reference.spec, one.reference.rule)
    })
}

fn rules<'a: 'm, 'm>(matching: impl IntoIterator<Item = &'m Matching<'a>>) -> Because {
    Because::Rules(matching.into_iter().map(|one| one.reference.clone()).collect())
}

/// `serverNames` hold beside everything else, so their proxy goes first. Where rules for one peer and port want HTTP and DNS, it is
/// DNS: that proxy reads nothing else, so that nothing passes as a request that the DNS rules do not know.
fn proxy(allows: &[(RuleRef, Option<Arc<L7Rules>>)]) -> Option<Proxy> {
    let kind = |l7: &L7Rules| match l7 {
        L7Rules::Tls(_) => Proxy::Tls,
        L7Rules::Http(_) => Proxy::Http,
        L7Rules::Dns(_) => Proxy::Dns,
    };
    let kinds: Vec<Proxy> = allows.iter().filter_map(|(_, l7)| l7.as_deref()).map(kind).collect();
    [Proxy::Tls, Proxy::Dns, Proxy::Http].into_iter().find(|proxy| kinds.contains(proxy))
}
