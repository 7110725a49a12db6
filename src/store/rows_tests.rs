use proptest::prelude::*;

use super::super::OpenOptions;
use super::*;

fn store(directory: &tempfile::TempDir) -> Store {
    Store::open(&OpenOptions::new(directory.path().join("state.db"))).unwrap()
}

fn policy(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::NetworkPolicy, "shop", name)
}

fn put(store: &Store, names: &[&str], manifest: &str) -> u64 {
    let manifest: Arc<str> = manifest.into();
    let upserts = names.iter().map(|name| (policy(name), manifest.clone())).collect();
    store.write_objects(ObjectWrite { upserts, deletes: Vec::new() }).unwrap()
}

fn remove(store: &Store, name: &str) -> u64 {
    store.write_objects(ObjectWrite { upserts: Vec::new(), deletes: vec![policy(name)] }).unwrap()
}

#[test]
fn one_transaction_has_one_revision_and_the_text_is_kept_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let text = "ingress: []   # empty, not absent\negress:\n";
    assert_eq!(put(&store, &["a", "b"], text), 1);
    assert_eq!(put(&store, &["b"], "other"), 2);
    let objects = store.objects().unwrap();
    assert_eq!(objects.revision, 2);
    assert_eq!(&*objects.upserts[0].manifest, text);
    assert_eq!((objects.upserts[0].revision, objects.upserts[0].generation), (1, 1));
    assert_eq!((objects.upserts[1].revision, objects.upserts[1].generation), (2, 2));
}

#[test]
fn an_empty_transaction_has_no_revision() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    assert_eq!(put(&store, &["a"], "x"), 1);
    assert_eq!(store.write_objects(ObjectWrite::default()).unwrap(), 1);
}

#[test]
fn objects_of_one_list_share_one_text_and_unused_texts_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    put(&store, &["a", "b"], "list");
    let objects = store.objects().unwrap().upserts;
    assert_eq!(objects[0].manifest.as_ptr(), objects[1].manifest.as_ptr());
    let texts = |store: &Store| -> usize {
        store
            .read("count", |tx| Ok(tx.query_row("SELECT count(*) FROM manifest", [], |row| row.get(0))?))
            .unwrap()
    };
    put(&store, &["a"], "alone");
    assert_eq!(texts(&store), 2);
    remove(&store, "b");
    assert_eq!(texts(&store), 1);
}

#[test]
fn revisions_of_the_future_and_of_the_forgotten_past_are_not_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    put(&store, &["a"], "x");
    assert_eq!(store.changes_since(2).unwrap(), None);
    let many: Vec<ObjectRef> = (0..=KEPT_DELETIONS).map(|n| policy(&format!("p{n}"))).collect();
    for chunk in many.chunks(1000) {
        let upserts = chunk.iter().map(|reference| (reference.clone(), Arc::from("x"))).collect();
        store.write_objects(ObjectWrite { upserts, deletes: Vec::new() }).unwrap();
    }
    let before = store.revision().unwrap();
    store.write_objects(ObjectWrite { upserts: Vec::new(), deletes: many[..1].to_vec() }).unwrap();
    store.write_objects(ObjectWrite { upserts: Vec::new(), deletes: many[1..].to_vec() }).unwrap();
    assert_eq!(store.changes_since(before).unwrap(), None, "one tombstone is lost");
    let resumed = store.changes_since(before + 1).unwrap().unwrap();
    assert_eq!(resumed.deletes.len(), many.len() - 1);
}

#[test]
fn a_full_disk_leaves_objects_and_revision_alone() {
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions { max_pages: Some(64), ..OpenOptions::new(directory.path().join("state.db")) };
    let store = Store::open(&options).unwrap();
    put(&store, &["a"], "x");
    let big: Arc<str> = "y".repeat(1 << 20).into();
    let upserts = vec![(policy("b"), Arc::from("small")), (policy("c"), big)];
    let error = store.write_objects(ObjectWrite { upserts, deletes: vec![policy("a")] }).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    let objects = store.objects().unwrap();
    assert_eq!((objects.revision, objects.upserts.len()), (1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A watcher that resumes from any revision arrives where one that reads everything does.
    #[test]
    fn resuming_anywhere_leads_to_the_same_state(
        steps in prop::collection::vec((0usize..6, any::<bool>()), 1..20),
        from in 0usize..20,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let names = ["a", "b", "c", "d", "e", "f"];
        let from = from.min(steps.len());
        let mut state = BTreeMap::new();
        let mut seen = 0;
        for (index, (name, delete)) in steps.iter().enumerate() {
            if index == from {
                let snapshot = store.objects().unwrap();
                seen = snapshot.revision;
                state = snapshot.upserts.into_iter().map(|o| (o.reference.clone(), o)).collect();
            }
            if *delete {
                remove(&store, names[*name]);
            } else {
                put(&store, &[names[*name]], &format!("text {index}"));
            }
        }
        let changes = store.changes_since(seen).unwrap().unwrap();
        for deleted in changes.deletes {
            state.remove(&deleted.reference);
        }
        for object in changes.upserts {
            state.insert(object.reference.clone(), object);
        }
        let everything: BTreeMap<_, _> =
            store.objects().unwrap().upserts.into_iter().map(|o| (o.reference.clone(), o)).collect();
        prop_assert_eq!(state, everything);
    }
}
