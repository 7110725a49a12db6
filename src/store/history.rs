//! History: flows of the past in a SQLite file of its own.
//!
//! Contract:
//!
//! - Flows are kept as blocks (`flow::block`, zlib) of one batch each. A block says when its first and last
//!   flow was and which pods it speaks of; queries look only at blocks that can hold an answer.
//! - A batch is one transaction (WAL, `synchronous=NORMAL`): after a crash whole batches are there, and the
//!   last ones may be missing.
//! - Bounded: [`Limits`]. What is older than `detail` is counted by edge and hour (`flow::edges`); sooner, if the
//!   file would grow too large. Then the oldest edges go.
//! - History is worth less than everything else: an error is reported and counted ([`Status`]) and the flows of that
//!   batch are lost to history. A corrupt file is moved aside (the newest such is kept) and a new one begun.
//!
//! One [`History`] writes; any number of [`Archive`]s read, at any time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::error::{JobError, StoreError};
use super::open::{self, FileLock};
use crate::flow::{Flow, block};

mod age;
mod archive;
mod tidy;

pub use self::age::AgeClock;
pub use self::archive::{Archive, Query};
pub use self::tidy::Tidied;

/// `SLUH`.
const APPLICATION_ID: u32 = 0x534c_5548;
const SCHEMA_VERSION: u32 = 1;
const PAGE: u64 = 4096;
/// Pod names whose numbers are remembered between batches.
const REMEMBERED: usize = 65_536;
/// A block that speaks of more pods is not indexed by pod, and read for every one.
const MENTIONS: usize = 1024;
/// Longest block that is unpacked.
const LONGEST: u64 = 256 * 1024 * 1024;

const SCHEMA: &str = "
CREATE TABLE block (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,      -- 0 flows, 1 edges of an hour
    first_ns INTEGER NOT NULL,  -- since 1970
    last_ns INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    indexed INTEGER NOT NULL,   -- every pod in it is in `mention`
    data BLOB NOT NULL
);
CREATE INDEX block_time ON block (first_ns, last_ns, kind, packets, indexed);
CREATE INDEX block_kind ON block (kind, first_ns);
CREATE TABLE pod (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (namespace, name)
);
CREATE TABLE mention (
    pod INTEGER NOT NULL,
    block INTEGER NOT NULL,
    PRIMARY KEY (pod, block)
) WITHOUT ROWID;
CREATE INDEX mention_block ON mention (block, pod);
";

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the file.
    pub bytes: u64,
    /// Flows and edges go when they are older.
    pub age: Duration,
    /// Flows are kept one by one for so long.
    pub detail: Duration,
}

impl Default for Limits {
    /// 512 MiB, seven days, one hour.
    fn default() -> Limits {
        Limits {
            bytes: 512 << 20,
            age: Duration::from_secs(7 * 24 * 3600),
            detail: Duration::from_secs(3600),
        }
    }
}

/// How history is doing, for `status` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Why nothing is written at the moment.
    pub stopped: Option<String>,
    /// Of the file, as it is used.
    pub bytes: u64,
    /// Flows that were written since the start.
    pub written: u64,
    /// Flows that were not written: the disk was full, or the writer was too slow.
    pub lost: u64,
    /// Flows that became edges, by age or for want of room.
    pub folded: u64,
    /// Packets whose edges went, by age or for want of room.
    pub expired: u64,
    /// Blocks that could not be understood and were left out.
    pub unreadable: u64,
    /// Where a corrupt file was moved to by this run.
    pub moved_aside: Option<PathBuf>,
    /// Jumps of the wall clock.
    pub clock_jumps: u64,
}

/// The status, shared with whoever shows it.
pub type SharedStatus = Arc<Mutex<Status>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    Flows = 0,
    Edges = 1,
}

/// The writer; see the module.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    limits: Limits,
    connection: Connection,
    /// Numbers of pods.
    pods: HashMap<(Arc<str>, Arc<str>), i64>,
    clock: AgeClock,
    status: SharedStatus,
    _lock: FileLock,
}

