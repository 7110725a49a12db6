//! HTTP/2 with prior knowledge (RFC 9113), gRPC included: each stream is a request of its own.
//!
//! What the other side has not taken is not asked for: a window is given back when its bytes have been sent on. A side that
//! gives no room for `body_timeout` while nothing else of the exchange moves ends its stream; one that takes nothing
//! of what the connection has for it ends the connection.
//! A stream that its client resets is reset towards the server, too. A server that closes its connection, or
//! announces that it will, gets the next request on a new one. WebSocket over HTTP/2 (RFC 8441) is not offered.
//! Streams that are open when the rules change are judged again, and those that no longer pass are refused, or reset
//! where their answers have begun ([`super::standing`]).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use futures::future::poll_fn;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, Response, StatusCode};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::call::{Call, Checked, answer};
use super::frames::Framed;
use super::io::{Alarm, Inbox, Rewound, within};
use super::judge::Judged;
use super::pipe::{Ended, pipe};
use super::policy::Verdict;
use super::presence;
use super::standing::Asked;
use super::streams::Streams;
use super::tls;
use super::upkeep::{Due, Upkeep};
use super::waits::{MOST_INTERIM, Pace, Sending, Waits};
use super::{Context, Ends, Limits};
use crate::flow::record::RecordVerdict;
use crate::flow::{HttpVersion, L7};
use crate::policy::l7::http::Request;
use crate::policy::map_state::Proxy;

/// Bytes of one stream, and of all of a connection, that may be on their way.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection's part that its streams share.
struct Shared {
    ends: Ends,
    cx: Arc<Context>,
    judged: Mutex<Option<Judged>>,
    /// Moves when the rules have changed: what is open has to be judged again.
    rules: AtomicU64,
    server: tokio::sync::Mutex<Server>,
    /// How often there was no connection to be had.
    unreachable: AtomicU64,
}

/// The connection to the server, made for the first request that passes.
#[derive(Default)]
struct Server {
    send: Option<SendRequest<Bytes>>,
    /// Grows with every connection.
    number: u64,
}

/// Lists that are somewhat larger than the limit are seen and counted by us, before `h2` refuses them unseen.
fn most_header_bytes(limits: &Limits) -> u32 {
    u32::try_from(limits.header_bytes.saturating_mul(2)).unwrap_or(u32::MAX)
}

/// Serves one connection, whose first bytes have been read.
pub(super) async fn serve(stream: TcpStream, inbox: Inbox, ends: Ends, cx: Arc<Context>) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(cx.limits.streams)
        .max_header_list_size(most_header_bytes(&cx.limits))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    // What streams have handed on waits for nobody but the connection.
    presence::bound(&stream, cx.limits.body_timeout);
    let (stream, watch) = Framed::new(Rewound { inbox, stream });
    let handshake = builder.handshake::<_, Bytes>(stream);
    let mut connection = match tokio::time::timeout(cx.limits.header_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, client = %ends.client, "no HTTP/2 connection");
            cx.counters.malformed.one();
            return not_begun(ends, &cx, 400);
        }
        Err(_) => {
            cx.counters.timeouts.one();
            return not_begun(ends, &cx, 408);
        }
    };
    let mut draining = cx.draining.clone();
    let mut changes = cx.changes.clone();
    changes.mark_unchanged();
    let limits = cx.limits;
    let counters = Arc::clone(&cx.counters);
    let shared = Arc::new(Shared {
        ends,
        cx,
        judged: Mutex::new(None),
        rules: AtomicU64::new(0),
        server: Default::default(),
        unreachable: AtomicU64::new(0),
    });
    let mut streams = Streams::default();
    let mut upkeep = Upkeep::new(watch);
    loop {
        let is_told_to_go = upkeep.is_told_to_go();
        let next = poll_fn(|cx| {
            while let Poll::Ready(accepted) = connection.poll_accept(cx) {
                let Some(accepted) = accepted else { return Poll::Ready(Next::End(None)) };
                let (request, respond) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => return Poll::Ready(Next::End(Some(error))),
                };
                // One that is answered already counts until the end of this round.
                upkeep.busy();
                if let Some(exchange) = shared.admit(request, respond) {
                    streams.begin(exchange);
                    if streams.len() >= limits.streams as usize {
                        counters.streams_at_limit.one();
                    }
                }
            }
            if streams.poll_quiet(cx).is_ready() {
                upkeep.quiet();
            }
            upkeep.poll(&limits, cx).map(Next::Due)
        });
        let next = tokio::select! {
            next = next => next,
            _ = draining.wait_for(|draining| *draining), if !is_told_to_go => Next::Drain,
            Ok(()) = changes.changed() => Next::Rules,
        };
        match next {
            Next::End(error) => {
                if let Some(error) = error {
                    tracing::debug!(%error, "an HTTP/2 connection failed");
                }
                return;
            }
            Next::Rules => {
                shared.rules.fetch_add(1, Ordering::Relaxed);
                streams.wake();
                continue;
            }
            Next::Drain => {}
            Next::Due(Due::Idle) => counters.timeouts.one(),
            Next::Due(Due::Slow) => return counters.timeouts.one(),
            Next::Due(Due::Stays) => return,
        }
        upkeep.told_to_go();
        connection.graceful_shutdown();
    }
}

