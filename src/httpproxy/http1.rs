//! HTTP/1.0 and 1.1: one request after the other, each judged by the newest rules, forwarded as it came.
//!
//! A client's connection has one connection to the server, made for the first request that passes. Requests
//! that were sent ahead (pipelining) wait in the socket until their turn: their answers are in order by
//! construction, and a slow side holds the other back. Bodies stream through one buffer a direction.
//!
//! A client that closes its sending side behind a whole request gets its answer: it may still want it (RFC 9112, section
//! 9.6), and whoever speaks HTTP through a pipe (`nc`) does. Proxies differ: nginx takes it for an abort
//! (`proxy_ignore_client_abort off`), HAProxy went on and gives up since 3.3 (`abortonclose`). They are
//! configured for their clients; this one is in the way of clients that do not know of it, and a request that is worked at in
//! vain is a lesser evil than an answer that is lost. A client that has closed altogether looks the same until
//! it answers a probe with a reset, little more than a minute later ([`super::presence`]).
//!
//! Here is how requests come in and what they are; [`super::forward`] sends them on, [`super::answer`] answers
//! instead of the server.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::net::TcpStream;

use super::greeting::SILENCE;
use super::head::{self, Parsed, RequestHead, Scan};
use super::io::{Alarm, Inbox, reset};
use super::judge::Judged;
use super::policy::{ConnectionPolicy, Verdict};
use super::request::{host, looks_foreign, path};
use super::tunnel::{self, End, Through};
use super::{Context, Ends, h2c};
use crate::flow::L7;
use crate::policy::l7::http::Request;
use crate::policy::l7::message::Fault;
use crate::policy::l7::target::Target;
use crate::policy::map_state::Proxy;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NOT_HTTP: Fault = "not HTTP";
/// Fields whose places an idle connection may keep the memory for.
const KEPT_FIELDS: usize = 32;

/// What is next on a connection.
pub(super) enum Step {
    Next,
    /// Close, once the client has what it was sent.
    Close,
    Gone,
    Reset,
    Http2,
    /// Bytes of no protocol that we know, where nothing is refused.
    Opaque,
    /// The server has switched protocols.
    Upgraded(Passed),
}

/// A request that passed, kept to be judged again.
pub(super) struct Passed {
    pub(super) head: Vec<u8>,
    pub(super) request: RequestHead,
    pub(super) path: String,
}

impl Passed {
    pub(super) fn verdict(&self, policy: &ConnectionPolicy) -> Verdict {
        let fields = self.request.fields(&self.head);
        let method = self.request.method(&self.head);
        policy.request(&Request { method, path: &self.path, host: host(&fields), headers: &fields })
    }

    /// As records have it, once its server has switched protocols.
    pub(super) fn told(&self, cx: &Context, verdict: &Verdict) -> L7 {
        L7::Http {
            method: self.request.method(&self.head).into(),
            path: cx.shown_path(&self.path).into(),
            host: host(&self.request.fields(&self.head)).into(),
            status: 101,
            latency_us: 0,
            version: self.request.version.told(),
            mismatches: verdict.mismatches(),
        }
    }
}

/// One connection of a client. `request` is the head at the start of `inbox`, from when it is whole until it is
/// sent on or answered.
pub(super) struct Session {
    pub(super) client: TcpStream,
    pub(super) inbox: Inbox,
    pub(super) server: Option<End>,
    /// This connection to the server has brought an answer already, so that it may have been closed for its age.
    pub(super) server_has_answered: bool,
    pub(super) ends: Ends,
    pub(super) judged: Option<Judged>,
    pub(super) cx: Arc<Context>,
    pub(super) request: RequestHead,
    /// Bounds waits for the client, and while an answer is under way those of the upload.
    pub(super) alarm: Alarm,
    /// Bounds waits of the download.
    pub(super) download_alarm: Alarm,
    scan: Scan,
    /// Something of HTTP was understood on this connection.
    speaks_http: bool,
}

/// What the rules say of a request.
enum Ruled {
    /// With this path, if it is not the one that was sent.
    Pass(Verdict, Option<String>),
    Deny(Verdict, Option<String>),
    /// A tunnel through us would hide what is in it.
    Connect,
    Redirect(String),
    Malformed(Fault),
}

