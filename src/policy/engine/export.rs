//! The rules that proxies need, taken out of the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::Engine;
use super::column::icmp;
use super::matching::subject_matches;
use super::options::Enforcement;
use super::repository::{RuleId, SlotKind, SpecId};
use super::subject::{Side as EngineSide, SubjectState};
use crate::model::{Direction, Identity, ObjectRef};
use crate::policy::l7::L7Rules;
use crate::policy::l7::fit::may_be_too_large;
use crate::policy::l7::snapshot::{PeerSet, PortSpan, RuleTier, Side, SideRule, Sides};
use crate::policy::named_port::NamedPort;
use crate::policy::rule::{PortMatch, Ports};

/// Tables under construction: equal content has one index.
#[derive(Default)]
struct Tables {
    sides: Sides,
    peers: HashMap<Vec<Identity>, usize>,
    l7: HashMap<Arc<L7Rules>, usize>,
}

impl Tables {
    fn peers(&mut self, set: Vec<Identity>) -> PeerSet {
        let all = &mut self.sides.peers;
        PeerSet::OneOf(*self.peers.entry(set).or_insert_with_key(|set| {
            all.push(set.clone());
            all.len() - 1
        }))
    }

    fn l7(&mut self, rules: &Arc<L7Rules>) -> usize {
        let all = &mut self.sides.l7;
        *self.l7.entry(Arc::clone(rules)).or_insert_with(|| {
            all.push(Arc::clone(rules));
            all.len() - 1
        })
    }
}

/// Specs of which an identity is tried with each.
const FEW: usize = 16;

/// Ports of a rule with the peers at which they are those: a name is another number elsewhere.
type Reach = (PeerReach, Vec<PortSpan>);

enum PeerReach {
    Any,
    OneOf(Vec<Identity>),
}

impl Engine {
    /// Every side that a proxy may have to judge, as of the last settlement. Sides that have no entries
    /// (the subject is unknown, enforcement is off) are left out: the kernel redirects nothing there.
    pub fn l7_sides(&self) -> Sides {
        self.sides_of(self.subjects.iter())
    }

    /// The rules that [`Engine::l7_sides`] would list where endpoints with these identities are; what policy comes to
    /// there beside them is not worked out. Not inside a transaction: what it changes, it takes back.
    pub fn l7_rules_at(&mut self, identities: &BTreeSet<Identity>) -> Sides {
        self.begin();
        identities.iter().for_each(|identity| self.add_subject(*identity));
        let sides = self.sides_of(self.subjects.iter().filter(|(id, _)| identities.contains(id)));
        self.rollback();
        sides
    }

    /// One identity for each set of specs with HTTP rules that govern it together, one of these policies' among them, if they
    /// have so many expressions that they may be too large for one proxy.
    pub fn http_crowds(&self, policies: &[ObjectRef]) -> BTreeSet<Identity> {
        let lists = |spec: &SpecId| {
            let rules = self.repository.spec(*spec).spec().rules.iter();
            rules.filter_map(|rule| rule.l7.as_deref()).filter(|l7| matches!(l7, L7Rules::Http(_)))
        };
        let known = policies.iter().filter_map(|policy| self.repository.policies.get(policy));
        let changed: BTreeSet<SpecId> = known
            .flat_map(|policy| policy.specs.iter().copied())
            .filter(|spec| lists(spec).next().is_some())
            .collect();
        let all = self.repository.policies.values().flat_map(|policy| &policy.specs);
        if changed.is_empty() || !may_be_too_large(all.flat_map(lists)) {
            return BTreeSet::new();
        }
        let mut crowds: BTreeMap<Vec<SpecId>, Identity> = BTreeMap::new();
        for record in self.identities() {
            let matches =
                |spec: &SpecId| subject_matches(&self.repository.spec(*spec).spec().subject, record);
            // To find all that govern it costs more than to look at a few.
            if changed.len() <= FEW && !changed.iter().any(matches) {
                continue;
            }
            let mut specs = self.repository.selecting(record);
            if specs.iter().any(|spec| changed.contains(spec)) {
                specs.retain(|spec| lists(spec).next().is_some());
                specs.sort_unstable();
                crowds.entry(specs).or_insert(record.id);
            }
        }
        crowds.retain(|specs, _| may_be_too_large(specs.iter().flat_map(lists)));
        crowds.into_values().collect()
    }

