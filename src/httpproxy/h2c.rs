//! HTTP/2 with prior knowledge (RFC 9113), gRPC included: each stream is a request of its own.
//!
//! What the other side has not taken is not asked for: a window is given back when its bytes have been sent on. A side that
//! gives no room for `body_timeout` while nothing else of the exchange moves ends its stream; one that takes nothing
//! of what the connection has for it ends the connection.
//! A stream that its client resets is reset towards the server, too. A server that closes its connection, or
//! announces that it will, gets the next request on a new one. WebSocket over HTTP/2 (RFC 8441) is not offered.
//! Streams that are open when the rules change are judged again, and those that no longer pass are refused, or reset
//! where their answers have begun ([`super::standing`]).
//!
//! Here is how requests come in and what they are; [`super::h2_exchange`] sends them on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use futures::future::poll_fn;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::call::{Call, Checked, answer};
use super::frames::Framed;
use super::h2_exchange::{Exchange, Standing};
use super::h2_upstream::Upstream;
use super::io::{Inbox, Rewound};
use super::judge::Judged;
use super::policy::Verdict;
use super::presence;
use super::standing::Asked;
use super::streams::Streams;
use super::tls;
use super::upkeep::{Due, Upkeep};
use super::{Context, Ends, Limits};
use crate::flow::record::RecordVerdict;
use crate::flow::{HttpVersion, L7};
use crate::policy::l7::http::Request;
use crate::policy::map_state::Proxy;

/// Bytes of one stream, and of all of a connection, that may be on their way.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection's part that its streams share.
pub(super) struct Shared {
    ends: Ends,
    pub(super) cx: Arc<Context>,
    judged: Mutex<Option<Judged>>,
    /// Moves when the rules have changed: what is open has to be judged again.
    pub(super) rules: AtomicU64,
    pub(super) upstream: Upstream,
}

/// Lists that are somewhat larger than the limit are seen and counted by us, before `h2` refuses them unseen.
pub(super) fn most_header_bytes(limits: &Limits) -> u32 {
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
        upstream: Upstream::new(ends, Arc::clone(&cx)),
        cx,
        judged: Mutex::new(None),
        rules: AtomicU64::new(0),
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
        let standing = Standing::new(Arc::clone(self), asked?, rules);
        let exchange = Exchange::new(Arc::clone(self), call, verdict, respond);
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

    pub(super) fn judge(&self, request: &Request<'_>) -> Verdict {
        let mut kept = self.judged.lock();
        self.cx.judged(self.ends, &mut kept).policy.request(request)
    }

    pub(super) fn report(&self, call: &Call, verdict: &Verdict, outcome: RecordVerdict, status: u16) {
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
