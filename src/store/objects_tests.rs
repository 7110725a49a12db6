use super::super::OpenOptions;
use super::*;
use crate::model::{EndpointSlice, Kind, Namespace, Object};

/// A parser of lines `name[=label]`: each is a namespace. `---` separates documents, `!` is invalid.
struct Lines;

impl ManifestParser for Lines {
    fn parse(&self, text: &str) -> Result<Parsed, Vec<Problem>> {
        let mut parsed = Parsed::default();
        let mut problems = Vec::new();
        for document in text.split("---\n") {
            let manifest: Arc<str> = document.into();
            for line in document.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let (name, label) = line.split_once('=').unwrap_or((line, ""));
                if name.contains('!') {
                    problems.push(Problem { message: format!("{name} is invalid"), ..Problem::default() });
                }
                let labels = [("label".to_owned(), label.to_owned())].into_iter().collect();
                parsed.objects.push(ParsedObject {
                    manifest: manifest.clone(),
                    resource: Resource::Object(Object::Namespace(Namespace {
                        name: name.to_owned(),
                        labels,
                    })),
                });
            }
        }
        if problems.is_empty() { Ok(parsed) } else { Err(problems) }
    }
}

fn objects(directory: &tempfile::TempDir) -> ObjectStore {
    let store = Store::open(&OpenOptions::new(directory.path().join("state.db"))).unwrap();
    ObjectStore::new(store, Arc::new(Lines))
}

fn apply(objects: &ObjectStore, text: &str) -> Result<Applied, ApplyError> {
    objects.apply(text, ApplyMode::Commit, |_| Ok(()))
}

fn actions(applied: &Applied) -> Vec<Action> {
    applied.results.iter().map(|(_, action)| *action).collect()
}

fn namespace(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::Namespace, "", name)
}

#[test]
fn create_configure_unchanged_delete() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(&directory);
    let first = apply(&objects, "a\n---\nb=1\n").unwrap();
    assert_eq!((first.revision, actions(&first)), (1, vec![Action::Created; 2]));
    let second = apply(&objects, "a\n---\nb=2\n---\nc\n").unwrap();
    assert_eq!(actions(&second), [Action::Unchanged, Action::Configured, Action::Created]);
    assert_eq!((second.revision, second.changes.len()), (2, 2));
    let third = apply(&objects, "a\n").unwrap();
    assert_eq!((third.revision, actions(&third), third.changes.len()), (2, vec![Action::Unchanged], 0));
    let deleted = objects.delete(&namespace("a"), |_| Ok(())).unwrap().unwrap();
    assert_eq!((deleted.revision, deleted.changes), (3, vec![Change::Delete(namespace("a"))]));
    assert!(objects.delete(&namespace("a"), |_| Ok(())).unwrap().is_none());
    assert_eq!(objects.load().unwrap().resources.len(), 2);
}

#[test]
fn what_means_the_same_is_unchanged_though_written_differently() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(&directory);
    apply(&objects, "a\nb\n").unwrap();
    let again = apply(&objects, "# a comment\nb\n").unwrap();
    assert_eq!((again.revision, actions(&again)), (1, vec![Action::Unchanged]));
    assert_eq!(&*objects.store().object(&namespace("b")).unwrap().unwrap().manifest, "a\nb\n");
}

#[test]
fn one_invalid_object_rejects_all_and_every_problem_is_listed() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(&directory);
    let Err(ApplyError::Rejected(problems)) = apply(&objects, "a\n---\nb!\n---\nc!\n") else { panic!() };
    assert_eq!(problems.len(), 2);
    assert_eq!(objects.load().unwrap().resources, vec![]);
    assert_eq!(objects.store().revision().unwrap(), 0);
}

#[test]
fn a_name_twice_in_one_text_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Err(ApplyError::Rejected(problems)) = apply(&objects(&directory), "a\n---\nb\n---\na=2\n") else {
        panic!()
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object.as_deref(), Some("Namespace a"));
}

#[test]
fn a_dry_run_and_a_refused_admission_store_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(&directory);
    let dry = objects.apply("a\n", ApplyMode::DryRun, |_| Ok(())).unwrap();
    assert_eq!((dry.revision, actions(&dry)), (0, vec![Action::Created]));
    let no = || vec![Problem { message: "no".into(), ..Problem::default() }];
    assert!(objects.apply("a\n", ApplyMode::Commit, |_| Err(no())).is_err());
    assert_eq!(objects.store().revision().unwrap(), 0);
    apply(&objects, "a\n").unwrap();
    assert!(objects.delete(&namespace("a"), |_| Err(no())).is_err());
    assert_eq!(objects.load().unwrap().resources.len(), 1);
}

#[test]
fn a_stored_object_that_does_not_parse_stops_the_load_but_can_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(&directory);
    let write = ObjectWrite { upserts: vec![(namespace("a"), "a!\n".into())], deletes: Vec::new() };
    objects.store().write_objects(write).unwrap();
    let error = objects.load().unwrap_err();
    assert!(matches!(error, LoadError::Unreadable { .. }), "{error}");
    apply(&objects, "a\n").unwrap();
    assert_eq!(objects.load().unwrap().resources.len(), 1);
}