/// Records a connection that did not come to its first request.
fn not_begun(ends: Ends, cx: &Context, status: u16) {
    let judged = cx.judge.policy(ends.client, ends.server);
    cx.report(ends, &judged, &Verdict::unjudged(), RecordVerdict::Failed, || L7::Http {
        method: "".into(),
        path: "".into(),
        host: "".into(),
        status,
        latency_us: 0,
        version: HttpVersion::Http2,
        mismatches: Vec::new(),
    });
}

/// What ends a round of a connection.
enum Next {
    End(Option<h2::Error>),
    Due(Due),
    /// There are new ones.
    Rules,
    /// The process is to end.
    Drain,
}

impl Shared {
    /// What is to be done for a request that passes; others are answered.
    fn admit(
        self: &Arc<Self>,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        self.cx.counters.requests.one();
        let begun = Instant::now();
        let (parts, body) = request.into_parts();
        let (mut call, target) = Call::new(parts, begun);
        match call.check(&target, &self.cx.limits) {
            Checked::Forward => {}
            Checked::Redirect(location) => {
                self.cx.counters.redirected.one();
                self.report(&call, &Verdict::unjudged(), RecordVerdict::Denied, 307);
                answer(&mut respond, StatusCode::TEMPORARY_REDIRECT, &[("location", &location)], "");
                return None;
            }
            Checked::Malformed(fault) => {
                tracing::debug!(fault, client = %self.ends.client, "malformed request");
                self.cx.counters.malformed.one();
                self.refuse(&call, &mut respond, StatusCode::BAD_REQUEST);
                return None;
            }
            Checked::TooLarge => {
                self.cx.counters.headers_too_large.one();
                self.refuse(&call, &mut respond, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
                return None;
            }
            Checked::TooMany => {
                self.cx.counters.headers_too_many.one();
                self.refuse(&call, &mut respond, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
                return None;
            }
        }
        let rules = self.rules.load(Ordering::Relaxed);
        let (verdict, asked) = self.ask(&call);
        if verdict.refused_for == Some(Proxy::Tls) {
            let mut kept = self.judged.lock();
            let judged = self.cx.judged(self.ends, &mut kept);
            tls::refused_other(&self.cx, self.ends, judged, &verdict);
            respond.send_reset(Reason::CANCEL);
            return None;
        }
        if !verdict.passes || call.method == Method::CONNECT {
            self.cx.counters.refused(&verdict);
            self.report(&call, &verdict, RecordVerdict::Denied, 403);
            call.deny(&mut respond);
            return None;
        }
        let Some(request) = call.request(&verdict.edits) else {
            self.cx.counters.malformed.one();
            self.refuse(&call, &mut respond, StatusCode::BAD_REQUEST);
            return None;
        };
        let standing = Standing { shared: Arc::clone(self), asked: asked?, rules };
        let exchange = Exchange { shared: Arc::clone(self), call, verdict, respond, answered: None };
        Some(exchange.run(standing, request, body))
    }

    /// Of a request that no rule is asked about.
    fn refuse(&self, call: &Call, respond: &mut SendResponse<Bytes>, status: StatusCode) {
        self.report(call, &Verdict::unjudged(), RecordVerdict::Failed, status.as_u16());
        answer(respond, status, &[], "");
    }

    /// What the rules say; and what they were asked, of a request that passes.
    fn ask(&self, call: &Call) -> (Verdict, Option<Asked>) {
        let headers = call.fields();
        let request = Request {
            method: call.method.as_str(),
            path: &call.path,
            host: &call.authority,
            headers: &headers,
        };
        let verdict = self.judge(&request);
        let asked = verdict.passes.then(|| Asked::of(&request));
        (verdict, asked)
    }

    fn judge(&self, request: &Request<'_>) -> Verdict {
        let mut kept = self.judged.lock();
        self.cx.judged(self.ends, &mut kept).policy.request(request)
    }

    async fn connect(&self) -> std::io::Result<SendRequest<Bytes>> {
        let limits = &self.cx.limits;
        let stream = within(limits.connect_timeout, self.cx.network.connect(self.ends)).await?;
        stream.set_nodelay(true).ok();
        presence::bound(&stream, limits.body_timeout);
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .max_header_list_size(most_header_bytes(limits))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (send, connection) = builder.handshake(stream).await.map_err(std::io::Error::other)?;
        // Ends when the last handle is gone.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the server's HTTP/2 connection failed");
            }
        });
        Ok(send)
    }

    /// The connection that there is, or a new one if that takes no more requests. Streams that wait while one tries share
    /// its luck: one after the other, each with a timeout of its own, the last ones would wait for many.
    async fn ready(&self) -> Result<SendRequest<Bytes>, StatusCode> {
        let mut last = 0;
        loop {
            let (send, number) = {
                let unreachable = self.unreachable.load(Ordering::Relaxed);
                let mut server = self.server.lock().await;
                match &server.send {
                    // Another stream may have replaced the one that failed already.
                    Some(send) if server.number != last => (send.clone(), server.number),
                    _ if self.unreachable.load(Ordering::Relaxed) != unreachable => {
                        return Err(StatusCode::SERVICE_UNAVAILABLE);
                    }
                    _ => {
                        // Seldom; inside, it would make each stream larger.
                        let made = Box::pin(self.connect()).await.map_err(|error| {
                            self.unreachable.fetch_add(1, Ordering::Relaxed);
                            tracing::debug!(%error, server = %self.ends.server, "no connection to the server");
                            StatusCode::SERVICE_UNAVAILABLE
                        })?;
                        server.number += 1;
                        server.send = Some(made.clone());
                        (made, server.number)
                    }
                }
            };
            let is_second = last != 0;
            last = number;
            match send.ready().await {
                Ok(ready) => return Ok(ready),
                Err(error) if is_second => {
                    tracing::debug!(%error, server = %self.ends.server, "a new connection takes no request");
                    return Err(StatusCode::BAD_GATEWAY);
                }
                Err(_) => {}
            }
        }
    }

    fn report(&self, call: &Call, verdict: &Verdict, outcome: RecordVerdict, status: u16) {
        if !self.cx.recorder.admits() {
            return;
        }
        let mut kept = self.judged.lock();
        // No older than a request's would be: this one may have been judged by nobody.
        let judged = self.cx.judged(self.ends, &mut kept);
        let l7 = L7::Http {
            method: call.method.as_str().into(),
            path: self.cx.shown_path(&call.path).into(),
            host: call.authority.as_str().into(),
            status,
            latency_us: u64::try_from(call.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            version: HttpVersion::Http2,
            mismatches: verdict.mismatches(),
        };
        self.cx.record(self.ends, judged, verdict, outcome, l7);
    }
}

