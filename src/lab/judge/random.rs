//! Random clusters: the evaluator and the compiled views agree on every pair, port and protocol,
//! after every change. The seed is fixed, so that a failure in continuous integration is a failure
//! everywhere; `PROPTEST_RNG_SEED` chooses another.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::world::World;
use crate::cluster::Resource;
use crate::fqdn::Learned;
use crate::k8s::tree::{Node as Tree, Value};
use crate::k8s::{Document, Position};
use crate::lab::scenario::{self, HostFirewall, Options, cluster::Cluster};
use crate::model::{Direction, Family, Kind, ObjectRef, PortRange, Protocol};
use crate::policy::engine::{AllowLocalhost, CidrMatch, Enforcement};
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};
use crate::policy::oracle::{Answer, Flow};
use crate::policy::rule::{
    Action, CidrGroupRef, CidrSet, Entity, GroupSelect, Peer, Peers, Policy, PortMatch, Ports, Rule,
    ServiceRef, Spec, Subject, Tier,
};
use crate::policy::selector::{LabelSelector, Operator, Requirement, SelectorKey};

/// Two namespaces, two nodes, pods with the same name for different ports, a host-network pod,
/// Services with and without a selector, a CIDR group and an API server outside.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {team: red}}
---
apiVersion: v1
kind: Namespace
metadata: {name: b, labels: {team: blue}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: x, labels: {app: x, tier: web}}
spec: {nodeName: node1, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: y, labels: {app: y}}
spec: {nodeName: node2, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: b, name: x, labels: {app: x}}
spec: {nodeName: node1, serviceAccountName: robot}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: b, name: host, labels: {app: x}}
spec: {nodeName: node2, hostNetwork: true}
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {role: worker}}
status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
status: {addresses: [{type: InternalIP, address: 10.9.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: web, labels: {kind: web}}
spec: {selector: {app: x}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: a, name: manual, labels: {kind: web}}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: a, name: manual, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
endpoints: [{addresses: ["203.0.113.9"]}, {addresses: ["10.0.0.2"]}]
ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: default, name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
endpoints: [{addresses: ["203.0.113.250"]}, {addresses: ["10.9.0.2"]}]
ports: [{port: 6443}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: partners, labels: {who: partner}}
spec: {externalCIDRs: ["203.0.113.0/28", "10.0.0.0/8"]}
---
apiVersion: sluice.dev/v1alpha1
kind: Scenario
metadata: {name: random}
spec: {steps: []}
"#;

const WORLD: [&str; 4] = ["203.0.113.9", "203.0.113.250", "10.77.0.1", "198.51.100.1"];

fn key(text: &str) -> SelectorKey {
    SelectorKey::parse(text)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let keys = prop_oneof![
        4 => Just("app"),
        2 => Just("k8s:tier"),
        2 => Just("io.kubernetes.pod.namespace"),
        2 => Just("k8s:io.cilium.k8s.namespace.labels.team"),
        1 => Just("io.cilium.k8s.policy.serviceaccount"),
        1 => Just("absent"),
    ];
    let values = prop::collection::btree_set(
        prop_oneof![Just("x"), Just("y"), Just("web"), Just("a"), Just("red"), Just("robot")],
        1..3,
    );
    (keys, values, 0..4).prop_map(|(name, values, operator)| {
        let values: BTreeSet<Arc<str>> = values.into_iter().map(Arc::from).collect();
        let operator = match operator {
            0 | 1 => Operator::In(values),
            2 => Operator::NotIn(values),
            _ => Operator::DoesNotExist,
        };
        Requirement { key: key(name), operator }
    })
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    prop::collection::vec(requirement(), 0..3).prop_map(LabelSelector::new)
}

fn reserved_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        Just("reserved:host"),
        Just("reserved:remote-node"),
        Just("reserved:world"),
        Just("reserved:kube-apiserver"),
        Just("reserved:ingress"),
    ]
    .prop_map(|name| LabelSelector::new(vec![Requirement { key: key(name), operator: Operator::Exists }]))
}

