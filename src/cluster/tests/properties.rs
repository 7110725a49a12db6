//! Random histories: however a state was reached, it is the same state, and the deltas made it.

use proptest::prelude::*;

use super::super::delta::{
    EndpointChange, IpcacheEntry, NodeSettings, Presence, ServiceEntry, ServiceFrontend,
};
use super::*;
use crate::fqdn::Learned;
use crate::policy::decision::Outcome;
use crate::policy::engine::L4Flow;
use crate::policy::l7::DnsPattern;
use crate::policy::map_state::{PolicyEntry, PolicyInfo, PolicyKey, PortClass, PortClassRange, SubjectDelta};
use crate::policy::oracle;
use crate::policy::rule::{CidrGroupRef, GroupSelect, ServiceRef};

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Change>),
    /// Seconds that pass, then an answer.
    Learn(u64, Learned),
}

fn a_peer() -> impl Strategy<Value = Peer> {
    let peers = vec![
        Peer::Pods(selector(&[("app", "x")])),
        Peer::Pods(selector(&[("pod-template-hash", "1")])),
        Peer::Pods(selector(&[("k8s:io.cilium.k8s.namespace.labels.team", "b")])),
        Peer::Cidr(cidr("192.0.0.0/8", &["192.0.2.0/24"])),
        Peer::Cidr(cidr("192.0.2.0/30", &[])),
        Peer::Cidr(cidr("10.0.0.0/8", &[])),
        Peer::Address(cidr("10.244.0.0/16", &["10.244.1.0/31"])),
        Peer::Address(cidr("0.0.0.0/0", &[])),
        Peer::Fqdn(DnsPattern::Name("a.example".into())),
        Peer::Fqdn(DnsPattern::Pattern("*.example".into())),
        Peer::CidrGroup(CidrGroupRef {
            groups: GroupSelect::Name("g".into()),
            except: vec![net("192.0.2.2/32")],
        }),
        Peer::Service(ServiceRef::Name { namespace: Some("a".into()), name: "s".into() }),
        Peer::Entity(crate::policy::rule::Entity::KubeApiserver),
        Peer::Nodes(selector(&[("node:zone", "node2")])),
    ];
    proptest::sample::select(peers)
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let ports = proptest::sample::select(vec![
        Ports::Any,
        tcp("http"),
        Ports::OneOf(vec![PortMatch::Range(Protocol::Tcp, crate::model::PortRange::new(80, 90).unwrap())]),
        Ports::OneOf(vec![PortMatch::Range(Protocol::Tcp, crate::model::PortRange::new(85, 99).unwrap())]),
    ]);
    let direction = proptest::sample::select(Direction::BOTH.to_vec());
    let action = proptest::sample::select(vec![Action::Allow, Action::Allow, Action::Deny]);
    (direction, action, proptest::collection::vec(a_peer(), 0..3), ports).prop_map(
        |(direction, action, peers, ports)| {
            // A port name resolves by the identity of the destination, which an address class has not.
            let has_address = peers.iter().any(|peer| matches!(peer, Peer::Address(_)));
            let ports = if has_address && ports == tcp("http") { Ports::Any } else { ports };
            // `toFQDNs` exists in egress allow rules only.
            if peers.iter().any(|peer| matches!(peer, Peer::Fqdn(_))) {
                return rule(Direction::Egress, Action::Allow, peers, ports);
            }
            rule(direction, action, peers, ports)
        },
    )
}

