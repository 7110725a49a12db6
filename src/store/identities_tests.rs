use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::super::{OpenOptions, StoreAllocator};
use super::*;
use crate::identity::IdentityAllocator;
use crate::model::Label;

struct World {
    _directory: tempfile::TempDir,
    options: OpenOptions,
    now: Arc<Mutex<SystemTime>>,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let options = OpenOptions::new(directory.path().join("state.db"));
        let now = Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        World { _directory: directory, options, now }
    }

    fn open(&self) -> IdentityStore {
        let now = self.now.clone();
        let store = Store::open(&self.options).unwrap();
        IdentityStore::open(store, Arc::new(move || *now.lock()), DEFAULT_GRACE).unwrap()
    }

    fn pass(&self, time: Duration) {
        *self.now.lock() += time;
    }
}

fn labels(app: &str) -> Labels {
    [Label::k8s("app", app), Label::k8s("io.kubernetes.pod.namespace", "shop")].into_iter().collect()
}

fn get(identities: &mut IdentityStore, app: &str) -> u32 {
    identities.allocate(&labels(app), &Holder::Local).unwrap().0.0
}

#[test]
fn the_same_labels_have_the_same_number_before_and_after_a_restart() {
    let world = World::new();
    let mut identities = world.open();
    let (web, db) = (get(&mut identities, "web"), get(&mut identities, "db"));
    assert_eq!((web, db), (256, 257));
    assert_eq!(get(&mut identities, "web"), web);
    let before: Vec<_> = identities.rows().cloned().collect();
    drop(identities);
    let mut identities = world.open();
    assert_eq!(identities.rows().cloned().collect::<Vec<_>>(), before);
    assert_eq!((get(&mut identities, "db"), get(&mut identities, "web")), (db, web));
}

#[test]
fn a_released_number_keeps_its_labels_for_the_grace_period_and_no_longer() {
    let world = World::new();
    let mut identities = world.open();
    let web = get(&mut identities, "web");
    identities.release(Identity(web), &Holder::Local).unwrap();
    world.pass(DEFAULT_GRACE - Duration::from_secs(1));
    assert_eq!(identities.collect().unwrap(), IdentityChange::default());
    assert_eq!(get(&mut identities, "web"), web, "it comes back within the grace period");
    identities.release(Identity(web), &Holder::Local).unwrap();
    drop(identities);
    let mut identities = world.open();
    world.pass(DEFAULT_GRACE);
    assert_eq!(identities.collect().unwrap().removed, vec![Identity(web)]);
    assert_eq!(identities.find(&labels("web")), None);
    assert_ne!(get(&mut identities, "other"), web, "numbers are taken in turn");
}

#[test]
fn a_clock_that_goes_back_frees_nothing_early() {
    let world = World::new();
    let mut identities = world.open();
    let web = get(&mut identities, "web");
    identities.release(Identity(web), &Holder::Local).unwrap();
    *world.now.lock() -= Duration::from_secs(1_000_000);
    assert_eq!(identities.collect().unwrap().removed, vec![]);
}

#[test]
fn an_identity_is_released_by_its_last_holder() {
    let world = World::new();
    let mut identities = world.open();
    let (a, b) = (Holder::Node("a".into()), Holder::Node("b".into()));
    let (id, change) = identities.allocate(&labels("web"), &a).unwrap();
    assert_eq!(change.added, vec![(labels("web"), id)]);
    assert_eq!(identities.allocate(&labels("web"), &b).unwrap(), (id, IdentityChange::default()));
    identities.release_holder(&a).unwrap();
    identities.release(id, &a).unwrap();
    assert_eq!(identities.get(id).unwrap().released, None);
    identities.release_holder(&b).unwrap();
    assert!(identities.get(id).unwrap().released.is_some());
}

#[test]
fn holding_exactly_lets_go_of_the_rest() {
    let world = World::new();
    let mut identities = world.open();
    identities.hold_exactly(&[labels("a"), labels("b")], &Holder::Server).unwrap();
    let change = identities.hold_exactly(&[labels("b"), labels("c"), labels("c")], &Holder::Server).unwrap();
    assert_eq!(change.added.len(), 1);
    let released: Vec<_> = identities.rows().filter(|row| row.released.is_some()).collect();
    assert_eq!(released.len(), 1);
    assert_eq!(released[0].labels, labels("a"));
}

#[test]
fn holding_only_some_numbers_lets_go_of_the_rest_and_takes_up_released_ones() {
    let world = World::new();
    let mut identities = world.open();
    let node = Holder::Node("a".into());
    let ids: Vec<Identity> =
        ["x", "y", "z"].map(|app| identities.allocate(&labels(app), &node).unwrap().0).to_vec();
    identities.release(ids[2], &node).unwrap();
    identities.hold_only(&[ids[1], ids[2], Identity(999)].into(), &node).unwrap();
    let released: Vec<bool> = ids.iter().map(|id| identities.get(*id).unwrap().released.is_some()).collect();
    assert_eq!(released, [true, false, false]);
}

