//! Objects, the manifests that hold them, and the tombstones that let a watcher resume.
//!
//! Every transaction that changes an object has one revision, one higher than the last.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction};

use super::connection::Store;
use super::error::{JobError, StoreError};
use crate::model::{Kind, ObjectRef};

/// Tombstones that are kept. A watcher that comes back from further away gets everything anew.
const KEPT_DELETIONS: i64 = 10_000;

/// An object as it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    pub reference: ObjectRef,
    /// The text of the document that holds it; a `List` holds other objects as well, which share it.
    pub manifest: Arc<str>,
    /// The revision that created or changed it last.
    pub revision: u64,
    /// 1 when created, one more with each change.
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedObject {
    pub reference: ObjectRef,
    pub revision: u64,
}

/// One transaction. A reference occurs at most once, in one of the two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectWrite {
    pub upserts: Vec<(ObjectRef, Arc<str>)>,
    pub deletes: Vec<ObjectRef>,
}

/// What happened after some revision, up to and including `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectChanges {
    pub revision: u64,
    pub upserts: Vec<StoredObject>,
    pub deletes: Vec<DeletedObject>,
}

impl Store {
    /// The revision of the newest transaction; 0 before the first.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read.
    pub fn revision(&self) -> Result<u64, StoreError> {
        self.read("read the revision", |tx| counter(tx, "revision"))
    }

    /// A random name of this file's history: revisions of two epochs cannot be compared.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read; `Invalid` when the file has none.
    pub fn epoch(&self) -> Result<String, StoreError> {
        self.setting("epoch")?.ok_or_else(|| StoreError::invalid("the epoch", "it is missing"))
    }

