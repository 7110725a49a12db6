//! Random histories: what grew step by step equals what is compiled at once, deltas add up, and
//! verdicts are those of the naive reading.

use std::sync::Arc;

use proptest::prelude::*;

use super::naive::World;
use super::support::*;
use super::transactions::Twin;
use crate::model::{Direction, Family, Identity, IdentityRecord, ObjectRef, PortRange, Protocol};
use crate::policy::decision::Outcome;
use crate::policy::engine::{
    AllowLocalhost, CidrMatch, Enforcement, Engine, EngineOptions, L4Flow, PeerView,
};
use crate::policy::l7::snapshot::Snapshot;
use crate::policy::l7::{DnsPattern, HttpRule, L7Rules};
use crate::policy::map_state::PortClass;
use crate::policy::named_port;
use crate::policy::rule::{
    Action, Entity, Peer, Peers, Policy, PortMatch, Ports, Rule, RuleRef, Spec, Subject, Tier,
};
use crate::policy::selector::{LabelSelector, Operator};

const PODS: u32 = 4;
const PREFIXES: [&str; 7] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "2001:db8:1::/48", "0.0.0.0/0", "::/0"];
/// After those with prefixes: one that answers made known.
const LEARNED: u32 = PREFIXES.len() as u32;

fn pod_id(index: u32) -> Identity {
    Identity(1000 + index)
}

fn peer_ids() -> Vec<Identity> {
    let local = (0..=LEARNED).map(|n| Identity(Identity::LOCAL_CIDR_MIN + n));
    let fixed = [Identity::HOST, Identity::WORLD, Identity::HEALTH, Identity(Identity::REMOTE_NODE_MIN)];
    (0..PODS).map(pod_id).chain(local).chain(fixed).collect()
}

fn class_ids() -> Vec<Identity> {
    (0..PREFIXES.len() as u32).map(|n| Identity(Identity::ADDRESS_CLASS_MIN + n)).collect()
}

/// The port name of a pod, as its label says it.
fn arbitrary_port_name() -> impl Strategy<Value = Option<String>> {
    let numbers = prop::sample::select(vec!["80.tcp", "81.tcp", "53.tcp_53.udp", "8080.tcp"]);
    prop::option::of(numbers.prop_map(|numbers| format!("k8s:io.sluice.named-port.web={numbers}")))
}

fn arbitrary_pod() -> impl Strategy<Value = IdentityRecord> {
    // One that is in no namespace makes "every pod" something else than "everybody in a namespace".
    let namespace = prop_oneof![8 => Just(Some("k8s:io.kubernetes.pod.namespace=n")), 1 => Just(None)];
    (0..PODS, 0..3u8, 0..2u8, arbitrary_port_name(), namespace).prop_map(
        |(index, app, tier, port, namespace)| {
            let mut texts = vec![format!("k8s:app=a{app}"), format!("k8s:tier=t{tier}")];
            texts.extend(namespace.map(str::to_owned));
            texts.extend(port);
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            pod(pod_id(index), &texts)
        },
    )
}

fn arbitrary_identity() -> impl Strategy<Value = IdentityRecord> {
    let index = 0..PREFIXES.len();
    prop_oneof![
        4 => arbitrary_pod(),
        2 => (index.clone(), any::<bool>()).prop_map(|(n, learned)| {
            cidr_identity(n as u32, Some(PREFIXES[n]), if learned { &["a.example"] } else { &[] })
        }),
        1 => (index, arbitrary_port_name())
            .prop_map(|(n, port)| address_class_naming(n as u32, PREFIXES[n], port.as_deref())),
        1 => Just(cidr_identity(LEARNED, None, &["a.example"])),
        1 => Just(host(&["role=worker"])),
        1 => Just(reserved(Identity::WORLD)),
        1 => Just(reserved(Identity::HEALTH)),
        1 => any::<bool>().prop_map(|worker| {
            let labels: &[&str] = if worker { &["role=worker"] } else { &[] };
            node(Identity(Identity::REMOTE_NODE_MIN), "remote-node", labels, &["10.1.2.3"])
        }),
    ]
}

