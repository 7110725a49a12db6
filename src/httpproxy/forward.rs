//! A request that passed, on its way to the server and back.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use super::body::Body;
use super::exchange::{Answered, Exchange, Failure, Halt, relay};
use super::head;
use super::http1::{Passed, Session, Step};
use super::io::Inbox;
use super::policy::Verdict;
use super::request::host;
use super::standing::Standing;
use super::tunnel::End;
use super::waits::{Pace, Sending, Waits};
use super::wire::Wire;
use crate::flow::record::RecordVerdict;
use crate::flow::{HttpVersion, L7};
use crate::policy::l7::edits::HeaderEdit;

/// What a record says of a request; taken before the head is sent on, and only if there is going to be a record.
struct Seen {
    method: Arc<str>,
    path: Arc<str>,
    host: Arc<str>,
    version: HttpVersion,
}

impl Session {
    pub(super) async fn connect(&mut self) -> Result<(), Step> {
        let mut byte = [0];
        // A server may have closed since the last answer. What it says unasked is not for this client.
        if self.server.as_ref().is_some_and(|server| server.stream.try_read(&mut byte).is_ok()) {
            self.server = None;
        }
        if self.server.is_none() {
            let connecting = self.cx.network.connect(self.ends);
            match self.alarm.within(self.cx.limits.connect_timeout, connecting).await {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    self.server = Some(End { stream, inbox: Inbox::default() });
                    self.server_has_answered = false;
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

    /// `path`: as it was matched, if that is not as it was sent.
    pub(super) async fn forward(&mut self, path: Option<String>, verdict: Verdict, begun: Instant) -> Step {
        let length = self.request.len;
        let mut body = Body::from(self.request.length);
        let with_head = match body.accept(&self.inbox.data()[length..]) {
            Ok(count) => count,
            Err(fault) => return self.malformed(fault).await,
        };
        if self.connect().await.is_err() {
            self.report(path.as_deref(), &verdict, RecordVerdict::Failed, 503, begun);
            return self.answer("503 Service Unavailable", None, "no connection to the server\r\n").await;
        }
        let Session { inbox, request, server, cx, client, alarm, download_alarm, judged, ends, .. } = self;
        let Some(server) = server else { return Step::Gone };
        let data = inbox.data();
        let head = &data[..length];
        let matched = path.as_deref().unwrap_or(request.target(head));
        let seen = cx.recorder.admits().then(|| Seen {
            method: request.method(head).into(),
            path: cx.shown_path(matched).into(),
            host: host(&request.fields(head)).into(),
            version: request.version.told(),
        });
        let passed = request.upgrade.then(|| Passed {
            head: head.to_vec(),
            request: request.clone(),
            path: matched.to_owned(),
        });
        let is_rewritten =
            request.strip_upgrade || path.is_some() || verdict.edits.iter().any(HeaderEdit::changes);
        let rewritten = is_rewritten.then(|| {
            let mut bytes = head::rewritten(head, request, matched, &verdict.edits);
            bytes.extend_from_slice(&data[length..length + with_head]);
            bytes
        });
        let mut exchange = Exchange {
            is_head: request.method(head) == "HEAD",
            upgrade: request.upgrade,
            begun,
            started: false,
            closes: false,
            status: 0,
            latency: Duration::ZERO,
        };
        let keep_alive = request.keep_alive;
        let limit = cx.limits.body_timeout;
        let first = rewritten.as_deref().unwrap_or(&data[..length + with_head]);
        if let Err(error) = alarm.within(limit, Wire(&server.stream).write_all(first)).await {
            let is_late = error.kind() == io::ErrorKind::TimedOut;
            let answered = Err(if is_late { Failure::ServerLate } else { Failure::Closed });
            self.seen(seen, &verdict, &exchange, &answered);
            return self.finish(answered, &exchange, false, None).await;
        }
        // The head stays where it is, to be judged again: nothing is behind it while a body is under way.
        let standing = Standing { cx, ends: *ends, judged: judged.as_ref(), head, request, path: matched };
        let mut coming = Inbox::default();

        let (mut client_read, mut client_write) = (Wire(client), Wire(client));
        let (mut server_read, mut server_write) = (Wire(&server.stream), Wire(&server.stream));
        let sending = if body.is_done() { Sending::Done } else { Sending::Underway };
        let pace = Pace::new(begun.into(), sending);
        let mut waits = Waits::new(download_alarm, &pace, limit).under(&standing);
        let download =
            exchange.answer(&mut server_read, &mut server.inbox, &mut client_write, &mut waits, cx);
        let answered = match sending {
            Sending::Done => download.await,
            Sending::Underway => {
                let mut waits = Waits::new(alarm, &pace, limit).under(&standing);
                let upload = relay(&mut body, &mut coming, &mut client_read, &mut server_write, &mut waits);
                tokio::pin!(download, upload);
                let mut uploading = true;
                loop {
                    tokio::select! {
                        answered = &mut download => break answered,
                        sent = &mut upload, if uploading => {
                            if let Some(failure) = sent.err().and_then(Halt::of_upload) {
                                break Err(failure);
                            }
                            uploading = false;
                            pace.sent();
                        }
                    }
                }
            }
        };
        match sending {
            Sending::Done => inbox.consume(length + with_head),
            Sending::Underway => *inbox = coming,
        }
        self.seen(seen, &verdict, &exchange, &answered);
        let goes_on = keep_alive && body.is_done() && !exchange.closes;
        self.finish(answered, &exchange, goes_on, passed).await
    }

    /// Records what came of a request.
    fn seen(
        &mut self,
        seen: Option<Seen>,
        verdict: &Verdict,
        exchange: &Exchange,
        answered: &Result<Answered, Failure>,
    ) {
        let Some(Seen { method, path, host, version }) = seen else { return };
        let (outcome, status) = match (answered, exchange.started) {
            (Ok(_), _) => (RecordVerdict::Forwarded, exchange.status),
            (Err(Failure::Refused(_)), true) => (RecordVerdict::Denied, exchange.status),
            (Err(Failure::Refused(_)), false) => (RecordVerdict::Denied, 403),
            (Err(_), true) => (RecordVerdict::Failed, exchange.status),
            (Err(Failure::Malformed(_)), false) => (RecordVerdict::Failed, 400),
            // Nobody was there any more to be told one.
            (Err(Failure::Client), false) => (RecordVerdict::Failed, 0),
            (Err(Failure::ClientLate), false) => (RecordVerdict::Failed, 408),
            (Err(Failure::ServerLate), false) => (RecordVerdict::Failed, 504),
            (Err(_), false) => (RecordVerdict::Failed, 502),
        };
        let latency = if exchange.latency.is_zero() { exchange.begun.elapsed() } else { exchange.latency };
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let judged = self.cx.judged(self.ends, &mut self.judged);
        // Of the rules that ended it, if some did.
        let verdict = if let Err(Failure::Refused(newer)) = answered { newer } else { verdict };
        let mismatches = verdict.mismatches();
        let l7 = L7::Http { method, path, host, status, latency_us, version, mismatches };
        self.cx.record(self.ends, judged, verdict, outcome, l7);
    }

    /// How the connection goes on. `goes_on`: nothing of the request stands against another one.
    async fn finish(
        &mut self,
        answered: Result<Answered, Failure>,
        exchange: &Exchange,
        goes_on: bool,
        passed: Option<Passed>,
    ) -> Step {
        match answered {
            Ok(Answered::Switched) => match passed {
                Some(passed) => Step::Upgraded(passed),
                None => Step::Reset,
            },
            Ok(Answered::Whole { server_keeps }) => {
                self.cx.counters.forwarded.one();
                self.server_has_answered = true;
                if !server_keeps {
                    self.server = None;
                }
                if goes_on && server_keeps { Step::Next } else { Step::Close }
            }
            // A cut answer must not look like a whole one.
            Err(failure) if exchange.started => {
                match failure {
                    Failure::ClientLate | Failure::ServerLate => self.cx.counters.timeouts.one(),
                    Failure::Refused(_) => self.cx.counters.requests_cut.one(),
                    _ => self.cx.counters.upstream_failures.one(),
                }
                Step::Reset
            }
            Err(Failure::Malformed(fault)) => {
                tracing::debug!(fault, client = %self.ends.client, "a body that is not forwarded");
                self.cx.counters.malformed.one();
                self.server = None;
                self.give_up("400 Bad Request").await
            }
            Err(Failure::ClientLate) => {
                self.cx.counters.timeouts.one();
                self.server = None;
                self.give_up("408 Request Timeout").await
            }
            Err(Failure::ServerLate) => {
                self.cx.counters.timeouts.one();
                self.server = None;
                self.give_up("504 Gateway Timeout").await
            }
            Err(Failure::Refused(verdict)) => {
                self.cx.counters.requests_cut.one();
                self.cx.counters.refused(&verdict);
                self.server = None;
                self.deny_late(exchange.is_head).await
            }
            Err(Failure::Client) => Step::Gone,
            Err(Failure::Closed) => {
                self.cx.counters.upstream_failures.one();
                if self.server_has_answered {
                    // It closed between two requests: so do we, and the client may try again, as it would without us.
                    return Step::Gone;
                }
                self.server = None;
                self.give_up("502 Bad Gateway").await
            }
            Err(Failure::Server(fault)) => {
                tracing::debug!(fault, server = %self.ends.server, "an answer that is not forwarded");
                self.cx.counters.upstream_failures.one();
                self.server = None;
                self.give_up("502 Bad Gateway").await
            }
        }
    }
}
