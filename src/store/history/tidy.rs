//! What becomes of flows with time: they are counted by edge and hour, and then they go.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Transaction, params};

use super::{BlockKind, History, Pods, StoreError, unpack};
use crate::flow::Flow;
use crate::flow::edges::Edges;
use crate::store::error::JobError;

const HOUR_NS: i64 = 3_600_000_000_000;
/// Most edges of an hour (see [`Edges::new`]); less where the file must be small.
const EDGES: u64 = 16_384;
/// Share of one edge in the file.
const EDGE_BYTES: u64 = 32_768;
/// Blocks that are folded in one transaction, so that no transaction is long.
const AT_ONCE: usize = 32;

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Flows that became edges.
    pub folded: u64,
    /// Packets whose edges went.
    pub expired: u64,
    /// There is more to do: call again.
    pub is_unfinished: bool,
}

impl History {
    /// One step of what is due. `wall` is the time since 1970, `monotonic` since any start.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of the step was done.
    pub fn tidy(&mut self, wall: Duration, monotonic: Duration) -> Result<Tidied, StoreError> {
        let now = self.clock.now(wall, monotonic);
        self.status.lock().clock_jumps = self.clock.jumps();
        let before = |age: Duration| i64::try_from(now.saturating_sub(age).as_nanos()).unwrap_or(i64::MAX);
        let (detail, oldest) = (before(self.limits.detail), before(self.limits.age));
        // What a batch and a fold need besides what is kept.
        let is_crowded = self.used() > self.limits.bytes / 10 * 9;
        let mut unreadable = 0;
        let edges = (self.limits.bytes / EDGE_BYTES).clamp(16, EDGES) as usize;
        let mut result = self.transaction("tidy up", |pods, tx| {
            let mut done = Tidied { expired: expire(tx, oldest)?, ..Tidied::default() };
            let due = if is_crowded { i64::MAX } else { detail };
            done.folded = fold(pods, tx, due, edges, &mut unreadable)?;
            if is_crowded && done.folded == 0 {
                done.expired += drop_oldest(tx)?;
            }
            done.is_unfinished = done.folded > 0 || (is_crowded && done.expired > 0);
            Ok(done)
        });
        if is_crowded && matches!(result, Err(StoreError::Full { .. })) {
            // Not even room to count: the oldest go as they are.
            result = self.transaction("make room", |_, tx| {
                let expired = drop_oldest(tx)?;
                Ok(Tidied { expired, is_unfinished: expired > 0, ..Tidied::default() })
            });
        }
        let mut status = self.status.lock();
        status.unreadable += unreadable;
        if let Ok(done) = &result {
            status.folded += done.folded;
            status.expired += done.expired;
        }
        result
    }
}

/// Deletes blocks all of whose flows are older.
fn expire(tx: &Transaction<'_>, before_ns: i64) -> Result<u64, JobError> {
    let mut find = tx.prepare_cached(
        "SELECT id FROM block WHERE first_ns < ?1 AND last_ns < ?1 ORDER BY first_ns LIMIT 256",
    )?;
    let ids = find.query_map([before_ns], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    delete(tx, &ids)
}

/// The oldest edges, or flows where there are none. Rows are in the order in which they were written, whatever
/// the clock said then.
fn drop_oldest(tx: &Transaction<'_>) -> Result<u64, JobError> {
    let mut find = tx.prepare_cached("SELECT id FROM block ORDER BY first_ns LIMIT 4")?;
    let ids = find.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    delete(tx, &ids)
}

fn delete(tx: &Transaction<'_>, blocks: &[i64]) -> Result<u64, JobError> {
    let mut packets = 0;
    for id in blocks {
        let held: u64 =
            tx.prepare_cached("SELECT packets FROM block WHERE id = ?")?.query_row([id], |row| row.get(0))?;
        packets += held;
        tx.prepare_cached("DELETE FROM mention WHERE block = ?")?.execute([id])?;
        tx.prepare_cached("DELETE FROM block WHERE id = ?")?.execute([id])?;
    }
    if !blocks.is_empty() {
        // Pods that nothing speaks of any more; a few at a time.
        tx.prepare_cached(
            "DELETE FROM pod WHERE id IN (SELECT id FROM pod WHERE NOT EXISTS \
             (SELECT 1 FROM mention WHERE mention.pod = pod.id) LIMIT 64)",
        )?
        .execute([])?;
    }
    Ok(packets)
}

/// Counts the oldest flows before `due` into the edges of their hour.
fn fold(
    pods: &mut Pods<'_>,
    tx: &Transaction<'_>,
    due: i64,
    most_edges: usize,
    unreadable: &mut u64,
) -> Result<u64, JobError> {
    let mut find = tx.prepare_cached(
        "SELECT id, first_ns FROM block WHERE kind = 0 AND first_ns < ?1 AND last_ns < ?1 \
         ORDER BY first_ns LIMIT ?2",
    )?;
    let found = find
        .query_map(params![due, AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(i64, i64)>, _>>()?;
    let Some(hour) = found.first().map(|(_, first)| first.div_euclid(HOUR_NS)) else { return Ok(0) };
    let ids: Vec<i64> =
        (found.iter()).filter(|(_, first)| first.div_euclid(HOUR_NS) == hour).map(|(id, _)| *id).collect();
    let (from, to) = (hour.saturating_mul(HOUR_NS), (hour + 1).saturating_mul(HOUR_NS));
    let mut find =
        tx.prepare_cached("SELECT id FROM block WHERE kind = 1 AND first_ns >= ?1 AND first_ns < ?2")?;
    let earlier = find.query_map([from, to], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    let mut edges = Edges::new(most_edges);
    let mut folded = 0;
    for id in earlier.iter().chain(&ids) {
        let data: Vec<u8> =
            tx.prepare_cached("SELECT data FROM block WHERE id = ?")?.query_row([id], |row| row.get(0))?;
        let Some(flows) = unpack(&data) else {
            *unreadable += 1;
            continue;
        };
        if ids.contains(id) {
            folded += flows.len() as u64;
        }
        flows.iter().for_each(|flow| edges.add(flow));
    }
    delete(tx, &earlier)?;
    delete(tx, &ids)?;
    let edges: Vec<Arc<Flow>> = edges.into_flows();
    if !edges.is_empty() {
        pods.insert(tx, BlockKind::Edges, &edges, std::thread::yield_now)?;
    }
    // Blocks that were not understood are gone all the same: that is progress too.
    Ok(folded.max(1))
}