fn a_change() -> impl Strategy<Value = Change> {
    let namespaces = || proptest::sample::select(vec!["a", "b"]);
    let nodes = || proptest::sample::select(vec![LOCAL, "node2"]);
    let names = || proptest::sample::select(vec!["p", "q", "r"]);
    let labels = proptest::sample::select(vec![
        vec![("app", "x")],
        vec![("app", "y"), ("pod-template-hash", "1")],
        vec![("app", "x"), ("pod-template-hash", "2")],
        vec![("io.kubernetes.pod.namespace", "a")],
    ]);
    let addresses = proptest::sample::select(vec!["10.244.1.0", "10.244.1.1", "10.50.0.1", "192.0.2.1"]);
    let port = proptest::sample::select(vec![None, Some(80), Some(8080)]);
    let pods = (namespaces(), names(), nodes(), addresses, labels, port).prop_map(
        |(namespace, name, node, address, labels, port)| {
            let mut pod = a_pod(&format!("{namespace}/{name}"), node, &[address], &labels);
            pod.ports.extend(port.map(|port| ContainerPort {
                name: Some("http".into()),
                port,
                protocol: Protocol::Tcp,
            }));
            upsert(Object::Pod(pod))
        },
    );
    let subjects =
        proptest::sample::select(vec![vec![], vec![("app", "x")], vec![("pod-template-hash", "2")]]);
    let policies = (names(), subjects, proptest::collection::vec(a_rule(), 0..3))
        .prop_map(|(name, subject, rules)| policy(name, &subject, rules));
    let rest = vec![
        namespace("a", &[]),
        namespace("a", &[("team", "b")]),
        namespace("b", &[("team", "b")]),
        delete(Kind::Namespace, "", "b"),
        node(LOCAL, &["172.18.0.11"]),
        node("node2", &["172.18.0.12", "192.0.2.1"]),
        node("node2", &["172.18.0.12"]),
        delete(Kind::Node, "", "node2"),
        group("g", &[], &["192.0.2.0/29"]),
        group("g", &[], &["192.0.2.2/32", "198.51.100.0/24"]),
        delete(Kind::CiliumCIDRGroup, "", "g"),
        service("a/s", "10.96.0.1", Some(&[("app", "x")])),
        service("a/s", "10.96.0.2", None),
        service("b/s", "10.96.0.2", Some(&[("app", "y")])),
        delete(Kind::Service, "a", "s"),
        delete(Kind::Service, "b", "s"),
        slice("a/s-1", "s", &["192.0.2.1", "198.51.100.7"]),
        delete(Kind::EndpointSlice, "a", "s-1"),
        slice("default/kubernetes", "kubernetes", &["192.0.2.1", "172.18.0.12"]),
        slice("default/kubernetes", "kubernetes", &["198.51.100.7"]),
        delete(Kind::EndpointSlice, "default", "kubernetes"),
    ];
    prop_oneof![
        5 => pods,
        2 => (namespaces(), names()).prop_map(|(namespace, name)| delete(Kind::Pod, namespace, name)),
        4 => policies,
        1 => names().prop_map(delete_policy),
        4 => proptest::sample::select(rest),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let names = proptest::sample::select(vec!["a.example", "b.example", "c"]);
    let addresses = proptest::sample::select(vec!["192.0.2.1", "192.0.2.2", "198.51.100.7", "10.50.0.1"]);
    prop_oneof![
        4 => proptest::collection::vec(a_change(), 1..4).prop_map(Step::Apply),
        1 => (0u64..6, names, addresses, 1u64..12).prop_map(|(wait, name, address, ttl)| {
            let addresses = vec![(ip(address), Duration::from_secs(ttl))];
            Step::Learn(wait, Learned { name: name.into(), addresses })
        }),
    ]
}

/// The tables of a datapath that applies deltas.
#[derive(Debug, Default, PartialEq)]
struct Tables {
    ipcache: BTreeMap<IpNet, IpcacheEntry>,
    classes: BTreeMap<IpNet, Identity>,
    infos: BTreeMap<Identity, PolicyInfo>,
    entries: BTreeMap<(Identity, PolicyKey), PolicyEntry>,
    /// Like the kernel's trie: one class for a range.
    ranges: BTreeMap<(Identity, Direction, Protocol, crate::model::PortRange), u32>,
    identities: BTreeSet<Identity>,
    endpoints: BTreeMap<String, (Vec<IpAddr>, Identity)>,
    services: BTreeMap<ServiceFrontend, ServiceEntry>,
    node: Option<NodeSettings>,
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Tables {
    fn apply(&mut self, delta: &Delta) {
        delta.ipcache.iter().for_each(|(prefix, entry)| set(&mut self.ipcache, *prefix, *entry));
        delta.address_classes.iter().for_each(|(prefix, id)| set(&mut self.classes, *prefix, *id));
        delta.policies.iter().for_each(|policy| self.policy(policy));
        for (identity, presence) in &delta.identities {
            match presence {
                Presence::Known => self.identities.insert(*identity),
                Presence::Gone => self.identities.remove(identity),
            };
        }
        for change in &delta.endpoints {
            match change {
                EndpointChange::Upsert { pod, addresses, identity } => {
                    self.endpoints.insert(pod.clone(), (addresses.clone(), *identity));
                }
                EndpointChange::Remove { pod } => {
                    self.endpoints.remove(pod);
                }
            }
        }
        delta.services.iter().for_each(|(frontend, entry)| set(&mut self.services, *frontend, entry.clone()));
        if let Some(node) = &delta.node {
            self.node = Some(node.clone());
        }
    }

    fn policy(&mut self, delta: &SubjectDelta) {
        let subject = delta.subject;
        if delta.removed {
            self.infos.remove(&subject);
            self.entries.retain(|(other, _), _| *other != subject);
            self.ranges.retain(|(other, ..), _| *other != subject);
            return;
        }
        self.infos.insert(subject, delta.info);
        let key = |range: &PortClassRange| (subject, range.direction, range.protocol, range.range);
        self.ranges.extend(delta.class_upserts.iter().map(|range| (key(range), range.class)));
        self.entries.extend(delta.upserts.iter().map(|(key, entry)| ((subject, *key), *entry)));
        for key in &delta.deletes {
            self.entries.remove(&(subject, *key));
        }
        for range in &delta.class_deletes {
            self.ranges.remove(&key(range));
        }
    }
}

/// A state in words that do not depend on the order in which numbers were given out.
fn in_words(view: &View) -> BTreeSet<String> {
    let who = |id: Identity| match view.engine().identity(id) {
        Some(record) => format!("[{} {:?}]", record.labels, record.kind),
        None => format!("[{id}]"),
    };
    let mut tables = Tables::default();
    tables.apply(&view.full());
    let mut words = BTreeSet::new();
    for (prefix, entry) in &tables.ipcache {
        words.insert(format!(
            "{prefix} is {} {:?} {:?}",
            who(entry.identity),
            entry.tunnel_endpoint,
            entry.class
        ));
    }
    for (prefix, class) in &tables.classes {
        words.insert(format!("{prefix} has class {}", who(*class)));
    }
    for ((subject, key), entry) in &tables.entries {
        let port = match key.port {
            PortClass::Class(class) => {
                let of_class = tables.ranges.iter().filter(|((other, direction, ..), number)| {
                    (other, direction, **number) == (subject, &key.direction, class)
                });
                let mut ranges: Vec<String> =
                    of_class.map(|((_, _, protocol, range), _)| format!("{protocol:?} {range:?}")).collect();
                ranges.sort();
                ranges.join(" ")
            }
            port => format!("{port:?}"),
        };
        let slots = [entry.admin, entry.normal].map(|slot| {
            slot.map(|slot| {
                let mut rules: Vec<String> =
                    view.engine().rules_of(slot.rules).iter().map(|rule| format!("{rule:?}")).collect();
                rules.sort();
                (slot.action, rules)
            })
        });
        let (subject, peer) = (who(*subject), who(key.identity));
        words.insert(format!("{subject} {:?} {peer} {:?} {port} {slots:?}", key.direction, key.protocol));
    }
    for (subject, info) in &tables.infos {
        let flags = [info.ingress, info.egress].map(|info| info.default_deny);
        words.insert(format!("{} denies by default {flags:?}", who(*subject)));
    }
    for (pod, (addresses, identity)) in &tables.endpoints {
        words.insert(format!("{pod} {addresses:?} {}", who(*identity)));
    }
    words.extend(tables.services.iter().map(|service| format!("{service:?}")));
    words.insert(format!("{:?}", tables.node));
    words.extend(view.identities().map(|record| format!("{} {:?}", record.labels, record.kind)));
    words
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Incremental equals from scratch, in any order of start-up; deltas add up to the full state;
    /// a refused transaction leaves no trace.
    #[test]
    fn the_history_does_not_matter(
        steps in proptest::collection::vec(a_step(), 1..14),
        order in proptest::collection::vec(any::<u16>(), 40),
        chunk in 1usize..9,
    ) {
        let mut view = view();
        let mut objects: BTreeMap<ObjectRef, Change> = BTreeMap::new();
        let mut tables = Tables::default();
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::Apply(changes) => {
                    let before = state(&view);
                    match view.apply(changes.clone()) {
                        Ok(delta) => {
                            tables.apply(&delta);
                            for change in changes {
                                match &change {
                                    Change::Upsert(resource) => objects.insert(resource.reference(), change),
                                    Change::Delete(reference) => objects.remove(reference),
                                };
                            }
                        }
                        Err(_) => prop_assert_eq!(state(&view), before),
                    }
                }
                Step::Learn(wait, answer) => {
                    now += Duration::from_secs(wait);
                    tables.apply(&view.expire(now));
                    tables.apply(&view.learn(now, &answer));
                }
            }
        }
        // Where every transaction was refused, this one carries what the start made.
        tables.apply(&view.apply(vec![]).unwrap());
        let mut full = Tables::default();
        full.apply(&view.full());
        prop_assert_eq!(&tables, &full);

        let mut all: Vec<Change> = objects.into_values().collect();
        all.sort_by_cached_key(|change| {
            let Change::Upsert(resource) = change else { return 0 };
            let reference = resource.reference();
            let seed = reference.path().bytes().fold(reference.kind as usize, |sum, byte| (sum * 31 + usize::from(byte)) % 9973);
            order[seed % order.len()]
        });
        let mut scratch = super::view();
        scratch.restore_names(now, Duration::ZERO, &view.names_snapshot(now));
        for part in all.chunks(chunk) {
            prop_assert!(scratch.apply(part.to_vec()).is_ok());
        }
        scratch.apply(vec![]).unwrap();
        prop_assert_eq!(in_words(&scratch), in_words(&view));
    }

    /// CVE-2023-41333: a policy of namespace `a` governs no pod of another one, whatever labels
    /// that pod gives itself.
    #[test]
    fn a_namespaced_policy_never_selects_outside_its_namespace(
        keys in proptest::collection::vec(proptest::sample::select(vec![
            "io.kubernetes.pod.namespace",
            "io.cilium.k8s.namespace.labels.team",
            "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
            "io.cilium.k8s.policy.serviceaccount",
            "io.sluice.named-port.http",
            "k8s:io.kubernetes.pod.namespace",
            "app",
        ]), 0..5),
    ) {
        let labels: Vec<(&str, &str)> = keys.iter().map(|key| (*key, "a")).collect();
        let mut view = small_cluster();
        view.apply(vec![
            pod("b/evil", LOCAL, &["10.244.1.1"], &labels),
            policy("p", &[], vec![]),
            policy("q", &[("app", "a")], vec![]),
        ]).unwrap();
        let identity = identity_of(&view, "10.244.1.1");
        prop_assert!(identity.is_cluster_scope());
        let labels = view.engine().identity(identity).unwrap().labels.clone();
        for policy in view.engine().policies() {
            let Subject::Pods(Some(subject)) = &policy.specs[0].subject else { unreachable!() };
            prop_assert!(!subject.matches(&labels), "{labels}");
        }
    }
}