/// What a stream is open by.
struct Standing {
    shared: Arc<Shared>,
    asked: Asked,
    /// The rules that were asked last.
    rules: u64,
}

impl Standing {
    /// The verdict of new rules, if they refuse the request.
    fn refusal(&mut self) -> Option<Verdict> {
        let rules = self.shared.rules.load(Ordering::Relaxed);
        if rules == self.rules {
            return None;
        }
        self.rules = rules;
        let verdict = self.asked.ask(|request| self.shared.judge(request));
        (!verdict.passes).then_some(verdict)
    }
}

/// A request that passed, and what is known of it until its stream ends.
struct Exchange {
    shared: Arc<Shared>,
    call: Call,
    verdict: Verdict,
    respond: SendResponse<Bytes>,
    /// The status that the client has got, whoever's.
    answered: Option<StatusCode>,
}

impl Exchange {
    #[expect(clippy::manual_async_fn, reason = "it would keep each argument twice")]
    fn run(
        mut self,
        mut standing: Standing,
        request: http::Request<()>,
        body: RecvStream,
    ) -> impl Future<Output = ()> + Send + 'static {
        async move {
            let ended = {
                let mut exchange = pin!(self.exchange(request, body));
                poll_fn(|cx| match standing.refusal() {
                    Some(verdict) => Poll::Ready(Err(verdict)),
                    None => exchange.as_mut().poll(cx).map(Ok),
                })
                .await
            };
            // Towards both sides the stream is reset when its handles are dropped.
            match ended {
                Ok(Ended::Done) => {}
                Ok(Ended::SourceLate) => self.late(StatusCode::REQUEST_TIMEOUT),
                Ok(Ended::SinkLate) => self.late(StatusCode::GATEWAY_TIMEOUT),
                Err(verdict) => self.cut(&verdict),
            }
        }
    }

    /// Nothing moves. `status`: what the client is told if its answer has not begun.
    fn late(&mut self, status: StatusCode) {
        self.shared.cx.counters.timeouts.one();
        match self.answered {
            None => self.answer_instead(status),
            Some(told) => {
                self.shared.report(&self.call, &self.verdict, RecordVerdict::Failed, told.as_u16());
            }
        }
    }

    /// New rules do not let it pass.
    fn cut(&mut self, verdict: &Verdict) {
        self.shared.cx.counters.requests_cut.one();
        let status = self.answered.unwrap_or(StatusCode::FORBIDDEN);
        self.shared.report(&self.call, verdict, RecordVerdict::Denied, status.as_u16());
        if self.answered.is_none() {
            self.shared.cx.counters.refused(verdict);
            self.call.deny(&mut self.respond);
        }
    }

    /// Both ways.
    #[expect(clippy::manual_async_fn, reason = "it would keep each argument twice")]
    fn exchange(
        &mut self,
        request: http::Request<()>,
        body: RecvStream,
    ) -> impl Future<Output = Ended> + Send + '_ {
        async move {
            let mut server = match self.shared.ready().await {
                Ok(server) => server,
                Err(status) => {
                    self.failed(status);
                    return Ended::Done;
                }
            };
            let Ok((response, send)) = server.send_request(request, body.is_end_stream()) else {
                self.failed(StatusCode::BAD_GATEWAY);
                return Ended::Done;
            };
            // Most requests have no body.
            let sending = if body.is_end_stream() { Sending::Done } else { Sending::Underway };
            let pace = Pace::new(self.call.begun.into(), sending);
            let limit = self.shared.cx.limits.body_timeout;
            let mut upload = (sending == Sending::Underway).then(|| {
                let pace = &pace;
                Box::pin(
                    async move { pipe(body, send, &mut Waits::new(&mut Alarm::new(), pace, limit)).await },
                )
            });
            let mut download = pin!(self.download(response, &pace));
            poll_fn(|cx| {
                if let Some(running) = &mut upload
                    && let Poll::Ready(ended) = running.as_mut().poll(cx)
                {
                    upload = None;
                    pace.sent();
                    if ended != Ended::Done {
                        return Poll::Ready(ended);
                    }
                }
                download.as_mut().poll(cx)
            })
            .await
        }
    }

    fn failed(&mut self, status: StatusCode) {
        self.shared.cx.counters.upstream_failures.one();
        self.answer_instead(status);
    }

    fn answer_instead(&mut self, status: StatusCode) {
        self.answered = Some(status);
        self.shared.report(&self.call, &self.verdict, RecordVerdict::Failed, status.as_u16());
        self.call.fail(&mut self.respond, status);
    }

    /// The way back.
    async fn download(&mut self, response: ResponseFuture, pace: &Pace) -> Ended {
        let mut alarm = Alarm::new();
        let mut waits = Waits::new(&mut alarm, pace, self.shared.cx.limits.body_timeout);
        let answer = self.response(response, &mut waits).await;
        let (parts, body) = match answer {
            Answer::Response(response) => response.into_parts(),
            Answer::Failed(None) => {
                self.failed(StatusCode::BAD_GATEWAY);
                return Ended::Done;
            }
            Answer::Failed(Some(reason)) => {
                self.shared.cx.counters.upstream_failures.one();
                self.shared.report(&self.call, &self.verdict, RecordVerdict::Failed, 502);
                self.respond.send_reset(reason);
                return Ended::Done;
            }
            Answer::Late => {
                self.shared.cx.counters.timeouts.one();
                self.answer_instead(StatusCode::GATEWAY_TIMEOUT);
                return Ended::Done;
            }
            // Towards the server the stream is reset when its handles are dropped.
            Answer::Unwanted => {
                self.shared.report(&self.call, &self.verdict, RecordVerdict::Failed, 0);
                return Ended::Done;
            }
        };
        self.answered = Some(parts.status);
        self.shared.cx.counters.forwarded.one();
        self.shared.report(&self.call, &self.verdict, RecordVerdict::Forwarded, parts.status.as_u16());
        let mut head = Response::new(());
        *head.status_mut() = parts.status;
        *head.headers_mut() = parts.headers;
        match self.respond.send_response(head, body.is_end_stream()) {
            Ok(send) => pipe(body, send, &mut waits).await,
            Err(_) => Ended::Done,
        }
    }

    /// Waits for the final answer; interim ones go to the client at once.
    async fn response(&mut self, mut response: ResponseFuture, waits: &mut Waits<'_>) -> Answer {
        let limit = self.shared.cx.limits.response_timeout;
        let respond = &mut self.respond;
        let pace = waits.pace();
        let mut count = 0;
        let answered = poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                count += 1;
                if count > MOST_INTERIM {
                    tracing::debug!("the server sends interim answers without end");
                    return Poll::Ready(Answer::Failed(None));
                }
                respond.send_informational(interim).ok();
                pace.moved();
            }
            if let Poll::Ready(response) = std::pin::Pin::new(&mut response).poll(cx) {
                return Poll::Ready(match response {
                    Ok(response) => Answer::Response(response),
                    Err(error) => Answer::Failed(error.reason().filter(|_| error.is_reset())),
                });
            }
            respond.poll_reset(cx).map(|_| Answer::Unwanted)
        });
        waits.answer(limit, answered).await.unwrap_or(Answer::Late)
    }
}

/// What came of a request at the server.
enum Answer {
    Response(Response<RecvStream>),
    /// With the reason, if the server reset the stream.
    Failed(Option<Reason>),
    Late,
    /// The client has reset the stream.
    Unwanted,
}
