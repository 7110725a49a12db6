//! Which queries policy releases, as the feed and the kernel's identities say.
//!
//! Contract: a query is judged for the client's egress if the client is a local pod, and for the server's ingress
//! if the server is one. Both sides must release it; who is unknown is refused. A side whose rules are for another
//! protocol releases every query if they refuse nothing, and none if they do (`httpproxy::policy` has the table). What
//! policy says about a client and a server is worked out once and holds for [`FRESH`], or until the feed has a new
//! snapshot: names are looked up for each query. What is worked out, and what is refused, is so by the document that is there,
//! not by the last one that was read: the kernel may bring a query here by rules that are newer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::l7feed::{Feed, Newest};
use crate::datapath::DatapathError;
use crate::dnsproxy::{Ask, Decision, Judge, Ruling};
use crate::model::{Direction, Identity, Protocol};
use crate::policy::decision::Outcome;
use crate::policy::engine::{L4Flow, L7Policy, PeerView};
use crate::policy::l7::L7Rules;
use crate::policy::l7::names::NameSet;
use crate::policy::l7::snapshot::Snapshot;
use crate::policy::map_state::Proxy as ProxyKind;
use crate::policy::rule::RuleRef;

/// How long the kernel is not asked again who an address is: news of policy take longer to come here.
const FRESH: Duration = Duration::from_millis(20);
/// Most pairs of a client and a server that are remembered.
const MOST: usize = 8192;

type Pair = (IpAddr, SocketAddr, Protocol);

/// See the module.
pub struct PolicyJudge {
    feed: Feed,
    newest: Arc<Newest>,
    resolve: Box<Resolve>,
    pairs: Mutex<HashMap<Pair, Known>>,
}

/// Who has an address.
type Resolve = dyn Fn(IpAddr) -> Result<PeerView, DatapathError> + Send + Sync;

impl std::fmt::Debug for PolicyJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyJudge").field("pairs", &self.pairs.lock().len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Known {
    until: Instant,
    policy: Arc<PairPolicy>,
}

/// What policy says about queries of one client to one server.
#[derive(Debug)]
struct PairPolicy {
    snapshot: Arc<Snapshot>,
    /// Client and server.
    peers: [PeerView; 2],
    sides: Vec<SidePolicy>,
}

impl PolicyJudge {
    pub fn new(
        newest: Arc<Newest>,
        resolve: impl Fn(IpAddr) -> Result<PeerView, DatapathError> + Send + Sync + 'static,
    ) -> PolicyJudge {
        PolicyJudge { feed: newest.feed(), newest, resolve: Box::new(resolve), pairs: Mutex::default() }
    }

    fn policy(&self, ask: &Ask<'_>) -> Arc<PairPolicy> {
        let pair = (ask.client.ip(), ask.server, ask.protocol);
        let (now, read) = (ask.at, self.feed.load());
        let known = {
            let pairs = self.pairs.lock();
            let known = pairs.get(&pair).filter(|known| Arc::ptr_eq(&known.policy.snapshot, &read));
            known.map(|known| (known.until > now, Arc::clone(&known.policy)))
        };
        if let Some((true, policy)) = known {
            return policy;
        }
        let snapshot = self.newest.load();
        let peers = [ask.client.ip(), ask.server.ip()].map(|address| {
            (self.resolve)(address).unwrap_or_else(|error| {
                tracing::error!(%error, %address, "the kernel does not say who this is");
                PeerView { identity: Identity::UNKNOWN, address_class: None }
            })
        });
        let policy = match known {
            Some((_, policy)) if policy.peers == peers && Arc::ptr_eq(&policy.snapshot, &snapshot) => policy,
            _ => Arc::new(PairPolicy::new(snapshot, ask, peers)),
        };
        let mut pairs = self.pairs.lock();
        if pairs.len() >= MOST {
            pairs.retain(|_, known| known.until > now);
            if pairs.len() >= MOST {
                pairs.clear();
            }
        }
        pairs.insert(pair, Known { until: now + FRESH, policy: Arc::clone(&policy) });
        policy
    }
}

impl Judge for PolicyJudge {
    fn judge(&self, ask: &Ask<'_>) -> Ruling {
        let policy = self.policy(ask);
        let ruling = policy.judge(ask.name);
        if ruling.decision == Decision::Release || Arc::ptr_eq(&policy.snapshot, &self.newest.load()) {
            return ruling;
        }
        self.policy(ask).judge(ask.name)
    }
}

impl PairPolicy {
    fn new(snapshot: Arc<Snapshot>, ask: &Ask<'_>, peers: [PeerView; 2]) -> PairPolicy {
        let [client, server] = peers;
        let flow = L4Flow { protocol: ask.protocol, port: ask.server.port() };
        let sides =
            [(ask.client.ip(), Direction::Egress, server), (ask.server.ip(), Direction::Ingress, client)];
        let sides = sides
            .into_iter()
            .filter_map(|(subject, direction, peer)| {
                let subject = snapshot.subject(subject, direction, flow)?;
                let policy = snapshot.policy(subject, direction, peer, flow)?;
                Some(SidePolicy::new(policy, direction))
            })
            .collect();
        PairPolicy { snapshot, peers, sides }
    }

