//! What happens to one query, whatever carried it.
//!
//! Contract: every query is judged; a released one gets the server's reply, or SERVFAIL when there is
//! none in time; the addresses that it was asked for are learned before they go out. Nothing waits without bound.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;

use super::counters::Counters;
use super::message::{Query, ResponseCode, Unfit};
use super::outside::{Ask, Decision, Judge, Learner, QueryRecord, Reach, Records, Ruling};
use super::sockets::Sockets;
use super::upstream::{Failure, Replied, Rest};
use super::worker::{self, Workers};
use crate::admission::{Limiter, Most};
use crate::fqdn::{Learned, RecordData};
use crate::model::Protocol;

/// What a refused query is answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefusalCode {
    #[default]
    Refused,
    NxDomain,
}

/// Limits and choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub refusal: RefusalCode,
    /// From the query to SERVFAIL when the server is silent. Less than the 5 seconds after which
    /// common resolvers give up, so that they hear of it.
    pub upstream_timeout: Duration,
    /// A client's connection without a whole message for so long is closed.
    pub idle_timeout: Duration,
    pub queries: Most,
    pub connections: Most,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            refusal: RefusalCode::Refused,
            upstream_timeout: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(10),
            queries: Most { of_one: 512, of_all: 16_384 },
            connections: Most { of_one: 64, of_all: 4096 },
        }
    }
}

/// The rest of sluice, as the proxy sees it.
pub struct Parts {
    pub judge: Arc<dyn Judge>,
    pub learner: Arc<dyn Learner>,
    pub records: Arc<dyn Records>,
    pub sockets: Arc<dyn Sockets>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// See the room's contract.
pub struct Proxy {
    pub(super) options: Options,
    judge: Arc<dyn Judge>,
    learner: Arc<dyn Learner>,
    records: Arc<dyn Records>,
    pub(super) sockets: Arc<dyn Sockets>,
    pub counters: Counters,
    pub(super) queries: Arc<Limiter>,
    pub(super) connections: Arc<Limiter>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A message of a client, and where it was going.
#[derive(Debug)]
pub(super) struct Received {
    pub message: Vec<u8>,
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub protocol: Protocol,
    pub since: Instant,
}

/// What is known about a query before the server is asked.
#[derive(Debug)]
pub(super) enum Sorted {
    /// Nothing more to do than to send this, if anything.
    Done(Option<Vec<u8>>),
    Released(Query, Ruling),
}

/// What becomes of a reply.
#[derive(Debug)]
pub(super) enum Released {
    Now(Vec<u8>),
    /// Its addresses are learned first.
    AfterLearning(Held),
}

/// A reply that is held back.
#[derive(Debug)]
pub(super) struct Held {
    learned: Learned,
    replied: Replied,
    ruling: Ruling,
}

/// What a record says beside what was received.
#[derive(Debug, Default)]
struct Outcome {
    rcode: Option<u8>,
    answers: Vec<IpAddr>,
    fault: Option<String>,
}

impl Proxy {
    pub fn new(options: Options, parts: Parts) -> Arc<Proxy> {
        let Parts { judge, learner, records, sockets } = parts;
        Arc::new(Proxy {
            queries: Limiter::new(options.queries),
            connections: Limiter::new(options.connections),
            counters: Counters::default(),
            options,
            judge,
            learner,
            records,
            sockets,
        })
    }

    /// Queries that wait for their servers.
    pub fn open_queries(&self) -> usize {
        self.queries.open()
    }

    /// Serves the datagrams of these listeners with so many threads. Called inside a runtime.
    ///
    /// # Errors
    /// A thread or what it needs cannot be made.
    pub fn serve_udp(
        self: &Arc<Proxy>,
        listeners: Vec<UdpSocket>,
        workers: usize,
    ) -> std::io::Result<Workers> {
        worker::start(self, listeners, workers)
    }

    /// Serves the connections of one listener until the socket fails.
    pub async fn serve_tcp(self: Arc<Proxy>, listener: TcpListener) -> std::io::Result<()> {
        super::tcp::serve(self, listener).await
    }

    /// Parses and judges. Never waits.
    pub(super) fn sort(&self, received: &Received) -> Sorted {
        self.counters.queries.add();
        let query = match Query::parse(&received.message) {
            Ok(query) => query,
            Err(unfit) => {
                self.counters.malformed.add();
                let fault = Some(unfit.fault().to_string());
                let answer = match unfit {
                    Unfit::Drop(_) => None,
                    Unfit::Answer(_, answer) => Some(answer),
                };
                let rcode = answer.as_ref().map(|answer| answer[3] & 0xf);
                self.note(received, None, None, Outcome { rcode, fault, ..Outcome::default() });
                return Sorted::Done(answer);
            }
        };
        let ruling = self.judge.judge(&Ask {
            client: received.client,
            server: received.server,
            protocol: received.protocol,
            name: &query.question.name,
            at: received.since,
        });
        if ruling.decision == Decision::Release {
            return Sorted::Released(query, ruling);
        }
        self.counters.refused.add();
        let code = match self.options.refusal {
            RefusalCode::Refused => ResponseCode::Refused,
            RefusalCode::NxDomain => ResponseCode::NxDomain,
        };
        self.note(
            received,
            Some(&query),
            Some(ruling),
            Outcome { rcode: Some(code as u8), ..Outcome::default() },
        );
        Sorted::Done(Some(query.refusal(code)))
    }

