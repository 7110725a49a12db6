//! Applying manifests: parse, compare, judge, store; all of it or nothing.
//!
//! The embedded agent and the server share this. The parser is injected ([`ManifestParser`]) because
//! only the `k8s` room knows Kubernetes' types.

mod subsets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::connection::Store;
use super::error::StoreError;
use super::rows::{ObjectWrite, StoredObject};
use crate::cluster::{Change, Resource};
use crate::model::{EndpointSlice, ObjectRef};

/// Something that is wrong with a manifest, or worth saying about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `Kind namespace/name`, as far as it is known.
    pub object: Option<String>,
    /// 1-based position in the text that was applied.
    pub line: Option<u32>,
    pub column: Option<u32>,
    /// Field path such as `spec.ingress[0].fromCIDR[1]`.
    pub path: Option<String>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}:{}: ", self.column.unwrap_or(1))?;
        }
        for part in [&self.object, &self.path].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// One object of a manifest.
#[derive(Clone, Debug)]
pub struct ParsedObject {
    /// The document that holds it, as it was written. Parsing this text again yields the object
    /// again (and the other objects of a `List`, which share the allocation).
    pub manifest: Arc<str>,
    pub resource: Resource,
}

/// What a text holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    pub objects: Vec<ParsedObject>,
    pub warnings: Vec<Problem>,
}

/// Turns text into validated objects.
pub trait ManifestParser: Send + Sync {
    /// # Errors
    ///
    /// Every problem of every document; one invalid object refuses the whole text.
    fn parse(&self, text: &str) -> Result<Parsed, Vec<Problem>>;

    /// Where a field of an object is in `text`, or its nearest ancestor that is there; `None` when the text has no such
    /// object. A parser that knows no places finds none.
    fn place(&self, text: &str, object: &ObjectRef, path: &str) -> Option<Place> {
        let _ = (text, object, path);
        None
    }
}

/// A place in a text, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyMode {
    Commit,
    /// Everything but the last step.
    DryRun,
}

/// A transaction that was stored, or in a dry run would be.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The revision of the transaction; the newest one when nothing changed or in a dry run.
    pub revision: u64,
    /// In the order of the text.
    pub results: Vec<(ObjectRef, Action)>,
    pub warnings: Vec<Problem>,
    /// What really changed, for `cluster::View`.
    pub changes: Vec<Change>,
    /// The manifests of the upserts among `changes`, in the same order.
    pub manifests: Vec<(ObjectRef, Arc<str>)>,
}

