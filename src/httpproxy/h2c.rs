//! HTTP/2 with prior knowledge (RFC 9113), gRPC included: each stream is a request of its own.
//!
//! What the other side has not taken is not asked for: a window is given back when its bytes have been sent on.
//! A stream that its client resets is reset towards the server, too. A server that closes its connection, or
//! announces that it will, gets the next request on a new one. WebSocket over HTTP/2 (RFC 8441) is not offered.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::poll_fn;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Response, StatusCode};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::call::{Call, Checked, answer};
use super::io::{Alarm, Inbox, Rewound, within};
use super::judge::Judged;
use super::policy::Verdict;
use super::{Context, Ends, Limits};
use crate::flow::record::RecordVerdict;
use crate::flow::{HttpVersion, L7};
use crate::policy::l7::http::Request;

/// Bytes of one stream, and of all of a connection, that may be on their way.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection's part that its streams share.
struct Shared {
    ends: Ends,
    cx: Arc<Context>,
    judged: Mutex<Option<Judged>>,
    server: tokio::sync::Mutex<Server>,
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
    let handshake = builder.handshake::<_, Bytes>(Rewound { inbox, stream });
    let mut connection = match tokio::time::timeout(cx.limits.header_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        _ => return cx.counters.malformed.one(),
    };
    let mut draining = cx.draining.clone();
    let most = cx.limits.streams as usize;
    let idle = tokio::time::sleep(cx.limits.idle_timeout);
    tokio::pin!(idle);
    let counters = Arc::clone(&cx.counters);
    let shared = Arc::new(Shared { ends, cx, judged: Mutex::new(None), server: Default::default() });
    let mut streams = JoinSet::new();
    let mut is_ending = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let shared = Arc::clone(&shared);
                    streams.spawn(async move { shared.stream(request, respond).await });
                    if streams.len() >= most {
                        counters.streams_at_limit.one();
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "an HTTP/2 connection failed");
                    return;
                }
                None => return,
            },
            Some(_) = streams.join_next() => {
                if streams.is_empty() {
                    idle.as_mut().reset(tokio::time::Instant::now() + shared.cx.limits.idle_timeout);
                }
            }
            () = &mut idle, if streams.is_empty() && !is_ending => {
                counters.timeouts.one();
                is_ending = true;
                connection.graceful_shutdown();
            }
            _ = draining.wait_for(|draining| *draining), if !is_ending => {
                is_ending = true;
                connection.graceful_shutdown();
            }
        }
    }
}

impl Shared {
    async fn stream(&self, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
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
                return;
            }
            Checked::Malformed(fault) => {
                tracing::debug!(fault, client = %self.ends.client, "malformed request");
                self.cx.counters.malformed.one();
                return self.refuse(&call, &mut respond, StatusCode::BAD_REQUEST);
            }
            Checked::TooLarge => {
                self.cx.counters.headers_too_large.one();
                return self.refuse(&call, &mut respond, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            }
            Checked::TooMany => {
                self.cx.counters.headers_too_many.one();
                return self.refuse(&call, &mut respond, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            }
        }
        let verdict = self.judge(&call);
        if !verdict.passes || call.method == Method::CONNECT {
            self.cx.counters.denied.one();
            self.report(&call, &verdict, RecordVerdict::Denied, 403);
            call.deny(&mut respond);
            return;
        }
        self.forward(call, verdict, body, respond).await;
    }

    /// Of a request that no rule is asked about.
    fn refuse(&self, call: &Call, respond: &mut SendResponse<Bytes>, status: StatusCode) {
        self.report(call, &Verdict::unjudged(), RecordVerdict::Failed, status.as_u16());
        answer(respond, status, &[], "");
    }

    fn judge(&self, call: &Call) -> Verdict {
        let headers = call.fields();
        let request = Request {
            method: call.method.as_str(),
            path: &call.path,
            host: &call.authority,
            headers: &headers,
        };
        let mut kept = self.judged.lock();
        self.cx.judged(self.ends, &mut kept).policy.request(&request)
    }

