//! Reading history while it is written.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use hashbrown::HashSet;
use rusqlite::{Connection, OpenFlags};

use super::{SharedStatus, unpack};
use crate::flow::Flow;
use crate::store::error::{JobError, StoreError};

/// Whether a pod (namespace, name) is wanted.
pub type WantedPods<'a> = dyn Fn(&str, &str) -> bool + 'a;

/// A question to history.
pub struct Query<'a> {
    /// Nanoseconds since 1970; both inclusive.
    pub since_ns: u64,
    pub until_ns: u64,
    /// Pods (namespace, name) of which every wanted flow has one; `None`: that is not so.
    pub pods: Option<&'a WantedPods<'a>>,
    pub matches: &'a dyn Fn(&Flow) -> bool,
    /// Only so many, the newest.
    pub newest: Option<usize>,
}

impl std::fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("since_ns", &self.since_ns).field("until_ns", &self.until_ns).finish()
    }
}

/// A reader; clones are cheap, each question opens the file anew.
#[derive(Clone, Debug)]
pub struct Archive {
    path: PathBuf,
    status: SharedStatus,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    id: i64,
    first_ns: i64,
    last_ns: i64,
}

impl Archive {
    pub(super) fn new(path: &Path, status: SharedStatus) -> Archive {
        Archive { path: path.to_owned(), status }
    }

    /// How history is doing.
    pub fn status(&self) -> super::Status {
        self.status.lock().clone()
    }

    /// Hands over matching flows in the order of time, block by block, until `take` breaks. Memory holds
    /// what a few blocks hold (or `newest` flows).
    ///
    /// # Errors
    /// [`StoreError`]: the file cannot be read. Blocks that are damaged are left out and counted.
    pub fn read(
        &self,
        query: &Query<'_>,
        take: &mut dyn FnMut(Vec<Flow>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.try_read(query, take).map_err(|error| error.at(&self.path, "read history"))
    }

    fn try_read(
        &self,
        query: &Query<'_>,
        take: &mut dyn FnMut(Vec<Flow>) -> ControlFlow<()>,
    ) -> Result<(), JobError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(2))?;
        // One view of the file, whatever is written meanwhile.
        let tx = connection.transaction()?;
        let blocks = blocks(&tx, query)?;
        match query.newest {
            None => self.oldest_first(&tx, &blocks, query, take),
            Some(count) => self.newest_only(&tx, blocks, count, query, take),
        }
    }

    fn oldest_first(
        &self,
        connection: &Connection,
        blocks: &[Found],
        query: &Query<'_>,
        take: &mut dyn FnMut(Vec<Flow>) -> ControlFlow<()>,
    ) -> Result<(), JobError> {
        let mut held: Vec<Flow> = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            held.extend(self.matching(connection, *block, query)?);
            held.sort_by_key(|flow| (flow.time_ns, flow.sequence));
            // Blocks overlap a little: what a later one may come before is held back.
            let limit = blocks.get(index + 1).map_or(i64::MAX, |next| next.first_ns) as u64;
            let ready = held.partition_point(|flow| flow.time_ns < limit);
            let rest = held.split_off(ready);
            let flows = std::mem::replace(&mut held, rest);
            if !flows.is_empty() && take(flows).is_break() {
                return Ok(());
            }
        }
        if !held.is_empty() {
            let _ = take(held);
        }
        Ok(())
    }

    fn newest_only(
        &self,
        connection: &Connection,
        mut blocks: Vec<Found>,
        count: usize,
        query: &Query<'_>,
        take: &mut dyn FnMut(Vec<Flow>) -> ControlFlow<()>,
    ) -> Result<(), JobError> {
        blocks.sort_by_key(|block| std::cmp::Reverse(block.last_ns));
        let mut kept: Vec<Flow> = Vec::new();
        for block in blocks {
            let is_enough = kept.len() >= count;
            if is_enough && kept.first().is_none_or(|oldest| (block.last_ns as u64) < oldest.time_ns) {
                break;
            }
            kept.extend(self.matching(connection, block, query)?);
            kept.sort_by_key(|flow| (flow.time_ns, flow.sequence));
            kept.drain(..kept.len().saturating_sub(count));
        }
        if !kept.is_empty() {
            let _ = take(kept);
        }
        Ok(())
    }

    fn matching(
        &self,
        connection: &Connection,
        block: Found,
        query: &Query<'_>,
    ) -> Result<Vec<Flow>, JobError> {
        let data: Vec<u8> = connection
            .prepare_cached("SELECT data FROM block WHERE id = ?")?
            .query_row([block.id], |row| row.get(0))?;
        let Some(mut flows) = unpack(&data) else {
            self.status.lock().unreadable += 1;
            return Ok(Vec::new());
        };
        let span = query.since_ns..=query.until_ns;
        flows.retain(|flow| span.contains(&flow.time_ns) && (query.matches)(flow));
        Ok(flows)
    }
}

/// Blocks that may hold an answer, in the order of their first flow.
fn blocks(connection: &Connection, query: &Query<'_>) -> Result<Vec<Found>, JobError> {
    let clip = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    let mut find = connection.prepare(
        "SELECT id, first_ns, last_ns, indexed FROM block INDEXED BY block_time \
         WHERE first_ns <= ?1 AND last_ns >= ?2 ORDER BY first_ns",
    )?;
    let span = [clip(query.until_ns), clip(query.since_ns)];
    let found = find.query_map(span, |row| {
        Ok((Found { id: row.get(0)?, first_ns: row.get(1)?, last_ns: row.get(2)? }, row.get::<_, bool>(3)?))
    })?;
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let Some(is_wanted) = query.pods else {
        return Ok(found.into_iter().map(|(block, _)| block).collect());
    };
    let mut pods = connection.prepare("SELECT id, namespace, name FROM pod")?;
    let mut rows = pods.query([])?;
    let mut mentions = connection.prepare_cached("SELECT block FROM mention WHERE pod = ?")?;
    let mut with_pod: HashSet<i64> = HashSet::new();
    while let Some(row) = rows.next()? {
        let (id, namespace, name): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if is_wanted(&namespace, &name) {
            for block in mentions.query_map([id], |row| row.get(0))? {
                with_pod.insert(block?);
            }
        }
    }
    let may_hold = |(block, is_indexed): &(Found, bool)| !is_indexed || with_pod.contains(&block.id);
    Ok(found.into_iter().filter(may_hold).map(|(block, _)| block).collect())
}