fn arbitrary_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        1 => Just(LabelSelector::default()),
        1 => Just(LabelSelector::new(vec![requirement("io.kubernetes.pod.namespace", Operator::Exists)])),
        4 => (0..3u8).prop_map(|app| selector(&[&format!("app=a{app}")])),
        1 => (0..3u8, 0..2u8).prop_map(|(app, tier)| {
            selector(&[&format!("k8s:app=a{app}"), &format!("tier=t{tier}")])
        }),
        1 => Just(LabelSelector::new(vec![requirement("app", Operator::NotIn(["a0".into()].into()))])),
        1 => Just(LabelSelector::new(vec![requirement("tier", Operator::Exists)])),
        1 => Just(selector(&["reserved:health="])),
    ]
}

fn arbitrary_peer() -> impl Strategy<Value = Peer> {
    let prefix = prop::sample::select(PREFIXES.to_vec());
    let set = (prefix, any::<bool>()).prop_map(|(cidr, with_hole)| match (cidr, with_hole) {
        ("10.0.0.0/8", true) => cidr_set(cidr, &["10.1.0.0/16"]),
        ("2001:db8::/32", true) => cidr_set(cidr, &["2001:db8:1::/48"]),
        ("0.0.0.0/0", true) => cidr_set(cidr, &["10.0.0.0/8"]),
        _ => cidr_set(cidr, &[]),
    });
    let entities: Vec<Entity> = Entity::ALL.iter().map(|(_, entity)| *entity).collect();
    prop_oneof![
        4 => arbitrary_selector().prop_map(Peer::Pods),
        2 => set.clone().prop_map(Peer::Cidr),
        2 => set.prop_map(Peer::Address),
        2 => prop::sample::select(entities).prop_map(Peer::Entity),
        1 => Just(Peer::Nodes(selector(&["role=worker"]))),
        1 => Just(Peer::Nodes(LabelSelector::default())),
        1 => Just(Peer::Fqdn(DnsPattern::Name("a.example".into()))),
    ]
}

fn arbitrary_port() -> impl Strategy<Value = PortMatch> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let bounds = prop_oneof![
        (78..84u16).prop_map(|port| (port, port)),
        (78..84u16, 0..5u16).prop_map(|(port, more)| (port, port + more)),
        Just((1, 65535)),
        Just((8000, 8100)),
    ];
    prop_oneof![
        6 => (protocol.clone(), bounds)
            .prop_map(|(protocol, (a, b))| PortMatch::Range(protocol, PortRange::new(a, b).unwrap())),
        1 => protocol.clone().prop_map(PortMatch::Protocol),
        2 => protocol.prop_map(|protocol| PortMatch::Named(protocol, "web".into())),
        1 => Just(PortMatch::IcmpType(Family::IPv4, 8)),
    ]
}

fn arbitrary_rule() -> impl Strategy<Value = Rule> {
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        4 => prop::collection::vec(arbitrary_peer(), 0..3).prop_map(Peers::OneOf),
    ];
    let ports = prop_oneof![
        1 => Just(Ports::Any),
        3 => prop::collection::vec(arbitrary_port(), 1..3).prop_map(Ports::OneOf),
    ];
    let l7 = prop_oneof![
        3 => Just(None),
        1 => prop::sample::select(vec![
            L7Rules::Http(vec![HttpRule::default()]),
            L7Rules::Dns(vec![DnsPattern::Name("a.example".into())]),
            L7Rules::Tls(vec![DnsPattern::Name("a.example".into())]),
        ]).prop_map(|l7| Some(Arc::new(l7))),
    ];
    let action = prop::sample::select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Pass]);
    (any::<bool>(), action, peers, ports, l7).prop_map(|(ingress, action, peers, ports, l7)| Rule {
        direction: if ingress { Direction::Ingress } else { Direction::Egress },
        action,
        peers,
        ports,
        l7,
        path: "rule".into(),
    })
}

/// `Pass` in the admin tier only, L7 with an allow of the normal tier only, as `k8s` makes them.
fn legal(tier: Tier, mut rule: Rule) -> Rule {
    if rule.action == Action::Pass && !matches!(tier, Tier::Admin { .. }) {
        rule.action = Action::Allow;
    }
    if rule.action != Action::Allow || tier != Tier::Normal || rule.ports == Ports::Any {
        rule.l7 = None;
    }
    rule
}