/// Serves one connection. `inbox`: what was read of it already.
pub(super) async fn serve(client: TcpStream, inbox: Inbox, ends: Ends, cx: Arc<Context>) {
    let mut session = Session::new(client, inbox, ends, cx);
    loop {
        match session.one().await {
            Step::Next => {}
            Step::Close => return session.close().await,
            Step::Gone => return,
            Step::Reset => return reset(session.client),
            // Rare, and large: not a part of what every connection keeps.
            Step::Http2 => {
                return Box::pin(h2c::serve(session.client, session.inbox, session.ends, session.cx)).await;
            }
            Step::Opaque => return Box::pin(session.tunnel(Through::Opaque)).await,
            Step::Upgraded(passed) => return Box::pin(session.tunnel(Through::Upgraded(passed))).await,
        }
    }
}

/// Answers one that speaks something else, where rules want HTTP.
pub(super) async fn refuse_foreign(client: TcpStream, inbox: Inbox, ends: Ends, cx: Arc<Context>) {
    let mut session = Session::new(client, inbox, ends, cx);
    if let Step::Close = session.malformed(NOT_HTTP).await {
        session.close().await;
    }
}

impl Session {
    fn new(client: TcpStream, inbox: Inbox, ends: Ends, cx: Arc<Context>) -> Session {
        Session {
            client,
            inbox,
            server: None,
            server_has_answered: false,
            ends,
            judged: None,
            cx,
            request: RequestHead::default(),
            alarm: Alarm::new(),
            download_alarm: Alarm::new(),
            scan: Scan::default(),
            speaks_http: false,
        }
    }

    /// Serves one request.
    async fn one(&mut self) -> Step {
        if let Err(step) = self.wait().await {
            return step;
        }
        if let Err(step) = self.read_head().await {
            return step;
        }
        self.speaks_http = true;
        self.cx.counters.requests.one();
        let begun = Instant::now();
        match self.rule() {
            Ruled::Pass(verdict, path) => self.forward(path, verdict, begun).await,
            Ruled::Deny(verdict, path) => self.deny(path.as_deref(), &verdict, begun).await,
            Ruled::Connect => {
                self.deny(None, &Verdict::unjudged(), begun).await;
                Step::Close
            }
            Ruled::Redirect(location) => self.redirect(&location, begun).await,
            Ruled::Malformed(fault) => self.malformed(fault).await,
        }
    }

    fn rule(&mut self) -> Ruled {
        let Session { inbox, request, cx, judged, ends, .. } = self;
        let head = &inbox.data()[..request.len];
        let method = request.method(head);
        let fields = request.fields(head);
        let path = match path(method, request.target(head), host(&fields)) {
            Ok(Target::Forward(path)) => path,
            Ok(Target::Redirect(location)) => return Ruled::Redirect(location),
            Ok(Target::Malformed(fault)) | Err(fault) => return Ruled::Malformed(fault),
        };
        if method == "CONNECT" {
            return Ruled::Connect;
        }
        let asked = Request { method, path: &path, host: host(&fields), headers: &fields };
        let verdict = cx.judged(*ends, judged).policy.request(&asked);
        let path = (*path != *request.target(head)).then(|| path.into_owned());
        if verdict.passes { Ruled::Pass(verdict, path) } else { Ruled::Deny(verdict, path) }
    }

