//! Short ways to say identities, policies and flows.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::{
    CidrScope, Direction, Identity, IdentityKind, IdentityRecord, Kind, Label, LabelSource, Labels,
    ObjectRef, PortRange, Protocol,
};
use crate::policy::decision::{Because, Outcome, SideDecision};
use crate::policy::engine::{Engine, EngineOptions, L4Flow, PeerView};
use crate::policy::rule::{
    Action, CidrSet, Entity, Peer, Peers, Policy, PortMatch, Ports, Rule, Spec, Subject, Tier,
};
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};

pub(super) const SERVER: Identity = Identity(1000);
pub(super) const CLIENT: Identity = Identity(1001);
pub(super) const OTHER: Identity = Identity(1002);

pub(super) fn labels(texts: &[&str]) -> Labels {
    texts.iter().map(|text| text.parse::<Label>().unwrap()).collect()
}

pub(super) fn pod(id: Identity, texts: &[&str]) -> IdentityRecord {
    IdentityRecord { id, labels: labels(texts), kind: IdentityKind::Labels }
}

pub(super) fn reserved(id: Identity) -> IdentityRecord {
    let name = id.reserved_name().unwrap();
    IdentityRecord { id, labels: [Label::reserved(name)].into_iter().collect(), kind: IdentityKind::Labels }
}

pub(super) fn host(texts: &[&str]) -> IdentityRecord {
    node(Identity::HOST, "host", texts, &["172.18.0.1"])
}

pub(super) fn node(id: Identity, entity: &str, texts: &[&str], addresses: &[&str]) -> IdentityRecord {
    let own = texts.iter().map(|text| {
        let (key, value) = text.split_once('=').unwrap();
        Label::new(LabelSource::Node, key, value)
    });
    let labels = own.chain([Label::reserved(entity)]).collect();
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    IdentityRecord { id, labels, kind: IdentityKind::Node { addresses } }
}

pub(super) fn cidr_identity(offset: u32, prefix: Option<&str>, fqdns: &[&str]) -> IdentityRecord {
    let prefix = prefix.map(|text| text.parse().unwrap());
    IdentityRecord {
        id: Identity(Identity::LOCAL_CIDR_MIN + offset),
        labels: labels(&["reserved:world"]),
        kind: IdentityKind::Cidr(CidrScope {
            prefix,
            fqdns: fqdns.iter().map(|text| Arc::from(*text)).collect::<BTreeSet<_>>(),
            ipv6: prefix.is_some_and(|prefix: ipnet::IpNet| matches!(prefix, ipnet::IpNet::V6(_))),
        }),
    }
}

pub(super) fn address_class(offset: u32, prefix: &str) -> IdentityRecord {
    IdentityRecord {
        id: Identity(Identity::ADDRESS_CLASS_MIN + offset),
        labels: Labels::default(),
        kind: IdentityKind::AddressClass(prefix.parse().unwrap()),
    }
}

/// The class of the addresses of pods with a port name, given as the label that says it.
pub(super) fn address_class_naming(offset: u32, prefix: &str, port: Option<&str>) -> IdentityRecord {
    let labels = labels(&port.into_iter().collect::<Vec<_>>());
    IdentityRecord { labels, ..address_class(offset, prefix) }
}

pub(super) fn requirement(key: &str, operator: Operator) -> Requirement {
    Requirement { key: SelectorKey::parse(key), operator }
}

/// `key=value` texts, ANDed.
pub(super) fn selector(pairs: &[&str]) -> LabelSelector {
    let requirements = pairs.iter().map(|pair| {
        let (key, value) = pair.split_once('=').unwrap();
        requirement(key, Operator::In([Arc::from(value)].into()))
    });
    LabelSelector::new(requirements.collect())
}

pub(super) fn pods(pairs: &[&str]) -> Peer {
    Peer::Pods(selector(pairs))
}

pub(super) fn entity(entity: Entity) -> Peers {
    Peers::OneOf(vec![Peer::Entity(entity)])
}

pub(super) fn cidr_set(cidr: &str, except: &[&str]) -> CidrSet {
    CidrSet { cidr: cidr.parse().unwrap(), except: except.iter().map(|text| text.parse().unwrap()).collect() }
}

pub(super) fn tcp(first: u16, last: u16) -> PortMatch {
    PortMatch::Range(Protocol::Tcp, PortRange::new(first, last).unwrap())
}

