//! Answers that are ours: refusals, redirects, and the end of a connection.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use super::body::Body;
use super::head::{self, Version};
use super::http1::{Session, Step};
use super::io::within;
use super::policy::Verdict;
use super::request::host;
use super::tls;
use crate::flow::record::RecordVerdict;
use crate::flow::{HttpVersion, L7};
use crate::policy::l7::message::Fault;
use crate::policy::map_state::Proxy;

/// For the last bytes of a connection that is closed with an answer.
const LINGER: Duration = Duration::from_secs(1);

impl Session {
    /// Answers instead of the server and keeps the connection, if the request's body can be read away.
    pub(super) async fn answer(&mut self, status: &str, location: Option<&str>, text: &str) -> Step {
        let Session { request, inbox, client, alarm, cx, .. } = self;
        let limits = &cx.limits;
        let is_head = request.method(inbox.data()) == "HEAD";
        let mut keeps = request.keep_alive && !request.expects_continue && !cx.is_draining();
        keeps &= match request.length {
            head::Length::Bytes(count) => count <= limits.refused_body_bytes,
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
        if alarm.within(limits.body_timeout, client.write_all(answer.as_bytes())).await.is_err() {
            return Step::Gone;
        }
        inbox.consume(request.len);
        if !keeps {
            return Step::Close;
        }
        let mut body = Body::from(request.length);
        let mut left = limits.refused_body_bytes;
        loop {
            match body.accept(inbox.data()) {
                Ok(count) => {
                    inbox.consume(count);
                    left = left.saturating_sub(count as u64);
                }
                Err(_) => return Step::Close,
            }
            if body.is_done() {
                return Step::Next;
            }
            let read = alarm.within(limits.body_timeout, inbox.fill(client)).await;
            if left == 0 || !matches!(read, Ok(1..)) {
                return Step::Close;
            }
        }
    }

    /// `path`: as it was matched, if that is not as it was sent.
    pub(super) async fn deny(&mut self, path: Option<&str>, verdict: &Verdict, begun: Instant) -> Step {
        if verdict.refused_for == Some(Proxy::Tls) {
            return self.not_tls(verdict);
        }
        self.cx.counters.refused(verdict);
        self.report(path, verdict, RecordVerdict::Denied, 403, begun);
        self.answer("403 Forbidden", None, "Access denied\r\n").await
    }

    /// To a side that wants TLS nothing else is worth an answer.
    pub(super) fn not_tls(&mut self, verdict: &Verdict) -> Step {
        let judged = self.cx.judged(self.ends, &mut self.judged);
        tls::refused_other(&self.cx, self.ends, judged, verdict);
        Step::Reset
    }

    pub(super) async fn redirect(&mut self, location: &str, begun: Instant) -> Step {
        self.cx.counters.redirected.one();
        self.report(None, &Verdict::unjudged(), RecordVerdict::Denied, 307, begun);
        self.answer("307 Temporary Redirect", Some(location), "").await
    }

    pub(super) async fn malformed(&mut self, fault: Fault) -> Step {
        tracing::debug!(fault, client = %self.ends.client, "malformed request");
        self.cx.counters.malformed.one();
        self.refuse("400 Bad Request").await
    }

    /// Records a request that cannot be told, answers and closes.
    pub(super) async fn refuse(&mut self, status: &str) -> Step {
        let code = status.get(..3).and_then(|code| code.parse().ok()).unwrap_or(400);
        let l7 = || L7::Http {
            method: "".into(),
            path: "".into(),
            host: "".into(),
            status: code,
            latency_us: 0,
            version: HttpVersion::default(),
            mismatches: Vec::new(),
        };
        let judged = self.cx.judged(self.ends, &mut self.judged);
        self.cx.report(self.ends, judged, &Verdict::unjudged(), RecordVerdict::Failed, l7);
        self.give_up(status).await
    }

    /// Answers a request that has been recorded, and closes.
    pub(super) async fn give_up(&mut self, status: &str) -> Step {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        self.say_last(&answer).await
    }

    /// The same for one that had passed, and that new rules refuse.
    pub(super) async fn deny_late(&mut self, is_head: bool) -> Step {
        let head = "HTTP/1.1 403 Forbidden\r\nContent-Length: 15\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
        let text = if is_head { "" } else { "Access denied\r\n" };
        self.say_last(&[head, text].concat()).await
    }

    async fn say_last(&mut self, answer: &str) -> Step {
        match within(LINGER, self.client.write_all(answer.as_bytes())).await {
            Ok(()) => Step::Close,
            Err(_) => Step::Gone,
        }
    }

    /// Closes so that the client reads our last answer before it learns of the close.
    pub(super) async fn close(mut self) {
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

    /// Records a request whose head is still at the start of the inbox.
    pub(super) fn report(
        &mut self,
        path: Option<&str>,
        verdict: &Verdict,
        outcome: RecordVerdict,
        status: u16,
        begun: Instant,
    ) {
        let Session { cx, judged, ends, inbox, request, .. } = self;
        let judged = cx.judged(*ends, judged);
        cx.report(*ends, judged, verdict, outcome, || {
            let head = &inbox.data()[..request.len];
            L7::Http {
                method: request.method(head).into(),
                path: cx.shown_path(path.unwrap_or(request.target(head))).into(),
                host: host(&request.fields(head)).into(),
                status,
                latency_us: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
                version: request.version.told(),
                mismatches: verdict.mismatches(),
            }
        });
    }
}
