//! The DNS proxy's end of learning: asks the agent, and gets along without it.
//!
//! Contract: [`Learner::learn`] returns in bounded time. A name that no `toFQDNs` rule names is not waited for.
//! An answer that was told before ([`KnownNames`]) needs no word; that it makes its addresses stay open longer, or that
//! another client asked, is told later. Without an agent the address is put into the kernel here, and noted for the agent to
//! learn. An agent that is new is told everything that is fresh.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

use super::known_names::{Clients, Cover, KnownNames};
use super::l7feed::Feed;
use super::names::{Question, SOCKET, Told};
use super::offline_names::OfflineNames;
use crate::dnsproxy::outside::Wait;
use crate::dnsproxy::{Learner, Reach};
use crate::fqdn::{Given, Learned, TtlBounds};
use crate::policy::l7::DnsPattern;
use crate::policy::l7::names::NameSet;
use crate::policy::l7::snapshot::Snapshot;

/// How long an answer is held back for the agent.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers that wait to be sent.
const QUEUE: usize = 4096;
/// Answers that are written at once.
const BATCH: usize = 64;
/// How often what is owed is looked at, and an absent agent looked for.
const TICK: Duration = Duration::from_millis(100);
/// Answers that are owed and told in one tick.
const MOST_DUE: usize = 1024;

/// Beyond every TTL (RFC 2181, section 8).
const FAR: Duration = Duration::from_secs(1 << 32);

/// Questions that the agent has not answered, by number.
type Waiting = Arc<Mutex<HashMap<u64, Asked>>>;

struct Ask {
    given: Given,
    /// Absent: nobody waits.
    answer: Option<oneshot::Sender<Reach>>,
}

struct Asked {
    name: Arc<str>,
    answer: Option<oneshot::Sender<Reach>>,
}

/// The patterns of one snapshot, ready to be matched.
struct Wanted {
    snapshot: Arc<Snapshot>,
    patterns: NameSet<()>,
}

impl Wanted {
    fn of(snapshot: Arc<Snapshot>) -> Wanted {
        let patterns = snapshot.patterns.iter().map(|pattern: &DnsPattern| (pattern.clone(), ())).collect();
        Wanted { snapshot, patterns }
    }
}

/// How answers were learned, since the start of the process.
#[derive(Debug, Default)]
struct Counts {
    /// Without a word: they had been told.
    known: AtomicU64,
    /// By asking the agent.
    asked: AtomicU64,
    /// Without an agent.
    alone: AtomicU64,
}

/// [`NamesClient::counts`] for people and programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CountsSnapshot {
    pub known_answers: u64,
    pub asked_answers: u64,
    pub answers_without_agent: u64,
    pub unnoted_answers: u64,
}

/// See the module.
pub struct NamesClient {
    feed: Feed,
    wanted: ArcSwap<Wanted>,
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    offline: OfflineNames,
    counts: Counts,
}

impl std::fmt::Debug for NamesClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamesClient").field("counts", &self.counts).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    known: KnownNames,
    /// Grows whenever what was told may not hold any more: patterns, the agent, or its limits changed.
    generation: AtomicU64,
}