    /// The answer to a query for which there is no room.
    pub(super) fn overflow(&self, received: &Received, query: &Query, ruling: Ruling) -> Vec<u8> {
        self.counters.over_limit.add();
        self.fail(received, query, ruling, "too many open queries of this client".into())
    }

    fn fail(&self, received: &Received, query: &Query, ruling: Ruling, fault: String) -> Vec<u8> {
        let outcome =
            Outcome { rcode: Some(ResponseCode::ServFail as u8), fault: Some(fault), ..Outcome::default() };
        self.note(received, Some(query), Some(ruling), outcome);
        query.refusal(ResponseCode::ServFail)
    }

    /// The answer to a query that has no reply.
    pub(super) fn failed(
        &self,
        received: &Received,
        query: &Query,
        ruling: Ruling,
        failure: &Failure,
    ) -> Vec<u8> {
        match failure {
            Failure::Io(_) => self.counters.unreachable.add(),
            Failure::Malformed(_) => self.counters.malformed_replies.add(),
            Failure::Silence => self.counters.timeouts.add(),
        }
        self.fail(received, query, ruling, failure.to_string())
    }

    /// Asks over a connection; the answer may be SERVFAIL.
    pub(super) async fn resolve(
        &self,
        received: &Received,
        query: &Query,
        ruling: Ruling,
    ) -> (Vec<u8>, Option<Rest>) {
        let Received { message, client, server, .. } = received;
        let ask = self.ask_tcp(query, message, *client, *server);
        let asked = tokio::time::timeout(self.options.upstream_timeout, ask).await;
        match asked.unwrap_or(Err(Failure::Silence)) {
            Ok((replied, rest)) => {
                let answer = match self.try_release(received, query, ruling, replied) {
                    Released::Now(answer) => answer,
                    Released::AfterLearning(held) => self.release(received, query, held).await,
                };
                (answer, query.is_transfer().then_some(rest))
            }
            Err(failure) => (self.failed(received, query, ruling, &failure), None),
        }
    }

    /// Gives a reply out if its addresses are open already, or if it has none.
    pub(super) fn try_release(
        &self,
        received: &Received,
        query: &Query,
        ruling: Ruling,
        replied: Replied,
    ) -> Released {
        let learned = replied.reply.learned(&query.question);
        let reach = match learned.addresses.is_empty() {
            true => Some(Reach::Ready),
            false => self.learner.known(&learned, received.client.ip()),
        };
        let held = Held { learned, replied, ruling };
        match reach {
            Some(reach) => Released::Now(self.give_out(received, query, held, reach)),
            None => Released::AfterLearning(held),
        }
    }

    /// Learns what the reply says, then gives it out.
    pub(super) async fn release(&self, received: &Received, query: &Query, held: Held) -> Vec<u8> {
        let reach = self.learner.learn(held.learned.clone(), received.client.ip()).await;
        self.give_out(received, query, held, reach)
    }

    fn give_out(&self, received: &Received, query: &Query, held: Held, reach: Reach) -> Vec<u8> {
        let Held { replied: Replied { message, reply }, ruling, .. } = held;
        self.counters.released.add();
        let is_closed = reach == Reach::Closed;
        if is_closed {
            self.counters.closed_answers.add();
        }
        if self.records.admits() {
            let address = |data: &RecordData| match data {
                RecordData::Address(address) => Some(*address),
                RecordData::Cname(_) => None,
            };
            let answers = reply.records.iter().filter_map(|record| address(&record.data)).collect();
            let fault = is_closed
                .then(|| "the addresses of the answer stay closed: they could not be learned".to_owned());
            let outcome = Outcome { rcode: Some(reply.rcode), answers, fault };
            self.record(received, Some(query), Some(ruling), outcome);
        }
        message
    }

    fn note(&self, received: &Received, query: Option<&Query>, ruling: Option<Ruling>, outcome: Outcome) {
        if self.records.admits() {
            self.record(received, query, ruling, outcome);
        }
    }

    fn record(&self, received: &Received, query: Option<&Query>, ruling: Option<Ruling>, outcome: Outcome) {
        self.records.record(QueryRecord {
            time: SystemTime::now(),
            client: received.client,
            server: received.server,
            protocol: received.protocol,
            name: query.map(|query| query.question.name.clone()).unwrap_or_default(),
            kind: query.map_or(0, |query| query.question.kind),
            rcode: outcome.rcode,
            answers: outcome.answers,
            latency: received.since.elapsed(),
            ruling,
            fault: outcome.fault,
        });
    }
}
