//! Rules of several objects that are too large for one set.
//!
//! Contract: each list by itself fits ([`http::check_size`], asked when a policy is read). What comes together at one
//! port for one peer is known here; where it does not fit, a proxy admits nothing there. Nothing but what is named by some
//! rule is looked at, and only where there are so many expressions that they could be too large.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::expressions::ALWAYS_FIT;
use super::snapshot::{PeerSet, PortSpan, Side, SideRule, Sides};
use super::{HttpRule, L7Rules, http};
use crate::model::{Direction, Identity, ObjectRef};

/// A side whose proxy admits nothing on a port, at least for some peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    pub subject: Identity,
    pub direction: Direction,
    pub port: PortSpan,
    /// Rules that come together there: their objects, with field paths.
    pub rules: BTreeSet<(ObjectRef, Arc<str>)>,
    pub problem: String,
}

/// Whether these rules need a look: there are so many expressions that they could be too large for one set.
pub fn may_be_too_large<'r>(rules: impl IntoIterator<Item = &'r L7Rules>) -> bool {
    let expressions = |rule: &HttpRule| [&rule.method, &rule.path, &rule.host].into_iter().flatten().count();
    let of_list = |rules: &L7Rules| match rules {
        L7Rules::Http(rules) => rules.iter().map(expressions).sum(),
        L7Rules::Dns(_) | L7Rules::Tls(_) => 0,
    };
    rules.into_iter().map(of_list).sum::<usize>() > ALWAYS_FIT
}

/// All misfits, in the order of sides and ports; one for each port.
pub fn misfits(sides: &Sides) -> Vec<Misfit> {
    let mut known: HashMap<Vec<usize>, Option<String>> = HashMap::new();
    let mut found = Vec::new();
    for side in &sides.all {
        for port in &side.ports {
            let rules: Vec<(usize, &SideRule)> = side
                .rules
                .iter()
                .filter(|rule| rule.ports.is_empty() || rule.ports.iter().any(|span| span.meets(*port)))
                .filter_map(|rule| Some((rule.l7.filter(|l7| http_rules(sides, *l7).is_some())?, rule)))
                .collect();
            found.extend(misfit(sides, side, *port, &rules, &mut known));
        }
    }
    found
}

fn http_rules(sides: &Sides, l7: usize) -> Option<&[HttpRule]> {
    match sides.l7.get(l7).map(|rules| &**rules) {
        Some(L7Rules::Http(rules)) => Some(rules),
        Some(L7Rules::Dns(_) | L7Rules::Tls(_)) | None => None,
    }
}

fn misfit(
    sides: &Sides,
    side: &Side,
    port: PortSpan,
    rules: &[(usize, &SideRule)],
    known: &mut HashMap<Vec<usize>, Option<String>>,
) -> Option<Misfit> {
    let mut check = |lists: BTreeSet<usize>| {
        let lists: Vec<usize> = lists.into_iter().collect();
        let together = |lists: &[usize]| {
            let rules = lists.iter().filter_map(|l7| http_rules(sides, *l7)).flatten();
            http::check_size(rules).err().map(|error| error.to_string())
        };
        known.entry(lists).or_insert_with_key(|lists| together(lists)).clone()
    };
    // Whoever the peer is, it meets no more than all of them.
    check(rules.iter().map(|(l7, _)| *l7).collect())?;
    let peers: BTreeSet<Option<Identity>> = rules
        .iter()
        .flat_map(|(_, rule)| match rule.peers {
            PeerSet::Any => vec![None],
            PeerSet::OneOf(index) => {
                sides.peers.get(index).into_iter().flatten().copied().map(Some).collect()
            }
        })
        .collect();
    peers.into_iter().find_map(|peer| {
        let meets = |rule: &SideRule| match (rule.peers, peer) {
            (PeerSet::Any, _) => true,
            (PeerSet::OneOf(_), None) => false,
            (PeerSet::OneOf(index), Some(peer)) => {
                sides.peers.get(index).is_some_and(|set| set.binary_search(&peer).is_ok())
            }
        };
        let met: Vec<&(usize, &SideRule)> = rules.iter().filter(|(_, rule)| meets(rule)).collect();
        let problem = check(met.iter().map(|(l7, _)| *l7).collect())?;
        let rules = met.iter().map(|(_, rule)| (rule.rule.object.clone(), rule.path.clone())).collect();
        Some(Misfit { subject: side.subject, direction: side.direction, port, rules, problem })
    })
}
