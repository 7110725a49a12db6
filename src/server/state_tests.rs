use std::time::UNIX_EPOCH;

use tokio::sync::broadcast::error::TryRecvError;

use super::super::tests::support::{Lines, pod_labels};
use super::*;
use crate::model::Kind;
use crate::store::{OpenOptions, Store};

struct World {
    directory: tempfile::TempDir,
    now: Arc<Mutex<std::time::SystemTime>>,
}

const GRACE: Duration = Duration::from_secs(60);

impl World {
    fn new() -> World {
        let now = Arc::new(Mutex::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        World { directory: tempfile::tempdir().unwrap(), now }
    }

    fn open(&self) -> State {
        self.open_with(None)
    }

    fn open_with(&self, max_pages: Option<u32>) -> State {
        let options = OpenOptions { max_pages, ..OpenOptions::new(self.directory.path().join("state.db")) };
        let objects = ObjectStore::new(Store::open(&options).unwrap(), Arc::new(Lines));
        let now = self.now.clone();
        let view = ViewOptions { cluster_name: "test".into(), ..ViewOptions::default() };
        State::open(objects, view, Arc::new(move || *now.lock()), GRACE).unwrap()
    }
}

fn apply(state: &State, text: &str) -> Applied {
    state.apply(text, ApplyMode::Commit).unwrap()
}

/// What an agent knows after it has followed a stream.
#[derive(Debug, Default, PartialEq)]
struct Mirror {
    revision: u64,
    objects: BTreeMap<ObjectRef, Arc<str>>,
    identities: BTreeMap<Identity, Labels>,
    nodes: BTreeMap<String, Vec<std::net::IpAddr>>,
}

impl Mirror {
    fn take(&mut self, update: &Update) {
        if update.kind == UpdateKind::Snapshot {
            self.objects.clear();
        }
        if update.kind != UpdateKind::Change {
            self.identities.clear();
            self.nodes.clear();
        }
        self.revision = update.revision;
        for reference in &update.deletes {
            self.objects.remove(reference);
        }
        let upserts = update.upserts.iter();
        self.objects.extend(upserts.map(|object| (object.reference.clone(), object.manifest.clone())));
        for id in &update.removed_identities {
            self.identities.remove(id);
        }
        for (labels, id) in &update.identities {
            assert_eq!(self.identities.insert(*id, labels.clone()), None, "{id} was given twice");
        }
        self.nodes.extend(update.nodes.iter().map(|peer| (peer.name.clone(), peer.addresses.clone())));
        for name in &update.removed_nodes {
            self.nodes.remove(name);
        }
    }

