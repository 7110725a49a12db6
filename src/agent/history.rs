//! History in the agent: a thread that writes, and readers.
//!
//! The writer reads the ring. What it cannot write (a full disk) it skips and counts; it tries again every few
//! seconds. Neither flows nor enforcement ever wait for it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::hub::Hub;
use super::pace::Pace;
use super::tail::{BATCH, PAUSE, Tail};
use crate::api::backend::Refusal;
use crate::api::past::{Past, PastFlows, PastQuery};
use crate::flow::Flow;
use crate::store::history::{Archive, History, Limits, Query, SharedStatus, Status};

/// Flows in a block.
const BLOCK: usize = 4096;
/// Flows wait so long for company at most.
const LINGER: Duration = Duration::from_secs(1);
const TIDY: Duration = Duration::from_secs(10);
/// Between attempts after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How long a question waits for what is not written yet.
const FLUSH: Duration = Duration::from_secs(2);

/// A wish to have everything on disk that is in the ring.
type Flush = SyncSender<()>;

/// See the module.
#[derive(Debug)]
pub struct Recorder {
    archive: Arc<Mutex<Option<Archive>>>,
    status: SharedStatus,
    flush: Mutex<SyncSender<Flush>>,
}

impl Recorder {
    /// Starts the writer. A file that cannot be opened is tried again: the agent starts all the same.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(path: PathBuf, limits: Limits, hub: Arc<Hub>) -> std::io::Result<Arc<Recorder>> {
        let (flush, wishes) = sync_channel(16);
        let recorder =
            Recorder { archive: Arc::default(), status: SharedStatus::default(), flush: Mutex::new(flush) };
        let mut writer = Writer {
            path,
            limits,
            tail: Tail::new(hub),
            history: None,
            archive: Arc::clone(&recorder.archive),
            status: Arc::clone(&recorder.status),
            waiting: Vec::new(),
            pace: Pace::Polite,
            since: Instant::now(),
            retry_at: None,
            tidied: None,
            started: Instant::now(),
        };
        writer.open();
        std::thread::Builder::new().name("sluice-history".into()).spawn(move || writer.run(&wishes))?;
        Ok(Arc::new(recorder))
    }

    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// Has everything written that is in the ring, within a time; blocks.
    pub fn flush(&self) {
        let (told, wait) = sync_channel(1);
        if self.flush.lock().try_send(told).is_ok() {
            wait.recv_timeout(FLUSH).ok();
        }
    }
}

struct Writer {
    path: PathBuf,
    limits: Limits,
    tail: Tail,
    history: Option<History>,
    archive: Arc<Mutex<Option<Archive>>>,
    status: SharedStatus,
    waiting: Vec<Arc<Flow>>,
    pace: Pace,
    /// When the first of them came.
    since: Instant,
    retry_at: Option<Instant>,
    tidied: Option<Instant>,
    started: Instant,
}

impl Writer {
    fn open(&mut self) {
        match History::open(Path::new(&self.path), self.limits, Arc::clone(&self.status)) {
            Ok(history) => {
                *self.archive.lock() = Some(history.archive());
                self.history = Some(history);
                self.status.lock().stopped = None;
            }
            Err(error) => {
                tracing::error!(%error, "no history is kept for now");
                self.status.lock().stopped = Some(error.to_string());
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Runs until the recorder is gone.
    fn run(mut self, wishes: &Receiver<Flush>) {
        loop {
            let wish = match wishes.recv_timeout(PAUSE) {
                Ok(wish) => Some(wish),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.take();
            if wish.is_some() || self.since.elapsed() >= LINGER {
                self.write();
            }
            if let Some(told) = wish {
                told.try_send(()).ok();
            }
            if self.tidied.is_none_or(|at| at.elapsed() >= TIDY) {
                self.tidy();
            }
        }
        self.take();
        self.write();
    }

    fn take(&mut self) {
        loop {
            let (flows, lost) = self.tail.next();
            self.status.lock().lost += lost;
            self.pace = Pace::of(flows.len(), BATCH);
            if flows.is_empty() {
                return;
            }
            if self.waiting.is_empty() {
                self.since = Instant::now();
            }
            self.waiting.extend(flows);
            while self.waiting.len() >= BLOCK {
                let rest = self.waiting.split_off(BLOCK);
                self.write();
                self.waiting = rest;
            }
        }
    }

    /// Writes what waits, or counts it as lost.
    fn write(&mut self) {
        let flows = std::mem::take(&mut self.waiting);
        if flows.is_empty() {
            return;
        }
        let is_resting = self.retry_at.is_some_and(|at| at > Instant::now());
        if self.history.is_none() && !is_resting {
            self.open();
        }
        let Some(history) = self.history.as_mut().filter(|_| !is_resting) else {
            self.status.lock().lost += flows.len() as u64;
            return;
        };
        self.retry_at = match history.append(&flows, self.pace.pause()) {
            Ok(()) => None,
            Err(_) => {
                // What is full may have room once old flows are counted together.
                self.tidied = None;
                Some(Instant::now() + RETRY)
            }
        };
    }

    fn tidy(&mut self) {
        self.tidied = Some(Instant::now());
        let Some(history) = self.history.as_mut() else { return };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match history.tidy(wall, self.started.elapsed()) {
            // The next step comes after the flows that have come meanwhile.
            Ok(done) if done.is_unfinished => self.tidied = None,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "history was not tidied up"),
        }
    }
}

impl PastFlows for Recorder {
    fn past(&self, query: PastQuery) -> mpsc::Receiver<Past> {
        let (answers, receiver) = mpsc::channel(4);
        let wishes = self.flush.lock().clone();
        let archive = self.archive.lock().clone();
        tokio::task::spawn_blocking(move || {
            let Some(archive) = archive else {
                answers.blocking_send(Err(Refusal::Conflict("no history is kept".into()))).ok();
                return;
            };
            let (told, wait) = sync_channel(1);
            if wishes.try_send(told).is_ok() {
                // Without an answer the newest second is missing, and the rest is still right.
                wait.recv_timeout(FLUSH).ok();
            }
            let question = Query {
                since_ns: query.since_ns,
                until_ns: query.until_ns,
                pods: query.pods.as_deref().map(|pods| pods as &dyn Fn(&str, &str) -> bool),
                matches: &*query.matches,
                newest: query.newest,
            };
            let read = archive.read(&question, &mut |flows| match answers.blocking_send(Ok(flows)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
            if let Err(error) = read {
                answers.blocking_send(Err(Refusal::Failed(error.to_string()))).ok();
            }
        });
        receiver
    }
}