pub(super) fn rule(direction: Direction, action: Action, peers: Peers, ports: &[PortMatch]) -> Rule {
    let ports = if ports.is_empty() { Ports::Any } else { Ports::OneOf(ports.to_vec()) };
    Rule { direction, action, peers, ports, l7: None, path: "spec.rule".into() }
}

pub(super) fn ingress(action: Action, peers: Peers, ports: &[PortMatch]) -> Rule {
    rule(Direction::Ingress, action, peers, ports)
}

pub(super) fn egress(action: Action, peers: Peers, ports: &[PortMatch]) -> Rule {
    rule(Direction::Egress, action, peers, ports)
}

/// A spec for `app=server` that turns default deny on in the directions of its rules.
pub(super) fn spec(rules: Vec<Rule>) -> Spec {
    let has = |direction| rules.iter().any(|rule| rule.direction == direction);
    Spec {
        subject: Subject::Pods(Some(selector(&["app=server"]))),
        tier: Tier::Normal,
        default_deny_ingress: has(Direction::Ingress),
        default_deny_egress: has(Direction::Egress),
        rules,
    }
}

pub(super) fn tiered(tier: Tier, rules: Vec<Rule>) -> Spec {
    Spec { tier, default_deny_ingress: false, default_deny_egress: false, ..spec(rules) }
}

pub(super) fn object(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::CiliumClusterwideNetworkPolicy, "", name)
}

pub(super) fn policy(name: &str, specs: Vec<Spec>) -> Arc<Policy> {
    Arc::new(Policy { object: object(name), specs })
}

/// An engine with three pods, the reserved identities, and `SERVER` as its only subject.
pub(super) fn cluster(options: EngineOptions) -> Engine {
    let mut engine = Engine::new(options);
    engine.upsert_identity(host(&["role=worker"]));
    for id in [Identity::WORLD, Identity::HEALTH, Identity::INIT, Identity::WORLD_IPV4, Identity::WORLD_IPV6]
    {
        engine.upsert_identity(reserved(id));
    }
    let ports = "k8s:io.sluice.named-port";
    engine.upsert_identity(pod(SERVER, &["k8s:app=server", &format!("{ports}.http=8080.tcp")]));
    engine.upsert_identity(pod(CLIENT, &["k8s:app=client", &format!("{ports}.http=80.tcp_81.tcp")]));
    engine.upsert_identity(pod(OTHER, &["k8s:app=other"]));
    engine.add_subject(SERVER);
    engine
}

/// [`cluster`] with these policies, settled.
pub(super) fn with(policies: Vec<Arc<Policy>>) -> Engine {
    with_options(EngineOptions::default(), policies)
}

pub(super) fn with_options(options: EngineOptions, policies: Vec<Arc<Policy>>) -> Engine {
    let mut engine = cluster(options);
    policies.into_iter().for_each(|policy| engine.upsert_policy(policy));
    engine.settle();
    engine
}

pub(super) fn flow(protocol: Protocol, port: u16) -> L4Flow {
    L4Flow { protocol, port }
}

/// `SERVER`'s verdict on ingress TCP from a peer.
pub(super) fn from(engine: &Engine, peer: impl Into<PeerView>, port: u16) -> SideDecision {
    engine.decide(SERVER, Direction::Ingress, peer.into(), flow(Protocol::Tcp, port))
}

/// `SERVER`'s verdict on egress TCP to a peer.
pub(super) fn to(engine: &Engine, peer: impl Into<PeerView>, port: u16) -> SideDecision {
    engine.decide(SERVER, Direction::Egress, peer.into(), flow(Protocol::Tcp, port))
}

pub(super) fn allowed(decision: &SideDecision) -> bool {
    decision.outcome != Outcome::Deny
}

/// Names of the objects whose rules decided.
pub(super) fn by(decision: &SideDecision) -> Vec<String> {
    match &decision.because {
        Because::Rules(rules) => rules.iter().map(|rule| rule.object.name.to_string()).collect(),
        other => vec![format!("{other:?}")],
    }
}

/// One policy with one rule.
pub(super) fn one(rule: Rule) -> Vec<Arc<crate::policy::rule::Policy>> {
    vec![policy("p", vec![spec(vec![rule])])]
}

/// The client's pods.
pub(super) fn client() -> Peers {
    Peers::OneOf(vec![pods(&["app=client"])])
}

pub(super) fn admin(name: &str, priority: u16, rules: Vec<Rule>) -> Arc<crate::policy::rule::Policy> {
    policy(name, vec![tiered(Tier::Admin { priority }, rules)])
}
