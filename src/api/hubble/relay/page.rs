//! What a relay shows in the web UI: the flows of all nodes.
//!
//! Nothing is followed while nobody looks. The first page starts a stream over all nodes that ends when the
//! last one has gone for [`LINGER`]. A relay holds no policies: what it is asked about them it asks the agents
//! ([`super::explain`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::explain::{self, Answers, Missing};
use super::pool::{Peer, PeerState, Pool};
use super::service::Joined;
use crate::api::backend::Answer;
use crate::api::hubble::pb::observer::GetFlowsRequest;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use crate::api::hubble::read;
use crate::api::ui::source::{About, Governed, KnownPod, PolicyUse, Question, Scope, UiSource, Why};
use crate::flow::Flow;
use crate::flow::ring::Ring;
use crate::model::ObjectRef;

/// Flows that a page of a relay can look back on.
const MEMORY: usize = 16_384;
/// Those of the past, of all nodes together, that a first page begins with.
const PAST: u64 = 4096;
/// Flows that a page may lag behind before it loses some.
const FOLLOWER_QUEUE: usize = 8192;
/// How long nodes are followed for nobody.
const LINGER: Duration = Duration::from_secs(30);
/// Between two looks at who is there.
const LOOK: Duration = Duration::from_secs(5);
/// How long a first page waits for the flows of the past.
const PATIENCE: Duration = Duration::from_secs(4);
/// Before a stream that broke is opened again.
const RETRY: Duration = Duration::from_secs(1);
/// Nodes that do not answer and are named.
const NAMED: usize = 5;

/// See the module.
#[derive(Debug)]
pub struct RelayPage {
    pool: Arc<Pool>,
    version: String,
    shared: Arc<Shared>,
    /// Nodes that answer, and had no answer when they were last asked about policies.
    mute: Mutex<BTreeMap<Arc<str>, String>>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Flow>>,
    /// Flows that a node lost, as it said.
    lost: AtomicU64,
    stage: watch::Sender<Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody looks.
    Idle,
    /// The flows of the past are read.
    Past,
    Live,
}

impl RelayPage {
    pub fn new(pool: Arc<Pool>, version: String) -> RelayPage {
        let shared = Shared {
            ring: Mutex::new(Ring::new(MEMORY)),
            live: broadcast::channel(FOLLOWER_QUEUE).0,
            lost: AtomicU64::new(0),
            stage: watch::channel(Stage::Idle).0,
        };
        RelayPage { pool, version, shared: Arc::new(shared), mute: Mutex::default() }
    }

    /// Flows are gathered from here on; the caller has a receiver, so that they are gathered for somebody.
    fn start(&self) {
        let is_first = self.shared.stage.send_if_modified(|stage| {
            let is_idle = *stage == Stage::Idle;
            if is_idle {
                *stage = Stage::Past;
            }
            is_idle
        });
        if is_first {
            tokio::spawn(Arc::clone(&self.shared).gather(Arc::clone(&self.pool)));
        }
    }

    /// Remembers who did not answer this.
    fn heard<T>(&self, answers: Answers<T>) -> Answers<T> {
        let mute = answers.missing.iter().filter(|(_, why)| !matches!(why, Missing::Unavailable(_)));
        *self.mute.lock() = mute.map(|(node, why)| (Arc::clone(node), why.to_string())).take(NAMED).collect();
        answers
    }

    fn about(&self) -> About {
        let peers = self.pool.peers();
        let mut nodes = Vec::new();
        let (mut trouble, mut missing) = (Vec::new(), 0_usize);
        let (mut flows_seen, mut waiting) = (0_u64, false);
        for peer in peers.values() {
            match &peer.state {
                PeerState::Connected(status) => {
                    nodes.push(peer.name.to_string());
                    flows_seen = flows_seen.saturating_add(status.seen_flows);
                }
                PeerState::Unavailable(why) => {
                    missing += 1;
                    if missing <= NAMED {
                        trouble.push(format!("{} does not answer: {why}", peer.name));
                    }
                }
                PeerState::Unknown => waiting = true,
            }
        }
        for (node, why) in self.mute.lock().iter() {
            if peers.get(node).is_some_and(|peer| matches!(peer.state, PeerState::Connected(_))) {
                trouble.push(format!("{node} does not tell of its policies: {why}"));
            }
        }
        if missing > NAMED {
            trouble.push(format!("{} more nodes do not answer", missing - NAMED));
        }
        if nodes.is_empty() && !waiting && missing == 0 {
            trouble.push("no node is known yet: the peer service has named none".to_owned());
        }
        let health = match (nodes.is_empty(), trouble.is_empty()) {
            (_, true) => "ok",
            (false, false) => "degraded",
            (true, false) => "failed",
        };
        About {
            version: self.version.clone(),
            cluster: cluster_of(&peers),
            nodes,
            health: health.to_owned(),
            trouble,
            flows_seen,
            flows_lost: self.shared.lost.load(Ordering::Relaxed),
            scope: Scope::Cluster,
        }
    }
}

