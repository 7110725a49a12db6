//! Which flows a reader wants: members are ANDed, values of one member ORed (as in Hubble).
//!
//! A [`Filter`] is one such conjunction. A [`Selection`] is what a request asks for: flows that one of the
//! `allow` filters takes and none of the `deny` filters does.

mod condition;
mod labels;
mod predicate;
mod text;

use std::net::IpAddr;

use ipnet::IpNet;

pub use self::condition::{Condition, End, PartyMatch, ProtocolMatch, ReplyMatch, VerdictKind};
pub use self::labels::LabelSelector;
pub use self::predicate::{Predicate, SharedPredicate};
pub use self::text::{Glob, NamePattern, PatternError, Regex, StatusMatch};
use super::{DecidedBy, Flow};

/// All groups must match; a group matches when one of its conditions does; none of `not` may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub all: Vec<Vec<Condition>>,
    pub not: Vec<Condition>,
    /// Nanoseconds since 1970; inclusive.
    pub since_ns: Option<u64>,
    pub until_ns: Option<u64>,
}

impl Filter {
    pub fn matches(&self, flow: &Flow) -> bool {
        self.since_ns.is_none_or(|since| flow.time_ns >= since)
            && self.until_ns.is_none_or(|until| flow.time_ns <= until)
            && self.all.iter().all(|group| group.iter().any(|condition| condition.matches(flow)))
            && !self.not.iter().any(|condition| condition.matches(flow))
    }
}

/// What a request for flows selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Any of these; all flows if there is none.
    pub allow: Vec<Filter>,
    /// None of these.
    pub deny: Vec<Filter>,
}

impl Selection {
    pub fn matches(&self, flow: &Flow) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|filter| filter.matches(flow)))
            && !self.deny.iter().any(|filter| filter.matches(flow))
    }

    /// Whether a flow may take as long as a predicate does, which is much longer than any other condition.
    pub fn has_predicates(&self) -> bool {
        self.allow
            .iter()
            .chain(&self.deny)
            .flat_map(|filter| filter.all.iter().flatten().chain(&filter.not))
            .any(|condition| matches!(condition, Condition::Predicate(_)))
    }
}

impl Flow {
    /// The policy objects that the verdict rests on.
    pub fn policies(&self) -> impl Iterator<Item = &crate::model::ObjectRef> {
        let (rules, defaults) = match &self.decision.by {
            DecidedBy::Rules(parts) => (&parts[..], &[][..]),
            DecidedBy::DefaultDeny(objects) => (&[][..], &objects[..]),
            DecidedBy::NoPolicy => (&[][..], &[][..]),
        };
        rules.iter().map(|part| &part.object).chain(defaults)
    }
}

/// A prefix from an address or CIDR text.
pub fn address_or_cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    #[test]
    fn groups_are_anded_and_values_ored() {
        let filter = Filter {
            all: vec![
                vec![
                    Condition::Party(End::Destination, PartyMatch::Port(80)),
                    Condition::Party(End::Destination, PartyMatch::Port(81)),
                ],
                vec![Condition::Verdict(VerdictKind::Forwarded)],
            ],
            ..Filter::default()
        };
        assert!(filter.matches(&flow(80)) && filter.matches(&flow(81)));
        assert!(!filter.matches(&flow(82)));
    }

    #[test]
    fn not_excludes() {
        let not = Condition::Party(End::Either, PartyMatch::Pod(NamePattern::parse("shop/front")));
        assert!(!Filter { not: vec![not], ..Filter::default() }.matches(&flow(80)));
    }

    #[test]
    fn a_selection_takes_what_is_allowed_and_not_denied() {
        let port = |port| Filter {
            all: vec![vec![Condition::Party(End::Destination, PartyMatch::Port(port))]],
            ..Filter::default()
        };
        let selection = Selection { allow: vec![port(80), port(81)], deny: vec![port(81)] };
        assert!(selection.matches(&flow(80)));
        assert!(!selection.matches(&flow(81)) && !selection.matches(&flow(82)));
        assert!(Selection::default().matches(&flow(82)));
    }
}