impl Applied {
    /// Notes that an object goes, and gives it back.
    fn delete(&mut self, object: ObjectRef) -> ObjectRef {
        self.changes.push(Change::Delete(object.clone()));
        self.results.push((object.clone(), Action::Deleted));
        object
    }
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("rejected: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Rejected(Vec<Problem>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Stored objects, read back.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub revision: u64,
    pub resources: Vec<Resource>,
}

/// A stored object that this release cannot read. Leaving it out could open what it closed, so
/// nothing is loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "the stored {object} is not valid for this release: {}",
        problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unreadable { object: ObjectRef, problems: Vec<Problem> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The objects of a [`Store`], with a parser. Applies are serialised.
#[derive(Clone)]
pub struct ObjectStore {
    store: Store,
    parser: Arc<dyn ManifestParser>,
    serial: Arc<Mutex<()>>,
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore").field("store", &self.store).finish_non_exhaustive()
    }
}

impl ObjectStore {
    pub fn new(store: Store, parser: Arc<dyn ManifestParser>) -> ObjectStore {
        ObjectStore { store, parser, serial: Arc::default() }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The parser that stored manifests are read with.
    pub fn parser(&self) -> &dyn ManifestParser {
        &*self.parser
    }

    /// Everything that is stored.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; then nothing is loaded.
    pub fn load(&self) -> Result<Loaded, LoadError> {
        let stored = self.store.objects()?;
        let mut reader = Reader::new(&*self.parser);
        let resources =
            stored.upserts.iter().map(|object| reader.read(object)).collect::<Result<Vec<_>, _>>()?;
        Ok(Loaded { revision: stored.revision, resources })
    }

    /// Applies every object of `text` in one transaction with one revision. `admit` sees what would
    /// change after everything was parsed and before anything is stored, and may refuse it.
    ///
    /// An object is unchanged when its document, or else what the document says, is unchanged; the
    /// stored text is then left as it is.
    ///
    /// # Errors
    ///
    /// [`ApplyError`]; then nothing is stored.
    pub fn apply(
        &self,
        text: &str,
        mode: ApplyMode,
        admit: impl FnOnce(&[Change]) -> Result<(), Vec<Problem>>,
    ) -> Result<Applied, ApplyError> {
        let parsed = self.parser.parse(text).map_err(ApplyError::Rejected)?;
        duplicates(&parsed.objects)?;
        let _serial = self.serial.lock();
        let mut reader = Reader::new(&*self.parser);
        let mut applied = Applied {
            revision: self.store.revision()?,
            results: Vec::with_capacity(parsed.objects.len()),
            warnings: parsed.warnings,
            changes: Vec::new(),
            manifests: Vec::new(),
        };
        let mut deletes = Vec::new();
        let surplus = self.surplus(&parsed.objects, &reader)?;
        let shrunk: BTreeSet<ObjectRef> = surplus.iter().filter_map(EndpointSlice::made_of).collect();
        // The text of slices that stay would go on showing those that go.
        let is_shrunk =
            |slice: &ObjectRef| EndpointSlice::made_of(slice).is_some_and(|of| shrunk.contains(&of));
        for object in parsed.objects {
            let reference = object.resource.reference();
            let action = match self.store.object(&reference)? {
                None => Action::Created,
                Some(stored) if same(&stored, &object, &mut reader) && !is_shrunk(&reference) => {
                    Action::Unchanged
                }
                Some(_) => Action::Configured,
            };
            if action == Action::Created {
                deletes.extend(self.former(&reference, &reader)?.map(|former| applied.delete(former)));
            }
            if action != Action::Unchanged {
                applied.manifests.push((reference.clone(), object.manifest));
                applied.changes.push(Change::Upsert(object.resource));
            }
            applied.results.push((reference, action));
        }
        deletes.extend(surplus.into_iter().map(|surplus| applied.delete(surplus)));
        admit(&applied.changes).map_err(ApplyError::Rejected)?;
        if mode == ApplyMode::Commit {
            let write = ObjectWrite { upserts: applied.manifests.clone(), deletes };
            applied.revision = self.store.write_objects(write)?;
        }
        Ok(applied)
    }

    /// Deletes an object; `None` when there is none of that name.
    ///
    /// # Errors
    ///
    /// [`ApplyError`]; then nothing is deleted.
    pub fn delete(
        &self,
        reference: &ObjectRef,
        admit: impl FnOnce(&[Change]) -> Result<(), Vec<Problem>>,
    ) -> Result<Option<Applied>, ApplyError> {
        let _serial = self.serial.lock();
        let deletes = self.kept_as(reference, &Reader::new(&*self.parser))?;
        if deletes.is_empty() {
            return Ok(None);
        }
        let changes: Vec<Change> = deletes.iter().cloned().map(Change::Delete).collect();
        admit(&changes).map_err(ApplyError::Rejected)?;
        let results = deletes.iter().map(|gone| (gone.clone(), Action::Deleted)).collect();
        let write = ObjectWrite { upserts: Vec::new(), deletes };
        Ok(Some(Applied {
            revision: self.store.write_objects(write)?,
            results,
            warnings: Vec::new(),
            changes,
            manifests: Vec::new(),
        }))
    }
}

/// A name that occurs twice in one text is a slip, never "the last one wins".
fn duplicates(objects: &[ParsedObject]) -> Result<(), ApplyError> {
    let mut seen = BTreeSet::new();
    let problems: Vec<Problem> = objects
        .iter()
        .map(|object| object.resource.reference())
        .filter(|reference| !seen.insert(reference.clone()))
        .map(|reference| Problem {
            object: Some(reference.to_string()),
            path: Some("metadata.name".to_owned()),
            message: "the name occurs more than once in this text".to_owned(),
            ..Problem::default()
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(ApplyError::Rejected(problems)) }
}

fn same(stored: &StoredObject, new: &ParsedObject, reader: &mut Reader<'_>) -> bool {
    // What the stored text says may be unreadable for this release; then the new one replaces it.
    stored.manifest == new.manifest || reader.read(stored).is_ok_and(|old| old == new.resource)
}

/// What a manifest holds, or why it cannot be read.
type Content = Result<BTreeMap<ObjectRef, Resource>, Vec<Problem>>;

/// Parses each stored manifest once, however many objects it holds. Keeps what it parsed only where there is
/// more than one: most manifests hold one object, and a start reads tens of thousands of them.
pub struct Reader<'a> {
    parser: &'a dyn ManifestParser,
    parsed: BTreeMap<Arc<str>, Content>,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("manifests", &self.parsed.len()).finish_non_exhaustive()
    }
}

impl<'a> Reader<'a> {
    pub fn new(parser: &'a dyn ManifestParser) -> Reader<'a> {
        Reader { parser, parsed: BTreeMap::new() }
    }

    /// # Errors
    ///
    /// [`LoadError::Unreadable`] when the manifest does not parse or does not hold the object.
    pub fn read(&mut self, object: &StoredObject) -> Result<Resource, LoadError> {
        self.find(&object.reference, &object.manifest)
    }

    /// # Errors
    ///
    /// As [`Reader::read`].
    pub fn find(&mut self, reference: &ObjectRef, manifest: &Arc<str>) -> Result<Resource, LoadError> {
        if !self.parsed.contains_key(manifest) {
            let mut parsed = self.parser.parse(manifest).map(|parsed| parsed.objects);
            if let Ok(objects) = &mut parsed
                && let [only] = &objects[..]
                && only.resource.reference() == *reference
                && let Some(only) = objects.pop()
            {
                return Ok(only.resource);
            }
            let by_name = |object: ParsedObject| (object.resource.reference(), object.resource);
            let content = parsed.map(|objects| objects.into_iter().map(by_name).collect());
            self.parsed.insert(manifest.clone(), content);
        }
        let problems = match &self.parsed[manifest] {
            Ok(resources) => {
                match resources.get(reference).cloned().or_else(|| subsets::renamed(resources, reference)) {
                    Some(resource) => return Ok(resource),
                    None => vec![Problem {
                        message: "the stored text does not hold this object".to_owned(),
                        ..Problem::default()
                    }],
                }
            }
            Err(problems) => problems.clone(),
        };
        Err(LoadError::Unreadable { object: reference.clone(), problems })
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
