//! The flows of one `GetFlows` call, pulled chunk by chunk.
//!
//! First what was: from history, where a time before the oldest flow in memory is asked for or memory has too few,
//! then from memory (newest N, oldest N or all of a time range). After that, with `follow`, what comes. A reader has a cursor and no queue: when the client does not read, nothing is read for it, and the
//! ring says afterwards how many flows went by.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::convert::{self, timestamp};
use super::filter;
use super::mask::Mask;
use super::pb::flow::{LostEvent, LostEventSource};
use super::pb::observer::get_flows_response::ResponseTypes;
use super::pb::observer::{GetFlowsRequest, GetFlowsResponse};
use super::source::Observed;
use crate::api::past::{self, Past, PastQuery};
use crate::flow::Flow;
use crate::flow::filter::Selection;
use crate::flow::ring::Batch;

/// Flows that are looked at in one go; other tasks run between two.
const CHUNK: usize = 1024;
/// The same where expressions look at them: a hostile one takes about a millisecond for a flow.
const CHUNK_OF_PREDICATES: usize = 32;

/// What is asked for, once it has been checked.
#[derive(Debug)]
pub struct Query {
    pub selection: Arc<Selection>,
    mask: Option<Mask>,
    since_ns: u64,
    until_ns: u64,
    /// At most so many of the past.
    number: Option<u64>,
    order: Order,
    follow: Follow,
    /// Flows that are looked at in one go.
    chunk: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    OldestFirst,
    Newest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    Yes,
    No,
}

impl Query {
    pub fn new(request: &GetFlowsRequest, naming: &convert::Naming) -> Result<Query, Status> {
        if request.first && request.follow {
            return Err(Status::invalid_argument("first cannot be specified with follow"));
        }
        let since = filter::time("since", request.since.as_ref())?;
        let until = filter::time("until", request.until.as_ref())?;
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(Status::invalid_argument("since is after until"));
        }
        let selection = filter::selection(&request.whitelist, &request.blacklist, naming)?;
        // Following without a number or a time shows what comes from now on.
        let nothing_past = request.follow && request.number == 0 && since.is_none();
        Ok(Query {
            chunk: if selection.has_predicates() { CHUNK_OF_PREDICATES } else { CHUNK },
            selection: Arc::new(selection),
            mask: Mask::new(request.field_mask.as_ref())?,
            since_ns: since.unwrap_or(0),
            until_ns: until.unwrap_or(u64::MAX),
            number: match (nothing_past, request.number) {
                (true, _) => Some(0),
                (false, 0) => None,
                (false, number) => Some(number),
            },
            order: if request.first { Order::OldestFirst } else { Order::Newest },
            follow: if request.follow { Follow::Yes } else { Follow::No },
        })
    }

    fn wants(&self, flow: &Flow) -> bool {
        (self.since_ns..=self.until_ns).contains(&flow.time_ns) && self.selection.matches(flow)
    }
}

/// Where a reader is.
enum Phase {
    /// Looking backwards for the newest `left`; `found` is newest first.
    Searching {
        below: u64,
        left: u64,
        found: VecDeque<Arc<Flow>>,
    },
    /// Reading what is on disk, of which `left` may still come, and then what `found` holds or memory does.
    History {
        batches: mpsc::Receiver<Past>,
        left: u64,
        found: Option<VecDeque<Arc<Flow>>>,
    },
    /// Reading forwards up to the flow that was the newest when the call came.
    Past {
        cursor: u64,
        left: u64,
    },
    Live {
        cursor: u64,
    },
    Done,
}

/// The state of one call.
pub struct Reader {
    source: Arc<dyn Observed>,
    query: Query,
    phase: Phase,
    /// Where the past ends.
    end: u64,
    ready: VecDeque<GetFlowsResponse>,
    failed: Option<Status>,
    grown: watch::Receiver<u64>,
    /// The kernel's losses that were reported.
    lost: u64,
}

