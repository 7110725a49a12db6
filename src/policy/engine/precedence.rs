//! Precedence numbers: one comparable number for every rule of a slot.
//!
//! ```text
//! normal slot   0x8000_0005 deny
//!               0x8000_0004 redirect to TLS, ..3 to DNS, ..2 to HTTP
//!               0x8000_0001 allow
//!               below       baseline: priority, then order
//! admin slot    0xffff_ffff the node reaches its own pods
//!               below 1<<31 admin: priority, then order
//! ```
//!
//! A ranked rule has 16 bits of priority above 15 bits of order, both inverted, so that no priority
//! can overflow into another tier (that was CVE-2026-25804 in a peer). Rules of equal priority are
//! ordered by object, spec and position; their order numbers are dense, so that they depend on
//! what is loaded alone and not on how it came about.
//!
//! TLS stands above the other redirects because an allow without L7 does not lift it.

use std::collections::BTreeMap;

use super::repository::SpecId;
use crate::model::ObjectRef;
use crate::policy::map_state::{Precedence, Proxy, SlotAction};
use crate::policy::rule::Tier;

/// The admin slot that lets the node reach its own pods.
pub(super) const LOCALHOST: Precedence = Precedence(u32::MAX);

/// Most rules that share one priority of one tier.
pub(super) const MAX_RULES_PER_PRIORITY: usize = 0x7fff;

/// Of a rule in the normal tier.
pub(super) fn normal(action: SlotAction) -> Precedence {
    let rank = match action {
        SlotAction::Allow | SlotAction::Pass => 1,
        SlotAction::Redirect(Proxy::Http) => 2,
        SlotAction::Redirect(Proxy::Dns) => 3,
        SlotAction::Redirect(Proxy::Tls) => 4,
        SlotAction::Deny => 5,
    };
    Precedence(0x8000_0000 | rank)
}

/// Of the rule number `index` among those of `priority` in the admin or baseline tier. Indexes
/// past the limit share the last number; [`Ranks::crowded`] tells.
pub(super) fn ranked(priority: u16, index: usize) -> Precedence {
    let order = index.min(MAX_RULES_PER_PRIORITY - 1) as u32;
    Precedence((u32::from(u16::MAX - priority) << 15) | (0x7fff - order))
}

/// One priority of one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Admin(u16),
    Baseline(u16),
}

impl Group {
    fn of(tier: Tier) -> Option<Group> {
        match tier {
            Tier::Admin { priority } => Some(Group::Admin(priority)),
            Tier::Baseline { priority } => Some(Group::Baseline(priority)),
            Tier::Normal => None,
        }
    }

    fn priority(self) -> u16 {
        match self {
            Group::Admin(priority) | Group::Baseline(priority) => priority,
        }
    }
}

#[derive(Debug)]
struct Member {
    spec: SpecId,
    rules: usize,
    base: usize,
}

/// Order of the ranked specs. Keeps the index of each spec's first rule.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    groups: BTreeMap<Group, BTreeMap<(ObjectRef, usize), Member>>,
}

/// A spec's first rule now has this index.
pub(super) struct Rebase {
    pub(super) spec: SpecId,
    pub(super) priority: u16,
    pub(super) base: usize,
}

impl Ranks {
    /// Adds a spec; returns every spec of its priority whose numbers are new, itself included.
    pub(super) fn insert(
        &mut self,
        tier: Tier,
        object: &ObjectRef,
        index: usize,
        spec: SpecId,
        rules: usize,
    ) -> Vec<Rebase> {
        let Some(group) = Group::of(tier) else { return Vec::new() };
        let members = self.groups.entry(group).or_default();
        members.insert((object.clone(), index), Member { spec, rules, base: usize::MAX });
        rebase(group, members)
    }

    /// Removes a spec; returns the others whose numbers changed.
    pub(super) fn remove(&mut self, tier: Tier, object: &ObjectRef, index: usize) -> Vec<Rebase> {
        let Some(group) = Group::of(tier) else { return Vec::new() };
        let Some(members) = self.groups.get_mut(&group) else { return Vec::new() };
        members.remove(&(object.clone(), index));
        if members.is_empty() {
            self.groups.remove(&group);
            return Vec::new();
        }
        rebase(group, members)
    }

    /// A priority with more rules than have numbers: it and their count.
    pub(super) fn crowded(&self) -> Option<(u16, usize)> {
        self.groups.iter().find_map(|(group, members)| {
            let rules = members.values().map(|member| member.rules).sum();
            (rules > MAX_RULES_PER_PRIORITY).then_some((group.priority(), rules))
        })
    }
}

fn rebase(group: Group, members: &mut BTreeMap<(ObjectRef, usize), Member>) -> Vec<Rebase> {
    let mut next = 0;
    let mut changed = Vec::new();
    for member in members.values_mut() {
        if member.base != next {
            member.base = next;
            changed.push(Rebase { spec: member.spec, priority: group.priority(), base: next });
        }
        next += member.rules;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_priority_reaches_another_tier_and_none_is_zero() {
        let first = ranked(0, 0);
        let last = ranked(u16::MAX, usize::MAX);
        assert!(last.0 > 0);
        assert!(first < normal(SlotAction::Allow));
        assert!(first < LOCALHOST);
    }

    #[test]
    fn a_lower_priority_number_is_higher_whatever_the_order_inside() {
        for priority in [0, 1, 999, 1000, u16::MAX - 1] {
            assert!(ranked(priority, MAX_RULES_PER_PRIORITY - 1) > ranked(priority + 1, 0), "{priority}");
        }
    }

    #[test]
    fn earlier_rules_are_higher() {
        assert!(ranked(7, 0) > ranked(7, 1));
        assert!(ranked(u16::MAX, MAX_RULES_PER_PRIORITY - 2) > ranked(u16::MAX, MAX_RULES_PER_PRIORITY - 1));
    }

    #[test]
    fn deny_beats_redirect_beats_allow() {
        let order = [
            SlotAction::Allow,
            SlotAction::Redirect(Proxy::Http),
            SlotAction::Redirect(Proxy::Dns),
            SlotAction::Redirect(Proxy::Tls),
            SlotAction::Deny,
        ];
        assert!(order.windows(2).all(|pair| normal(pair[0]) < normal(pair[1])));
    }
}
