//! Numbers for label sets, as rows: the same set keeps its number across restarts, and a number that
//! nobody holds is given to another set only after a grace period.
//!
//! Everything is mirrored in memory and written through, so that a known set costs no transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use super::clock::{Clock, from_millis, to_millis};
use super::connection::Store;
use super::error::StoreError;
use super::rows::{counter, set_counter};
use crate::identity::AllocateError;
use crate::model::{Identity, Interner, Labels};

/// How long a released number is kept for its labels.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(15 * 60);

/// Numbers of the cluster scope.
const CAPACITY: usize = (Identity::CLUSTER_MAX - Identity::CLUSTER_MIN + 1) as usize;

/// Who needs an identity. It is released when the last holder lets go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The agent that embeds this store.
    Local,
    /// The server's own view of the cluster's pods.
    Server,
    /// A joined node, by name.
    Node(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Local => f.write_str("local"),
            Holder::Server => f.write_str("server"),
            Holder::Node(name) => write!(f, "node:{name}"),
        }
    }
}

impl Holder {
    fn parse(text: &str) -> Result<Holder, StoreError> {
        match text {
            "local" => Ok(Holder::Local),
            "server" => Ok(Holder::Server),
            text => match text.strip_prefix("node:") {
                Some(name) => Ok(Holder::Node(name.to_owned())),
                None => Err(StoreError::invalid("an identity's holder", format!("{text:?}"))),
            },
        }
    }
}

/// Who holds an identity: one mostly, so it needs no allocation of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(SmallVec<[Holder; 1]>);