impl Reader {
    /// Fixes what is past and what is to come.
    pub fn new(source: Arc<dyn Observed>, query: Query) -> Reader {
        let grown = source.grown();
        let counts = source.counts();
        let end = counts.seen + 1;
        let phase = match (query.number, query.order) {
            (Some(0), _) => Phase::Past { cursor: end, left: 0 },
            (Some(left), Order::Newest) => Phase::Searching { below: end, left, found: VecDeque::new() },
            (left, _) => Phase::Past { cursor: 0, left: left.unwrap_or(u64::MAX) },
        };
        let (ready, lost) = (VecDeque::new(), counts.lost);
        let mut reader = Reader { source, query, phase, end, ready, failed: None, grown, lost };
        if let Phase::Past { cursor: 0, left } = reader.phase
            && reader.query.since_ns > 0
            && let Some(batches) = reader.history(None)
        {
            reader.phase = Phase::History { batches, left, found: None };
        }
        reader
    }

    /// Flows on disk that are older than those in memory; none if nothing so old is asked for.
    fn history(&self, newest: Option<u64>) -> Option<mpsc::Receiver<Past>> {
        let oldest = self.source.read(0, 1).flows.first().map_or(u64::MAX, |flow| flow.time_ns);
        let until_ns = self.query.until_ns.min(oldest.saturating_sub(1));
        if self.query.since_ns > until_ns {
            return None;
        }
        let selection = Arc::clone(&self.query.selection);
        let pods = match &selection.allow[..] {
            [only] => past::pods(only),
            _ => None,
        };
        Some(self.source.past()?.past(PastQuery {
            since_ns: self.query.since_ns,
            until_ns,
            pods,
            matches: Arc::new(move |flow| selection.matches(flow)),
            newest: newest.and_then(|newest| usize::try_from(newest).ok()),
        }))
    }

    /// As the stream of a response.
    pub fn into_stream(self) -> impl Stream<Item = Result<GetFlowsResponse, Status>> + Send {
        futures::stream::unfold(self, |mut reader| async move {
            match reader.next().await {
                Some(next) => Some((Ok(next), reader)),
                None => Some((Err(reader.failed.take()?), reader)),
            }
        })
    }