    /// Waits for the first byte of a request.
    async fn wait(&mut self) -> Result<(), Step> {
        if !self.inbox.is_empty() {
            return Ok(());
        }
        self.inbox.release();
        if let Some(server) = &mut self.server {
            server.inbox.release();
        }
        if self.may_be_foreign() {
            self.wait_for_either().await?;
        }
        let Session { client, inbox, server, cx, alarm, .. } = self;
        let either = poll_fn(|cx| {
            if let Poll::Ready(read) = inbox.poll_fill(client, cx) {
                return Poll::Ready(read);
            }
            // What a server says unasked is nothing that a client should see; most likely it closes.
            match server.as_ref().map(|server| server.poll_unasked(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                None | Some(Poll::Pending) => Poll::Pending,
            }
        });
        match alarm.within(cx.limits.idle_timeout, either).await {
            Ok(1..) => Ok(()),
            Ok(0) => Err(Step::Gone),
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    cx.counters.timeouts.one();
                }
                Err(Step::Gone)
            }
        }
    }

    /// Where nothing is refused, a server that speaks first is let through.
    async fn wait_for_either(&mut self) -> Result<(), Step> {
        if tokio::time::timeout(SILENCE, self.client.peek(&mut [0])).await.is_ok() {
            return Ok(());
        }
        self.connect().await?;
        let Session { client, server: Some(server), alarm, cx, .. } = self else { return Ok(()) };
        let (mut from_client, mut from_server) = ([0], [0]);
        let either = async {
            tokio::select! {
                biased;
                _ = client.peek(&mut from_client) => Ok(()),
                _ = server.stream.peek(&mut from_server) => Err(Step::Opaque),
            }
        };
        let Some(first) = alarm.bound(cx.limits.idle_timeout, either).await else {
            cx.counters.timeouts.one();
            return Err(Step::Gone);
        };
        first
    }

    /// Nothing of HTTP was understood yet, and the rules refuse nothing: no bytes are wrong here.
    fn may_be_foreign(&mut self) -> bool {
        !self.speaks_http && self.cx.judged(self.ends, &mut self.judged).policy.opaque().passes
    }

    /// Reads until a head is whole. Every way in which it is none has been answered.
    async fn read_head(&mut self) -> Result<(), Step> {
        let mut deadline = None;
        let mut skipped = false;
        if self.request.headers.capacity() > KEPT_FIELDS {
            self.request.headers = Vec::new();
        }
        self.scan = Scan::default();
        loop {
            // One empty line before a request is an old habit (RFC 9112, section 2.2).
            if !skipped && self.inbox.data().starts_with(b"\r\n") {
                self.inbox.consume(2);
                self.scan = Scan::default();
                skipped = true;
            }
            if let Some(step) = self.parse(skipped).await {
                return step;
            }
            let limit = self.cx.limits.header_timeout;
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limit);
            let left = deadline.saturating_duration_since(Instant::now());
            let Session { client, inbox, alarm, .. } = self;
            match alarm.within(left, inbox.fill(client)).await {
                Ok(0) if self.inbox.is_empty() => return Err(Step::Gone),
                // A few bytes that could begin a request, whose sender waits for a word of its server.
                Ok(0) if self.may_be_foreign() => return Err(Step::Opaque),
                Ok(0) => return Err(self.malformed("the connection ended in a head").await),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    if self.may_be_foreign() {
                        return Err(Step::Opaque);
                    }
                    self.cx.counters.timeouts.one();
                    return Err(self.refuse("408 Request Timeout").await);
                }
                Err(_) => return Err(Step::Gone),
            }
        }
    }

    /// What is there of a head; `None`: too little to say.
    async fn parse(&mut self, skipped: bool) -> Option<Result<(), Step>> {
        let Session { inbox, scan, request, cx, speaks_http, .. } = self;
        let data = inbox.data();
        if data.is_empty() || data == b"\r" && !skipped {
            return None;
        }
        if !*speaks_http {
            if data.starts_with(PREFACE) {
                return Some(Err(Step::Http2));
            }
            if PREFACE.starts_with(&data[..data.len().min(PREFACE.len())]) {
                return None;
            }
            if !skipped && looks_foreign(data) {
                return Some(Err(match self.foreign() {
                    Some(step) => step,
                    None => self.malformed(NOT_HTTP).await,
                }));
            }
        }
        let (most_bytes, most_fields) = (cx.limits.header_bytes, cx.limits.header_count);
        match head::request(data, scan, most_fields, request) {
            Parsed::Complete(()) if request.len <= most_bytes => Some(Ok(())),
            Parsed::Partial if data.len() <= most_bytes => None,
            Parsed::Complete(()) | Parsed::Partial => {
                cx.counters.headers_too_large.one();
                Some(Err(self.refuse("431 Request Header Fields Too Large").await))
            }
            Parsed::TooMany => {
                cx.counters.headers_too_many.one();
                Some(Err(self.refuse("431 Request Header Fields Too Large").await))
            }
            Parsed::Fault(fault) => Some(Err(self.malformed(fault).await)),
        }
    }

    /// What becomes of bytes that are not HTTP; `None`: rules want HTTP.
    fn foreign(&mut self) -> Option<Step> {
        let verdict = self.cx.judged(self.ends, &mut self.judged).policy.opaque();
        match verdict.refused_for {
            _ if verdict.passes => Some(Step::Opaque),
            Some(Proxy::Tls) => Some(self.not_tls(&verdict)),
            _ => None,
        }
    }

    async fn tunnel(mut self, through: Through) {
        // One that is there has perhaps said something already, which is the client's.
        if self.server.is_none() && self.connect().await.is_err() {
            return reset(self.client);
        }
        let Some(server) = self.server else { return };
        let client = End { stream: self.client, inbox: self.inbox };
        tunnel::run(client, server, self.ends, &self.cx, through).await;
    }
}