    fn sides_of<'s>(&'s self, subjects: impl Iterator<Item = (&'s Identity, &'s SubjectState)>) -> Sides {
        let mut tables = Tables::default();
        for (subject, state) in subjects.filter(|(_, state)| state.alive && state.known) {
            for direction in Direction::BOTH {
                let side = self.l7_side(*subject, direction, state, &mut tables);
                tables.sides.all.extend(side);
            }
        }
        tables.sides
    }

    fn l7_side(
        &self,
        subject: Identity,
        direction: Direction,
        state: &SubjectState,
        tables: &mut Tables,
    ) -> Option<Side> {
        let engine_side = state.side(direction);
        if engine_side.settled.overflow || self.options.enforcement == Enforcement::Never {
            return None;
        }
        let rules = self.rules_of_side(engine_side);
        let has_l7 = |id: &RuleId| self.repository.rule(*id).l7.is_some();
        if !rules.iter().any(has_l7) {
            return None;
        }
        let reaches: Vec<(RuleId, Vec<Reach>)> =
            rules.into_iter().map(|id| (id, self.reaches(id, state))).collect();
        let ports: BTreeSet<PortSpan> = reaches
            .iter()
            .filter(|(id, _)| has_l7(id))
            .flat_map(|(_, reaches)| reaches.iter().flat_map(|(_, spans)| spans.iter().copied()))
            .collect();
        let bears = |spans: &[PortSpan]| {
            spans.is_empty() || spans.iter().any(|span| ports.iter().any(|port| port.meets(*span)))
        };
        let mut exported = Vec::new();
        for (id, reaches) in reaches {
            for (peers, spans) in reaches.into_iter().filter(|(_, spans)| bears(spans)) {
                let peers = match peers {
                    PeerReach::Any => PeerSet::Any,
                    PeerReach::OneOf(set) => tables.peers(set),
                };
                exported.push(self.side_rule(id, peers, spans, tables));
            }
        }
        exported.sort_by(|a, b| a.rule.cmp(&b.rule));
        let settled = &engine_side.settled;
        Some(Side {
            subject,
            direction,
            default_deny: settled.default_deny,
            localhost: settled.localhost,
            ports: ports.into_iter().collect(),
            rules: exported,
        })
    }

    /// Every rule that counts, once.
    fn rules_of_side(&self, side: &EngineSide) -> Vec<RuleId> {
        let selected = side.by_selector.values().flatten();
        let mut rules: Vec<RuleId> = side.any.iter().chain(selected).copied().collect();
        rules.sort_unstable();
        rules.dedup();
        rules.retain(|id| side.settled.baseline || !self.repository.rule_state(*id).baseline);
        rules
    }

    fn side_rule(&self, id: RuleId, peers: PeerSet, ports: Vec<PortSpan>, tables: &mut Tables) -> SideRule {
        let (rule, state) = (self.repository.rule(id), self.repository.rule_state(id));
        let tier = match (state.slot, state.baseline) {
            (SlotKind::Admin, _) => RuleTier::Admin,
            (SlotKind::Normal, true) => RuleTier::Baseline,
            (SlotKind::Normal, false) => RuleTier::Normal,
        };
        SideRule {
            rule: self.repository.reference(id),
            path: rule.path.clone(),
            tier,
            action: state.action,
            precedence: state.precedence,
            peers,
            ports,
            l7: rule.l7.as_ref().map(|l7| tables.l7(l7)),
        }
    }

    fn members(&self, id: RuleId) -> Vec<Identity> {
        let selectors = &self.repository.rule_state(id).selectors;
        let mut members: Vec<Identity> =
            selectors.iter().flat_map(|selector| self.selectors.get(*selector).everybody()).collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    fn reaches(&self, id: RuleId, subject: &SubjectState) -> Vec<Reach> {
        let (rule, state) = (self.repository.rule(id), self.repository.rule_state(id));
        let peers = || if state.any_peer { PeerReach::Any } else { PeerReach::OneOf(self.members(id)) };
        let Ports::OneOf(ports) = &rule.ports else { return vec![(peers(), Vec::new())] };
        let mut numbered: Vec<PortSpan> = ports.iter().filter_map(numbered_span).collect();
        let mut reaches = Vec::new();
        if state.names_ports {
            match rule.direction {
                Direction::Ingress => {
                    numbered.extend(named_spans(ports, subject.named_ports.as_deref().unwrap_or(&[])));
                }
                Direction::Egress => {
                    let mut at: BTreeMap<PortSpan, Vec<Identity>> = BTreeMap::new();
                    for peer in self.members(id) {
                        let known = self.identities.get(peer).and_then(|known| known.named_ports.as_deref());
                        for span in named_spans(ports, known.unwrap_or(&[])) {
                            at.entry(span).or_default().push(peer);
                        }
                    }
                    reaches.extend(at.into_iter().map(|(span, peers)| {
                        let mut peers = peers;
                        peers.dedup();
                        (PeerReach::OneOf(peers), vec![span])
                    }));
                }
            }
        }
        if !numbered.is_empty() {
            reaches.push((peers(), numbered));
        }
        reaches
    }
}

fn numbered_span(port: &PortMatch) -> Option<PortSpan> {
    Some(match port {
        PortMatch::Protocol(protocol) => PortSpan { protocol: protocol.number(), first: 0, last: u16::MAX },
        PortMatch::Range(protocol, range) => {
            PortSpan { protocol: protocol.number(), first: range.first(), last: range.last() }
        }
        PortMatch::IcmpType(family, kind) => {
            let kind = u16::from(*kind);
            PortSpan { protocol: icmp(*family).number(), first: kind, last: kind }
        }
        PortMatch::Named(..) => return None,
    })
}

/// What the names among `ports` stand for at an endpoint with these names.
fn named_spans<'a>(ports: &'a [PortMatch], names: &'a [NamedPort]) -> impl Iterator<Item = PortSpan> + 'a {
    names
        .iter()
        .filter(|named| {
            ports.iter().any(|port| {
                matches!(port, PortMatch::Named(protocol, name) if *protocol == named.protocol && *name == named.name)
            })
        })
        .map(|named| PortSpan { protocol: named.protocol.number(), first: named.port, last: named.port })
}