    /// Both sides must release. Where both do, the client's side is named.
    fn judge(&self, name: &str) -> Ruling {
        let [client, server] = self.peers;
        let ruling = |decision, direction, rules| Ruling {
            decision,
            direction,
            rules,
            client_identity: client.identity,
            server_identity: server.identity,
        };
        let mut first = None;
        for side in &self.sides {
            let (decision, rules) = side.judge(name);
            if decision == Decision::Refuse {
                return ruling(decision, side.direction, rules);
            }
            first.get_or_insert((side.direction, rules));
        }
        match first {
            Some((direction, rules)) => ruling(Decision::Release, direction, rules),
            // No side knows why the query is here: the policy that sent it has gone.
            None => ruling(Decision::Refuse, Direction::Egress, Arc::from([])),
        }
    }
}

/// Which queries a side refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuses {
    Nothing,
    WhatNoRuleLists,
    /// L3/L4 says no, or its rules are for another protocol and refuse what is not of it.
    All,
}

/// One side's policy, ready for names.
#[derive(Debug)]
struct SidePolicy {
    direction: Direction,
    refuses: Refuses,
    rules: Arc<[RuleRef]>,
    /// By index into the rules.
    names: NameSet<usize>,
    /// Rules without names.
    every_name: Vec<usize>,
}

impl SidePolicy {
    fn new(policy: L7Policy, direction: Direction) -> SidePolicy {
        let refuses = match policy.outcome {
            _ if !policy.refuses() => Refuses::Nothing,
            Outcome::Redirect(ProxyKind::Dns) => Refuses::WhatNoRuleLists,
            Outcome::Redirect(ProxyKind::Http | ProxyKind::Tls) | Outcome::Deny | Outcome::Allow => {
                Refuses::All
            }
        };
        let mut every_name = Vec::new();
        let mut names = Vec::new();
        for (index, (_, l7)) in policy.rules.iter().enumerate() {
            match l7.as_deref() {
                Some(L7Rules::Dns(patterns)) => {
                    names.extend(patterns.iter().map(|pattern| (pattern.clone(), index)));
                }
                Some(L7Rules::Http(_) | L7Rules::Tls(_)) => {}
                None => every_name.push(index),
            }
        }
        SidePolicy {
            direction,
            refuses,
            rules: policy.rules.into_iter().map(|(rule, _)| rule).collect(),
            names: names.into_iter().collect(),
            every_name,
        }
    }