    async fn connect(&self) -> std::io::Result<SendRequest<Bytes>> {
        let limits = &self.cx.limits;
        let stream = within(limits.connect_timeout, self.cx.network.connect(self.ends)).await?;
        stream.set_nodelay(true).ok();
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

    /// The connection that there is, or a new one if that takes no more requests.
    async fn ready(&self) -> Result<SendRequest<Bytes>, StatusCode> {
        let mut last = 0;
        loop {
            let (send, number) = {
                let mut server = self.server.lock().await;
                match &server.send {
                    // Another stream may have replaced the one that failed already.
                    Some(send) if server.number != last => (send.clone(), server.number),
                    _ => {
                        let made = self.connect().await.map_err(|error| {
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

    async fn forward(
        &self,
        mut call: Call,
        verdict: Verdict,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
    ) {
        let Some(request) = call.request(&verdict.edits) else {
            self.cx.counters.malformed.one();
            return self.refuse(&call, &mut respond, StatusCode::BAD_REQUEST);
        };
        let failed = |respond: &mut SendResponse<Bytes>, status: StatusCode| {
            self.cx.counters.upstream_failures.one();
            self.report(&call, &verdict, RecordVerdict::Failed, status.as_u16());
            call.fail(respond, status);
        };
        let mut server = match self.ready().await {
            Ok(server) => server,
            Err(status) => return failed(&mut respond, status),
        };
        let Ok((response, send)) = server.send_request(request, body.is_end_stream()) else {
            return failed(&mut respond, StatusCode::BAD_GATEWAY);
        };
        let limits = &self.cx.limits;
        let mut alarm = Alarm::new();
        let upload = async {
            // Most requests have no body, and need no timer.
            if !body.is_end_stream() {
                pipe(body, send, &mut Alarm::new(), limits).await;
            }
        };
        let download = async {
            let (parts, body) = match self.response(response, &mut respond, &mut alarm).await {
                Answer::Response(response) => response.into_parts(),
                Answer::Failed(reason) => {
                    self.cx.counters.upstream_failures.one();
                    self.report(&call, &verdict, RecordVerdict::Failed, 502);
                    match reason {
                        Some(reason) => respond.send_reset(reason),
                        None => call.fail(&mut respond, StatusCode::BAD_GATEWAY),
                    }
                    return;
                }
                Answer::Late => {
                    self.cx.counters.timeouts.one();
                    return failed(&mut respond, StatusCode::GATEWAY_TIMEOUT);
                }
                // Towards the server the stream is reset when its handles are dropped.
                Answer::Unwanted => return self.report(&call, &verdict, RecordVerdict::Failed, 0),
            };
            self.cx.counters.forwarded.one();
            self.report(&call, &verdict, RecordVerdict::Forwarded, parts.status.as_u16());
            let mut head = Response::new(());
            *head.status_mut() = parts.status;
            *head.headers_mut() = parts.headers;
            if let Ok(send) = respond.send_response(head, body.is_end_stream()) {
                pipe(body, send, &mut alarm, limits).await;
            }
        };
        tokio::pin!(upload, download);
        let mut uploading = true;
        loop {
            tokio::select! {
                () = &mut download => return,
                () = &mut upload, if uploading => uploading = false,
            }
        }
    }

    /// Waits for the final answer; interim ones go to the client at once.
    async fn response(
        &self,
        mut response: ResponseFuture,
        respond: &mut SendResponse<Bytes>,
        alarm: &mut Alarm,
    ) -> Answer {
        let answered = poll_fn(|cx| {
            while let std::task::Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                respond.send_informational(interim).ok();
            }
            if let std::task::Poll::Ready(response) = std::pin::Pin::new(&mut response).poll(cx) {
                return std::task::Poll::Ready(match response {
                    Ok(response) => Answer::Response(response),
                    Err(error) => Answer::Failed(error.reason().filter(|_| error.is_reset())),
                });
            }
            respond.poll_reset(cx).map(|_| Answer::Unwanted)
        });
        alarm.bound(self.cx.limits.response_timeout, answered).await.unwrap_or(Answer::Late)
    }

    fn report(&self, call: &Call, verdict: &Verdict, outcome: RecordVerdict, status: u16) {
        let mut kept = self.judged.lock();
        let judged = self.cx.judged(self.ends, &mut kept);
        self.cx.report(self.ends, judged, verdict, outcome, || L7::Http {
            method: call.method.as_str().into(),
            path: self.cx.shown_path(&call.path).into(),
            host: call.authority.as_str().into(),
            status,
            latency_us: u64::try_from(call.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            version: HttpVersion::Http2,
        });
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

/// Sends a body on, trailers included; a failure on either side, or no progress for too long, resets the other one.
async fn pipe(mut from: RecvStream, mut to: SendStream<Bytes>, alarm: &mut Alarm, limits: &Limits) {
    if from.is_end_stream() {
        return;
    }
    let limit = limits.body_timeout;
    loop {
        let data = alarm.bound(limit, async {
            tokio::select! {
                data = from.data() => Ok(data),
                reason = poll_fn(|cx| to.poll_reset(cx)) => Err(reason),
            }
        });
        let mut data = match data.await {
            Some(Ok(Some(Ok(data)))) => data,
            Some(Ok(Some(Err(error)))) => {
                return to.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
            }
            Some(Ok(None)) => break,
            Some(Err(reason)) => {
                tracing::debug!(?reason, "the receiver of a body has reset its stream");
                return;
            }
            None => return to.send_reset(Reason::CANCEL),
        };
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let room = match alarm.bound(limit, poll_fn(|cx| to.poll_capacity(cx))).await {
                Some(Some(Ok(room))) => room,
                Some(_) => return,
                None => return to.send_reset(Reason::CANCEL),
            };
            let piece = data.split_to(room.min(data.len()));
            let count = piece.len();
            let is_last = data.is_empty() && from.is_end_stream();
            if to.send_data(piece, is_last).is_err() || from.flow_control().release_capacity(count).is_err() {
                return;
            }
            if is_last {
                return;
            }
        }
    }
    match from.trailers().await {
        Ok(Some(trailers)) => to.send_trailers(trailers),
        Ok(None) => to.send_data(Bytes::new(), true),
        Err(error) => {
            to.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
            Ok(())
        }
    }
    .ok();
}
