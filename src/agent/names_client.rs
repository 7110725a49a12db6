//! The DNS proxy's end of learning: asks the agent, and gets along without it.
//!
//! Contract: [`Learner::learn`] returns in bounded time. A name that no `toFQDNs` rule names is not waited for.
//! Without an agent the address is put into the kernel here, and noted for the agent to learn.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};

use super::l7feed::Feed;
use super::names::{Question, SOCKET, Told};
use super::offline_names::OfflineNames;
use crate::dnsproxy::outside::Wait;
use crate::dnsproxy::{Learner, Reach};
use crate::fqdn::Learned;

/// How long an answer is held back for the agent.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers that wait to be sent.
const QUEUE: usize = 4096;
/// Answers that are written at once.
const BATCH: usize = 64;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Reach>>>>;

struct Ask {
    learned: Learned,
    /// Absent: nobody waits.
    answer: Option<oneshot::Sender<Reach>>,
}

/// See the module.
#[derive(Debug)]
pub struct NamesClient {
    feed: Feed,
    asks: mpsc::Sender<Ask>,
    offline: OfflineNames,
}

impl NamesClient {
    /// Talks to whichever agent serves `run_dir` at the time.
    pub fn start(run_dir: &Path, feed: Feed, offline: OfflineNames) -> Arc<NamesClient> {
        let (asks, queue) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(run_dir.join(SOCKET), queue));
        Arc::new(NamesClient { feed, asks, offline })
    }

    async fn ask(&self, learned: Learned) -> Option<Reach> {
        let (answer, wait) = oneshot::channel();
        self.asks.send(Ask { learned, answer: Some(answer) }).await.ok()?;
        // An agent that is gone drops the other end.
        wait.await.ok()
    }
}

impl Learner for NamesClient {
    fn learn(&self, learned: Learned) -> Wait<'_, Reach> {
        Box::pin(async move {
            if !self.feed.load().is_wanted(&learned.name) {
                // For rules that come later. Without an agent, or with too much to do, nothing is lost but
                // that.
                self.asks.try_send(Ask { learned, answer: None }).ok();
                return Reach::Ready;
            }
            match tokio::time::timeout(PATIENCE, self.ask(learned.clone())).await {
                Ok(Some(reach)) => reach,
                // No agent, or one that hangs.
                Ok(None) | Err(_) => self.offline.learn(&self.feed.load(), &learned),
            }
        })
    }
}

/// Sends what comes, over one connection at a time.
async fn send_all(socket: PathBuf, mut queue: mpsc::Receiver<Ask>) {
    let mut connection: Option<(OwnedWriteHalf, Waiting)> = None;
    let mut next = 0;
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        if connection.as_ref().is_some_and(|(_, waiting)| Arc::strong_count(waiting) == 1) {
            // The reading end has stopped: the agent is gone.
            connection = None;
        }
        if connection.is_none() {
            connection = connect(&socket).await;
        }
        let Some((write, waiting)) = &mut connection else {
            batch.clear();
            continue;
        };
        let mut text = Vec::new();
        for Ask { learned, answer } in batch.drain(..) {
            next += 1;
            if let Some(answer) = answer {
                waiting.lock().insert(next, answer);
            }
            if serde_json::to_writer(&mut text, &Question::new(next, &learned)).is_ok() {
                text.push(b'\n');
            }
        }
        if write.write_all(&text).await.is_err() {
            waiting.lock().clear();
            connection = None;
        }
    }
}

async fn connect(socket: &Path) -> Option<(OwnedWriteHalf, Waiting)> {
    let (read, write) = UnixStream::connect(socket).await.ok()?.into_split();
    let waiting = Waiting::default();
    let shared = Arc::clone(&waiting);
    tokio::spawn(async move {
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(told) = serde_json::from_str::<Told>(&line) else { break };
            let reach = if told.ready { Reach::Ready } else { Reach::Closed };
            if let Some(answer) = shared.lock().remove(&told.id) {
                // Who asked may have lost patience.
                answer.send(reach).ok();
            }
        }
        shared.lock().clear();
    });
    Some((write, waiting))
}
