//! Traps that rules make for each other: shadowed, widened, accidental and pointless ones.

use super::{Code, DefaultDeny, Finding, Linter, Site, covers, subject_covers};
use crate::model::Direction;
use crate::policy::l7::L7Rules;
use crate::policy::rule::{Action, Entity, Peer, Peers, Ports, Rule, Tier};

pub(super) fn check(linter: &Linter<'_>, site: &Site<'_>, findings: &mut Vec<Finding>) {
    if site.spec.tier != Tier::Normal {
        return;
    }
    let bearing = linter.bearing_on(site);
    for direction in Direction::BOTH {
        if linter.default_deny(site, direction) == DefaultDeny::BySpec {
            deny_only(site, direction, findings);
            narrows_nothing(site, direction, findings);
        }
        for rule in site.rules(direction, Action::Allow) {
            shadowed(site, rule, &bearing, findings);
            widened(linter, site, rule, findings);
            query_strings(site, rule, findings);
        }
    }
}

fn deny_only(site: &Site<'_>, direction: Direction, findings: &mut Vec<Finding>) {
    let mut denies = site.rules(direction, Action::Deny);
    let Some(first) = denies.next().filter(|_| site.is_cilium()) else { return };
    if site.rules(direction, Action::Allow).next().is_none() {
        let detail = format!("enableDefaultDeny: {{{direction}: false}}");
        findings.push(Finding::new(Code::DenyOnly, site.object, &first.path, detail));
    }
}

fn narrows_nothing(site: &Site<'_>, direction: Direction, findings: &mut Vec<Finding>) {
    let everyone = |rule: &Rule| match &rule.peers {
        Peers::Any => true,
        Peers::OneOf(peers) => peers.contains(&Peer::Entity(Entity::All)),
    };
    let denies = site.rules(direction, Action::Deny).next().is_some();
    let all = site.rules(direction, Action::Allow).find(|rule| everyone(rule) && rule.ports == Ports::Any);
    if let Some(rule) = all.filter(|_| !denies) {
        findings.push(Finding::new(Code::NarrowsNothing, site.object, &rule.path, ""));
    }
}

fn shadowed(site: &Site<'_>, rule: &Rule, bearing: &[Site<'_>], findings: &mut Vec<Finding>) {
    for other in bearing {
        let by = other
            .rules(rule.direction, Action::Deny)
            .find(|deny| covers::peers(&deny.peers, &rule.peers) && covers::ports(&deny.ports, &rule.ports));
        if let Some(deny) = by {
            let detail = format!("{} of {}", deny.path, other.object);
            findings.push(Finding::new(Code::Shadowed, site.object, &rule.path, detail));
            return;
        }
    }
}

/// HTTP and DNS rules: a plain allow does not lift `serverNames`.
fn widened(linter: &Linter<'_>, site: &Site<'_>, rule: &Rule, findings: &mut Vec<Finding>) {
    if !matches!(rule.l7.as_deref(), Some(L7Rules::Http(_) | L7Rules::Dns(_))) {
        return;
    }
    let same_pods = |other: &Site<'_>| {
        let (one, other) = (&site.spec.subject, &other.spec.subject);
        subject_covers(one, other) || subject_covers(other, one)
    };
    for other in linter.sites().filter(|other| other.spec.tier == Tier::Normal && same_pods(other)) {
        let by = other.rules(rule.direction, Action::Allow).find(|plain| {
            plain.l7.is_none()
                && covers::any_peer(&plain.peers, &rule.peers)
                && covers::ports_meet(&plain.ports, &rule.ports)
        });
        if let Some(plain) = by {
            let detail = format!("{} of {}", plain.path, other.object);
            findings.push(Finding::new(Code::L7Widened, site.object, &rule.path, detail));
            return;
        }
    }
}

fn query_strings(site: &Site<'_>, rule: &Rule, findings: &mut Vec<Finding>) {
    let Some(L7Rules::Http(rules)) = rule.l7.as_deref() else { return };
    for path in rules.iter().filter_map(|rule| rule.path.as_deref()).filter(|path| refuses_query(path)) {
        findings.push(Finding::new(Code::QueryString, site.object, &rule.path, format!("{path:?}")));
    }
}

/// The expression has no place for a query: it names no question mark and does not end in a
/// wildcard.
fn refuses_query(path: &str) -> bool {
    let end = path.trim_end_matches(['$', ')', '?']);
    let open = [".*", ".+", ".*/"].iter().any(|wildcard| end.ends_with(wildcard));
    !open && !path.contains(r"\?") && !path.contains("[^") && !path.contains("[?")
}