fn node_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        Just(LabelSelector::default()),
        Just(LabelSelector::new(vec![Requirement { key: key("role"), operator: Operator::Exists }])),
        Just(LabelSelector::new(vec![Requirement { key: key("role"), operator: Operator::DoesNotExist }])),
    ]
}

fn cidr_set() -> impl Strategy<Value = CidrSet> {
    prop_oneof![
        Just(("0.0.0.0/0", vec![])),
        Just(("0.0.0.0/0", vec!["10.0.0.0/8"])),
        Just(("10.0.0.0/8", vec![])),
        Just(("10.0.0.0/8", vec!["10.0.0.0/24", "10.9.0.0/31"])),
        Just(("10.0.0.0/24", vec![])),
        Just(("10.0.0.1/32", vec![])),
        Just(("10.9.0.2/32", vec![])),
        Just(("203.0.113.0/24", vec![])),
        Just(("203.0.113.0/24", vec!["203.0.113.8/29"])),
        Just(("203.0.113.9/32", vec![])),
        Just(("::/0", vec![])),
    ]
    .prop_map(|(cidr, except)| CidrSet {
        cidr: cidr.parse().unwrap(),
        except: except.into_iter().map(|except| except.parse().unwrap()).collect(),
    })
}

fn entity() -> impl Strategy<Value = Entity> {
    prop::sample::select(Entity::ALL).prop_map(|(_, entity)| entity)
}

