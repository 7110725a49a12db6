//! One connection at L3/L4, through both judges.

use std::collections::BTreeSet;

use super::Disagreement;
use super::world::World;
use crate::cluster::View;
use crate::model::{Direction, ObjectRef};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::engine::{L4Flow, L7Policy};
use crate::policy::oracle::{Flow, Side, Verdict};

/// What both judges say about one side.
#[derive(Clone, Debug)]
pub(super) struct JudgedSide {
    pub(super) decision: SideDecision,
    pub(super) oracle: Side,
    /// What a proxy would enforce.
    pub(super) l7: L7Policy,
}

/// `None`: nobody governs that side.
#[derive(Clone, Debug, Default)]
pub(super) struct JudgedFlow {
    pub(super) egress: Option<JudgedSide>,
    pub(super) ingress: Option<JudgedSide>,
}

impl World {
    /// `names` owned the destination when the connection was opened.
    pub(super) fn judge(&self, flow: &Flow, names: &BTreeSet<String>) -> Result<JudgedFlow, Disagreement> {
        let Verdict { egress, ingress } = self.oracle.judge_with_names(flow, names);
        let judged = JudgedFlow {
            egress: self.both(Direction::Egress, flow, egress, names)?,
            ingress: self.both(Direction::Ingress, flow, ingress, &BTreeSet::new())?,
        };
        self.ask_third(flow, names)?;
        Ok(judged)
    }

    /// Each end's node, once.
    fn ask_third(&self, flow: &Flow, names: &BTreeSet<String>) -> Result<(), Disagreement> {
        let Some(third) = &self.third else { return Ok(()) };
        let node = |address| self.oracle.party(address).node().map(str::to_owned);
        let (from, to) = (node(flow.source), node(flow.destination));
        if let Some(node) = &from {
            if names.is_empty() {
                self.view(node).map_or(Ok(()), |view| third.judge(view, flow))?;
            } else if let Ok(view) = self.view_with_names(node, names, flow.destination) {
                third.judge(&view, flow)?;
            }
        }
        match to.filter(|node| from.as_ref() != Some(node)).and_then(|node| self.view(&node)) {
            Some(view) => third.judge(view, flow),
            None => Ok(()),
        }
    }

    fn both(
        &self,
        direction: Direction,
        flow: &Flow,
        oracle: Option<Side>,
        names: &BTreeSet<String>,
    ) -> Result<Option<JudgedSide>, Disagreement> {
        let subject = match direction {
            Direction::Egress => flow.source,
            Direction::Ingress => flow.destination,
        };
        let differ = |oracle: String, compiled: String| Disagreement {
            subject: format!(
                "{direction} of {} -> {} {} {}",
                flow.source, flow.destination, flow.protocol, flow.port
            ),
            one: format!("the evaluator says {oracle}"),
            other: format!("the compiled policy says {compiled}"),
        };
        let with_names;
        let view = match self.oracle.party(subject).node() {
            Some(node) if !names.is_empty() => {
                with_names = self
                    .view_with_names(node, names, flow.destination)
                    .map_err(|errors| differ("the state is possible".to_owned(), errors.join("; ")))?;
                Some(&with_names)
            }
            Some(node) => self.view(node),
            None => None,
        };
        let compiled =
            view.and_then(|view| Some((compiled(view, direction, flow)?, l7(view, direction, flow))));
        match (oracle, compiled) {
            (None, None) => Ok(None),
            (Some(oracle), Some((decision, l7))) if same(&oracle.decision, &decision) => {
                Ok(Some(JudgedSide { decision, oracle, l7 }))
            }
            (oracle, compiled) => {
                let text = |decision: Option<&SideDecision>| match decision {
                    Some(decision) => decision_text(decision),
                    None => "nobody governs it".to_owned(),
                };
                Err(differ(
                    text(oracle.as_ref().map(|side| &side.decision)),
                    text(compiled.as_ref().map(|(decision, _)| decision)),
                ))
            }
        }
    }
}

fn compiled(view: &View, direction: Direction, flow: &Flow) -> Option<SideDecision> {
    let l4 = L4Flow { protocol: flow.protocol, port: flow.port };
    let sides = view.decide(flow.source, flow.destination, l4);
    match direction {
        Direction::Egress => sides.egress,
        Direction::Ingress => sides.ingress,
    }
}

fn l7(view: &View, direction: Direction, flow: &Flow) -> L7Policy {
    let (subject, peer) = match direction {
        Direction::Egress => (flow.source, flow.destination),
        Direction::Ingress => (flow.destination, flow.source),
    };
    let (subject, peer) = (view.resolve(subject), view.resolve(peer));
    let l4 = L4Flow { protocol: flow.protocol, port: flow.port };
    view.engine().l7(subject.identity, direction, (&peer).into(), l4)
}

/// Verdict and reason agree. The compiled policy may name some of several rules that decide.
pub(super) fn same(oracle: &SideDecision, compiled: &SideDecision) -> bool {
    if oracle.outcome != compiled.outcome {
        return false;
    }
    match (&oracle.because, &compiled.because) {
        (Because::Rules(all), Because::Rules(some)) => {
            !some.is_empty() && some.iter().all(|rule| all.contains(rule))
        }
        (Because::DefaultDeny(a), Because::DefaultDeny(b)) => {
            let set = |objects: &[ObjectRef]| objects.iter().cloned().collect::<BTreeSet<_>>();
            set(a) == set(b)
        }
        (oracle, compiled) => oracle == compiled,
    }
}

/// A decision in one line.
pub(super) fn decision_text(decision: &SideDecision) -> String {
    let outcome = match decision.outcome {
        Outcome::Allow => "allow",
        Outcome::Deny => "deny",
        Outcome::Redirect(_) => "allow by proxy",
    };
    format!("{outcome} ({})", because_text(&decision.because))
}

/// A reason in a few words.
pub(super) fn because_text(because: &Because) -> String {
    match because {
        Because::Rules(rules) => {
            let rules = rules
                .iter()
                .map(|rule| format!("{} spec {} rule {}", rule.object.path(), rule.spec, rule.rule));
            rules.collect::<Vec<_>>().join(", ")
        }
        Because::DefaultDeny(objects) if objects.is_empty() => {
            "default-deny by the enforcement mode".to_owned()
        }
        Because::DefaultDeny(objects) => {
            let objects: Vec<String> = objects.iter().map(ObjectRef::path).collect();
            format!("default-deny, turned on by {}", objects.join(", "))
        }
        Because::NoPolicy => "no policy".to_owned(),
        Because::AllowLocalhost => "a node reaches its own pods".to_owned(),
        Because::Hairpin => "it reaches itself".to_owned(),
    }
}
