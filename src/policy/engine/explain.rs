//! Verdicts with everything that bears on them, from the rules themselves, and what proxies need.

use std::sync::Arc;

use super::column::icmp;
use super::repository::{RuleId, RuleState, SlotKind};
use super::subject::{Side, SubjectState};
use super::{Engine, Explanation, L4Flow, L7Policy, MatchedRule, Missed, NearMiss, PeerView};
use crate::model::{Direction, Identity, Protocol};
use crate::policy::decision::{Because, Outcome};
use crate::policy::map_state::SlotAction;
use crate::policy::named_port::NamedPort;
use crate::policy::rule::{Action, PortMatch, Ports, Rule};

/// How well the L4 part of a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortFit {
    Matches,
    OtherPort,
    OtherProtocol,
}

impl Engine {
    /// The verdict of [`Engine::decide`] with the rules that match, what turned default deny on,
    /// and the allow rule that came closest.
    pub fn explain(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Explanation {
        let decision = self.decide(subject, direction, peer, flow);
        let decided = match &decision.because {
            Because::Rules(rules) => &rules[..],
            _ => &[],
        };
        let matching = self
            .matching_rules(subject, direction, peer, flow)
            .into_iter()
            .map(|id| {
                let (rule, reference) = (self.repository.rule(id), self.repository.reference(id));
                let state = self.repository.rule_state(id);
                MatchedRule {
                    decided: decided.binary_search(&reference).is_ok(),
                    rule: reference,
                    tier: self.repository.spec(state.spec).spec().tier,
                    action: rule.action,
                    path: rule.path.clone(),
                }
            })
            .collect();
        let near_miss = (decision.outcome == Outcome::Deny)
            .then(|| self.near_miss(subject, direction, peer, flow))
            .flatten();
        let default_deny = self.default_deny_objects(subject, direction);
        Explanation { decision, matching, default_deny, near_miss }
    }

    /// What a proxy is to enforce on a connection.
    pub fn l7(&self, subject: Identity, direction: Direction, peer: PeerView, flow: L4Flow) -> L7Policy {
        let outcome = self.decide(subject, direction, peer, flow).outcome;
        let mut policy = L7Policy { outcome, rules: Vec::new(), lifted: false, enforced: true };
        let Some(state) = self.subjects.get(&subject) else { return policy };
        policy.enforced = state.side(direction).settled.default_deny;
        if !matches!(outcome, Outcome::Redirect(_)) {
            return policy;
        }
        for id in self.matching_rules(subject, direction, peer, flow) {
            let state = self.repository.rule_state(id);
            let allows = matches!(state.action, SlotAction::Allow | SlotAction::Redirect(_));
            if state.slot == SlotKind::Normal && !state.baseline && allows {
                let rule = self.repository.rule(id);
                policy.lifted |= rule.l7.is_none();
                policy.rules.push((self.repository.reference(id), rule.l7.clone()));
            }
        }
        policy.rules.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        policy
    }

    /// Rules that match at L3/L4 and count, best rank first, then in the order of objects.
    fn matching_rules(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Vec<RuleId> {
        let Some(state) = self.subjects.get(&subject) else { return Vec::new() };
        let side = state.side(direction);
        let mut rules: Vec<RuleId> = self
            .peers(peer)
            .into_iter()
            .flat_map(|peer| side.rules_for(peer, &self.identities, &self.selectors))
            .filter(|id| side.settled.baseline || !self.repository.rule_state(*id).baseline)
            .collect();
        rules.sort_unstable();
        rules.dedup();
        rules.retain(|id| self.port_fit(*id, state, peer, flow) == PortFit::Matches);
        rules.sort_by_cached_key(|id| {
            let RuleState { slot, precedence, .. } = self.repository.rule_state(*id);
            (*slot, std::cmp::Reverse(*precedence), self.repository.reference(*id))
        });
        rules
    }

    fn peers(&self, peer: PeerView) -> Vec<Identity> {
        let known = [Some(peer.identity), peer.address_class];
        known.into_iter().flatten().filter(|id| *id != Identity::UNKNOWN).chain([Identity::UNKNOWN]).collect()
    }

    fn near_miss(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> Option<NearMiss> {
        let state = self.subjects.get(&subject)?;
        let side: &Side = state.side(direction);
        let mut of_peer: Vec<RuleId> = self
            .peers(peer)
            .into_iter()
            .flat_map(|peer| side.rules_for(peer, &self.identities, &self.selectors))
            .collect();
        of_peer.sort_unstable();
        let rules = state.specs.iter().flat_map(|spec| &self.repository.spec(*spec).rules);
        rules
            .filter(|id| self.repository.rule_state(**id).direction == direction)
            .filter(|id| self.repository.rule(**id).action == Action::Allow)
            .filter_map(|id| {
                let peer_matches =
                    self.repository.rule_state(*id).any_peer || of_peer.binary_search(id).is_ok();
                let missed = match (peer_matches, self.port_fit(*id, state, peer, flow)) {
                    (true, PortFit::Matches) => return None, // overruled, not missed
                    (true, PortFit::OtherPort) => Missed::Port,
                    (true, PortFit::OtherProtocol) => Missed::Protocol,
                    (false, PortFit::Matches) => Missed::Peer,
                    (false, _) => Missed::PeerAndPort,
                };
                Some((missed, self.repository.reference(*id), *id))
            })
            .min()
            .map(|(missed, rule, id)| NearMiss { rule, path: self.repository.rule(id).path.clone(), missed })
    }

    fn port_fit(&self, id: RuleId, subject: &SubjectState, peer: PeerView, flow: L4Flow) -> PortFit {
        let rule: &Rule = self.repository.rule(id);
        let ports = match &rule.ports {
            Ports::Any => return PortFit::Matches,
            Ports::OneOf(ports) => ports,
        };
        let names: Option<&Arc<[NamedPort]>> = match rule.direction {
            Direction::Ingress => subject.named_ports.as_ref(),
            Direction::Egress => {
                self.identities.get(peer.identity).and_then(|known| known.named_ports.as_ref())
            }
        };
        let fits = ports.iter().map(|port| port_match(port, names.map_or(&[], |names| names), flow));
        let mut best = PortFit::OtherProtocol;
        for fit in fits {
            match fit {
                PortFit::Matches => return fit,
                PortFit::OtherPort => best = fit,
                PortFit::OtherProtocol => {}
            }
        }
        best
    }
}

fn port_match(port: &PortMatch, names: &[NamedPort], flow: L4Flow) -> PortFit {
    let (protocol, matches): (Protocol, bool) = match port {
        PortMatch::Protocol(protocol) => (*protocol, true),
        PortMatch::Range(protocol, range) => (*protocol, range.contains(flow.port)),
        PortMatch::Named(protocol, name) => (
            *protocol,
            names
                .iter()
                .any(|named| (&named.name, named.protocol, named.port) == (name, *protocol, flow.port)),
        ),
        PortMatch::IcmpType(family, kind) => (icmp(*family), u16::from(*kind) == flow.port),
    };
    match (protocol == flow.protocol, matches) {
        (false, _) => PortFit::OtherProtocol,
        (true, true) => PortFit::Matches,
        (true, false) => PortFit::OtherPort,
    }
}
