//! The DNS proxy's end of learning: asks the agent, and gets along without it.
//!
//! Contract: [`Learner::learn`] returns in bounded time. A name that no `toFQDNs` rule names is not waited for.
//! An answer that was told before ([`AgentLine::known`]) needs no word; that it makes its addresses stay open longer, or
//! that another client asked, is told later. Without an agent, or with one that says nothing ([`AgentLine`]), the address
//! is put into the kernel here, and noted for the agent to learn, and to close.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::known_names::{Clients, Cover};
use super::l7feed::Feed;
use super::names_link::AgentLine;
use super::offline_names::OfflineNames;
use crate::dnsproxy::outside::Wait;
use crate::dnsproxy::{Learner, Reach};
use crate::fqdn::{Given, Learned, TtlBounds};
use crate::policy::l7::DnsPattern;
use crate::policy::l7::names::NameSet;
use crate::policy::l7::snapshot::Snapshot;

/// Answers that are told at once at the end.
const MOST_OWED: usize = 4096;

/// Beyond every TTL (RFC 2181, section 8).
const FAR: Duration = Duration::from_secs(1 << 32);

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
    agent: AgentLine,
    offline: OfflineNames,
    counts: Counts,
}

impl std::fmt::Debug for NamesClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamesClient").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl NamesClient {
    /// Talks to whichever agent serves `run_dir` at the time. `ttl` is as for the agent.
    pub fn start(run_dir: &Path, feed: Feed, offline: OfflineNames, ttl: TtlBounds) -> Arc<NamesClient> {
        let agent = AgentLine::start(run_dir, ttl);
        let wanted = ArcSwap::from_pointee(Wanted::of(feed.load_full()));
        Arc::new(NamesClient { feed, wanted, agent, offline, counts: Counts::default() })
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
            self.agent.doubt();
        }
        fresh
    }

    /// What is owed, told now: the process is about to end.
    pub async fn settle(&self) {
        loop {
            let now = Instant::now();
            let owed = self.agent.known().due(now + FAR, now, MOST_OWED);
            if owed.is_empty() {
                return;
            }
            for given in owed {
                if self.agent.ask(given).await.is_none() {
                    return;
                }
            }
        }
    }
}

impl Learner for NamesClient {
    fn known(&self, learned: &Learned, client: IpAddr) -> Option<Reach> {
        self.wanted();
        let generation = self.agent.generation();
        match self.agent.known().covers(learned, client, generation, Instant::now()) {
            Cover::No => return None,
            Cover::Yes => {}
            Cover::NewClient => {
                // It counts as one that needs the name. Nothing waits for that.
                let given = Given { learned: learned.clone(), clients: vec![client] };
                if self.agent.tell(given) {
                    self.agent.known().add_client(&learned.name, client);
                }
            }
        }
        self.counts.known.fetch_add(1, Ordering::Relaxed);
        Some(Reach::Ready)
    }

    fn learn(&self, learned: Learned, client: IpAddr) -> Wait<'_, Reach> {
        Box::pin(async move {
            let wanted = self.wanted();
            let generation = self.agent.generation();
            let now = Instant::now();
            let given = Given { learned: learned.clone(), clients: vec![client] };
            if !wanted.patterns.contains(&learned.name) {
                // For rules that come later. Without an agent, or with too much to do, nothing is lost but
                // that.
                if self.agent.tell(given) {
                    self.agent.known().told(&learned, &Clients::Anyone, generation, now);
                }
                return Reach::Ready;
            }
            let reach = match self.agent.ask(given).await {
                Some(reach) => {
                    self.counts.asked.fetch_add(1, Ordering::Relaxed);
                    reach
                }
                None => {
                    self.counts.alone.fetch_add(1, Ordering::Relaxed);
                    match self.agent.note_opened(&learned) {
                        true => self.offline.learn(&wanted.snapshot, &learned),
                        // Nobody would close them.
                        false => Reach::Closed,
                    }
                }
            };
            if reach == Reach::Ready {
                let clients = Clients::These([client].into_iter().collect());
                self.agent.known().told(&learned, &clients, generation, now);
            }
            reach
        })
    }
}
