//! HTTP/1.0 and 1.1: one request after the other, each judged by the newest rules, forwarded as it came.
//!
//! A client's connection has one connection to the server, made for the first request that passes. Requests
//! that were sent ahead (pipelining) wait in the socket until their turn: their answers are in order by
//! construction, and a slow side holds the other back. Bodies stream through one buffer a direction.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::body::Body;
use super::exchange::{Answered, Exchange, Failure, relay};
use super::head::{self, Parsed, RequestHead, Version};
use super::io::{Inbox, reset, within};
use super::judge::Judged;
use super::policy::{ConnectionPolicy, Verdict};
use super::request::{host, looks_foreign, path};
use super::tunnel::{self, End};
use super::{Context, Ends, h2c};
use crate::flow::L7;
use crate::flow::record::RecordVerdict;
use crate::policy::l7::http::{HeaderEdit, Request};
use crate::policy::l7::message::Fault;
use crate::policy::l7::target::Target;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A server that speaks first gets so long to be recognised where nothing is refused.
const SILENCE: Duration = Duration::from_millis(150);
/// For the last bytes of a connection that is closed with an answer.
const LINGER: Duration = Duration::from_secs(1);

/// What is next on a connection.
enum Step {
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
struct Passed {
    head: Vec<u8>,
    request: RequestHead,
    path: String,
}

impl Passed {
    fn passes(&self, policy: &ConnectionPolicy) -> bool {
        let fields = self.request.fields(&self.head);
        let method = self.request.method(&self.head);
        policy.request(&Request { method, path: &self.path, host: host(&fields), headers: &fields }).passes
    }
}

struct Session {
    client: TcpStream,
    inbox: Inbox,
    server: Option<End>,
    ends: Ends,
    judged: Option<Judged>,
    cx: Arc<Context>,
    /// Something of HTTP was understood on this connection.
    speaks_http: bool,
}

/// Serves one connection.
pub(super) async fn serve(client: TcpStream, ends: Ends, cx: Arc<Context>) {
    let mut session =
        Session { client, inbox: Inbox::default(), server: None, ends, judged: None, cx, speaks_http: false };
    loop {
        match session.one().await {
            Step::Next => {}
            Step::Close => return session.close().await,
            Step::Gone => return,
            Step::Reset => return reset(session.client),
            Step::Http2 => {
                return h2c::serve(session.client, session.inbox, session.ends, session.cx).await;
            }
            Step::Opaque => return session.tunnel(|policy| policy.opaque().passes).await,
            Step::Upgraded(passed) => return session.tunnel(move |policy| passed.passes(policy)).await,
        }
    }
}

impl Session {
    /// Serves one request.
    async fn one(&mut self) -> Step {
        if let Err(step) = self.wait().await {
            return step;
        }
        let request = match self.read_head().await {
            Ok(request) => request,
            Err(step) => return step,
        };
        self.speaks_http = true;
        self.cx.counters.requests.one();
        let begun = Instant::now();
        let head = &self.inbox.data()[..request.len];
        let path = match path(head, &request) {
            Ok(Target::Forward(path)) => path.into_owned(),
            Ok(Target::Redirect(location)) => {
                self.cx.counters.redirected.one();
                self.report_unjudged(&request, 307, begun);
                return self.answer(&request, "307 Temporary Redirect", Some(&location), "").await;
            }
            Ok(Target::Malformed(fault)) | Err(fault) => return self.malformed(fault).await,
        };
        let method = request.method(head);
        if method == "CONNECT" {
            // A tunnel through us would hide what is in it.
            self.cx.counters.denied.one();
            self.report_unjudged(&request, 403, begun);
            self.answer(&request, "403 Forbidden", None, "Access denied\r\n").await;
            return Step::Close;
        }
        let fields = request.fields(head);
        let asked = Request { method, path: &path, host: host(&fields), headers: &fields };
        let verdict = self.cx.judged(self.ends, &mut self.judged).policy.request(&asked);
        if !verdict.passes {
            self.cx.counters.denied.one();
            self.report(&request, &path, &verdict, RecordVerdict::Denied, 403, begun);
            return self.answer(&request, "403 Forbidden", None, "Access denied\r\n").await;
        }
        self.forward(request, path, verdict, begun).await
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
        if !self.speaks_http && self.cx.judged(self.ends, &mut self.judged).policy.opaque().passes {
            self.wait_for_either().await?;
        }
        let mut draining = self.cx.draining.clone();
        let idle = tokio::time::sleep(self.cx.limits.idle_timeout);
        tokio::pin!(idle);
        loop {
            let Session { client, server, cx, inbox, .. } = self;
            let mut byte = [0];
            let server_ends = async {
                match server {
                    Some(server) => server.stream.peek(&mut byte).await.map(drop),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                readable = client.readable() => {
                    readable.map_err(|_| Step::Gone)?;
                    match inbox.try_fill(client) {
                        Ok(1..) => return Ok(()),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => inbox.release(),
                        Ok(0) | Err(_) => return Err(Step::Gone),
                    }
                }
                // What it says unasked is nothing that a client should see; most likely it closes.
                _ = server_ends => return Err(Step::Gone),
                _ = draining.wait_for(|draining| *draining) => return Err(Step::Gone),
                () = &mut idle => {
                    cx.counters.timeouts.one();
                    return Err(Step::Gone);
                }
            }
        }
    }

    /// Where nothing is refused, a server that speaks first is let through.
    async fn wait_for_either(&mut self) -> Result<(), Step> {
        if tokio::time::timeout(SILENCE, self.client.peek(&mut [0])).await.is_ok() {
            return Ok(());
        }
        self.connect().await?;
        let Some(server) = &self.server else { return Ok(()) };
        let (mut from_client, mut from_server) = ([0], [0]);
        tokio::select! {
            biased;
            _ = self.client.peek(&mut from_client) => Ok(()),
            _ = server.stream.peek(&mut from_server) => Err(Step::Opaque),
        }
    }

    /// Reads until a head is whole. Every way in which it is none has been answered.
    async fn read_head(&mut self) -> Result<RequestHead, Step> {
        let deadline = tokio::time::Instant::now() + self.cx.limits.header_timeout;
        let mut skipped = false;
        loop {
            // One empty line before a request is an old habit (RFC 9112, section 2.2).
            if !skipped && self.inbox.data().starts_with(b"\r\n") {
                self.inbox.consume(2);
                skipped = true;
            }
            let data = self.inbox.data();
            if !self.speaks_http {
                if data.starts_with(PREFACE) {
                    return Err(Step::Http2);
                }
                if !skipped && looks_foreign(data) {
                    let passes = self.cx.judged(self.ends, &mut self.judged).policy.opaque().passes;
                    return Err(if passes { Step::Opaque } else { self.malformed("not HTTP").await });
                }
            }
            let is_preface = !data.is_empty() && PREFACE.starts_with(&data[..data.len().min(PREFACE.len())]);
            if (!is_preface || self.speaks_http) && !data.is_empty() {
                match head::request(data) {
                    Parsed::Complete(request) if request.len > self.cx.limits.header_bytes => {
                        return Err(self.too_large().await);
                    }
                    Parsed::Complete(request) => return Ok(request),
                    Parsed::Fault(fault) => return Err(self.malformed(fault).await),
                    Parsed::Partial if data.len() > self.cx.limits.header_bytes => {
                        return Err(self.too_large().await);
                    }
                    Parsed::Partial => {}
                }
            }
            let Session { client, inbox, .. } = self;
            match tokio::time::timeout_at(deadline, inbox.fill(client)).await {
                Ok(Ok(0)) if self.inbox.is_empty() => return Err(Step::Gone),
                Ok(Ok(0)) => return Err(self.malformed("the connection ended in a head").await),
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(Step::Gone),
                Err(_) => {
                    self.cx.counters.timeouts.one();
                    return Err(self.refuse("408 Request Timeout").await);
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Step> {
        let mut byte = [0];
        // A server may have closed since the last answer. What it says unasked is not for this client.
        if self.server.as_ref().is_some_and(|server| server.stream.try_read(&mut byte).is_ok()) {
            self.server = None;
        }
        if self.server.is_none() {
            let connecting = self.cx.network.connect(self.ends);
            match within(self.cx.limits.connect_timeout, connecting).await {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    self.server = Some(End { stream, inbox: Inbox::default() });
                }
                Err(error) => {
                    tracing::debug!(%error, server = %self.ends.server, "no connection to the server");
                    self.cx.counters.upstream_failures.one();
                    return Err(Step::Reset);
                }
            }
        }
        Ok(())
    }

    async fn forward(
        &mut self,
        request: RequestHead,
        path: String,
        verdict: Verdict,
        begun: Instant,
    ) -> Step {
        let mut body = Body::from(request.length);
        let with_head = match body.accept(&self.inbox.data()[request.len..]) {
            Ok(count) => count,
            Err(fault) => return self.malformed(fault).await,
        };
        if self.connect().await.is_err() {
            self.report(&request, &path, &verdict, RecordVerdict::Failed, 503, begun);
            return self
                .answer(&request, "503 Service Unavailable", None, "no connection to the server\r\n")
                .await;
        }
        let data = self.inbox.data();
        let head = &data[..request.len];
        let is_rewritten = request.strip_upgrade
            || path != request.target(head)
            || verdict.edits.iter().any(|edit| !matches!(edit, HeaderEdit::Log { .. }));
        let passed = request.upgrade.then(|| Passed {
            head: head.to_vec(),
            request: request.clone(),
            path: path.clone(),
        });
        let rewritten = is_rewritten.then(|| {
            let mut bytes = head::rewritten(head, &request, &path, &verdict.edits);
            bytes.extend_from_slice(&data[request.len..request.len + with_head]);
            bytes
        });
        let method_is_head = request.method(head) == "HEAD";
        let record = (head.to_vec(), path);
        let Some(server) = &mut self.server else { return Step::Gone };
        let first = rewritten.as_deref().unwrap_or(&data[..request.len + with_head]);
        if within(self.cx.limits.body_timeout, server.stream.write_all(first)).await.is_err() {
            // Like a server that closes: whether to try again is the client's business.
            self.cx.counters.upstream_failures.one();
            return Step::Gone;
        }
        self.inbox.consume(request.len + with_head);

        let limits = self.cx.limits;
        let mut exchange = Exchange {
            is_head: method_is_head,
            upgrade: request.upgrade,
            begun,
            started: false,
            status: 0,
            latency: Duration::ZERO,
        };
        let (mut client_read, mut client_write) = self.client.split();
        let (mut server_read, mut server_write) = server.stream.split();
        let answered = {
            let download = exchange.answer(&mut server_read, &mut server.inbox, &mut client_write, &limits);
            if body.is_done() {
                download.await
            } else {
                let upload = relay(&mut body, &mut self.inbox, &mut client_read, &mut server_write, &limits);
                tokio::pin!(download, upload);
                let mut uploading = true;
                loop {
                    tokio::select! {
                        answered = &mut download => break answered,
                        sent = &mut upload, if uploading => match sent {
                            // The server may answer before it has everything, even if it reads no more.
                            Ok(()) | Err(Failure::Writing) => uploading = false,
                            Err(failure) => break Err(failure),
                        },
                    }
                }
            }
        };
        self.finish(request, record, verdict, exchange, answered, body.is_done(), passed).await
    }

    /// Records what came of a request, and says how the connection goes on.
    #[expect(clippy::too_many_arguments, reason = "the parts of one exchange, used once")]
    async fn finish(
        &mut self,
        request: RequestHead,
        (head, path): (Vec<u8>, String),
        verdict: Verdict,
        exchange: Exchange,
        answered: Result<Answered, Failure>,
        body_is_done: bool,
        passed: Option<Passed>,
    ) -> Step {
        let (outcome, status) = match (&answered, exchange.started) {
            (Ok(_), _) => (RecordVerdict::Forwarded, exchange.status),
            (Err(_), true) => (RecordVerdict::Failed, exchange.status),
            (Err(Failure::Malformed(_)), false) => (RecordVerdict::Failed, 400),
            (Err(Failure::Timeout), false) => (RecordVerdict::Failed, 504),
            (Err(_), false) => (RecordVerdict::Failed, 502),
        };
        let latency = if exchange.latency.is_zero() { exchange.begun.elapsed() } else { exchange.latency };
        self.report_parts(&request, &head, &path, &verdict, outcome, status, latency);
        match answered {
            Ok(Answered::Switched) => match passed {
                Some(passed) => Step::Upgraded(passed),
                None => Step::Reset,
            },
            Ok(Answered::Whole { server_keeps }) => {
                self.cx.counters.forwarded.one();
                if !server_keeps {
                    self.server = None;
                }
                let goes_on = request.keep_alive && server_keeps && body_is_done && !self.cx.is_draining();
                if goes_on { Step::Next } else { Step::Close }
            }
            // A cut answer must not look like a whole one.
            Err(_) if exchange.started => {
                self.cx.counters.upstream_failures.one();
                Step::Reset
            }
            Err(Failure::Malformed(fault)) => {
                self.server = None;
                self.malformed(fault).await
            }
            Err(Failure::Timeout) => {
                self.cx.counters.timeouts.one();
                self.server = None;
                self.refuse("504 Gateway Timeout").await
            }
            Err(Failure::Client) => Step::Gone,
            Err(Failure::Writing | Failure::Closed) => {
                self.cx.counters.upstream_failures.one();
                // The server closed: so do we, and the client may try again, as it would without us.
                Step::Gone
            }
            Err(Failure::Server(fault)) => {
                tracing::debug!(fault, server = %self.ends.server, "an answer that is not forwarded");
                self.cx.counters.upstream_failures.one();
                self.server = None;
                self.refuse("502 Bad Gateway").await
            }
        }
    }

    /// Answers instead of the server and keeps the connection, if the request's body can be read away.
    async fn answer(
        &mut self,
        request: &RequestHead,
        status: &str,
        location: Option<&str>,
        text: &str,
    ) -> Step {
        let is_head = request.method(self.inbox.data()) == "HEAD";
        let mut keeps = request.keep_alive && !request.expects_continue && !self.cx.is_draining();
        keeps &= match request.length {
            head::Length::Bytes(count) => count <= self.cx.limits.refused_body_bytes,
            _ => true,
        };
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", text.len());
        if !text.is_empty() {
            answer.push_str("Content-Type: text/plain\r\n");
        }
        if let Some(location) = location {
            answer.push_str(&format!("Location: {location}\r\n"));
        }
        match (keeps, request.version) {
            (false, _) => answer.push_str("Connection: close\r\n"),
            (true, Version::Http10) => answer.push_str("Connection: keep-alive\r\n"),
            (true, Version::Http11) => {}
        }
        answer.push_str("\r\n");
        if !is_head {
            answer.push_str(text);
        }
        if within(self.cx.limits.body_timeout, self.client.write_all(answer.as_bytes())).await.is_err() {
            return Step::Gone;
        }
        self.inbox.consume(request.len);
        if !keeps {
            return Step::Close;
        }
        let mut body = Body::from(request.length);
        let mut left = self.cx.limits.refused_body_bytes;
        loop {
            match body.accept(self.inbox.data()) {
                Ok(count) => {
                    self.inbox.consume(count);
                    left = left.saturating_sub(count as u64);
                }
                Err(_) => return Step::Close,
            }
            if body.is_done() {
                return Step::Next;
            }
            let Session { client, inbox, .. } = self;
            let read = within(self.cx.limits.body_timeout, inbox.fill(client)).await;
            if left == 0 || !matches!(read, Ok(1..)) {
                return Step::Close;
            }
        }
    }

    async fn malformed(&mut self, fault: Fault) -> Step {
        tracing::debug!(fault, client = %self.ends.client, "malformed request");
        self.cx.counters.malformed.one();
        self.refuse("400 Bad Request").await
    }

    async fn too_large(&mut self) -> Step {
        self.cx.counters.headers_too_large.one();
        self.refuse("431 Request Header Fields Too Large").await
    }

    /// Answers and closes.
    async fn refuse(&mut self, status: &str) -> Step {
        let verdict = Verdict {
            passes: false,
            direction: crate::model::Direction::Egress,
            rules: Vec::new(),
            edits: Vec::new(),
        };
        if status.starts_with('4') {
            let l7 = L7::Http {
                method: "".into(),
                path: "".into(),
                host: "".into(),
                status: status.get(..3).and_then(|code| code.parse().ok()).unwrap_or(400),
                latency_us: 0,
            };
            let judged = self.cx.judged(self.ends, &mut self.judged).clone();
            self.cx.report(self.ends, &judged, &verdict, RecordVerdict::Failed, l7);
        }
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        match within(LINGER, self.client.write_all(answer.as_bytes())).await {
            Ok(()) => Step::Close,
            Err(_) => Step::Gone,
        }
    }

    /// Closes so that the client reads our last answer before it learns of the close.
    async fn close(mut self) {
        self.server = None;
        if self.client.shutdown().await.is_err() {
            return;
        }
        let Session { client, inbox, .. } = &mut self;
        let rest = async {
            while let Ok(1..) = inbox.fill(client).await {
                let count = inbox.data().len();
                inbox.consume(count);
            }
        };
        tokio::time::timeout(LINGER, rest).await.ok();
    }

    async fn tunnel(mut self, allowed: impl Fn(&ConnectionPolicy) -> bool) {
        // One that is there has perhaps said something already, which is the client's.
        if self.server.is_none() && self.connect().await.is_err() {
            return reset(self.client);
        }
        let Some(server) = self.server else { return };
        let client = End { stream: self.client, inbox: self.inbox };
        tunnel::run(client, server, self.ends, &self.cx, allowed).await;
    }

    fn report_unjudged(&mut self, request: &RequestHead, status: u16, begun: Instant) {
        let target = request.target(self.inbox.data()).to_owned();
        let verdict = Verdict {
            passes: false,
            direction: crate::model::Direction::Egress,
            rules: Vec::new(),
            edits: Vec::new(),
        };
        self.report(request, &target, &verdict, RecordVerdict::Denied, status, begun);
    }

    fn report(
        &mut self,
        request: &RequestHead,
        path: &str,
        verdict: &Verdict,
        outcome: RecordVerdict,
        status: u16,
        begun: Instant,
    ) {
        let head = self.inbox.data()[..request.len].to_vec();
        self.report_parts(request, &head, path, verdict, outcome, status, begun.elapsed());
    }

    #[expect(clippy::too_many_arguments, reason = "the members of one record")]
    fn report_parts(
        &mut self,
        request: &RequestHead,
        head: &[u8],
        path: &str,
        verdict: &Verdict,
        outcome: RecordVerdict,
        status: u16,
        latency: Duration,
    ) {
        let l7 = L7::Http {
            method: request.method(head).into(),
            path: self.cx.shown_path(path).into(),
            host: host(&request.fields(head)).into(),
            status,
            latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        };
        let Session { cx, judged, ends, .. } = self;
        let judged = cx.judged(*ends, judged);
        cx.report(*ends, judged, verdict, outcome, l7);
    }
}