impl Holders {
    pub fn contains(&self, holder: &Holder) -> bool {
        self.0.contains(holder)
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Holder> {
        self.0.iter()
    }

    fn insert(&mut self, holder: Holder) {
        if let Err(place) = self.0.binary_search(&holder) {
            self.0.insert(place, holder);
        }
    }

    fn remove(&mut self, holder: &Holder) {
        self.0.retain(|known| known != holder);
    }
}

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRow {
    pub id: Identity,
    pub labels: Labels,
    pub holders: Holders,
    /// When it was given to these labels, or taken up again after a release.
    pub last_used: SystemTime,
    /// When the last holder let go.
    pub released: Option<SystemTime>,
}

/// What a call changed in the set of assignments, for those who mirror it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityChange {
    pub added: Vec<(Labels, Identity)>,
    pub removed: Vec<Identity>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityStoreError {
    /// All numbers from 256 to 65535 are held or in their grace period.
    #[error("all {CAPACITY} identities of the cluster are in use or in their grace period")]
    Exhausted,
    /// Cluster identities are for pods, which always have a namespace label.
    #[error("labels {0:?} are no identity of a pod: they are empty or reserved")]
    NotAPod(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IdentityStoreError {
    /// The same in the words of the identity room.
    pub fn of(self, labels: &Labels) -> AllocateError {
        let labels = labels.clone();
        match self {
            IdentityStoreError::Exhausted => AllocateError::Exhausted { capacity: CAPACITY, labels },
            error => AllocateError::Unavailable { labels, reason: error.to_string() },
        }
    }
}

/// All assignments of a cluster.
pub struct IdentityStore {
    store: Store,
    clock: Clock,
    grace: Duration,
    by_labels: HashMap<Labels, u32>,
    rows: BTreeMap<u32, IdentityRow>,
    /// The number that was given last: numbers are taken in turn, so that one that became free is
    /// used again as late as possible.
    cursor: u32,
}

impl fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityStore").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl IdentityStore {
    /// Reads every assignment.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read; `Invalid` for a row that cannot be read.
    pub fn open(store: Store, clock: Clock, grace: Duration) -> Result<IdentityStore, StoreError> {
        let (cursor, rows) = store.read("read identities", |tx| {
            let mut rows = BTreeMap::new();
            let mut strings = Interner::default();
            let mut select = tx.prepare_cached("SELECT id, labels, last_used, released FROM identity")?;
            let found = select.query_map([], |row| {
                Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get::<_, Option<i64>>(3)?))
            })?;
            for row in found {
                let (id, labels, last_used, released) = row?;
                let labels = serde_json::from_str(&labels)
                    .map_err(|error| StoreError::invalid("an identity's labels", error))?;
                let labels = strings.labels(&labels);
                let row = IdentityRow {
                    id: Identity(id),
                    labels,
                    holders: Holders::default(),
                    last_used: from_millis(last_used),
                    released: released.map(from_millis),
                };
                rows.insert(id, row);
            }
            let mut select = tx.prepare_cached("SELECT id, holder FROM identity_holder")?;
            let found = select.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?)))?;
            for row in found {
                let (id, holder) = row?;
                if let Some(row) = rows.get_mut(&id) {
                    row.holders.insert(Holder::parse(&holder)?);
                }
            }
            Ok((counter(tx, "identity_cursor")?, rows))
        })?;
        let by_labels = rows.iter().map(|(id, row)| (row.labels.clone(), *id)).collect();
        let cursor = u32::try_from(cursor).unwrap_or(0);
        Ok(IdentityStore { store, clock, grace, by_labels, rows, cursor })
    }

    /// Every assignment, by number, those in their grace period included.
    pub fn rows(&self) -> impl Iterator<Item = &IdentityRow> {
        self.rows.values()
    }

    pub fn get(&self, id: Identity) -> Option<&IdentityRow> {
        self.rows.get(&id.0)
    }

    pub fn find(&self, labels: &Labels) -> Option<Identity> {
        self.by_labels.get(labels).map(|id| Identity(*id))
    }

    /// This store's copy of equal labels.
    pub fn shared(&self, labels: &Labels) -> Option<Labels> {
        self.by_labels.get_key_value(labels).map(|(labels, _)| labels.clone())
    }

    /// The identity of a label set, for `holder`: the one that it has, or a new one.
    ///
    /// # Errors
    ///
    /// [`IdentityStoreError`]; then nothing has changed.
    pub fn allocate(
        &mut self,
        labels: &Labels,
        holder: &Holder,
    ) -> Result<(Identity, IdentityChange), IdentityStoreError> {
        let (ids, change) = self.allocate_all(std::slice::from_ref(labels), holder)?;
        Ok((ids[0], change))
    }

    /// [`IdentityStore::allocate`] for many sets, in one transaction, in the order given.
    ///
    /// # Errors
    ///
    /// As [`IdentityStore::allocate`].
    pub fn allocate_all(
        &mut self,
        sets: &[Labels],
        holder: &Holder,
    ) -> Result<(Vec<Identity>, IdentityChange), IdentityStoreError> {
        let now = (self.clock)();
        let mut change = IdentityChange::default();
        let mut ids = Vec::with_capacity(sets.len());
        let mut taken: HashMap<&Labels, u32> = HashMap::new();
        let mut used: BTreeSet<u32> = BTreeSet::new();
        let mut cursor = self.cursor;
        let mut touched = Vec::new();
        for labels in sets {
            let known = self.by_labels.get(labels).or_else(|| taken.get(labels)).copied();
            let id = match known {
                Some(id) => id,
                None => {
                    if labels.is_empty() || labels.is_reserved() {
                        return Err(IdentityStoreError::NotAPod(labels.to_string()));
                    }
                    cursor = self.free_after(cursor, &used).ok_or(IdentityStoreError::Exhausted)?;
                    taken.insert(labels, cursor);
                    used.insert(cursor);
                    change.added.push((labels.clone(), Identity(cursor)));
                    cursor
                }
            };
            if !self.rows.get(&id).is_some_and(|row| row.holders.contains(holder)) {
                touched.push((id, labels.clone()));
            }
            ids.push(Identity(id));
        }
        if !touched.is_empty() {
            self.write_allocations(&touched, holder, cursor, now)?;
            self.cursor = cursor;
            for (id, labels) in touched {
                let row = self.rows.entry(id).or_insert_with(|| IdentityRow {
                    id: Identity(id),
                    labels: labels.clone(),
                    holders: Holders::default(),
                    last_used: now,
                    released: None,
                });
                row.holders.insert(holder.clone());
                row.last_used = now;
                row.released = None;
                self.by_labels.insert(labels, id);
            }
        }
        Ok((ids, change))
    }

    /// `holder` needs exactly these sets from now on: allocates what is new, lets go of the rest.
    ///
    /// # Errors
    ///
    /// As [`IdentityStore::allocate`]. What is new is stored before anything is released.
    pub fn hold_exactly(
        &mut self,
        sets: &[Labels],
        holder: &Holder,
    ) -> Result<IdentityChange, IdentityStoreError> {
        let (ids, change) = self.allocate_all(sets, holder)?;
        let keep: BTreeSet<u32> = ids.into_iter().map(|id| id.0).collect();
        self.release_where(holder, |id| !keep.contains(&id))?;
        Ok(change)
    }

    /// `holder` does not need the identity any more. Nothing happens if it did not hold it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn release(&mut self, id: Identity, holder: &Holder) -> Result<(), StoreError> {
        self.release_where(holder, |held| held == id.0)
    }

    /// `holder` needs exactly these of the assignments that exist: the others are released.
    ///
    /// # Errors
    ///
    /// [`IdentityStoreError`] of the writes.
    pub fn hold_only(&mut self, ids: &BTreeSet<Identity>, holder: &Holder) -> Result<(), IdentityStoreError> {
        let known: Vec<Labels> =
            ids.iter().filter_map(|id| self.rows.get(&id.0)).map(|row| row.labels.clone()).collect();
        self.hold_exactly(&known, holder)?;
        Ok(())
    }

    /// `holder` is gone.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn release_holder(&mut self, holder: &Holder) -> Result<(), StoreError> {
        self.release_where(holder, |_| true)
    }

    /// Forgets every assignment whose grace period has ended.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn collect(&mut self) -> Result<IdentityChange, StoreError> {
        let now = (self.clock)();
        // A clock that went back makes a release lie in the future: that one waits.
        let ended = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= self.grace);
        let ids: Vec<u32> =
            self.rows.values().filter(|row| row.released.is_some_and(ended)).map(|row| row.id.0).collect();
        if ids.is_empty() {
            return Ok(IdentityChange::default());
        }
        let doomed = ids.clone();
        self.store.write("forget identities", move |tx| {
            let mut delete = tx.prepare_cached("DELETE FROM identity WHERE id = ?1")?;
            for id in doomed {
                delete.execute([id])?;
            }
            Ok(())
        })?;
        for id in &ids {
            if let Some(row) = self.rows.remove(id) {
                self.by_labels.remove(&row.labels);
            }
        }
        Ok(IdentityChange { added: Vec::new(), removed: ids.into_iter().map(Identity).collect() })
    }

    /// The first free number after `cursor`, beginning again at the first when the last is passed.
    fn free_after(&self, cursor: u32, used: &BTreeSet<u32>) -> Option<u32> {
        let (first, last) = (Identity::CLUSTER_MIN, Identity::CLUSTER_MAX);
        let start = if (first..last).contains(&cursor) { cursor + 1 } else { first };
        (start..=last).chain(first..start).find(|id| !self.rows.contains_key(id) && !used.contains(id))
    }

    fn write_allocations(
        &self,
        touched: &[(u32, Labels)],
        holder: &Holder,
        cursor: u32,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let rows = touched
            .iter()
            .map(|(id, labels)| match serde_json::to_string(labels) {
                Ok(text) => Ok((*id, text)),
                Err(error) => Err(StoreError::invalid("labels", error)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (holder, now) = (holder.to_string(), to_millis(now));
        self.store.write("store identities", move |tx| {
            let mut put = tx.prepare_cached(
                "INSERT INTO identity (id, labels, created, last_used, released) VALUES (?1, ?2, ?3, ?3, NULL)
                 ON CONFLICT (id) DO UPDATE SET last_used = excluded.last_used, released = NULL",
            )?;
            let mut hold =
                tx.prepare_cached("INSERT OR IGNORE INTO identity_holder (id, holder) VALUES (?1, ?2)")?;
            for (id, labels) in rows {
                put.execute((id, labels, now))?;
                hold.execute((id, &holder))?;
            }
            set_counter(tx, "identity_cursor", u64::from(cursor))
        })
    }

    pub(super) fn release_where(
        &mut self,
        holder: &Holder,
        which: impl Fn(u32) -> bool,
    ) -> Result<(), StoreError> {
        let held: Vec<(u32, bool)> = self
            .rows
            .values()
            .filter(|row| row.holders.contains(holder) && which(row.id.0))
            .map(|row| (row.id.0, row.holders.iter().len() == 1))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let now = (self.clock)();
        let (name, writes) = (holder.to_string(), held.clone());
        self.store.write("release identities", move |tx| {
            let mut drop = tx.prepare_cached("DELETE FROM identity_holder WHERE id = ?1 AND holder = ?2")?;
            let mut mark = tx.prepare_cached("UPDATE identity SET released = ?2 WHERE id = ?1")?;
            for (id, was_last) in writes {
                drop.execute((id, &name))?;
                if was_last {
                    mark.execute((id, to_millis(now)))?;
                }
            }
            Ok(())
        })?;
        for (id, was_last) in held {
            if let Some(row) = self.rows.get_mut(&id) {
                row.holders.remove(holder);
                if was_last {
                    row.released = Some(now);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