impl History {
    /// Opens the file; one that is corrupt is moved aside and a new one begun.
    ///
    /// # Errors
    /// [`StoreError`]: the directory or the file cannot be used.
    pub fn open(path: &Path, limits: Limits, status: SharedStatus) -> Result<History, StoreError> {
        if let Some(directory) = path.parent() {
            open::private_directory(directory)?;
        }
        let lock = open::lock(path)?;
        let connection = match connect(path, limits) {
            Ok(connection) => connection,
            Err(StoreError::CorruptWhileRunning { detail, .. }) => {
                move_aside(path, &detail, &status)?;
                connect(path, limits)?
            }
            Err(error) => return Err(error),
        };
        let history = History {
            path: path.to_owned(),
            limits,
            connection,
            pods: HashMap::new(),
            clock: AgeClock::default(),
            status,
            _lock: lock,
        };
        history.measure();
        Ok(history)
    }

    /// Readers of this file.
    pub fn archive(&self) -> Archive {
        Archive::new(&self.path, Arc::clone(&self.status))
    }

    /// Writes one batch, in the order of time as far as it has one. On failure its flows are counted as lost. `pause` is
    /// called every few microseconds of work: others may want the CPU.
    ///
    /// # Errors
    /// [`StoreError`]; `status` says it too. A corrupt file has been replaced.
    pub fn append(&mut self, flows: &[Arc<Flow>], pause: fn()) -> Result<(), StoreError> {
        if flows.is_empty() {
            return Ok(());
        }
        let result =
            self.transaction("write flows", |history, tx| history.insert(tx, BlockKind::Flows, flows, pause));
        let count = flows.len() as u64;
        let mut status = self.status.lock();
        match &result {
            Ok(()) => {
                status.written += count;
                status.stopped = None;
            }
            Err(error) => {
                status.lost += count;
                if status.stopped.is_none() {
                    tracing::error!(%error, "history has stopped; enforcement and live flows go on");
                }
                status.stopped = Some(error.to_string());
            }
        }
        result
    }

    /// A transaction; corruption that it meets replaces the file.
    fn transaction<T>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&mut Pods<'_>, &Transaction<'_>) -> Result<T, JobError>,
    ) -> Result<T, StoreError> {
        let History { connection, pods, .. } = self;
        let run = |connection: &mut Connection, pods: &mut _| -> Result<T, JobError> {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&mut Pods(pods), &tx)?;
            tx.commit()?;
            Ok(value)
        };
        let result = run(connection, pods).map_err(|error| error.at(&self.path, operation));
        match &result {
            Ok(_) => self.measure(),
            Err(error) => {
                // Numbers that the failed transaction gave out mean nothing.
                self.pods.clear();
                if let StoreError::CorruptWhileRunning { detail, .. } = error {
                    let detail = detail.clone();
                    self.replace(&detail)?;
                }
            }
        }
        result
    }

    fn replace(&mut self, detail: &str) -> Result<(), StoreError> {
        let nowhere = Connection::open_in_memory().map_err(|e| JobError::from(e).at(&self.path, "close"))?;
        // A broken file may not close well; its pages are of no use any more.
        drop(std::mem::replace(&mut self.connection, nowhere).close());
        move_aside(&self.path, detail, &self.status)?;
        self.connection = connect(&self.path, self.limits)?;
        Ok(())
    }

    /// Bytes of the file that are in use.
    fn used(&self) -> u64 {
        let pragma = |name| self.connection.query_row(name, [], |row| row.get::<_, u64>(0)).unwrap_or(0);
        pragma("PRAGMA page_count").saturating_sub(pragma("PRAGMA freelist_count")) * PAGE
    }

    fn measure(&self) {
        self.status.lock().bytes = self.used();
    }
}

/// Numbers of pods, and what is written with them.
struct Pods<'a>(&'a mut HashMap<(Arc<str>, Arc<str>), i64>);

