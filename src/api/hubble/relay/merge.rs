//! Streams of flows joined in time order.
//!
//! Each source shows its next flow (its head); the earliest head goes first. Nobody can know what a silent
//! source will say next, so a head waits at most `patience` for the others. While flows come live, silence is
//! the rule and patience short; among flows of the past, silence means that a node is late, which is
//! said once, and from then on nobody waits for it.
//!
//! Clocks of nodes differ: a head never waits longer than `patience` by *our* clock, whatever time it carries.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::api::hubble::convert::nanoseconds;
use crate::api::hubble::pb::observer::GetFlowsResponse;
use crate::api::hubble::pb::observer::get_flows_response::ResponseTypes;

/// The responses of one node.
pub type Responses = Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

/// What a silent source means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It has nothing to say just now.
    Usual,
    /// It is late.
    Late,
}

struct Head {
    time_ns: u64,
    arrived: Instant,
    response: GetFlowsResponse,
}

struct Source {
    node: Arc<str>,
    stream: Responses,
    head: Option<Head>,
    /// Since when it has been waited for.
    asked: Instant,
    is_late: bool,
    is_done: bool,
}

/// What comes out.
#[derive(Debug)]
pub enum Event {
    /// The next flow in time.
    Flow { node: Arc<str>, time_ns: u64, response: GetFlowsResponse },
    /// Something else that a node says (lost events): at once, out of order.
    Other(GetFlowsResponse),
    /// Nobody waits for this node any more.
    Late(Arc<str>),
    /// The node's stream is over.
    Ended(Arc<str>, Option<Status>),
}

/// See the module.
pub struct Merge {
    sources: Vec<Source>,
    patience: Duration,
    silence: Silence,
    ready: VecDeque<Event>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl std::fmt::Debug for Merge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merge").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

impl Merge {
    pub fn new(patience: Duration, silence: Silence) -> Merge {
        Merge { sources: Vec::new(), patience, silence, ready: VecDeque::new(), timer: None }
    }

    /// A node's stream; a former one of the same node is dropped.
    pub fn put(&mut self, node: Arc<str>, stream: Responses) {
        self.remove(&node);
        self.sources.push(Source {
            node,
            stream,
            head: None,
            asked: Instant::now(),
            is_late: false,
            is_done: false,
        });
    }

    pub fn remove(&mut self, node: &str) {
        self.sources.retain(|source| &*source.node != node);
    }

    pub fn has(&self, node: &str) -> bool {
        self.sources.iter().any(|source| &*source.node == node)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.sources.iter().map(|source| &source.node)
    }

    /// Nobody can say anything any more.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.ready.is_empty()
    }

    /// The next event; `None` when every source has ended.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            self.fill(cx);
            if !self.ready.is_empty() {
                continue;
            }
            if self.sources.is_empty() {
                return Poll::Ready(None);
            }
            let now = Instant::now();
            match self.due(now) {
                Due::Now => self.emit(),
                Due::Late => self.mark_late(now),
                Due::At(at) => {
                    let timer = self.timer.insert(Box::pin(tokio::time::sleep_until(at)));
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Due::Never => return Poll::Pending,
            }
        }
    }

    /// Asks every source that has no head.
    fn fill(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        for source in &mut self.sources {
            while source.head.is_none() && !source.is_done {
                match source.stream.poll_next_unpin(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(response))) => {
                        source.is_late = false;
                        source.asked = now;
                        match &response.response_types {
                            Some(ResponseTypes::Flow(_)) => {
                                let time_ns = response.time.as_ref().and_then(nanoseconds).unwrap_or(0);
                                source.head = Some(Head { time_ns, arrived: now, response });
                            }
                            _ => {
                                self.ready.push_back(Event::Other(response));
                                // Others are asked as well before this one is asked again.
                                cx.waker().wake_by_ref();
                                break;
                            }
                        }
                    }
                    Poll::Ready(Some(Err(status))) => {
                        source.is_done = true;
                        self.ready.push_back(Event::Ended(Arc::clone(&source.node), Some(status)));
                    }
                    Poll::Ready(None) => {
                        source.is_done = true;
                        self.ready.push_back(Event::Ended(Arc::clone(&source.node), None));
                    }
                }
            }
        }
        self.sources.retain(|source| !source.is_done);
    }

    fn due(&self, now: Instant) -> Due {
        let heads = self.sources.iter().filter_map(|source| source.head.as_ref());
        let oldest = heads.map(|head| head.arrived).min();
        let mut silent = self.sources.iter().filter(|source| source.head.is_none() && !source.is_late);
        match (oldest, self.silence) {
            (Some(_), _) if silent.clone().next().is_none() => Due::Now,
            (Some(arrived), Silence::Usual) => {
                let at = arrived + self.patience;
                if at <= now { Due::Now } else { Due::At(at) }
            }
            // Only those that somebody waits for can be late.
            (_, Silence::Late) => match silent.clone().map(|source| source.asked + self.patience).min() {
                Some(at) if at <= now => Due::Late,
                Some(at) => Due::At(at),
                None => Due::Never,
            },
            (None, Silence::Usual) => {
                silent.next();
                Due::Never
            }
        }
    }

    fn emit(&mut self) {
        let earliest = self
            .sources
            .iter_mut()
            .filter(|source| source.head.is_some())
            .min_by_key(|source| source.head.as_ref().map(|head| head.time_ns));
        if let Some(source) = earliest
            && let Some(head) = source.head.take()
        {
            source.asked = Instant::now();
            let node = Arc::clone(&source.node);
            self.ready.push_back(Event::Flow { node, time_ns: head.time_ns, response: head.response });
        }
    }

    fn mark_late(&mut self, now: Instant) {
        for source in &mut self.sources {
            if source.head.is_none() && !source.is_late && source.asked + self.patience <= now {
                source.is_late = true;
                self.ready.push_back(Event::Late(Arc::clone(&source.node)));
            }
        }
    }
}