fn dns_pattern() -> impl Strategy<Value = DnsPattern> {
    prop_oneof![
        Just(DnsPattern::Name("one.example".into())),
        Just(DnsPattern::Pattern("*.example".into())),
        Just(DnsPattern::Pattern("**.example".into())),
        Just(DnsPattern::Name("other.example".into())),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    let group = prop_oneof![
        Just(GroupSelect::Name("partners".into())),
        Just(GroupSelect::Name("none".into())),
        Just(GroupSelect::Labels(LabelSelector::new(vec![Requirement {
            key: key("who"),
            operator: Operator::In(["partner".into()].into()),
        }]))),
    ];
    let except = prop_oneof![Just(vec![]), Just(vec!["203.0.113.9/32".parse().unwrap()])];
    let service = prop_oneof![
        Just(ServiceRef::Name { namespace: Some("a".into()), name: "web".into() }),
        Just(ServiceRef::Name { namespace: None, name: "manual".into() }),
        Just(ServiceRef::Labels {
            namespace: Some("a".into()),
            selector: LabelSelector::new(vec![Requirement { key: key("kind"), operator: Operator::Exists }]),
        }),
    ];
    prop_oneof![
        6 => selector().prop_map(Peer::Pods),
        1 => reserved_selector().prop_map(Peer::Pods),
        1 => node_selector().prop_map(Peer::Nodes),
        2 => entity().prop_map(Peer::Entity),
        2 => cidr_set().prop_map(Peer::Cidr),
        2 => cidr_set().prop_map(Peer::Address),
        1 => dns_pattern().prop_map(Peer::Fqdn),
        1 => (group, except).prop_map(|(groups, except)| Peer::CidrGroup(CidrGroupRef { groups, except })),
        1 => service.prop_map(Peer::Service),
    ]
}

fn peers() -> impl Strategy<Value = Peers> {
    prop_oneof![
        1 => Just(Peers::Any),
        4 => prop::collection::vec(peer(), 0..3).prop_map(Peers::OneOf),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let port = prop_oneof![Just(53u16), Just(80), Just(443), Just(8080)];
    prop_oneof![
        1 => protocol().prop_map(PortMatch::Protocol),
        3 => (protocol(), port.clone())
            .prop_map(|(protocol, port)| PortMatch::Range(protocol, PortRange::single(port).unwrap())),
        3 => (protocol(), port, 0u16..9000).prop_map(|(protocol, first, more)| {
            PortMatch::Range(protocol, PortRange::new(first, first.saturating_add(more)).unwrap())
        }),
        2 => Just(PortMatch::Named(Protocol::Tcp, "http".into())),
        1 => Just(PortMatch::IcmpType(Family::IPv4, 8)),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        2 => Just(Ports::Any),
        3 => prop::collection::vec(port_match(), 1..3).prop_map(Ports::OneOf),
    ]
}

fn l7() -> impl Strategy<Value = Option<Arc<L7Rules>>> {
    let http = L7Rules::Http(vec![HttpRule { path: Some("/a".into()), ..HttpRule::default() }]);
    prop_oneof![
        5 => Just(None),
        1 => Just(Some(Arc::new(http))),
        1 => Just(Some(Arc::new(L7Rules::Dns(vec![DnsPattern::Pattern("*".into())])))),
        1 => Just(Some(Arc::new(L7Rules::Tls(vec![DnsPattern::Name("one.example".into())])))),
    ]
}

/// A name is resolved by the destination's identity and an address rule by its address: the
/// compiled policy knows no cell for both, and such an egress allow matches nothing (it fails closed).
fn without_named_addresses(direction: Direction, peers: Peers, ports: &Ports) -> Peers {
    let named =
        matches!(ports, Ports::OneOf(ports) if ports.iter().any(|port| matches!(port, PortMatch::Named(..))));
    match peers {
        Peers::OneOf(peers) if named && direction == Direction::Egress => {
            Peers::OneOf(peers.into_iter().filter(|peer| !matches!(peer, Peer::Address(_))).collect())
        }
        peers => peers,
    }
}

fn rule(tier: Tier) -> impl Strategy<Value = Rule> {
    let actions = match tier {
        Tier::Admin { .. } => vec![Action::Allow, Action::Deny, Action::Pass],
        Tier::Normal | Tier::Baseline { .. } => vec![Action::Allow, Action::Deny],
    };
    let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
    (direction, prop::sample::select(actions), peers(), ports(), l7()).prop_map(
        move |(direction, action, peers, ports, l7)| {
            // As the parser has it: L7 under allow rules with ports, of the normal tier.
            let may_have_l7 = tier == Tier::Normal && action == Action::Allow && ports != Ports::Any;
            let l7 = l7.filter(|_| may_have_l7);
            let peers = without_named_addresses(direction, peers, &ports);
            // Only egress has names.
            let peers = match peers {
                Peers::OneOf(peers) if direction == Direction::Ingress => {
                    Peers::OneOf(peers.into_iter().filter(|peer| !matches!(peer, Peer::Fqdn(_))).collect())
                }
                peers => peers,
            };
            Rule { direction, action, peers, ports, l7, path: "spec".into() }
        },
    )
}

fn spec() -> impl Strategy<Value = Spec> {
    let tier = prop_oneof![
        4 => Just(Tier::Normal),
        2 => (0u16..3).prop_map(|priority| Tier::Admin { priority }),
        1 => (0u16..3).prop_map(|priority| Tier::Baseline { priority }),
    ];
    tier.prop_flat_map(|tier| {
        let subject = prop_oneof![
            6 => selector().prop_map(|selector| Subject::Pods(Some(selector))),
            1 => Just(Subject::Pods(None)),
            1 => node_selector().prop_map(Subject::Nodes),
        ];
        let normal = tier == Tier::Normal;
        let rules = prop::collection::vec(rule(tier), 0..4);
        (subject, any::<bool>(), any::<bool>(), rules).prop_map(
            move |(subject, ingress, egress, mut rules)| {
                let on_nodes = matches!(subject, Subject::Nodes(_));
                if on_nodes {
                    rules.iter_mut().for_each(|rule| rule.l7 = None);
                }
                Spec {
                    subject: if on_nodes && !normal { Subject::Pods(None) } else { subject },
                    tier,
                    default_deny_ingress: ingress && normal,
                    default_deny_egress: egress && normal,
                    rules,
                }
            },
        )
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    (0usize..5, prop::collection::vec(spec(), 1..3)).prop_map(|(name, specs)| Policy {
        object: ObjectRef::new(Kind::CiliumClusterwideNetworkPolicy, "", &format!("p{name}")),
        specs,
    })
}

fn options() -> impl Strategy<Value = Options> {
    let enforcement = prop_oneof![4 => Just(Enforcement::Default), 1 => Just(Enforcement::Always), 1 => Just(Enforcement::Never)];
    (enforcement, any::<[bool; 3]>()).prop_map(|(enforcement, [localhost, nodes, firewall])| Options {
        enforcement,
        allow_localhost: if localhost { AllowLocalhost::Policy } else { AllowLocalhost::Always },
        cidr_match: if nodes { CidrMatch::WorldAndNodes } else { CidrMatch::World },
        host_firewall: if firewall { HostFirewall::On } else { HostFirewall::Off },
        ..Options::default()
    })
}

fn document(policy: Policy) -> Document {
    Document {
        resource: Resource::Policy(policy),
        position: Position::default(),
        warnings: Vec::new(),
        node: Arc::new(Tree { value: Value::Null, line: 0, column: 0 }),
    }
}

fn addresses(world: &World) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = WORLD.iter().map(|text| text.parse().unwrap()).collect();
    all.extend(world.cluster.pods().filter_map(|pod| pod.addresses.first().copied()));
    all.extend(world.cluster.nodes().iter().map(|node| world.cluster.node(node).unwrap().addresses[0]));
    all.extend(world.cluster.gateways().values().map(|addresses| addresses[0]));
    all.retain(IpAddr::is_ipv4);
    all.sort_unstable();
    all.dedup();
    all
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let ports = [
        (Protocol::Tcp, 53),
        (Protocol::Tcp, 80),
        (Protocol::Tcp, 8080),
        (Protocol::Tcp, 9999),
        (Protocol::Udp, 53),
        (Protocol::Sctp, 80),
        (Protocol::Icmp, 8),
        (Protocol::Icmp, 0),
    ];
    let addresses = addresses(world);
    for source in &addresses {
        for destination in &addresses {
            for (protocol, port) in ports {
                let flow = Flow { source: *source, destination: *destination, protocol, port };
                if let Err(disagreement) = world.judge(&flow, &BTreeSet::new()) {
                    return Err(TestCaseError::fail(disagreement.to_string()));
                }
            }
        }
    }
    Ok(())
}

fn cluster() -> Cluster {
    let file = scenario::read("random.yaml", CLUSTER);
    assert_eq!(file.problems, []);
    Cluster::new(&file.scenarios[0].scenario, &file.scenarios[0].manifest.documents)
}

fn learn(world: &mut World) {
    for (name, address) in
        [("one.example", "203.0.113.9"), ("a.b.example", "10.77.0.1"), ("one.example", "10.0.0.2")]
    {
        let (address, ttl): (IpAddr, _) = (address.parse().unwrap(), Duration::from_secs(10));
        for node in ["node1", "node2"] {
            let answer =
                Answer { node: node.to_owned(), name: name.to_owned(), address, expires: world.now + ttl };
            world.learn(node, &Learned { name: name.into(), addresses: vec![(address, ttl)] }, vec![answer]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        rng_seed: RngSeed::Fixed(0x511ce),
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_judges_agree_on_random_policies_after_every_change(
        options in options(),
        policies in prop::collection::vec(policy(), 1..5),
        removed in any::<prop::sample::Index>(),
    ) {
        let mut world = World::new(&options, cluster()).unwrap();
        for (step, policy) in policies.iter().enumerate() {
            let mut next = world.cluster.clone();
            next.apply(&[document(policy.clone())]);
            world.change(next).unwrap();
            if step == 0 {
                learn(&mut world);
            }
            check(&world)?;
        }
        let mut next = world.cluster.clone();
        next.delete(&removed.get(&policies).object).unwrap();
        world.change(next).unwrap();
        check(&world)?;
        world.pass(Duration::from_secs(10));
        check(&world)?;
    }
}
