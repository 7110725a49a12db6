//! Verdicts from the compiled state: the nine cells, as the datapath looks them up.

use super::column::Cell;
use super::subject::Side;
use super::{Engine, L4Flow, LOCALHOST_RULES, PeerView};
use crate::model::{Direction, Identity, ObjectRef};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::map_state::{PortClass, RuleSetId, Slot, SlotAction};

/// The best slot of a kind among the cells found, and the rule sets of all that equal it.
#[derive(Default)]
struct Best {
    slot: Option<Slot>,
    sets: Vec<RuleSetId>,
}

impl Best {
    fn offer(&mut self, slot: Option<Slot>) {
        let Some(slot) = slot else { return };
        match self.slot {
            Some(best) if best.precedence > slot.precedence => {}
            Some(best) if best.precedence == slot.precedence => self.sets.push(slot.rules),
            _ => {
                self.slot = Some(slot);
                self.sets = vec![slot.rules];
            }
        }
    }
}

impl Engine {
    /// Judges one side of a connection exactly as the datapath does: through the nine cells.
    ///
    /// A subject that is not known is denied. So is a peer without an identity
    /// ([`Identity::UNKNOWN`]) wherever policy applies, whatever rules for every peer say.
    pub fn decide(
        &self,
        subject: Identity,
        direction: Direction,
        peer: PeerView,
        flow: L4Flow,
    ) -> SideDecision {
        let decision = |outcome, because| SideDecision { direction, outcome, because };
        let Some(state) = self.subjects.get(&subject).filter(|state| state.alive) else {
            return decision(Outcome::Deny, Because::DefaultDeny(Vec::new()));
        };
        let side = state.side(direction);
        let default_deny = side.settled.default_deny;
        let denied =
            || decision(Outcome::Deny, Because::DefaultDeny(self.default_deny_objects(subject, direction)));
        if side.info().enforced() && peer.identity == Identity::UNKNOWN {
            return denied();
        }
        let (admin, normal) = lookup(side, peer, flow);
        for best in [admin, normal] {
            let outcome = match best.slot.map(|slot| slot.action) {
                Some(SlotAction::Allow) => Outcome::Allow,
                Some(SlotAction::Deny) => Outcome::Deny,
                Some(SlotAction::Redirect(proxy)) => Outcome::Redirect(proxy),
                Some(SlotAction::Pass) | None => continue,
            };
            if best.sets == [LOCALHOST_RULES] {
                return decision(outcome, Because::AllowLocalhost);
            }
            let mut rules: Vec<_> = best.sets.iter().flat_map(|set| self.rules_of(*set)).cloned().collect();
            rules.sort_unstable();
            rules.dedup();
            return decision(outcome, Because::Rules(rules));
        }
        if default_deny { denied() } else { decision(Outcome::Allow, Because::NoPolicy) }
    }

    /// Objects that turn default deny on for this side, in their order. Empty where the
    /// enforcement mode alone does, or nothing.
    pub fn default_deny_objects(&self, subject: Identity, direction: Direction) -> Vec<ObjectRef> {
        let Some(state) = self.subjects.get(&subject) else { return Vec::new() };
        let specs = state.side(direction).deny_specs.iter();
        let mut objects: Vec<ObjectRef> =
            specs.map(|spec| self.repository.spec(*spec).policy.object.clone()).collect();
        objects.sort_unstable();
        objects.dedup();
        objects
    }
}

fn lookup(side: &Side, peer: PeerView, flow: L4Flow) -> (Best, Best) {
    let info = side.info();
    let port = if info.ranges {
        side.classes.class_of(flow.protocol, flow.port)
    } else {
        PortClass::Exact(flow.port)
    };
    let cells = [
        (Cell { protocol: Some(flow.protocol), port }, info.cells.id_exact, info.cells.any_exact),
        (Cell::protocol(flow.protocol), info.cells.id_protocol, info.cells.any_protocol),
        (Cell::ANY, info.cells.id_any, info.cells.any_any),
    ];
    let class = peer.address_class.filter(|_| info.address_classes);
    let peers = [Some(peer.identity), class, Some(Identity::UNKNOWN)];
    let (mut admin, mut normal) = (Best::default(), Best::default());
    for (index, peer) in peers.into_iter().enumerate() {
        let every_peer = index == 2;
        let Some(peer) = peer.filter(|peer| every_peer || *peer != Identity::UNKNOWN) else { continue };
        let Some(column) = side.column(peer) else { continue };
        for (cell, of_peer, of_any) in cells {
            if !(if every_peer { of_any } else { of_peer }) {
                continue;
            }
            if let Some(entry) = column.get(cell) {
                admin.offer(entry.admin);
                normal.offer(entry.normal);
            }
        }
    }
    (admin, normal)
}
