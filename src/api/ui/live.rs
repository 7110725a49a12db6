//! `GET /api/v1/live`: server-sent events that keep a page up to date.
//!
//! | event | data |
//! | --- | --- |
//! | `about` | [`About`](super::source::About), at the start and every few seconds |
//! | `map` | what changed on the map since the last one (at the start: everything) |
//! | `flows` | `{"rows": [...], "skipped": N}`: flows that the filter lets through, newest last |
//!
//! Several times a second at most. A page that reads slowly is sent fewer and larger changes: what it gets is
//! made when it reads. Flows above [`ROWS`] an event are counted, not sent.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::{Instant, sleep_until};

use super::feeder::Reader;
use super::graph::Cursor;
use super::source::UiSource;
use crate::api::flow_json;
use crate::flow::filter::Filter;
use crate::flow::{DecidedBy, Flow, L7, Party, Verdict};

/// Between two rounds of events.
const TICK: Duration = Duration::from_millis(250);
/// Rounds between two `about` events.
const ABOUT_EVERY: u32 = 12;
/// Most rows of one event.
pub const ROWS: usize = 300;
/// Rows of the past in the first event.
const FIRST_ROWS: usize = 200;
/// Flows of the past that the filter is tried on for the first event.
const LOOK_BACK: usize = 65_536;

/// The state of one page's stream.
pub struct Live {
    source: Arc<dyn UiSource>,
    reader: Reader,
    cursor: Cursor,
    rows: Option<(Receiver<Arc<Flow>>, Filter)>,
    next: Instant,
    round: u32,
}

/// Which parts a page wants.
#[derive(Debug)]
pub enum Rows {
    Of(Filter),
    None,
}

impl Live {
    pub fn new(source: Arc<dyn UiSource>, reader: Reader, cursor: Cursor, rows: Rows) -> Live {
        let rows = match rows {
            Rows::Of(filter) => Some((source.follow(), filter)),
            Rows::None => None,
        };
        Live { source, reader, cursor, rows, next: Instant::now(), round: 0 }
    }

    /// The next round of events as text; waits for its time. There is always a line, so that a page that
    /// has gone is noticed.
    pub async fn step(mut self) -> Option<(Result<String, Infallible>, Live)> {
        sleep_until(self.next).await;
        self.next = Instant::now() + TICK;
        let mut text = String::new();
        if self.round.is_multiple_of(ABOUT_EVERY)
            && let Ok(about) = self.source.about().await
        {
            event(&mut text, "about", &json!(about));
        }
        let change = self.reader.feeder().with(|graph| (graph.since(self.cursor), graph.cursor()));
        match change {
            Some((Some(change), cursor)) => {
                self.cursor = cursor;
                event(&mut text, "map", &change);
            }
            Some((None, _)) => {}
            // The producer is gone: the page connects again.
            None => return None,
        }
        let first = self.round == 0;
        if let Some((live, filter)) = &mut self.rows {
            let (mut rows, mut skipped) = (Vec::new(), 0);
            if first {
                let past = self.source.recent(LOOK_BACK);
                let mut newest: Vec<_> =
                    past.iter().rev().filter(|flow| filter.matches(flow)).take(FIRST_ROWS).collect();
                newest.reverse();
                rows = newest.into_iter().map(row).collect();
                // Between subscribing and reading the past a flow is in both.
                let seen = past.iter().rev().take(LOOK_BACK.min(8192)).map(|flow| Arc::as_ptr(flow) as usize);
                skipped += drain(live, filter, &seen.collect(), &mut rows);
            } else {
                skipped += drain(live, filter, &HashSet::new(), &mut rows);
            }
            if first || !rows.is_empty() || skipped > 0 {
                event(&mut text, "flows", &json!({"rows": rows, "skipped": skipped, "first": first}));
            }
        }
        self.round = self.round.wrapping_add(1);
        if text.is_empty() {
            text.push_str(":\n\n");
        }
        Some((Ok(text), self))
    }
}

/// Takes what is there; returns how many flows are not among the rows.
fn drain(
    live: &mut Receiver<Arc<Flow>>,
    filter: &Filter,
    seen: &HashSet<usize>,
    rows: &mut Vec<Value>,
) -> u64 {
    let (mut skipped, mut newest) = (0, VecDeque::new());
    loop {
        match live.try_recv() {
            Ok(flow) if seen.contains(&(Arc::as_ptr(&flow) as usize)) => {}
            Ok(flow) if filter.matches(&flow) => {
                newest.push_back(flow);
                if newest.len() > ROWS {
                    newest.pop_front();
                    skipped += 1;
                }
            }
            Ok(_) => {}
            Err(TryRecvError::Lagged(lost)) => skipped += lost,
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    rows.extend(newest.iter().map(row));
    skipped
}

/// One event. JSON has no line ends, so its data is one line.
fn event(text: &mut String, name: &str, data: &Value) {
    text.push_str(&format!("event: {name}\ndata: {data}\n\n"));
}

/// A flow as the table shows it.
pub fn row(flow: &Arc<Flow>) -> Value {
    let mut row = json!({
        "time": flow.time_ns / 1_000_000,
        "verdict": flow.verdict.to_string(),
        "direction": flow.direction,
        "source": party(&flow.source, flow.source_port, flow.source_name.as_deref()),
        "destination": party(&flow.destination, flow.destination_port, flow.destination_name.as_deref()),
        "protocol": flow.protocol.to_string(),
        "summary": flow_json::summary(flow),
        "node": &*flow.node,
        "reply": flow.is_reply,
        "policies": flow.policies().map(|object| object.path()).collect::<Vec<_>>(),
        "because": match &flow.decision.by {
            DecidedBy::Rules(_) => "rules",
            DecidedBy::DefaultDeny(_) => "default-deny",
            DecidedBy::NoPolicy => "no-policy",
        },
    });
    if let Verdict::Dropped(reason) = flow.verdict {
        row["reason"] = json!(reason.text());
    }
    if let Some(service) = flow.service.as_ref().and_then(|service| service.name.as_deref()) {
        row["service"] = json!(service);
    }
    if let Some((icmp_type, _)) = flow.icmp {
        row["icmpType"] = json!(icmp_type);
    }
    match flow.l7.as_deref() {
        Some(l7 @ L7::Http { method, path, host, status, latency_us, .. }) => {
            row["l7"] = json!({"kind": kind(l7), "method": &**method, "path": &**path, "host": &**host, "status": status, "latencyUs": latency_us});
        }
        Some(l7 @ L7::Dns { query, query_type, rcode, latency_us, .. }) => {
            row["l7"] = json!({"kind": kind(l7), "query": &**query, "type": &**query_type, "rcode": &**rcode, "latencyUs": latency_us});
        }
        Some(l7 @ L7::Tls { server_name }) => {
            row["l7"] = json!({"kind": kind(l7), "serverName": server_name.as_deref()});
        }
        None => {}
    }
    row
}

fn kind(l7: &L7) -> &'static str {
    match l7 {
        L7::Http { .. } => "http",
        L7::Dns { .. } => "dns",
        L7::Tls { .. } => "tls",
    }
}

/// `used`: the name by which the other end looked the address up.
fn party(party: &Party, port: Option<u16>, used: Option<&str>) -> Value {
    let name = match used.filter(|_| party.pod.is_none() && party.node.is_none()) {
        Some(used) => used.to_owned(),
        None => party.display(),
    };
    json!({
        "name": name,
        "address": party.address.to_string(),
        "port": port,
        "identity": party.identity.0,
        "pod": party.pod.is_some(),
    })
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}