    async fn next(&mut self) -> Option<GetFlowsResponse> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(response);
            }
            match &mut self.phase {
                Phase::Searching { .. } => self.search(),
                Phase::History { .. } => self.read_history().await,
                Phase::Past { .. } => self.read_past(),
                Phase::Live { .. } => {
                    if self.read_live() == Progress::Waiting && !self.wait().await {
                        self.phase = Phase::Done;
                    }
                }
                Phase::Done => return None,
            }
            tokio::task::yield_now().await;
        }
    }

    fn search(&mut self) {
        let Phase::Searching { below, left, found } = &mut self.phase else { return };
        let chunk = self.query.chunk;
        let from = below.saturating_sub(chunk as u64).max(1);
        let Batch { flows, cursor, .. } =
            self.source.read(from, usize::try_from(*below - from).unwrap_or(chunk));
        let first = cursor - flows.len() as u64;
        for flow in flows.iter().rev().filter(|flow| self.query.wants(flow)) {
            found.push_back(Arc::clone(flow));
            *left -= 1;
            if *left == 0 {
                break;
            }
        }
        // Nothing older is in memory, or all of it was before the time asked for.
        let is_oldest = first > from || from == 1 || flows.is_empty();
        let is_too_old = !flows.is_empty() && flows.iter().all(|flow| flow.time_ns < self.query.since_ns);
        *below = from;
        let (left, found) = match *left == 0 || is_oldest || is_too_old {
            true => (*left, std::mem::take(found)),
            false => return,
        };
        let past = if left > 0 { self.history(Some(left)) } else { None };
        match past {
            Some(batches) => self.phase = Phase::History { batches, left, found: Some(found) },
            None => self.tell(&found),
        }
    }

    /// The newest flows, which were found newest first; with them the past is over.
    fn tell(&mut self, found: &VecDeque<Arc<Flow>>) {
        for flow in found.iter().rev() {
            let response = self.response(flow);
            self.ready.push_back(response);
        }
        self.past_is_over();
    }

    async fn read_history(&mut self) {
        let Phase::History { batches, left, found } = &mut self.phase else { return };
        let batch = if *left == 0 { None } else { batches.recv().await };
        match batch {
            Some(Ok(mut flows)) => {
                flows.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= flows.len() as u64;
                for flow in &flows {
                    let response = self.response(flow);
                    self.ready.push_back(response);
                }
            }
            Some(Err(refusal)) => {
                self.failed = Some(Status::internal(format!("history: {refusal}")));
                self.phase = Phase::Done;
            }
            None => {
                let left = *left;
                match found.take() {
                    Some(found) => self.tell(&found),
                    None => self.phase = Phase::Past { cursor: 0, left },
                }
            }
        }
    }

    fn read_past(&mut self) {
        let Phase::Past { cursor, left } = &mut self.phase else { return };
        let chunk = self.query.chunk;
        let remaining = usize::try_from(self.end.saturating_sub(*cursor)).unwrap_or(chunk).min(chunk);
        if *left == 0 || remaining == 0 {
            return self.past_is_over();
        }
        let Batch { flows, cursor: next, lost } = self.source.read(*cursor, remaining);
        let first = next - flows.len() as u64;
        *cursor = next;
        let before = self.end.saturating_sub(first);
        let mut wanted = Vec::new();
        for flow in flows.iter().take(usize::try_from(before).unwrap_or(chunk)) {
            if *left > 0 && self.query.wants(flow) {
                *left -= 1;
                wanted.push(Arc::clone(flow));
            }
        }
        let is_empty = flows.is_empty();
        self.report_lost(lost, LostEventSource::HubbleRingBuffer);
        for flow in wanted {
            let response = self.response(&flow);
            self.ready.push_back(response);
        }
        if is_empty {
            self.past_is_over();
        }
    }

    fn past_is_over(&mut self) {
        self.phase = match self.query.follow {
            Follow::Yes => Phase::Live { cursor: self.end },
            Follow::No => Phase::Done,
        };
    }

    fn read_live(&mut self) -> Progress {
        let Phase::Live { cursor } = &mut self.phase else { return Progress::Moved };
        self.grown.mark_unchanged();
        let Batch { flows, cursor: next, lost } = self.source.read(*cursor, self.query.chunk);
        *cursor = next;
        self.report_lost(lost, LostEventSource::HubbleRingBuffer);
        let kernel = self.source.counts().lost;
        let more = kernel.saturating_sub(self.lost);
        self.lost = kernel;
        self.report_lost(more, LostEventSource::PerfEventRingBuffer);
        for flow in flows.iter().filter(|flow| self.query.wants(flow)) {
            let response = self.response(flow);
            self.ready.push_back(response);
        }
        if flows.is_empty() { Progress::Waiting } else { Progress::Moved }
    }

    /// `false`: nothing more can come.
    async fn wait(&mut self) -> bool {
        let now = now_ns();
        if self.query.until_ns <= now {
            return false;
        }
        let left = std::time::Duration::from_nanos(self.query.until_ns - now);
        // A far time is none: timers do not reach that far.
        let left = left.min(std::time::Duration::from_secs(365 * 24 * 3600));
        match tokio::time::timeout(left, self.grown.changed()).await {
            Ok(changed) => changed.is_ok(),
            // One more look at what came before the time was over.
            Err(_) => self.read_live() == Progress::Moved || !self.ready.is_empty(),
        }
    }

    fn report_lost(&mut self, lost: u64, source: LostEventSource) {
        if lost == 0 {
            return;
        }
        let time = timestamp(now_ns());
        self.ready.push_back(GetFlowsResponse {
            node_name: self.source.naming().node(self.source.node()),
            time: Some(time),
            response_types: Some(ResponseTypes::LostEvents(LostEvent {
                source: source.into(),
                num_events_lost: lost,
                cpu: None,
                first: None,
                last: Some(time),
            })),
        });
    }

    fn response(&self, flow: &Flow) -> GetFlowsResponse {
        let message = convert::flow(flow, self.source.naming());
        let (node_name, time) = (message.node_name.clone(), message.time);
        let message = match &self.query.mask {
            Some(mask) => mask.apply(&message),
            None => message,
        };
        GetFlowsResponse { node_name, time, response_types: Some(ResponseTypes::Flow(message)) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Moved,
    Waiting,
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or_default()
}
