//! An HTTP/2 request that passed, on its way to the server and back.
//!
//! Its future runs for as long as the stream is open ([`super::streams`]), and every byte of it counts: see there.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Response, StatusCode};

use super::call::Call;
use super::h2c::Shared;
use super::io::Alarm;
use super::pipe::{Ended, pipe};
use super::policy::Verdict;
use super::standing::Asked;
use super::waits::{MOST_INTERIM, Pace, Sending, Waits};
use crate::flow::record::RecordVerdict;

/// What a stream is open by.
pub(super) struct Standing {
    shared: Arc<Shared>,
    asked: Asked,
    /// The rules that were asked last.
    rules: u64,
}

impl Standing {
    /// `rules`: those that were asked.
    pub(super) fn new(shared: Arc<Shared>, asked: Asked, rules: u64) -> Standing {
        Standing { shared, asked, rules }
    }

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
pub(super) struct Exchange {
    shared: Arc<Shared>,
    call: Call,
    verdict: Verdict,
    respond: SendResponse<Bytes>,
    /// The status that the client has got, whoever's.
    answered: Option<StatusCode>,
}

impl Exchange {
    pub(super) fn new(
        shared: Arc<Shared>,
        call: Call,
        verdict: Verdict,
        respond: SendResponse<Bytes>,
    ) -> Exchange {
        Exchange { shared, call, verdict, respond, answered: None }
    }

    #[expect(clippy::manual_async_fn, reason = "it would keep each argument twice")]
    pub(super) fn run(
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
            let mut server = match self.shared.upstream.ready().await {
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