impl Shared {
    fn doubt(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl NamesClient {
    /// Talks to whichever agent serves `run_dir` at the time. `ttl` is as for the agent.
    pub fn start(run_dir: &Path, feed: Feed, offline: OfflineNames, ttl: TtlBounds) -> Arc<NamesClient> {
        let (asks, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared { known: KnownNames::new(ttl), generation: AtomicU64::new(1) });
        let link = Link { socket: run_dir.join(SOCKET), shared: Arc::clone(&shared), open: None, last: 0 };
        tokio::spawn(link.send_all(queue));
        let wanted = ArcSwap::from_pointee(Wanted::of(feed.load_full()));
        Arc::new(NamesClient { feed, wanted, shared, asks, offline, counts: Counts::default() })
    }

    pub fn counts(&self) -> CountsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountsSnapshot {
            known_answers: get(&self.counts.known),
            asked_answers: get(&self.counts.asked),
            answers_without_agent: get(&self.counts.alone),
            unnoted_answers: self.offline.unnoted(),
        }
    }

    /// The patterns of the newest snapshot.
    fn wanted(&self) -> Arc<Wanted> {
        let (wanted, newest) = (self.wanted.load(), self.feed.load());
        if Arc::ptr_eq(&wanted.snapshot, &newest) {
            return Arc::clone(&wanted);
        }
        let changed = wanted.snapshot.patterns != newest.patterns;
        let fresh = Arc::new(Wanted::of(Arc::clone(&newest)));
        self.wanted.store(Arc::clone(&fresh));
        if changed {
            self.shared.doubt();
        }
        fresh
    }

    async fn ask(&self, given: Given) -> Option<Reach> {
        let (answer, wait) = oneshot::channel();
        self.asks.send(Ask { given, answer: Some(answer) }).await.ok()?;
        // An agent that is gone drops the other end.
        wait.await.ok()
    }

    /// What is owed, told now: the process is about to end.
    pub async fn settle(&self) {
        loop {
            let now = Instant::now();
            let owed = self.shared.known.due(now + FAR, now, QUEUE);
            if owed.is_empty() {
                return;
            }
            for given in owed {
                if tokio::time::timeout(PATIENCE, self.ask(given)).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Learner for NamesClient {
    fn known(&self, learned: &Learned, client: IpAddr) -> Option<Reach> {
        self.wanted();
        let generation = self.shared.generation.load(Ordering::Acquire);
        match self.shared.known.covers(learned, client, generation, Instant::now()) {
            Cover::No => return None,
            Cover::Yes => {}
            Cover::NewClient => {
                // It counts as one that needs the name. Nothing waits for that.
                let given = Given { learned: learned.clone(), clients: vec![client] };
                if self.asks.try_send(Ask { given, answer: None }).is_ok() {
                    self.shared.known.add_client(&learned.name, client);
                }
            }
        }
        self.counts.known.fetch_add(1, Ordering::Relaxed);
        Some(Reach::Ready)
    }

    fn learn(&self, learned: Learned, client: IpAddr) -> Wait<'_, Reach> {
        Box::pin(async move {
            let wanted = self.wanted();
            let generation = self.shared.generation.load(Ordering::Acquire);
            let now = Instant::now();
            let given = Given { learned: learned.clone(), clients: vec![client] };
            if !wanted.patterns.contains(&learned.name) {
                // For rules that come later. Without an agent, or with too much to do, nothing is lost but
                // that.
                if self.asks.try_send(Ask { given, answer: None }).is_ok() {
                    self.shared.known.told(&learned, &Clients::Anyone, generation, now);
                }
                return Reach::Ready;
            }
            let reach = match tokio::time::timeout(PATIENCE, self.ask(given)).await {
                Ok(Some(reach)) => {
                    self.counts.asked.fetch_add(1, Ordering::Relaxed);
                    reach
                }
                // No agent, or one that hangs.
                Ok(None) | Err(_) => {
                    self.counts.alone.fetch_add(1, Ordering::Relaxed);
                    self.offline.learn(&wanted.snapshot, &learned)
                }
            };
            if reach == Reach::Ready {
                let clients = Clients::These([client].into_iter().collect());
                self.shared.known.told(&learned, &clients, generation, now);
            }
            reach
        })
    }
}

/// The connection to the agent of the time.
struct Link {
    socket: PathBuf,
    shared: Arc<Shared>,
    open: Option<(OwnedWriteHalf, Waiting)>,
    /// Number of the last question.
    last: u64,
}

impl Link {
    async fn send_all(mut self, mut queue: mpsc::Receiver<Ask>) {
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = queue.recv_many(&mut batch, BATCH) => if received == 0 { return },
                _ = tick.tick() => {}
            }
            // An agent that is back is told before it is asked.
            if !self.is_open() && !self.connect().await {
                batch.clear();
                continue;
            }
            let due = {
                let now = Instant::now();
                self.shared.known.due(now, now, MOST_DUE)
            };
            batch.extend(due.into_iter().map(|given| Ask { given, answer: None }));
            if !batch.is_empty() {
                self.send(&mut batch).await;
            }
        }
    }

    /// Looks whether the agent that was there is still there.
    fn is_open(&mut self) -> bool {
        let has_ended = |waiting: &Waiting| Arc::strong_count(waiting) == 1;
        if self.open.as_ref().is_some_and(|(_, waiting)| has_ended(waiting)) {
            self.close();
        }
        self.open.is_some()
    }

    fn close(&mut self) {
        if let Some((_, waiting)) = self.open.take() {
            waiting.lock().clear();
            // What it promised nobody keeps.
            self.shared.doubt();
        }
    }

    async fn send(&mut self, batch: &mut Vec<Ask>) {
        let Some((write, waiting)) = &mut self.open else { return batch.clear() };
        let mut text = Vec::new();
        for Ask { given, answer } in batch.drain(..) {
            self.last += 1;
            waiting.lock().insert(self.last, Asked { name: given.learned.name.clone(), answer });
            if serde_json::to_writer(&mut text, &Question::new(self.last, &given)).is_ok() {
                text.push(b'\n');
            }
        }
        if write.write_all(&text).await.is_err() {
            self.close();
        }
    }

    async fn connect(&mut self) -> bool {
        let Ok(stream) = UnixStream::connect(&self.socket).await else { return false };
        let (read, write) = stream.into_split();
        let waiting = Waiting::default();
        tokio::spawn(hear(read, Arc::clone(&waiting), Arc::clone(&self.shared)));
        self.open = Some((write, waiting));
        let fresh = self.shared.known.fresh(Instant::now());
        self.shared.doubt();
        for some in fresh.chunks(BATCH) {
            let mut batch = some.iter().map(|given| Ask { given: given.clone(), answer: None }).collect();
            self.send(&mut batch).await;
        }
        true
    }
}

/// Hands out the agent's words until it is gone.
async fn hear(read: tokio::net::unix::OwnedReadHalf, waiting: Waiting, shared: Arc<Shared>) {
    let mut lines = BufReader::new(read).lines();
    let mut evictions = None;
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(told) = serde_json::from_str::<Told>(&line) else { break };
        // Before the answer is taken for known.
        if evictions.replace(told.evictions).is_some_and(|before| before != told.evictions) {
            shared.doubt();
        }
        let Some(Asked { name, answer }) = waiting.lock().remove(&told.id) else { continue };
        let reach = if told.ready { Reach::Ready } else { Reach::Closed };
        if reach == Reach::Closed {
            // It may have been taken to be open already, for as long as it was to be told.
            shared.known.forget(&name);
        }
        if let Some(answer) = answer {
            // Who asked may have lost patience.
            answer.send(reach).ok();
        }
    }
    waiting.lock().clear();
}
