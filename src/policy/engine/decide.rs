//! Verdicts from the compiled state: the cells, as the datapath looks them up.

use super::column::Cell;
use super::identities::IdentityTable;
use super::subject::Side;
use super::{AllowLocalhost, Engine, L4Flow, LOCALHOST_RULES, PeerView};
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
    /// Judges one side of a connection exactly as the datapath does: through the cells.
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
        let (admin, normal) = lookup(side, peer, flow, &self.identities);
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
        if default_deny {
            return denied();
        }
        // Where there is policy an entry says so; where there is none, the reason is the same.
        let exempt = direction == Direction::Ingress
            && peer.identity == Identity::HOST
            && subject != Identity::HOST
            && self.options.allow_localhost == AllowLocalhost::Always;
        decision(Outcome::Allow, if exempt { Because::AllowLocalhost } else { Because::NoPolicy })
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

fn lookup(side: &Side, peer: PeerView, flow: L4Flow, identities: &IdentityTable) -> (Best, Best) {
    let info = side.info();
    let port = if info.ranges {
        side.classes.class_of(flow.protocol, flow.port)
    } else {
        PortClass::Exact(flow.port)
    };
    let cells = [Cell { protocol: Some(flow.protocol), port }, Cell::protocol(flow.protocol), Cell::ANY];
    let kinds = &info.cells;
    let of_one = [kinds.id_exact, kinds.id_protocol, kinds.id_any];
    let of_group = [kinds.group_exact, kinds.group_protocol, kinds.group_any];
    let of_any = [kinds.any_exact, kinds.any_protocol, kinds.any_any];
    let known = |id: &Identity| *id != Identity::UNKNOWN;
    let class = peer.address_class.filter(|_| info.address_classes).filter(known);
    let peers = [Some(peer.identity).filter(known), class].into_iter().flatten().flat_map(|id| {
        let group = identities.group_of(id).map(|group| (group.key(), of_group));
        [(id, of_one)].into_iter().chain(group)
    });
    let (mut admin, mut normal) = (Best::default(), Best::default());
    for (peer, kinds) in peers.chain([(Identity::UNKNOWN, of_any)]) {
        let Some(column) = side.column(peer) else { continue };
        for (cell, _) in cells.iter().zip(kinds).filter(|(_, present)| *present) {
            if let Some(entry) = column.get(*cell) {
                admin.offer(entry.admin);
                normal.offer(entry.normal);
            }
        }
    }
    (admin, normal)
}
