//! HTTP/2 with prior knowledge (RFC 9113), gRPC included: each stream is a request of its own.
//!
//! What the other side has not taken is not asked for: a window is given back when its bytes have been sent on.
//! A refused gRPC call is answered with its own status besides the 403, so that clients say "permission denied".

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::poll_fn;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::io::{Inbox, Rewound, within};
use super::judge::Judged;
use super::policy::Verdict;
use super::{Context, Ends};
use crate::flow::L7;
use crate::flow::record::RecordVerdict;
use crate::policy::l7::http::{HeaderEdit, Request};
use crate::policy::l7::message;
use crate::policy::l7::target::{Target, normalize};

/// Bytes of one stream, and of all of a connection, that may be on their way.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection's part that its streams share.
struct Shared {
    ends: Ends,
    cx: Arc<Context>,
    judged: Mutex<Option<Judged>>,
    server: OnceCell<SendRequest<Bytes>>,
}

/// Serves one connection, whose first bytes have been read.
pub(super) async fn serve(stream: TcpStream, inbox: Inbox, ends: Ends, cx: Arc<Context>) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(cx.limits.streams)
        .max_header_list_size(u32::try_from(cx.limits.header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let handshake = builder.handshake::<_, Bytes>(Rewound { inbox, stream });
    let mut connection = match tokio::time::timeout(cx.limits.header_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        _ => return cx.counters.malformed.one(),
    };
    let mut draining = cx.draining.clone();
    let shared = Arc::new(Shared { ends, cx, judged: Mutex::new(None), server: OnceCell::new() });
    let mut streams = JoinSet::new();
    let mut is_draining = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let shared = Arc::clone(&shared);
                    streams.spawn(async move { shared.stream(request, respond).await });
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "an HTTP/2 connection failed");
                    return;
                }
                None => return,
            },
            Some(_) = streams.join_next() => {}
            _ = draining.wait_for(|draining| *draining), if !is_draining => {
                is_draining = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// A request as it is judged and forwarded.
struct Call {
    method: Method,
    authority: String,
    path: String,
    headers: HeaderMap,
    begun: Instant,
}

impl Shared {
    async fn stream(&self, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        self.cx.counters.requests.one();
        let begun = Instant::now();
        let (parts, body) = request.into_parts();
        let mut call = Call {
            method: parts.method,
            authority: parts
                .uri
                .authority()
                .map_or_else(String::new, |authority| authority.as_str().to_owned()),
            path: String::new(),
            headers: parts.headers,
            begun,
        };
        let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
        match call.check(target) {
            Checked::Forward(path) => call.path = path,
            Checked::Redirect(location) => {
                self.cx.counters.redirected.one();
                call.path = target.to_owned();
                self.report(&call, &Verdict::unjudged(), RecordVerdict::Denied, 307);
                answer(&mut respond, StatusCode::TEMPORARY_REDIRECT, &[("location", &location)], "");
                return;
            }
            Checked::Malformed(fault) => {
                tracing::debug!(fault, client = %self.ends.client, "malformed request");
                self.cx.counters.malformed.one();
                call.path = target.to_owned();
                self.report(&call, &Verdict::unjudged(), RecordVerdict::Failed, 400);
                answer(&mut respond, StatusCode::BAD_REQUEST, &[], "");
                return;
            }
        }
        let verdict = self.judge(&call);
        if !verdict.passes || call.method == Method::CONNECT {
            self.cx.counters.denied.one();
            self.report(&call, &verdict, RecordVerdict::Denied, 403);
            call.refuse(&mut respond);
            return;
        }
        self.forward(call, verdict, body, respond).await;
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

    /// The connection to the server, made for the first request that passes.
    async fn server(&self) -> Option<SendRequest<Bytes>> {
        let made = self.server.get_or_try_init(|| async {
            let stream = within(self.cx.limits.connect_timeout, self.cx.network.connect(self.ends)).await?;
            stream.set_nodelay(true).ok();
            let mut builder = h2::client::Builder::new();
            builder
                .enable_push(false)
                .max_header_list_size(u32::try_from(self.cx.limits.header_bytes).unwrap_or(u32::MAX))
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
            let (send, connection) = builder.handshake(stream).await.map_err(std::io::Error::other)?;
            // Ends when the last handle is gone.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "the server's HTTP/2 connection failed");
                }
            });
            Ok::<_, std::io::Error>(send)
        });
        match made.await {
            Ok(send) => Some(send.clone()),
            Err(error) => {
                tracing::debug!(%error, server = %self.ends.server, "no connection to the server");
                None
            }
        }
    }

    async fn forward(
        &self,
        call: Call,
        verdict: Verdict,
        body: RecvStream,
        mut respond: SendResponse<Bytes>,
    ) {
        let failed = |respond: &mut SendResponse<Bytes>, status: StatusCode| {
            self.cx.counters.upstream_failures.one();
            self.report(&call, &verdict, RecordVerdict::Failed, status.as_u16());
            answer(respond, status, &[], "");
        };
        let Some(request) = call.request(&verdict.edits) else {
            return failed(&mut respond, StatusCode::BAD_REQUEST);
        };
        let Some(server) = self.server().await else {
            return failed(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
        };
        let Ok(mut server) = server.ready().await else {
            return failed(&mut respond, StatusCode::BAD_GATEWAY);
        };
        let Ok((response, send)) = server.send_request(request, body.is_end_stream()) else {
            return failed(&mut respond, StatusCode::BAD_GATEWAY);
        };
        let upload = pipe(body, send);
        let download = async {
            let response = match tokio::time::timeout(self.cx.limits.response_timeout, response).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    self.cx.counters.upstream_failures.one();
                    self.report(&call, &verdict, RecordVerdict::Failed, 502);
                    match error.reason().filter(|_| error.is_reset()) {
                        Some(reason) => respond.send_reset(reason),
                        None => answer(&mut respond, StatusCode::BAD_GATEWAY, &[], ""),
                    }
                    return;
                }
                Err(_) => {
                    self.cx.counters.timeouts.one();
                    return failed(&mut respond, StatusCode::GATEWAY_TIMEOUT);
                }
            };
            let (parts, body) = response.into_parts();
            self.cx.counters.forwarded.one();
            self.report(&call, &verdict, RecordVerdict::Forwarded, parts.status.as_u16());
            let mut head = http::Response::new(());
            *head.status_mut() = parts.status;
            *head.headers_mut() = parts.headers;
            if let Ok(send) = respond.send_response(head, body.is_end_stream()) {
                pipe(body, send).await;
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

    fn report(&self, call: &Call, verdict: &Verdict, outcome: RecordVerdict, status: u16) {
        let l7 = || L7::Http {
            method: call.method.as_str().into(),
            path: self.cx.shown_path(&call.path).into(),
            host: call.authority.as_str().into(),
            status,
            latency_us: u64::try_from(call.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        let mut kept = self.judged.lock();
        let judged = self.cx.judged(self.ends, &mut kept);
        self.cx.report(self.ends, judged, verdict, outcome, l7);
    }
}

enum Checked {
    Forward(String),
    Redirect(String),
    Malformed(&'static str),
}

impl Call {
    fn fields(&self) -> Vec<(&str, &[u8])> {
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let host = (!self.headers.contains_key("host")).then_some(("host", self.authority.as_bytes()));
        host.into_iter().chain(own).collect()
    }

    /// What `h2` lets through and two readers could read in two ways (RFC 9113, section 8.3.1).
    fn check(&mut self, target: &str) -> Checked {
        if let Err(fault) = message::check_head(self.method.as_str(), &self.fields()) {
            return Checked::Malformed(fault);
        }
        if let Some(host) = self.headers.get("host") {
            let host = host.to_str().unwrap_or_default();
            if self.authority.is_empty() {
                self.authority = host.to_owned();
            } else if !self.authority.eq_ignore_ascii_case(host) {
                return Checked::Malformed(":authority is not the Host");
            }
        }
        if self.authority.contains('@') {
            return Checked::Malformed(":authority has user information");
        }
        if self.method == Method::CONNECT {
            return Checked::Forward(String::new());
        }
        match normalize(target) {
            Target::Forward(path) => Checked::Forward(path.into_owned()),
            Target::Redirect(location) => Checked::Redirect(location),
            Target::Malformed(fault) => Checked::Malformed(fault),
        }
    }

    fn is_grpc(&self) -> bool {
        let kind = self.headers.get("content-type").map(HeaderValue::as_bytes);
        kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
    }

    fn refuse(&self, respond: &mut SendResponse<Bytes>) {
        if self.is_grpc() {
            let fields = [
                ("content-type", "application/grpc"),
                ("grpc-status", "7"),
                ("grpc-message", "Access denied"),
            ];
            answer(respond, StatusCode::FORBIDDEN, &fields, "");
        } else {
            answer(respond, StatusCode::FORBIDDEN, &[("content-type", "text/plain")], "Access denied\r\n");
        }
    }

    /// `None`: the parts make no request.
    fn request(&self, edits: &[HeaderEdit]) -> Option<http::Request<()>> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.authority.as_str())
            .path_and_query(self.path.as_str())
            .build()
            .ok()?;
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        let mut headers = self.headers.clone();
        headers.remove("host");
        for edit in edits {
            let name = |name: &str| http::HeaderName::try_from(name).ok();
            match edit {
                HeaderEdit::Log { .. } => {}
                HeaderEdit::Delete { name: edited } => {
                    headers.remove(&**edited);
                }
                HeaderEdit::Add { name: edited, value } => {
                    headers.append(name(edited)?, HeaderValue::from_bytes(value).ok()?);
                }
                HeaderEdit::Replace { name: edited, value } => {
                    headers.insert(name(edited)?, HeaderValue::from_bytes(value).ok()?);
                }
            }
        }
        *request.headers_mut() = headers;
        Some(request)
    }
}

fn answer(
    respond: &mut SendResponse<Bytes>,
    status: StatusCode,
    fields: &[(&'static str, &str)],
    text: &str,
) {
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(value) {
            head.headers_mut().insert(*name, value);
        }
    }
    // A stream or connection that is gone needs no answer.
    let Ok(mut send) = respond.send_response(head, text.is_empty()) else { return };
    if !text.is_empty() {
        send.send_data(Bytes::copy_from_slice(text.as_bytes()), true).ok();
    }
}

/// Sends a body on, trailers included; a failure on either side resets the other one.
async fn pipe(mut from: RecvStream, mut to: SendStream<Bytes>) {
    if from.is_end_stream() {
        return;
    }
    loop {
        let data = tokio::select! {
            data = from.data() => data,
            reason = poll_fn(|cx| to.poll_reset(cx)) => {
                tracing::debug!(?reason, "the receiver of a body has reset its stream");
                return;
            }
        };
        let mut data = match data {
            Some(Ok(data)) => data,
            Some(Err(error)) => {
                to.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
                return;
            }
            None => break,
        };
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let Some(Ok(room)) = poll_fn(|cx| to.poll_capacity(cx)).await else { return };
            let piece = data.split_to(room.min(data.len()));
            let count = piece.len();
            if to.send_data(piece, false).is_err() || from.flow_control().release_capacity(count).is_err() {
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