impl Pods<'_> {
    fn insert(
        &mut self,
        tx: &Transaction<'_>,
        kind: BlockKind,
        flows: &[Arc<Flow>],
        pause: fn(),
    ) -> Result<(), JobError> {
        let times = || flows.iter().map(|flow| i64::try_from(flow.time_ns).unwrap_or(i64::MAX));
        let (first, last) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        let mut mentioned: HashSet<(&Arc<str>, &Arc<str>)> = HashSet::new();
        for party in flows.iter().flat_map(|flow| [&flow.source, &flow.destination]) {
            mentioned.extend(party.namespace.as_ref().zip(party.pod.as_ref()));
        }
        let packets: u64 = flows.iter().map(|flow| u64::from(flow.count)).sum();
        let is_indexed = mentioned.len() <= MENTIONS;
        tx.prepare_cached(
            "INSERT INTO block (kind, first_ns, last_ns, packets, indexed, data) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            kind as u8,
            first,
            last,
            packets,
            is_indexed,
            pack(&block::encode(flows, pause), pause)
        ])?;
        let block = tx.last_insert_rowid();
        if is_indexed {
            let mut mention =
                tx.prepare_cached("INSERT OR IGNORE INTO mention (pod, block) VALUES (?, ?)")?;
            for (namespace, name) in mentioned {
                let pod = self.number(tx, namespace, name)?;
                mention.execute(params![pod, block])?;
            }
        }
        Ok(())
    }

    fn number(
        &mut self,
        tx: &Transaction<'_>,
        namespace: &Arc<str>,
        name: &Arc<str>,
    ) -> Result<i64, JobError> {
        let key = (Arc::clone(namespace), Arc::clone(name));
        if let Some(number) = self.0.get(&key) {
            return Ok(*number);
        }
        tx.prepare_cached("INSERT OR IGNORE INTO pod (namespace, name) VALUES (?, ?)")?
            .execute(params![&**namespace, &**name])?;
        let number = tx
            .prepare_cached("SELECT id FROM pod WHERE namespace = ? AND name = ?")?
            .query_row(params![&**namespace, &**name], |row| row.get(0))?;
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(key, number);
        Ok(number)
    }
}

fn pack(bytes: &[u8], pause: fn()) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    for stretch in bytes.chunks(4096) {
        encoder.write_all(stretch).expect("writing to memory does not fail");
        pause();
    }
    encoder.finish().expect("writing to memory does not fail")
}

/// `None`: damaged (zlib has a checksum), or not understood.
fn unpack(data: &[u8]) -> Option<Vec<Flow>> {
    use std::io::Read as _;
    let mut bytes = Vec::with_capacity(data.len() * 3);
    ZlibDecoder::new(data).take(LONGEST).read_to_end(&mut bytes).ok()?;
    block::decode(&bytes).ok()
}

fn connect(path: &Path, limits: Limits) -> Result<Connection, StoreError> {
    if open::is_torn(path) {
        return Err(corrupt(path, "it is cut off"));
    }
    open::create_private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let run = || -> Result<Connection, JobError> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        // Asked first: it reads the header, and a file that is none is told here.
        let found: u32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let is_empty = tables == 0 && version == 0;
        if !is_empty && (found != APPLICATION_ID || version != SCHEMA_VERSION) {
            return Err(corrupt(path, "it is not a history that this release knows").into());
        }
        connection.pragma_update(None, "page_size", PAGE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        connection.pragma_update(None, "cache_size", -4096)?;
        connection.pragma_update(None, "max_page_count", limits.bytes / PAGE)?;
        if is_empty {
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
            ))?;
        }
        connection.query_row("SELECT count(*) FROM block", [], |row| row.get::<_, u64>(0))?;
        Ok(connection)
    };
    run().map_err(|error| error.at(path, "open"))
}

fn corrupt(path: &Path, detail: &str) -> StoreError {
    StoreError::CorruptWhileRunning { path: path.to_owned(), operation: "open", detail: detail.to_owned() }
}

/// Keeps what is broken for whoever wants to look, but only the newest.
fn move_aside(path: &Path, detail: &str, status: &SharedStatus) -> Result<(), StoreError> {
    while let Some(older) = open::moved_aside(path)? {
        if std::fs::remove_file(&older).is_err() {
            break;
        }
    }
    let aside = open::move_aside(path)?;
    tracing::error!(path = %path.display(), aside = %aside.display(), detail, "corrupt history moved aside; a new one begins");
    status.lock().moved_aside = Some(aside);
    Ok(())
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