/// A parser of names, one a line: `name` is an EndpointSlice, `name*N` are Endpoints with N subsets.
struct Slices;

impl ManifestParser for Slices {
    fn parse(&self, text: &str) -> Result<Parsed, Vec<Problem>> {
        let manifest: Arc<str> = text.into();
        let slice = |(service, name): (&str, String)| ParsedObject {
            manifest: manifest.clone(),
            resource: Resource::Object(Object::EndpointSlice(EndpointSlice {
                namespace: "n".into(),
                name,
                service: service.into(),
                endpoints: Vec::new(),
                ports: Vec::new(),
            })),
        };
        let names = text.lines().flat_map(|line| match line.split_once('*') {
            None => vec![(line, line.to_owned())],
            Some((name, subsets)) => (1..=subsets.parse().unwrap())
                .map(|subset| (name, EndpointSlice::subset_name(name, subset)))
                .collect(),
        });
        Ok(Parsed { objects: names.map(slice).collect(), warnings: Vec::new() })
    }
}

fn slice(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::EndpointSlice, "n", name)
}

fn slices(directory: &tempfile::TempDir) -> ObjectStore {
    let store = Store::open(&OpenOptions::new(directory.path().join("state.db"))).unwrap();
    ObjectStore::new(store, Arc::new(Slices))
}

fn names(objects: &ObjectStore) -> Vec<String> {
    objects.load().unwrap().resources.iter().map(|resource| resource.reference().name.to_string()).collect()
}

#[test]
fn endpoints_of_a_slices_name_are_deleted_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let objects = slices(&directory);
    apply(&objects, "a*2\na\nab*1").unwrap();
    let endpoints = ObjectRef::new(Kind::Endpoints, "n", "a");
    let gone = objects.delete(&endpoints, |_| Ok(())).unwrap().unwrap();
    assert_eq!(gone.results, [(slice("a:1"), Action::Deleted), (slice("a:2"), Action::Deleted)]);
    assert_eq!(names(&objects), ["a", "ab:1"]);
    assert!(objects.delete(&endpoints, |_| Ok(())).unwrap().is_none());
}

/// The slices of subsets that are gone stayed, and with them backends that nothing described any more.
#[test]
fn endpoints_with_fewer_subsets_than_before_leave_no_slices_behind() {
    let directory = tempfile::tempdir().unwrap();
    let objects = slices(&directory);
    apply(&objects, "a*11\nab*2\na").unwrap();
    let fewer = apply(&objects, "a*1").unwrap();
    assert_eq!(fewer.results.len(), 11);
    assert_eq!(fewer.results[1], (slice("a:2"), Action::Deleted));
    let deletes = fewer.changes.iter().filter(|change| matches!(change, Change::Delete(_))).count();
    assert_eq!(deletes, 10, "the view hears of it, and an agent by the update");
    assert_eq!(names(&objects), ["a", "a:1", "ab:1", "ab:2"]);

    // What a release before this one left behind goes, though what is applied is no news.
    let upserts = vec![(slice("a:3"), "a*3".into())];
    objects.store().write_objects(ObjectWrite { upserts, deletes: Vec::new() }).unwrap();
    assert_eq!(actions(&apply(&objects, "a*1").unwrap()), [Action::Configured, Action::Deleted]);
    assert_eq!(names(&objects), ["a", "a:1", "ab:1", "ab:2"]);
}

#[test]
fn endpoints_are_deleted_whole_where_a_slice_is_missing_or_has_the_name_of_an_earlier_release() {
    let directory = tempfile::tempdir().unwrap();
    let objects = slices(&directory);
    apply(&objects, "a*3\nb.2").unwrap();
    objects.delete(&slice("a:1"), |_| Ok(())).unwrap().unwrap();
    let upserts = ["b", "b.3"].map(|name| (slice(name), "b*3".into())).into();
    objects.store().write_objects(ObjectWrite { upserts, deletes: Vec::new() }).unwrap();
    for name in ["a", "b"] {
        objects.delete(&ObjectRef::new(Kind::Endpoints, "n", name), |_| Ok(())).unwrap().unwrap();
    }
    assert_eq!(names(&objects), ["b.2"], "a slice that has the name by right stays");
}

#[test]
fn slices_that_an_earlier_release_named_are_read_and_go_when_they_are_applied_again() {
    let directory = tempfile::tempdir().unwrap();
    let objects = slices(&directory);
    let text: Arc<str> = "a*2".into();
    let upserts = ["a", "a.2"].map(|name| (slice(name), text.clone())).into();
    objects.store().write_objects(ObjectWrite { upserts, deletes: Vec::new() }).unwrap();
    assert_eq!(names(&objects), ["a", "a.2"]);
    let applied = apply(&objects, "a*2").unwrap();
    assert_eq!(actions(&applied), [Action::Deleted, Action::Created, Action::Deleted, Action::Created]);
    assert_eq!(names(&objects), ["a:1", "a:2"]);
    apply(&objects, "a\na*2").unwrap();
    assert_eq!(names(&objects), ["a", "a:1", "a:2"], "a slice that has the name by right stays");
}