/// The same objects for the evaluator that reads the semantics word by word.
fn oracle(objects: &BTreeMap<ObjectRef, Change>, view: &View, now: Duration) -> oracle::State {
    let mut state = oracle::State { now, ..oracle::State::default() };
    state.switches.cluster = "default".into();
    state.switches.pod_ranges = options().pod_cidrs;
    for change in objects.values() {
        let Change::Upsert(resource) = change.clone() else { continue };
        match resource {
            Resource::Object(Object::Namespace(o)) => {
                state.namespaces.insert(o.name.clone(), o);
            }
            Resource::Object(Object::Node(o)) => {
                state.nodes.insert(o.name.clone(), o);
            }
            Resource::Object(Object::Pod(o)) => {
                state.pods.insert((o.namespace.clone(), o.name.clone()), o);
            }
            Resource::Object(Object::Service(o)) => {
                state.services.insert((o.namespace.clone(), o.name.clone()), o);
            }
            Resource::Object(Object::EndpointSlice(o)) => {
                state.slices.insert((o.namespace.clone(), o.name.clone()), o);
            }
            Resource::CidrGroup(o) => {
                state.groups.insert(o.name.clone(), o);
            }
            Resource::Policy(o) => {
                state.policies.insert(o.object.clone(), o);
            }
            Resource::Secret(_) => {}
        }
    }
    for (name, addresses) in view.names().names() {
        state.answers.extend(addresses.iter().map(|(address, expires)| oracle::Answer {
            node: LOCAL.into(),
            name: name.to_string(),
            address: *address,
            expires: *expires,
        }));
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What this node decides is what the semantics say, whoever talks to whom.
    #[test]
    fn verdicts_are_those_of_the_semantics(steps in proptest::collection::vec(a_step(), 1..14)) {
        let mut view = view();
        let mut objects: BTreeMap<ObjectRef, Change> = BTreeMap::new();
        let mut now = Duration::ZERO;
        let start = Step::Apply(cluster_objects());
        for step in std::iter::once(start).chain(steps) {
            match step {
                Step::Apply(mut changes) => {
                    // Without its namespace a pod is closed: there is nothing to compare.
                    changes.retain(|change| *change != delete(Kind::Namespace, "", "b"));
                    if view.apply(changes.clone()).is_ok() {
                        for change in changes {
                            match &change {
                                Change::Upsert(resource) => objects.insert(resource.reference(), change),
                                Change::Delete(reference) => objects.remove(reference),
                            };
                        }
                    }
                }
                Step::Learn(wait, answer) => {
                    now += Duration::from_secs(wait);
                    view.expire(now);
                    view.learn(now, &answer);
                }
            }
        }
        let oracle = oracle(&objects, &view, now);
        let addresses = [
            "10.244.1.0", "10.244.1.1", "10.50.0.1", "10.60.0.1", "192.0.2.1", "192.0.2.2",
            "192.0.2.9", "192.7.0.1", "198.51.100.7", "172.18.0.11", "172.18.0.12",
        ];
        for (source, destination) in addresses.iter().flat_map(|a| addresses.iter().map(move |b| (ip(a), ip(b)))) {
            // Whether `ipBlock` admits an address of the cluster that is nobody's is left to the engine.
            if [source, destination].iter().any(|a| view.resolve(*a).identity == Identity::UNKNOWN) {
                continue;
            }
            for port in [80, 87, 95, 8080] {
                let sides = view.decide(source, destination, L4Flow { protocol: Protocol::Tcp, port });
                let flow = oracle::Flow { source, destination, protocol: Protocol::Tcp, port };
                let verdict = oracle.judge(&flow);
                for (ours, theirs) in [(&sides.egress, &verdict.egress), (&sides.ingress, &verdict.ingress)] {
                    let Some(ours) = ours else { continue };
                    let Some(theirs) = theirs.as_ref().map(|side| &side.decision) else {
                        return Err(TestCaseError::fail(format!("nobody is governed: {flow:?}")));
                    };
                    prop_assert_eq!(ours.outcome, theirs.outcome, "{:?}: {:?} or {:?}", flow, ours, theirs);
                    if ours.outcome == Outcome::Deny {
                        prop_assert_eq!(&ours.because, &theirs.because, "{:?}", flow);
                    }
                }
            }
        }
    }
}
