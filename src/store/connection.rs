//! The thread that owns the connection, and the handle that hands it jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::SystemTime;

use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::clock::to_millis;
use super::error::{JobError, StoreError};
use super::open::{self, OpenOptions};
use super::rows::set_counter;

/// Jobs that may wait for the thread. A caller beyond that waits in turn, which is what bounds memory.
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the state store; clones share it. The file is closed when the last clone goes.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    health: Mutex<Health>,
    /// Held as long as the file is open: released after the thread has ended.
    _lock: open::FileLock,
}

/// How the store is doing, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// The error of the last failed operation, until one of its kind (a write or a read) succeeds.
    pub failing: Option<String>,
    #[serde(skip)]
    failed: Option<Access>,
    /// Failed operations since the start, by [`StoreError::class`].
    pub errors: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens, checks and migrates the file (see [`OpenOptions`]).
    ///
    /// # Errors
    ///
    /// Every variant of [`StoreError`] except `Stopped`.
    pub fn open(options: &OpenOptions) -> Result<Store, StoreError> {
        let (connection, lock) = open::open(options)?;
        let (jobs, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work(connection, &queue))
            .map_err(|source| StoreError::Io {
                operation: "start a thread for",
                path: options.path.clone(),
                source,
            })?;
        Ok(Store {
            inner: Arc::new(Inner {
                path: options.path.clone(),
                jobs: Some(jobs),
                thread: Some(thread),
                health: Mutex::default(),
                _lock: lock,
            }),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    pub fn health(&self) -> Health {
        self.inner.health.lock().clone()
    }

    /// Runs `job` in a transaction that takes the write lock first, so that it cannot fail half-way
    /// for want of the lock. An error rolls everything back.
    pub(super) fn write<T, F>(&self, operation: &'static str, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, JobError> + Send + 'static,
    {
        self.run(operation, Access::Write, job)
    }

    /// Runs `job` on one consistent view of the state.
    pub(super) fn read<T, F>(&self, operation: &'static str, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, JobError> + Send + 'static,
    {
        self.run(operation, Access::Read, job)
    }

    fn run<T, F>(&self, operation: &'static str, access: Access, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, JobError> + Send + 'static,
    {
        let behavior = match access {
            Access::Read => TransactionBehavior::Deferred,
            Access::Write => TransactionBehavior::Immediate,
        };
        let (reply, answer) = sync_channel(1);
        let job: Job = Box::new(move |connection| {
            // The caller waits for the answer, so the receiver is there unless it panicked.
            let _ = reply.send(transaction(connection, behavior, job));
        });
        let outcome = match &self.inner.jobs {
            Some(jobs) if jobs.send(job).is_ok() => answer.recv().ok(),
            _ => None,
        };
        let outcome = match outcome {
            Some(outcome) => outcome.map_err(|error| error.at(&self.inner.path, operation)),
            None => Err(StoreError::Stopped),
        };
        self.record(access, outcome.as_ref().err());
        outcome
    }

    /// Writes a time, so that a store that failed to write is found well again without waiting for
    /// somebody to change something.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn probe(&self, now: SystemTime) -> Result<(), StoreError> {
        let now = u64::try_from(to_millis(now)).unwrap_or(0);
        self.write("probe", move |tx| set_counter(tx, "probe", now))
    }

    /// Lets go of the pages that SQLite keeps in memory: a start reads all of the file once, and nothing for long
    /// afterwards. Does not wait: `then` runs when the pages are free, on the store's thread, and at once if that
    /// has other things to do.
    pub fn give_back_memory(&self, then: fn()) {
        let job: Job = Box::new(move |connection| {
            if let Err(error) = connection.release_memory() {
                tracing::debug!(%error, "the state store keeps its memory");
            }
            then();
        });
        // A store that is busy has a use for its pages; one that has ended has none.
        if self.inner.jobs.as_ref().is_none_or(|jobs| jobs.try_send(job).is_err()) {
            then();
        }
    }

    /// The last write failed, and nothing has worked since.
    pub fn is_failing(&self) -> bool {
        self.inner.health.lock().failing.is_some()
    }

    fn record(&self, access: Access, error: Option<&StoreError>) {
        let mut health = self.inner.health.lock();
        match error {
            // A full disk can still be read.
            None if health.failed == Some(Access::Write) && access == Access::Read => {}
            None => (health.failing, health.failed) = (None, None),
            Some(error) => {
                if health.failing.is_none() {
                    tracing::error!(%error, "state store");
                }
                health.failing = Some(error.to_string());
                health.failed = Some(access);
                *health.errors.entry(error.class()).or_default() += 1;
            }
        }
    }
}

fn transaction<T>(
    connection: &mut Connection,
    behavior: TransactionBehavior,
    job: impl FnOnce(&Transaction<'_>) -> Result<T, JobError>,
) -> Result<T, JobError> {
    let transaction = connection.transaction_with_behavior(behavior)?;
    // Dropping the transaction on an early return rolls it back. After a failed COMMIT it is still
    // open, and the drop inside `commit` rolls back as well.
    let value = job(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn work(mut connection: Connection, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job(&mut connection);
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "the state store was not closed cleanly; its log is replayed at the next start");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the state store's thread panicked");
        }
    }
}