#[test]
fn a_restarted_agent_releases_what_it_does_not_ask_for_again() {
    let world = World::new();
    let mut identities = world.open();
    get(&mut identities, "kept");
    let gone = get(&mut identities, "gone");
    drop(identities);
    let mut allocator = StoreAllocator::new(world.open(), Holder::Local);
    allocator.allocate(&labels("kept")).unwrap();
    allocator.release_unclaimed().unwrap();
    let released: Vec<_> =
        allocator.identities().rows().filter(|row| row.released.is_some()).map(|row| row.id.0).collect();
    assert_eq!(released, vec![gone]);
}

#[test]
fn uses_are_counted() {
    let world = World::new();
    let mut allocator = StoreAllocator::new(world.open(), Holder::Local);
    let id = allocator.allocate(&labels("web")).unwrap();
    allocator.allocate(&labels("web")).unwrap();
    allocator.release(id);
    assert_eq!(allocator.identities().get(id).unwrap().released, None);
    allocator.release(id);
    assert!(allocator.identities().get(id).unwrap().released.is_some());
}

#[test]
fn the_space_ends_with_an_error_and_a_freed_number_is_found_again() {
    let world = World::new();
    let mut identities = world.open();
    let sets: Vec<Labels> =
        (Identity::CLUSTER_MIN..=Identity::CLUSTER_MAX).map(|n| labels(&format!("app-{n}"))).collect();
    let (ids, _) = identities.allocate_all(&sets, &Holder::Local).unwrap();
    assert_eq!((ids[0].0, ids[ids.len() - 1].0), (Identity::CLUSTER_MIN, Identity::CLUSTER_MAX));
    let error = identities.allocate(&labels("one-more"), &Holder::Local).unwrap_err();
    assert!(matches!(error, IdentityStoreError::Exhausted), "{error}");
    identities.release(ids[1000], &Holder::Local).unwrap();
    assert!(identities.allocate(&labels("one-more"), &Holder::Local).is_err(), "still in its grace period");
    world.pass(DEFAULT_GRACE);
    identities.collect().unwrap();
    assert_eq!(get(&mut identities, "one-more"), ids[1000].0);
}

#[test]
fn empty_and_reserved_labels_have_no_cluster_identity() {
    let world = World::new();
    let mut identities = world.open();
    for set in [Labels::default(), [Label::reserved("host")].into_iter().collect()] {
        let error = identities.allocate(&set, &Holder::Local).unwrap_err();
        assert!(matches!(error, IdentityStoreError::NotAPod(_)), "{error}");
    }
}

#[test]
fn a_full_disk_gives_no_number_that_would_be_forgotten() {
    let world = World::new();
    let options = OpenOptions { max_pages: Some(48), ..world.options.clone() };
    let store = Store::open(&options).unwrap();
    let mut identities = IdentityStore::open(store, super::super::system_clock(), DEFAULT_GRACE).unwrap();
    let mut given = Vec::new();
    let error = loop {
        match identities.allocate(&labels(&format!("{}-{}", given.len(), "x".repeat(1000))), &Holder::Local) {
            Ok((id, _)) => given.push(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, IdentityStoreError::Store(StoreError::Full { .. })), "{error}");
    drop(identities);
    let kept: Vec<_> = world.open().rows().map(|row| row.id).collect();
    assert_eq!(kept, given);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is asked, released and collected: one set never has two numbers, a number never two
    /// sets, nothing that is held goes away, and the file always says what the memory says.
    #[test]
    fn random_histories_keep_the_assignment_one_to_one(
        steps in prop::collection::vec((0u8..4, 0usize..5, 0u64..1200), 1..40),
    ) {
        let world = World::new();
        let mut identities = world.open();
        let mut held = BTreeMap::new();
        for (what, app, seconds) in steps {
            let app = format!("app-{app}");
            match what {
                0 | 1 => {
                    let id = get(&mut identities, &app);
                    if let Some(before) = held.insert(app, id) {
                        prop_assert_eq!(before, id);
                    }
                }
                2 => {
                    if let Some(id) = held.remove(&app) {
                        identities.release(Identity(id), &Holder::Local).unwrap();
                    }
                }
                _ => {
                    world.pass(Duration::from_secs(seconds));
                    identities.collect().unwrap();
                }
            }
            for (app, id) in &held {
                prop_assert_eq!(identities.find(&labels(app)), Some(Identity(*id)));
            }
            prop_assert_eq!(identities.by_labels.len(), identities.rows.len());
        }
        let memory: Vec<_> = identities.rows().cloned().collect();
        drop(identities);
        let file: Vec<_> = world.open().rows().cloned().collect();
        prop_assert_eq!(memory, file);
    }
}