/// Nodes of a cluster with a name of its own carry it.
fn cluster_of(peers: &BTreeMap<Arc<str>, Peer>) -> String {
    let named = peers.keys().next().and_then(|name| name.split_once('/'));
    named.map_or("default", |(cluster, _)| cluster).to_owned()
}

impl Shared {
    /// Follows all nodes until nobody has looked for a while.
    async fn gather(self: Arc<Shared>, pool: Arc<Pool>) {
        let mut number = PAST;
        loop {
            let request = GetFlowsRequest { number, follow: true, ..GetFlowsRequest::default() };
            match self.follow(Joined::new(Arc::clone(&pool), request).await).await {
                Ended::Unwatched => break,
                Ended::Broken(status) => {
                    tracing::debug!(error = status.message(), "the stream for the web UI begins again");
                    // What is in memory was told; a flow more or less of the gap is not worth telling twice.
                    number = 0;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn follow(&self, joined: Result<Joined, Status>) -> Ended {
        let mut joined = match joined {
            Ok(joined) => joined,
            Err(status) => return Ended::Broken(status),
        };
        let mut idle_since = None;
        loop {
            if joined.is_live() {
                self.stage.send_if_modified(|stage| std::mem::replace(stage, Stage::Live) != Stage::Live);
            }
            // `next` has said everything that it took when it is dropped: it can be asked again.
            match timeout(LOOK, joined.next()).await {
                Ok(Some(Ok(response))) => match response.response_types {
                    Some(ResponseTypes::Flow(message)) => self.take(&message),
                    Some(ResponseTypes::LostEvents(lost)) => {
                        self.lost.fetch_add(lost.num_events_lost, Ordering::Relaxed);
                    }
                    _ => {}
                },
                Ok(Some(Err(status))) => return Ended::Broken(status),
                Ok(None) => return Ended::Broken(Status::unavailable("it ended")),
                Err(_) => {}
            }
            if self.live.receiver_count() > 0 {
                idle_since = None;
                continue;
            }
            let now = Instant::now();
            if now - *idle_since.get_or_insert(now) >= LINGER && self.rest() {
                return Ended::Unwatched;
            }
        }
    }

    fn take(&self, message: &crate::api::hubble::pb::flow::Flow) {
        if let Some(flow) = read::flow(message).map(Arc::new) {
            // Under the lock, so that who reads the past and then follows sees a flow in one of the two at least.
            let mut ring = self.ring.lock();
            if *self.stage.borrow() == Stage::Live {
                // The last page may just have gone.
                self.live.send(Arc::clone(&flow)).ok();
            }
            ring.push(flow);
        }
    }

    /// Forgets everything, unless somebody has just come.
    fn rest(&self) -> bool {
        self.stage.send_if_modified(|stage| {
            let is_unwatched = self.live.receiver_count() == 0;
            if is_unwatched {
                *self.ring.lock() = Ring::new(MEMORY);
                *stage = Stage::Idle;
            }
            is_unwatched
        })
    }
}

/// Why a stream is over.
enum Ended {
    Unwatched,
    Broken(Status),
}

impl UiSource for RelayPage {
    fn about(&self) -> Answer<'_, About> {
        Box::pin(std::future::ready(Ok(self.about())))
    }

    /// No node is asked for its pods: they come with their flows. The first page waits here for those of the past.
    fn pods(&self) -> Answer<'_, Vec<KnownPod>> {
        Box::pin(async {
            let mut stage = self.shared.stage.subscribe();
            if timeout(PATIENCE, stage.wait_for(|stage| *stage != Stage::Past)).await.is_err() {
                // What is late is told as if it happened now.
                self.shared.stage.send_if_modified(|stage| {
                    let is_late = *stage == Stage::Past;
                    if is_late {
                        *stage = Stage::Live;
                    }
                    is_late
                });
            }
            Ok(Vec::new())
        })
    }

    fn recent(&self, limit: usize) -> Vec<Arc<Flow>> {
        let ring = self.shared.ring.lock();
        let mut flows: Vec<_> = ring.newest().take(limit).cloned().collect();
        flows.reverse();
        flows
    }

    fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        let receiver = self.shared.live.subscribe();
        self.start();
        receiver
    }

    fn why(&self, question: Question) -> Answer<'_, Why> {
        Box::pin(async move { self.heard(explain::why(&self.pool, &question).await).join() })
    }

    fn policies(&self) -> Answer<'_, Vec<PolicyUse>> {
        Box::pin(async { self.heard(explain::policies(&self.pool).await).join() })
    }

    fn manifest(&self, object: ObjectRef) -> Answer<'_, String> {
        Box::pin(async move { explain::manifest(&self.pool, &object).await.join(&object) })
    }

    fn governed(&self) -> Answer<'_, Vec<Governed>> {
        Box::pin(async { self.heard(explain::governed(&self.pool).await).join() })
    }
}