    /// With the rules that governed: those that match, or all that do not.
    fn judge(&self, name: &str) -> (Decision, Arc<[RuleRef]>) {
        let mut matching: Vec<usize> =
            self.every_name.iter().chain(self.names.lookup(name)).copied().collect();
        matching.sort_unstable();
        matching.dedup();
        let decision = match self.refuses {
            Refuses::Nothing => Decision::Release,
            Refuses::WhatNoRuleLists if !matching.is_empty() => Decision::Release,
            Refuses::WhatNoRuleLists | Refuses::All => Decision::Refuse,
        };
        if matching.is_empty() || matching.len() == self.rules.len() {
            return (decision, Arc::clone(&self.rules));
        }
        (decision, matching.iter().filter_map(|index| self.rules.get(*index).cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectRef};
    use crate::policy::l7::DnsPattern;
    use crate::policy::l7::snapshot::{Endpoint, PeerSet, PortSpan, RuleTier, Side, SideRule, Sides};
    use crate::policy::map_state::{Precedence, SlotAction};

    fn rule(index: u32) -> RuleRef {
        let object = ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "names");
        RuleRef { object, spec: 0, rule: index as _ }
    }

    fn policy(outcome: Outcome, enforced: bool, patterns: &[&str]) -> L7Policy {
        let rules = (0..).zip(patterns).map(|(index, text)| {
            let pattern = DnsPattern::parse_pattern(text).unwrap();
            (rule(index), Some(Arc::new(L7Rules::Dns([pattern].into_iter().collect()))))
        });
        L7Policy { outcome, rules: rules.collect(), lifted: false, enforced }
    }

    #[test]
    fn a_name_that_no_rule_lists_is_refused_where_policy_is_enforced() {
        let judge = |policy: L7Policy, name| SidePolicy::new(policy, Direction::Egress).judge(name).0;
        let dns = Outcome::Redirect(ProxyKind::Dns);
        let enforced = || policy(dns, true, &["*.example"]);
        assert_eq!(judge(enforced(), "a.example"), Decision::Release);
        assert_eq!(judge(enforced(), "a.b.example"), Decision::Refuse);
        assert_eq!(judge(policy(dns, false, &["*.example"]), "x.org"), Decision::Release);
        assert_eq!(judge(policy(Outcome::Deny, true, &["*"]), "a"), Decision::Refuse);
        assert_eq!(judge(policy(Outcome::Allow, true, &[]), "a"), Decision::Release);
    }

    /// The server's pod is on this node too, and its rules are for a protocol that no query is.
    #[test]
    fn rules_for_another_protocol_refuse_a_query_only_where_they_refuse_anything() {
        for proxy in [ProxyKind::Http, ProxyKind::Tls] {
            let judge = |policy| SidePolicy::new(policy, Direction::Ingress).judge("a.example").0;
            let other = |enforced| policy(Outcome::Redirect(proxy), enforced, &[]);
            assert_eq!(judge(other(true)), Decision::Refuse, "{proxy:?}");
            assert_eq!(judge(other(false)), Decision::Release, "{proxy:?}");
            let lifted = judge(L7Policy { lifted: true, ..other(true) });
            let is_lifted = proxy == ProxyKind::Http;
            assert_eq!(
                lifted == Decision::Release,
                is_lifted,
                "{proxy:?}: a plain allow lifts no serverNames"
            );
        }
    }

    #[test]
    fn the_rules_that_match_are_named_or_all_when_none_does() {
        let side = SidePolicy::new(
            policy(Outcome::Redirect(ProxyKind::Dns), true, &["*.example", "a.example", "b.example"]),
            Direction::Egress,
        );
        assert_eq!(*side.judge("a.example").1, [rule(0), rule(1)]);
        assert_eq!(side.judge("x.org").1.len(), 3);
    }

    fn allows(pattern: &str) -> Snapshot {
        let port = PortSpan { protocol: Protocol::Udp.number(), first: 53, last: 53 };
        let side = Side {
            subject: Identity(300),
            direction: Direction::Egress,
            default_deny: true,
            localhost: false,
            ports: vec![port],
            rules: vec![SideRule {
                rule: rule(0),
                path: "spec.egress[0]".into(),
                tier: RuleTier::Normal,
                action: SlotAction::Redirect(ProxyKind::Dns),
                precedence: Precedence(1),
                peers: PeerSet::Any,
                ports: vec![port],
                l7: Some(0),
            }],
        };
        let pattern = DnsPattern::parse_pattern(pattern).unwrap();
        let pod = Endpoint { pod: "shop/web".into(), identity: Identity(300), before: Vec::new() };
        Snapshot {
            endpoints: [("10.0.0.1".parse().unwrap(), pod)].into(),
            sides: Sides {
                all: vec![side],
                peers: Vec::new(),
                l7: vec![Arc::new(L7Rules::Dns(vec![pattern]))],
            },
            ..Snapshot::default()
        }
    }

    /// The kernel brought it by new rules, and it was refused by the old ones, or by none, until the watch told of the new
    /// document.
    #[test]
    fn a_query_is_refused_by_the_rules_that_brought_it_here_and_not_by_older_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("l7.json");
        let write = |snapshot: &Snapshot| {
            // By another name first: it is another file.
            std::fs::write(directory.path().join("new"), serde_json::to_vec(snapshot).unwrap()).unwrap();
            std::fs::rename(directory.path().join("new"), &path).unwrap();
        };
        write(&Snapshot::default());
        let newest = Arc::new(Newest::open(path.clone()).unwrap());
        let peer = PeerView { identity: Identity(301), address_class: None };
        let judge = PolicyJudge::new(newest, move |_| Ok(peer));
        let decision = |name| {
            let client = "10.0.0.1:5000".parse().unwrap();
            let (server, protocol, at) = ("10.0.0.2:53".parse().unwrap(), Protocol::Udp, Instant::now());
            judge.judge(&Ask { client, server, protocol, name, at }).decision
        };
        assert_eq!(decision("a.example"), Decision::Refuse, "nobody knows why it is here");
        write(&allows("*.example"));
        assert_eq!(decision("a.example"), Decision::Release);
        assert_eq!(decision("a.other"), Decision::Refuse);
        write(&allows("*.other"));
        assert_eq!(decision("a.other"), Decision::Release);
        assert_eq!(decision("a.example"), Decision::Refuse);
    }

    #[test]
    fn a_query_that_no_policy_knows_is_refused() {
        let ask = Ask {
            client: "10.0.0.1:5000".parse().unwrap(),
            server: "10.0.0.2:53".parse().unwrap(),
            protocol: Protocol::Udp,
            name: "a.example",
            at: Instant::now(),
        };
        let peer = PeerView { identity: Identity(300), address_class: None };
        let policy = PairPolicy::new(Arc::default(), &ask, [peer, peer]);
        assert_eq!(policy.judge("a.example").decision, Decision::Refuse);
    }
}
