//! Keeps the map up to date while somebody looks at it, and costs nothing while nobody does.
//!
//! The first reader makes the map from the flows in memory and starts a task that follows the live ones; the
//! task ends when the last reader has been gone for [`LINGER`], so that a reload finds its map.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, timeout_at};

use super::graph::Graph;
use super::source::UiSource;
use crate::flow::Flow;

/// How long the map is kept up to date for nobody.
const LINGER: Duration = Duration::from_secs(60);
/// Between two looks at who is there.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks at which pods exist.
const PODS: Duration = Duration::from_secs(10);
/// Flows of the past that the map begins with.
const PAST: usize = 65_536;
/// Flows counted under one lock.
const BATCH: usize = 512;

/// See the module.
pub struct Feeder {
    source: Arc<dyn UiSource>,
    graph: Mutex<Option<Graph>>,
    readers: AtomicUsize,
    /// Of the map that is made next.
    epochs: std::sync::atomic::AtomicU64,
}

/// A reader's presence.
pub struct Reader(Arc<Feeder>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Reader {
    pub fn feeder(&self) -> &Feeder {
        &self.0
    }
}

impl Feeder {
    pub fn new(source: Arc<dyn UiSource>) -> Arc<Feeder> {
        // A page that outlives its server must not take another map's numbers for those that it knows.
        let seed = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_millis() as u64);
        Arc::new(Feeder {
            source,
            graph: Mutex::new(None),
            readers: AtomicUsize::new(0),
            epochs: std::sync::atomic::AtomicU64::new(seed << 8),
        })
    }

    /// Registers a reader; the map exists from here on.
    pub async fn read(self: &Arc<Self>) -> Reader {
        self.readers.fetch_add(1, Ordering::AcqRel);
        let reader = Reader(Arc::clone(self));
        if self.graph.lock().is_some() {
            return reader;
        }
        // Subscribed before the past is read, so that nothing falls between the two.
        let live = self.source.follow();
        let pods = self.source.pods().await.unwrap_or_default();
        let mut slot = self.graph.lock();
        if slot.is_some() {
            return reader;
        }
        let mut graph = Graph::new(self.epochs.fetch_add(1 << 8, Ordering::Relaxed));
        pods.iter().for_each(|pod| graph.know_pod(pod));
        let past = self.source.recent(PAST);
        past.iter().for_each(|flow| graph.add(flow));
        *slot = Some(graph);
        drop(slot);
        let seen = past.iter().rev().take(8192).map(|flow| Arc::as_ptr(flow) as usize).collect();
        tokio::spawn(Arc::clone(self).follow(live, past, seen));
        reader
    }

    /// Looks at the map, if there is one.
    pub fn with<T>(&self, look: impl FnOnce(&Graph) -> T) -> Option<T> {
        self.graph.lock().as_ref().map(look)
    }

    /// `_past` keeps the flows alive that `seen` names by their places.
    async fn follow(
        self: Arc<Self>,
        mut live: tokio::sync::broadcast::Receiver<Arc<Flow>>,
        past: Vec<Arc<Flow>>,
        seen: HashSet<usize>,
    ) {
        let mut overlap = Some((past, seen));
        let (mut idle_since, mut pods_at) = (None, Instant::now() + PODS);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let mut missed = 0;
            match timeout_at(Instant::now() + LOOK, live.recv()).await {
                Ok(Ok(flow)) => batch.push(flow),
                Ok(Err(RecvError::Lagged(lost))) => missed += lost,
                Ok(Err(RecvError::Closed)) => break,
                Err(_) => {}
            }
            while batch.len() < BATCH {
                match live.try_recv() {
                    Ok(flow) => batch.push(flow),
                    Err(TryRecvError::Lagged(lost)) => missed += lost,
                    Err(_) => break,
                }
            }
            // Between subscribing and reading the past a flow is in both.
            if let Some((_, seen)) = &overlap {
                let before = batch.len();
                batch.retain(|flow| !seen.contains(&(Arc::as_ptr(flow) as usize)));
                if batch.len() == before && before > 0 {
                    overlap = None;
                }
            }
            if let Some(graph) = self.graph.lock().as_mut() {
                graph.missed += missed;
                batch.drain(..).for_each(|flow| graph.add(&flow));
            }
            let now = Instant::now();
            if now >= pods_at {
                pods_at = now + PODS;
                let pods = self.source.pods().await.unwrap_or_default();
                if let Some(graph) = self.graph.lock().as_mut() {
                    pods.iter().for_each(|pod| graph.know_pod(pod));
                }
            }
            if self.readers.load(Ordering::Acquire) > 0 {
                idle_since = None;
                continue;
            }
            let mut slot = self.graph.lock();
            // Under the lock: a reader that comes now waits here and makes a new map.
            if now - *idle_since.get_or_insert(now) >= LINGER && self.readers.load(Ordering::Acquire) == 0 {
                *slot = None;
                return;
            }
        }
        *self.graph.lock() = None;
    }
}

impl std::fmt::Debug for Feeder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feeder").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
