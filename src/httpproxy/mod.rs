//! The transparent HTTP proxy, and the one for TLS server names.
//!
//! Contract: every connection that it accepts is one that the kernel redirected; the accepted socket's own
//! address is where the client wanted to go. Each request (or ClientHello) is judged by the newest rules
//! ([`judge`], [`policy`]); what passes is forwarded byte for byte as it came, on a connection that has the
//! client's address, except for the path, which is forwarded as it was matched. A refused request is answered
//! `403 Access denied` and its connection goes on. What is under way when the rules change is judged again
//! ([`standing`]).
//!
//! - [`serve`]: accepting, draining; [`crew`]: the threads. [`http1`], [`h2c`], [`tls`]: the protocols.
//!   [`tunnel`]: bytes as they are.
//! - [`head`], [`body`], [`call`], [`hello`]: strict parsing, without IO.
//! - [`options`]: what can be set.
//!
//! Where connections come from and go to, who judges and who is told are traits and functions
//! ([`Context`]): the kernel's part is in `datapath`, and `agent` puts both together.

mod answer;
pub mod body;
pub mod call;
pub mod crew;
mod exchange;
mod forward;
mod frames;
mod greeting;
mod h2_exchange;
mod h2_upstream;
mod h2c;
pub mod head;
pub mod hello;
mod http1;
mod io;
pub mod judge;
pub mod options;
mod pipe;
pub mod policy;
mod presence;
mod request;
pub mod serve;
mod splice;
mod standing;
mod streams;
mod tls;
mod tunnel;
mod upkeep;
mod waits;
mod wire;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::watch;

use self::judge::{Judge, Judged};
use self::policy::{Refusal, Verdict};
use crate::admission::Most;
use crate::flow::L7;
use crate::flow::record::{Record, RecordVerdict};

/// The two ends of a connection as its makers see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub client: SocketAddr,
    /// After Service translation.
    pub server: SocketAddr,
}

/// Where connections come from and go to.
pub trait Network: Send + Sync + 'static {
    /// Who opened an accepted connection, and to where.
    fn ends(&self, accepted: &TcpStream) -> std::io::Result<Ends>;
    /// Connects to the server with the client's address.
    fn connect(&self, ends: Ends) -> BoxFuture<'_, std::io::Result<TcpStream>>;
}

/// What is bounded. Every bound that bites is counted ([`Counters`]).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one head, request or response.
    pub header_bytes: usize,
    /// Fields of one head, request or response.
    pub header_count: usize,
    /// From the first byte of a head to its last, request or response; of an HTTP/2 frame, too.
    pub header_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// Without any move of a request and its answer, in neither direction.
    pub body_timeout: Duration,
    /// Until the server begins to answer, from when it has the request.
    pub response_timeout: Duration,
    pub connect_timeout: Duration,
    /// Body of a refused request that is read to keep the connection.
    pub refused_body_bytes: u64,
    /// HTTP/2 streams of one connection.
    pub streams: u32,
    /// Connections at a time.
    pub connections: usize,
    /// Those of one client; without it a quarter of all.
    pub connections_per_client: Option<usize>,
    /// For connections that are there when the process is to end.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_bytes: 64 * 1024,
            header_count: 128,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            body_timeout: Duration::from_secs(300),
            response_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(5),
            refused_body_bytes: 1 << 20,
            streams: 256,
            connections: 65_536,
            connections_per_client: None,
            drain_timeout: Duration::from_secs(300),
        }
    }
}

impl Limits {
    /// One client leaves room for others, whatever it does with what it has.
    fn most_connections(&self) -> Most {
        let share = self.connections_per_client.unwrap_or(self.connections.div_ceil(4));
        Most { of_one: share, of_all: self.connections }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Since the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Counter),* }

        impl Counters {
            /// By name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get())),*]
            }
        }
    };
}

counters! {
    connections,
    requests,
    forwarded,
    denied,
    /// Of those denied: to find their rule would have taken too much work.
    too_much_work,
    /// Answered 307.
    redirected,
    malformed,
    /// More bytes than a head may have.
    headers_too_large,
    /// More fields than a head may have.
    headers_too_many,
    /// HTTP/2 connections that had as many streams as they may have.
    streams_at_limit,
    timeouts,
    /// Sets of rules that are too large together: nothing passes where they hold.
    rules_unusable,
    /// No connection to the server, or no answer that can be forwarded.
    upstream_failures,
    handshakes,
    handshakes_denied,
    tunnels,
    /// Tunnels that new rules ended.
    tunnels_cut,
    /// Requests that had passed, and that new rules ended before their answers had.
    requests_cut,
    connections_refused,
    /// Connections that were refused because their client had as many as it may have.
    clients_at_limit,
    /// Connections that were cut because the process could not wait any longer for their end.
    drained_late,
}

impl Counters {
    /// A request was refused.
    fn refused(&self, verdict: &Verdict) {
        self.denied.one();
        if verdict.refusal == Refusal::TooMuchWork {
            self.too_much_work.one();
        }
    }
}

/// A number that grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What records say of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedPath {
    WithoutQuery,
    WithQuery,
}

/// Who is told of requests and handshakes.
pub trait Recorder: Send + Sync + 'static {
    /// One more record may be sent now. To be asked before one is made: above the rate nothing is.
    fn admits(&self) -> bool;
    fn record(&self, record: Record);
}

/// Everything that a connection needs.
pub struct Context {
    pub judge: Arc<dyn Judge>,
    pub network: Arc<dyn Network>,
    pub recorder: Arc<dyn Recorder>,
    pub recorded_path: RecordedPath,
    pub limits: Limits,
    pub counters: Arc<Counters>,
    /// Moves with every change of the rules.
    pub changes: watch::Receiver<u64>,
    /// `true`: finish what runs, begin nothing.
    pub draining: watch::Receiver<bool>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Context {
    /// The policy of a connection, looked up again only if it may have changed.
    fn judged<'a>(&self, ends: Ends, kept: &'a mut Option<Judged>) -> &'a Judged {
        if kept.as_ref().is_some_and(|judged| !self.judge.is_current(judged)) {
            *kept = None;
        }
        kept.get_or_insert_with(|| self.judge.policy(ends.client, ends.server))
    }

    fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// `l7` is asked for only if there is going to be a record.
    fn report(
        &self,
        ends: Ends,
        judged: &Judged,
        verdict: &Verdict,
        outcome: RecordVerdict,
        l7: impl FnOnce() -> L7,
    ) {
        if self.recorder.admits() {
            self.record(ends, judged, verdict, outcome, l7());
        }
    }

    /// Once the recorder has admitted it.
    fn record(&self, ends: Ends, judged: &Judged, verdict: &Verdict, outcome: RecordVerdict, l7: L7) {
        let time_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        self.recorder.record(Record {
            time_ns,
            direction: verdict.direction,
            verdict: outcome,
            protocol: 6,
            client: ends.client,
            server: ends.server,
            client_identity: judged.policy.client_identity,
            server_identity: judged.policy.server_identity,
            rules: verdict.rules.as_slice().into(),
            l7,
        });
    }

    /// A path as records have it.
    fn shown_path<'a>(&self, path: &'a str) -> &'a str {
        match self.recorded_path {
            RecordedPath::WithQuery => path,
            RecordedPath::WithoutQuery => path.split('?').next().unwrap_or(path),
        }
    }
}