    fn follow((snapshot, updates): &mut Subscription, mirror: &mut Mirror) {
        mirror.take(snapshot);
        loop {
            match updates.try_recv() {
                Ok(update) => mirror.take(&update),
                Err(TryRecvError::Empty) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn an_update_carries_the_identities_that_its_pods_need() {
    let world = World::new();
    let state = world.open();
    let (_, mut updates) = state.subscribe(None).unwrap();
    apply(&state, "namespace shop\npod shop/a 10.0.0.1 web\npod shop/b 10.0.0.2 web\n");
    let update = updates.try_recv().unwrap();
    assert_eq!(update.identities.len(), 1, "two replicas share one");
    let (labels, id) = &update.identities[0];
    assert!(id.is_cluster_scope());
    assert_eq!(*labels, pod_labels("shop", "web"));
    assert_eq!((update.revision, update.upserts.len()), (1, 3));
}

#[test]
fn snapshot_and_updates_together_are_the_state_whenever_the_stream_starts() {
    let world = World::new();
    let state = world.open();
    let mut early = state.subscribe(None).unwrap();
    apply(&state, "namespace shop\npod shop/a 10.0.0.1 web\n");
    let mut middle = state.subscribe(None).unwrap();
    apply(&state, "pod shop/b 10.0.0.2 db\n");
    state.join("n1", [1; 32]).unwrap();
    let report = NodeReport {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        realized_revision: Some(2),
        version: "x".into(),
    };
    assert!(state.report("n1", report, None).unwrap());
    state.delete(&ObjectRef::new(Kind::Pod, "shop", "a")).unwrap().unwrap();
    *world.now.lock() += GRACE;
    state.collect().unwrap();
    let mut late = state.subscribe(None).unwrap();
    let mut mirrors = [Mirror::default(), Mirror::default(), Mirror::default()];
    for (subscription, mirror) in [&mut early, &mut middle, &mut late].into_iter().zip(&mut mirrors) {
        Mirror::follow(subscription, mirror);
    }
    assert_eq!(mirrors[0], mirrors[2]);
    assert_eq!(mirrors[1], mirrors[2]);
    assert_eq!((mirrors[2].objects.len(), mirrors[2].identities.len(), mirrors[2].nodes.len()), (2, 1, 1));
}

#[test]
fn a_stream_resumes_from_a_revision_of_the_same_history_only() {
    let world = World::new();
    let state = world.open();
    apply(&state, "namespace a\n");
    apply(&state, "namespace b\n");
    let (all, _) = state.subscribe(None).unwrap();
    assert_eq!((all.kind, all.upserts.len()), (UpdateKind::Snapshot, 2));
    let (rest, _) = state.subscribe(Some((&all.epoch, 1))).unwrap();
    assert_eq!((rest.kind, rest.revision, rest.upserts.len()), (UpdateKind::Resumed, 2, 1));
    for (epoch, revision) in [("another", 1), (&*all.epoch, 3)] {
        assert_eq!(state.subscribe(Some((epoch, revision))).unwrap().0.kind, UpdateKind::Snapshot);
    }
}

#[test]
fn state_and_numbers_survive_a_restart() {
    let world = World::new();
    let state = world.open();
    apply(&state, "namespace shop\npod shop/a 10.0.0.1 web\npod shop/b 10.0.0.2 db\n");
    state.join("n1", [1; 32]).unwrap();
    let asked = state.allocate("n1", &[pod_labels("shop", "extra")]).unwrap();
    let (before, _) = state.subscribe(None).unwrap();
    drop(state);
    let state = world.open();
    let (after, _) = state.subscribe(None).unwrap();
    assert_eq!(after, before);
    assert!(state.is_current("n1", &[1; 32]) && !state.is_current("n1", &[2; 32]));
    assert_eq!(state.allocate("n2", &[pod_labels("shop", "extra")]).unwrap(), asked);
    assert_eq!(state.identities().iter().filter(|row| row.released.is_some()).count(), 0);
}

#[test]
fn what_the_view_refuses_is_not_stored_and_nobody_hears_of_it() {
    let world = World::new();
    let state = world.open();
    apply(&state, "namespace shop\npod shop/a 10.0.0.1 web\n");
    let (_, mut updates) = state.subscribe(None).unwrap();
    let error = state.apply("pod shop/thief 10.0.0.1 web\n", ApplyMode::Commit).unwrap_err();
    assert!(matches!(error, ApplyError::Rejected(_)), "{error}");
    assert!(updates.try_recv().is_err());
    assert_eq!(state.objects().store().revision().unwrap(), 1);
}

#[test]
fn a_dry_run_changes_nothing_that_a_later_apply_could_notice() {
    let world = World::new();
    let state = world.open();
    apply(&state, "namespace shop\n");
    let dry = state.apply("pod shop/a 10.0.0.1 web\n", ApplyMode::DryRun).unwrap();
    assert_eq!(dry.results.len(), 1);
    // If the dry run's pod were still known, this address would be taken.
    apply(&state, "pod shop/b 10.0.0.1 web\n");
    assert_eq!(state.subscribe(None).unwrap().0.upserts.len(), 2);
}

/// The agents alone knew, after the fact: whoever applied the policy heard nothing.
#[test]
fn policies_whose_rules_are_too_large_together_are_told_of_where_they_are_applied() {
    let world = World::new();
    let state = world.open();
    apply(&state, "namespace shop\npod shop/a 10.0.0.1 web\n");
    assert_eq!(apply(&state, "policy shop/one 100\n").warnings, []);
    assert_eq!(apply(&state, "policy shop/small 5\n").warnings, []);
    let dry = state.apply("policy shop/two 100\n", ApplyMode::DryRun).unwrap();
    let applied = apply(&state, "policy shop/two 100\n");
    assert_eq!(dry.warnings, applied.warnings);
    let [warning] = &applied.warnings[..] else { panic!("{:?}", applied.warnings) };
    let two = ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "two");
    assert_eq!(warning.object, Some(two.to_string()));
    assert_eq!(warning.path.as_deref(), Some("spec.ingress[0]"));
    for words in ["ingress, port 80: nothing passes", "too large together", "CiliumNetworkPolicy shop/one"] {
        assert!(warning.message.contains(words), "{warning}");
    }
    state.delete(&two).unwrap();
    assert_eq!(apply(&state, "policy shop/small 6\n").warnings, []);
}

#[test]
fn a_full_disk_leaves_store_and_view_in_step() {
    let world = World::new();
    let state = world.open_with(Some(100));
    apply(&state, "namespace shop\n");
    let mut subscription = state.subscribe(None).unwrap();
    let big = format!("pod shop/a 10.0.0.1 {}\n", "x".repeat(1 << 20));
    let error = state.apply(&big, ApplyMode::Commit).unwrap_err();
    let ApplyError::Rejected(problems) = &error else { panic!("the identity comes first: {error}") };
    assert!(problems[0].message.contains("no space left"), "{error}");
    let big = format!("# {}\nnamespace big\npod shop/c 10.0.0.1 web\n", "x".repeat(1 << 20));
    let error = state.apply(&big, ApplyMode::Commit).unwrap_err();
    assert!(matches!(&error, ApplyError::Store(StoreError::Full { .. })), "{error}");
    apply(&state, "pod shop/b 10.0.0.1 web\n");
    let mut mirror = Mirror::default();
    Mirror::follow(&mut subscription, &mut mirror);
    let mut fresh = Mirror::default();
    Mirror::follow(&mut state.subscribe(None).unwrap(), &mut fresh);
    assert_eq!(mirror, fresh);
    assert_eq!(fresh.objects.len(), 2);
}

#[test]
fn a_removed_node_lets_go_of_its_numbers_and_its_name() {
    let world = World::new();
    let state = world.open();
    assert!(state.join("n1", [1; 32]).unwrap());
    assert!(state.join("n1", [1; 32]).unwrap(), "the same key may come again");
    assert!(!state.join("n1", [2; 32]).unwrap());
    state.allocate("n1", &[pod_labels("shop", "web")]).unwrap();
    assert!(state.remove_node("n1").unwrap());
    assert!(!state.remove_node("n1").unwrap());
    assert!(state.identities()[0].released.is_some());
    assert!(!state.is_current("n1", &[1; 32]));
    assert!(state.join("n1", [2; 32]).unwrap());
}

#[test]
fn whoever_asks_first_the_same_labels_have_one_number() {
    let world = World::new();
    let state = world.open();
    let sets: Vec<Labels> = (0..50).map(|n| pod_labels("shop", &format!("app-{n}"))).collect();
    let answers: Vec<Vec<Identity>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|node| {
                let (state, sets) = (&state, &sets);
                scope.spawn(move || {
                    let mut ids = vec![Identity::UNKNOWN; sets.len()];
                    for step in 0..sets.len() {
                        let index = (step * (2 * node + 1) + node) % sets.len();
                        let asked = state.allocate(&format!("n{node}"), &sets[index..=index]).unwrap();
                        ids[index] = asked[0];
                    }
                    for (index, id) in ids.iter_mut().enumerate().filter(|(_, id)| **id == Identity::UNKNOWN)
                    {
                        *id = state.allocate("late", &sets[index..=index]).unwrap()[0];
                    }
                    ids
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|ids| *ids == answers[0]));
    assert_eq!(answers[0].iter().collect::<BTreeSet<_>>().len(), sets.len());
}

#[test]
fn a_report_says_which_numbers_a_node_still_needs() {
    let world = World::new();
    let state = world.open();
    state.join("n1", [1; 32]).unwrap();
    let ids = state.allocate("n1", &[pod_labels("shop", "a"), pod_labels("shop", "b")]).unwrap();
    let report = NodeReport { addresses: vec![], realized_revision: None, version: String::new() };
    let released = || -> Vec<Identity> {
        state.identities().iter().filter(|row| row.released.is_some()).map(|row| row.id).collect()
    };
    state.report("n1", report.clone(), None).unwrap();
    assert_eq!(released(), vec![], "saying nothing is not saying none");
    state.report("n1", report.clone(), Some(&[ids[1]].into())).unwrap();
    assert_eq!(released(), ids[..1]);
    state.report("n1", report, Some(&BTreeSet::new())).unwrap();
    assert_eq!(released(), ids);
}