/// What to do next.
enum Due {
    /// The earliest head goes.
    Now,
    /// Somebody is late.
    Late,
    At(Instant),
    /// When a source speaks.
    Never,
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::api::hubble::convert::timestamp;
    use crate::api::hubble::pb;

    fn flow(time_ns: u64) -> Result<GetFlowsResponse, Status> {
        Ok(GetFlowsResponse {
            node_name: String::new(),
            time: Some(timestamp(time_ns)),
            response_types: Some(ResponseTypes::Flow(pb::flow::Flow::default())),
        })
    }

    fn times(times: &[u64]) -> Responses {
        Box::pin(stream::iter(times.iter().map(|time| flow(*time)).collect::<Vec<_>>()))
    }

    async fn collect(merge: &mut Merge) -> (Vec<u64>, Vec<String>) {
        let (mut order, mut said) = (Vec::new(), Vec::new());
        while let Some(event) = merge.next().await {
            match event {
                Event::Flow { time_ns, .. } => order.push(time_ns),
                Event::Late(node) => said.push(format!("{node} late")),
                Event::Ended(node, status) => {
                    said.push(format!("{node} {}", if status.is_some() { "failed" } else { "ended" }));
                }
                Event::Other(_) => said.push("other".into()),
            }
        }
        (order, said)
    }

    #[tokio::test]
    async fn flows_come_in_time_order() {
        let mut merge = Merge::new(Duration::from_secs(2), Silence::Late);
        merge.put("a".into(), times(&[1, 4, 6]));
        merge.put("b".into(), times(&[2, 3, 5, 7]));
        merge.put("c".into(), times(&[]));
        let (order, _) = collect(&mut merge).await;
        assert_eq!(order, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[tokio::test]
    async fn a_late_node_is_named_once_and_nobody_waits_for_it() {
        let mut merge = Merge::new(Duration::from_millis(50), Silence::Late);
        merge.put("a".into(), times(&[1, 4, 6]));
        let (speak, spoken) = tokio::sync::oneshot::channel();
        merge.put(
            "slow".into(),
            Box::pin(stream::once(async {
                spoken.await.unwrap();
                flow(2)
            })),
        );
        let mut order = Vec::new();
        let mut late = 0;
        while order.len() < 3 {
            match merge.next().await.unwrap() {
                Event::Flow { time_ns, .. } => order.push(time_ns),
                Event::Late(node) => {
                    assert_eq!(&*node, "slow");
                    late += 1;
                }
                _ => {}
            }
        }
        assert_eq!((order, late), (vec![1, 4, 6], 1));
        speak.send(()).unwrap();
        let (rest, _) = collect(&mut merge).await;
        assert_eq!(rest, [2]);
    }

    #[tokio::test]
    async fn live_flows_wait_for_a_silent_node_only_as_long_as_patience_lasts() {
        let mut merge = Merge::new(Duration::from_millis(100), Silence::Usual);
        merge.put("silent".into(), Box::pin(stream::pending()));
        // A clock that is hours ahead changes nothing.
        merge.put("ahead".into(), Box::pin(times(&[u64::MAX / 2]).chain(stream::pending())));
        let begun = Instant::now();
        let Some(Event::Flow { node, .. }) = merge.next().await else { panic!("no flow") };
        assert_eq!(&*node, "ahead");
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_node_that_fails_ends_its_own_stream_only() {
        let mut merge = Merge::new(Duration::from_secs(2), Silence::Late);
        merge.put("a".into(), times(&[1, 3]));
        let failing = stream::iter([flow(2), Err(Status::unavailable("gone"))]);
        merge.put("b".into(), Box::pin(failing));
        let (order, said) = collect(&mut merge).await;
        assert_eq!(order, [1, 2, 3]);
        assert!(said.contains(&"b failed".to_owned()) && said.contains(&"a ended".to_owned()), "{said:?}");
    }
}