fn arbitrary_spec() -> impl Strategy<Value = Spec> {
    let priority = prop::sample::select(vec![0, 7, 8, u16::MAX]);
    let tier = prop_oneof![
        4 => Just(Tier::Normal),
        1 => priority.clone().prop_map(|priority| Tier::Admin { priority }),
        1 => priority.prop_map(|priority| Tier::Baseline { priority }),
    ];
    let subject = prop_oneof![
        6 => arbitrary_selector().prop_map(|selector| Subject::Pods(Some(selector))),
        1 => Just(Subject::Nodes(selector(&["role=worker"]))),
        1 => Just(Subject::Pods(None)),
    ];
    let rules = prop::collection::vec(arbitrary_rule(), 0..4);
    (tier, subject, any::<[bool; 2]>(), rules).prop_map(|(tier, subject, deny, rules)| Spec {
        subject,
        tier,
        default_deny_ingress: tier == Tier::Normal && deny[0],
        default_deny_egress: tier == Tier::Normal && deny[1],
        rules: rules.into_iter().map(|rule| legal(tier, rule)).collect(),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Identity(IdentityRecord),
    NoIdentity(usize),
    Policy(Arc<Policy>),
    NoPolicy(u8),
    Subject(u32),
    NoSubject(u32),
    HostSubject,
    Settle,
    TakeDelta,
    /// Everything up to the matching end is taken back.
    Begin,
    Rollback,
}

fn name(index: u8) -> ObjectRef {
    object(&format!("p{index}"))
}

fn arbitrary_step() -> impl Strategy<Value = Step> {
    let policy = (0..5u8, prop::collection::vec(arbitrary_spec(), 1..3))
        .prop_map(|(index, specs)| Step::Policy(Arc::new(Policy { object: name(index), specs })));
    prop_oneof![
        6 => arbitrary_identity().prop_map(Step::Identity),
        2 => (0..peer_ids().len() + PREFIXES.len()).prop_map(Step::NoIdentity),
        6 => policy,
        2 => (0..5u8).prop_map(Step::NoPolicy),
        3 => (0..PODS).prop_map(Step::Subject),
        1 => (0..PODS).prop_map(Step::NoSubject),
        1 => Just(Step::HostSubject),
        1 => Just(Step::Settle),
        2 => Just(Step::TakeDelta),
        1 => Just(Step::Begin),
        1 => Just(Step::Rollback),
    ]
}

fn arbitrary_options() -> impl Strategy<Value = EngineOptions> {
    let enforcement = prop::sample::select(vec![
        Enforcement::Default,
        Enforcement::Default,
        Enforcement::Default,
        Enforcement::Always,
        Enforcement::Never,
    ]);
    (enforcement, any::<bool>(), any::<bool>()).prop_map(|(enforcement, nodes, localhost)| EngineOptions {
        enforcement,
        cidr_match: if nodes { CidrMatch::WorldAndNodes } else { CidrMatch::World },
        allow_localhost: if localhost { AllowLocalhost::Always } else { AllowLocalhost::Policy },
        ..EngineOptions::default()
    })
}

/// An engine after a history, and what it should know.
fn run(options: EngineOptions, steps: Vec<Step>) -> (Engine, World) {
    let mut engine = Engine::new(options.clone());
    let mut world = World { options, ..World::default() };
    let mut twin = Twin::default();
    let mut saved: Option<World> = None;
    for step in steps {
        match step {
            Step::Identity(record) => {
                world.identities.insert(record.id, record.clone());
                engine.upsert_identity(record);
            }
            Step::NoIdentity(index) => {
                let id = [peer_ids(), class_ids()].concat()[index];
                world.identities.remove(&id);
                engine.remove_identity(id);
            }
            Step::Policy(policy) => {
                world.policies.insert(policy.object.clone(), policy.clone());
                engine.upsert_policy(policy);
            }
            Step::NoPolicy(index) => {
                let known = world.policies.remove(&name(index)).is_some();
                assert_eq!(engine.remove_policy(&name(index)), known);
            }
            Step::Subject(index) => engine.add_subject(pod_id(index)),
            Step::NoSubject(index) => engine.remove_subject(pod_id(index)),
            Step::HostSubject => engine.add_subject(Identity::HOST),
            Step::Settle => engine.settle(),
            Step::TakeDelta => {
                twin.apply(&engine.take_delta());
                twin.assert_holds(&engine);
                saved = None;
            }
            Step::Begin => {
                twin.apply(&engine.take_delta());
                engine.begin();
                saved = Some(world.clone());
            }
            Step::Rollback => {
                if let Some(before) = saved.take() {
                    engine.rollback();
                    world = before;
                    assert_eq!(engine.take_delta(), []);
                }
            }
        }
    }
    twin.apply(&engine.take_delta());
    twin.assert_holds(&engine);
    (engine, world)
}

/// Entries with rule sets and port classes replaced by what they mean, so that engines with
/// different histories can be compared.
type Meaning = (String, Option<Vec<RuleRef>>, Option<Vec<RuleRef>>);

fn meaning(engine: &Engine, subject: Identity) -> Vec<Meaning> {
    let classes = engine.port_classes(subject);
    let mut all: Vec<Meaning> = engine
        .entries(subject)
        .into_iter()
        .map(|view| {
            let ports: Vec<PortRange> = match view.key.port {
                PortClass::Class(class) => classes
                    .iter()
                    .filter(|block| {
                        (block.direction, Some(block.protocol), block.class)
                            == (view.key.direction, view.key.protocol, class)
                    })
                    .map(|block| block.range)
                    .collect(),
                _ => vec![],
            };
            assert!(ports.is_empty() != matches!(view.key.port, PortClass::Class(_)), "a class has ports");
            let exact = match view.key.port {
                PortClass::Class(_) => PortClass::Any,
                other => other,
            };
            let slot = |slot: Option<crate::policy::map_state::Slot>| {
                slot.map(|slot| (slot.precedence, slot.action))
            };
            let key = (view.key.direction, view.key.identity, view.key.protocol, exact, ports);
            let rules = |slot: Option<crate::policy::map_state::Slot>| {
                slot.map(|slot| engine.rules_of(slot.rules).to_vec())
            };
            let (admin, normal) = (view.entry.admin, view.entry.normal);
            (format!("{key:?} {:?} {:?}", slot(admin), slot(normal)), rules(admin), rules(normal))
        })
        .collect();
    all.sort();
    all
}

fn flows() -> Vec<L4Flow> {
    let tcp = [1, 53, 78, 79, 80, 81, 82, 83, 87, 8000, 8080, 8100, 8101, 65535];
    let udp = [53, 80, 81, 8080];
    let tcp = tcp.into_iter().map(|port| flow(Protocol::Tcp, port));
    let udp = udp.into_iter().map(|port| flow(Protocol::Udp, port));
    let icmp = [8, 0].into_iter().map(|kind| flow(Protocol::Icmp, kind));
    tcp.chain(udp).chain(icmp).chain([flow(Protocol::Vrrp, 0)]).collect()
}

/// Of a number that nobody told us about, only the group is known: `groups` has tests for it.
fn judged_peers(engine: &Engine) -> impl Iterator<Item = Identity> {
    peer_ids().into_iter().filter(|id| {
        engine.identity(*id).is_some()
            || !(id.is_cluster_scope() || *id == Identity(Identity::REMOTE_NODE_MIN))
    })
}

/// Peers with one of these classes each. The class of an address has the port names of the pod there, so no peer
/// is seen with a class of other names.
fn judged_views(engine: &Engine, classes: &[Option<Identity>]) -> Vec<PeerView> {
    let names = |id: Identity| {
        engine.identity(id).map(|record| named_port::decode(&record.labels)).unwrap_or_default()
    };
    let classes = classes.iter().copied().cycle();
    let view = |(identity, class): (Identity, Option<Identity>)| PeerView {
        identity,
        address_class: class.filter(|class| names(*class) == names(identity)),
    };
    judged_peers(engine).zip(classes).map(view).collect()
}

proptest! {
    #[test]
    fn step_by_step_equals_at_once(
        options in arbitrary_options(),
        steps in prop::collection::vec(arbitrary_step(), 1..40),
    ) {
        let (mut engine, world) = run(options.clone(), steps);
        engine.recompute();
        prop_assert_eq!(engine.take_delta(), []);
        let mut fresh = Engine::new(options);
        engine.subjects().for_each(|subject| fresh.add_subject(subject));
        world.identities.values().for_each(|record| fresh.upsert_identity(record.clone()));
        world.policies.values().for_each(|policy| fresh.upsert_policy(policy.clone()));
        fresh.settle();
        for subject in engine.subjects() {
            prop_assert_eq!(engine.info(subject), fresh.info(subject));
            prop_assert_eq!(meaning(&engine, subject), meaning(&fresh, subject));
        }
    }

    #[test]
    fn verdicts_are_those_of_the_rules(
        options in arbitrary_options(),
        steps in prop::collection::vec(arbitrary_step(), 1..40),
        classes in prop::collection::vec(prop::option::of(prop::sample::select(class_ids())), 16),
    ) {
        let (engine, world) = run(options, steps);
        for subject in engine.subjects() {
            for direction in Direction::BOTH {
                for peer in judged_views(&engine, &classes) {
                    for flow in flows() {
                        let verdict = engine.decide(subject, direction, peer, flow);
                        let wanted = world.judge(subject, direction, peer, flow);
                        prop_assert_eq!(
                            verdict.outcome, wanted, "{} {} {:?} {:?} {:?}", subject, direction, peer, flow, verdict
                        );
                        let explained = engine.explain(subject, direction, peer, flow);
                        if let crate::policy::decision::Because::Rules(rules) = &verdict.because {
                            let decided = explained.matching.iter().filter(|m| m.decided).count();
                            prop_assert_eq!(decided, rules.len());
                        }
                        prop_assert_eq!(explained.decision, verdict);
                    }
                }
            }
        }
    }

    #[test]
    fn a_snapshot_knows_what_the_engine_knows_about_layer_7(
        options in arbitrary_options(),
        steps in prop::collection::vec(arbitrary_step(), 1..40),
        classes in prop::collection::vec(prop::option::of(prop::sample::select(class_ids())), 16),
    ) {
        let (mut engine, _) = run(options, steps);
        engine.settle();
        let snapshot = Snapshot { sides: engine.l7_sides(), ..Snapshot::default() };
        let text = serde_json::to_string(&snapshot).unwrap();
        let snapshot: Snapshot = serde_json::from_str(&text).unwrap();
        for subject in engine.subjects() {
            for direction in Direction::BOTH {
                for peer in judged_views(&engine, &classes) {
                    for flow in flows() {
                        let wanted = engine.l7(subject, direction, peer, flow);
                        match snapshot.policy(subject, direction, peer, flow) {
                            Some(policy) => prop_assert_eq!(policy, wanted, "{} {:?} {:?}", subject, peer, flow),
                            None => prop_assert!(!matches!(wanted.outcome, Outcome::Redirect(_))),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn deny_beats_any_allow_whatever_their_prefixes_and_ports(
        deny_prefix in prop::sample::select(PREFIXES.to_vec()),
        allows in prop::collection::vec((prop::sample::select(PREFIXES.to_vec()), arbitrary_port()), 0..6),
        deny_ports in prop::collection::vec(arbitrary_port(), 0..3),
        at in 0..PREFIXES.len(),
    ) {
        let cidr = |text: &str| Peers::OneOf(vec![Peer::Cidr(cidr_set(text, &[]))]);
        let mut rules = vec![egress(Action::Deny, cidr(deny_prefix), &deny_ports)];
        rules.extend(allows.iter().map(|(prefix, port)| egress(Action::Allow, cidr(prefix), std::slice::from_ref(port))));
        rules.push(egress(Action::Allow, Peers::Any, &[]));
        let mut engine = with(vec![policy("p", vec![spec(rules)])]);
        let record = cidr_identity(at as u32, Some(PREFIXES[at]), &[]);
        let id = record.id;
        engine.upsert_identity(record);
        engine.settle();
        let denied: ipnet::IpNet = deny_prefix.parse().unwrap();
        let inside = denied.contains(&PREFIXES[at].parse::<ipnet::IpNet>().unwrap());
        for flow in flows() {
            let covered = deny_ports.is_empty() || deny_ports.iter().any(|port| match port {
                PortMatch::Range(protocol, range) => *protocol == flow.protocol && range.contains(flow.port),
                PortMatch::Protocol(protocol) => *protocol == flow.protocol,
                PortMatch::IcmpType(_, kind) => flow == self::flow(Protocol::Icmp, u16::from(*kind)),
                PortMatch::Named(..) => false,
            });
            let verdict = engine.decide(SERVER, Direction::Egress, id.into(), flow).outcome;
            prop_assert_eq!(verdict == Outcome::Deny, inside && covered, "{:?}", flow);
        }
    }
}