    /// Every object, in the order of references, and the revision that they stand at.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read; `Invalid` for a kind that this release does not know.
    pub fn objects(&self) -> Result<ObjectChanges, StoreError> {
        self.read("read objects", |tx| {
            Ok(ObjectChanges {
                revision: counter(tx, "revision")?,
                upserts: upserts_after(tx, 0)?,
                deletes: Vec::new(),
            })
        })
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read.
    pub fn object(&self, reference: &ObjectRef) -> Result<Option<StoredObject>, StoreError> {
        let reference = reference.clone();
        self.read("read an object", move |tx| {
            let found = tx
                .prepare_cached(
                    "SELECT text, revision, generation FROM object JOIN manifest ON manifest.id = manifest
                     WHERE kind = ?1 AND namespace = ?2 AND name = ?3",
                )?
                .query_row(key(&reference), |row| Ok((row.get::<_, Arc<str>>(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            Ok(found.map(|(manifest, revision, generation)| StoredObject {
                reference,
                manifest,
                revision,
                generation,
            }))
        })
    }

    /// Objects of a kind and namespace whose names begin with `prefix`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read.
    pub fn objects_named(
        &self,
        kind: Kind,
        namespace: &str,
        prefix: &str,
    ) -> Result<Vec<ObjectRef>, StoreError> {
        let from = ObjectRef::new(kind, namespace, prefix);
        self.read("read names of objects", move |tx| {
            // The last character that there is stands behind every name that goes on after the prefix.
            let mut select = tx.prepare_cached(
                "SELECT name FROM object
                 WHERE kind = ?1 AND namespace = ?2 AND name BETWEEN ?3 AND ?3 || char(1114111)",
            )?;
            let rows = select.query_map(key(&from), |row| row.get::<_, String>(0))?;
            let found = rows.map(|name| Ok(ObjectRef { name: name?.into(), ..from.clone() }));
            found.collect::<Result<Vec<ObjectRef>, JobError>>()
        })
    }

    /// What happened after `revision`. `None` when that is not known any more, or not yet: then only
    /// [`Store::objects`] helps.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read.
    pub fn changes_since(&self, revision: u64) -> Result<Option<ObjectChanges>, StoreError> {
        self.read("read changes", move |tx| {
            let newest = counter(tx, "revision")?;
            if revision > newest || revision < counter(tx, "deletions_from")? {
                return Ok(None);
            }
            let mut select = tx.prepare_cached(
                "SELECT kind, namespace, name, revision FROM deletion WHERE revision > ?1 ORDER BY revision",
            )?;
            let rows = select.query_map([revision], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            let mut deletes = Vec::new();
            for row in rows {
                let (kind, namespace, name, revision): (_, String, String, _) = row?;
                deletes.push(DeletedObject { reference: reference(&kind, &namespace, &name)?, revision });
            }
            Ok(Some(ObjectChanges { revision: newest, upserts: upserts_after(tx, revision)?, deletes }))
        })
    }

    /// Stores a transaction and returns its revision. An empty one changes nothing and returns the
    /// newest revision.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write; then nothing of the transaction is stored.
    pub fn write_objects(&self, write: ObjectWrite) -> Result<u64, StoreError> {
        self.write("store objects", move |tx| {
            let revision = counter(tx, "revision")?;
            if write.upserts.is_empty() && write.deletes.is_empty() {
                return Ok(revision);
            }
            let revision = revision + 1;
            set_counter(tx, "revision", revision)?;
            upsert(tx, &write.upserts, revision)?;
            delete(tx, &write.deletes, revision)?;
            tx.prepare_cached(
                "DELETE FROM manifest WHERE NOT EXISTS
                 (SELECT 1 FROM object WHERE object.manifest = manifest.id)",
            )?
            .execute([])?;
            trim_deletions(tx)?;
            Ok(revision)
        })
    }
}

fn upsert(tx: &Transaction<'_>, upserts: &[(ObjectRef, Arc<str>)], revision: u64) -> Result<(), JobError> {
    let mut put = tx.prepare_cached(
        "INSERT INTO object (kind, namespace, name, manifest, revision, generation)
         VALUES (?1, ?2, ?3, ?4, ?5, 1)
         ON CONFLICT (kind, namespace, name) DO UPDATE
         SET manifest = excluded.manifest, revision = excluded.revision, generation = generation + 1",
    )?;
    let mut bury =
        tx.prepare_cached("DELETE FROM deletion WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?;
    // Objects of one `List` share the allocation, so its address finds the row without hashing again.
    let mut known: BTreeMap<*const u8, i64> = BTreeMap::new();
    for (reference, manifest) in upserts {
        let row = match known.get(&manifest.as_ptr()) {
            Some(row) => *row,
            None => {
                let row = manifest_row(tx, manifest)?;
                known.insert(manifest.as_ptr(), row);
                row
            }
        };
        let (kind, namespace, name) = key(reference);
        put.execute((&kind, &namespace, &name, row, revision))?;
        bury.execute((kind, namespace, name))?;
    }
    Ok(())
}

fn manifest_row(tx: &Transaction<'_>, text: &str) -> Result<i64, JobError> {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let found = tx
        .prepare_cached("SELECT id FROM manifest WHERE digest = ?1")?
        .query_row([digest.as_ref()], |row| row.get(0))
        .optional()?;
    if let Some(row) = found {
        return Ok(row);
    }
    Ok(tx
        .prepare_cached("INSERT INTO manifest (digest, text) VALUES (?1, ?2)")?
        .insert((digest.as_ref(), text))?)
}

fn delete(tx: &Transaction<'_>, deletes: &[ObjectRef], revision: u64) -> Result<(), JobError> {
    let mut remove =
        tx.prepare_cached("DELETE FROM object WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?;
    let mut note = tx.prepare_cached(
        "INSERT INTO deletion (kind, namespace, name, revision) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (kind, namespace, name) DO UPDATE SET revision = excluded.revision",
    )?;
    for reference in deletes {
        let (kind, namespace, name) = key(reference);
        if remove.execute((&kind, &namespace, &name))? > 0 {
            note.execute((kind, namespace, name, revision))?;
        }
    }
    Ok(())
}

/// Keeps the newest tombstones and remembers from where on they are complete.
fn trim_deletions(tx: &Transaction<'_>) -> Result<(), JobError> {
    let oldest_lost: Option<u64> = tx
        .prepare_cached("SELECT revision FROM deletion ORDER BY revision DESC LIMIT 1 OFFSET ?1")?
        .query_row([KEPT_DELETIONS], |row| row.get(0))
        .optional()?;
    if let Some(revision) = oldest_lost {
        tx.prepare_cached("DELETE FROM deletion WHERE revision <= ?1")?.execute([revision])?;
        set_counter(tx, "deletions_from", revision)?;
    }
    Ok(())
}

fn upserts_after(tx: &Transaction<'_>, revision: u64) -> Result<Vec<StoredObject>, JobError> {
    let mut select = tx.prepare_cached(
        "SELECT kind, namespace, name, manifest, revision, generation FROM object WHERE revision > ?1
         ORDER BY kind, namespace, name",
    )?;
    let mut text = tx.prepare_cached("SELECT text FROM manifest WHERE id = ?1")?;
    // One allocation for each manifest, however many objects share it.
    let mut texts: BTreeMap<i64, Arc<str>> = BTreeMap::new();
    let rows = select.query_map([revision], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, String>(2)?,
            row.get::<_, i64>(3)?,
            row.get(4)?,
            row.get(5)?,
        ))
    })?;
    let mut objects = Vec::new();
    for row in rows {
        let (kind, namespace, name, manifest, revision, generation) = row?;
        let manifest = match texts.get(&manifest) {
            Some(text) => text.clone(),
            None => {
                let found: Arc<str> = text.query_row([manifest], |row| row.get(0))?;
                texts.insert(manifest, found.clone());
                found
            }
        };
        objects.push(StoredObject {
            reference: reference(&kind, &namespace, &name)?,
            manifest,
            revision,
            generation,
        });
    }
    Ok(objects)
}

fn key(reference: &ObjectRef) -> (String, String, String) {
    (reference.kind.to_string(), reference.namespace.to_string(), reference.name.to_string())
}

fn reference(kind: &str, namespace: &str, name: &str) -> Result<ObjectRef, StoreError> {
    let kind: Kind = serde_json::from_value(serde_json::Value::from(kind))
        .map_err(|error| StoreError::invalid("an object's kind", error))?;
    Ok(ObjectRef::new(kind, namespace, name))
}

pub(super) fn counter(tx: &Transaction<'_>, name: &str) -> Result<u64, JobError> {
    let value = tx
        .prepare_cached("SELECT value FROM counter WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(value.unwrap_or(0))
}

pub(super) fn set_counter(tx: &Transaction<'_>, name: &str, value: u64) -> Result<(), JobError> {
    tx.prepare_cached(
        "INSERT INTO counter (name, value) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )?
    .execute((name, value))?;
    Ok(())
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
