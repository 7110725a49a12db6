//! A request that is under way still has to pass when the rules change: it is asked for again, as it was judged.
//!
//! Contract: new rules that refuse it end it, as they end a tunnel ([`super::tunnel`]); what was sent on is not taken back.
//! A request that is soon over pays nothing for this. HTTP/1 looks from when a wait has become long, and at every piece
//! of a body that comes in several ([`Look`]). HTTP/2 keeps what was asked for ([`Asked`]), and its connection has all of its
//! streams look when there are new rules ([`super::h2c`]).

use std::iter::from_fn;

use tokio::sync::watch;

use super::head::{Fields, RequestHead};
use super::judge::Judged;
use super::policy::Verdict;
use super::request::host;
use super::{Context, Ends};
use crate::policy::l7::http::Request;

/// An HTTP/1 request that passed, where it lies: nothing of it is copied.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub(super) cx: &'a Context,
    pub(super) ends: Ends,
    /// What it passed under.
    pub(super) judged: Option<&'a Judged>,
    pub(super) head: &'a [u8],
    pub(super) request: &'a RequestHead,
    pub(super) path: &'a str,
}

impl Standing<'_> {
    /// What the newest rules say against it.
    fn refusal(&self) -> Option<Box<Verdict>> {
        let fields = self.request.fields(self.head);
        let method = self.request.method(self.head);
        let asked = Request { method, path: self.path, host: host(&fields), headers: &fields };
        let verdict = self.cx.judge.policy(self.ends.client, self.ends.server).policy.request(&asked);
        (!verdict.passes).then(|| Box::new(verdict))
    }
}

/// Looks for new rules; each direction of an exchange has its own.
#[derive(Debug)]
pub(super) struct Look<'a> {
    standing: &'a Standing<'a>,
    /// From the first look on.
    changes: Option<watch::Receiver<u64>>,
}

impl<'a> Look<'a> {
    pub(super) fn new(standing: &'a Standing<'a>) -> Look<'a> {
        Look { standing, changes: None }
    }

    /// The verdict of new rules, if they refuse the request. Where there are none, an atomic load.
    pub(super) fn refusal(&mut self) -> Option<Box<Verdict>> {
        let Standing { cx, judged, .. } = self.standing;
        match &mut self.changes {
            Some(changes) => {
                if !changes.has_changed().unwrap_or(false) {
                    return None;
                }
                // Before the rules are asked: what changes meanwhile is seen next time.
                changes.mark_unchanged();
            }
            None => {
                let changes = self.changes.insert(cx.changes.clone());
                changes.mark_unchanged();
                if judged.is_some_and(|judged| cx.judge.is_current(judged)) {
                    return None;
                }
            }
        }
        self.standing.refusal()
    }

    /// Waits for rules that refuse the request.
    pub(super) async fn refused(&mut self) -> Box<Verdict> {
        let mut refusal = self.refusal();
        loop {
            if let Some(verdict) = refusal {
                return verdict;
            }
            let told = match &mut self.changes {
                Some(changes) => changes.changed().await.is_ok(),
                None => false,
            };
            if !told {
                // Nobody is left who would say it.
                return std::future::pending().await;
            }
            refusal = self.standing.refusal();
        }
    }
}

/// What a request asked for, in one piece: its own is on its way to the server.
#[derive(Debug)]
pub(super) struct Asked(Box<[u8]>);

impl Asked {
    pub(super) fn of(request: &Request<'_>) -> Asked {
        let named = [request.method, request.path, request.host].map(str::as_bytes);
        let fields = request.headers.iter().flat_map(|&(name, value)| [name.as_bytes(), value]);
        let parts = named.into_iter().chain(fields);
        let mut kept = Vec::with_capacity(parts.clone().map(|part| LENGTH + part.len()).sum());
        for part in parts {
            kept.extend_from_slice(&part.len().to_ne_bytes());
            kept.extend_from_slice(part);
        }
        Asked(kept.into())
    }

    pub(super) fn ask<T>(&self, judge: impl FnOnce(&Request<'_>) -> T) -> T {
        let mut rest = &self.0[..];
        let mut part = || {
            let (length, behind) = rest.split_first_chunk::<LENGTH>()?;
            let (part, behind) = behind.split_at_checked(usize::from_ne_bytes(*length))?;
            rest = behind;
            Some(part)
        };
        let (method, path, host) = (text(part()), text(part()), text(part()));
        let headers: Fields<'_> = from_fn(|| Some((text(Some(part()?)), part()?))).collect();
        judge(&Request { method, path, host, headers: &headers })
    }
}

/// It was text when it was kept.
fn text(part: Option<&[u8]>) -> &str {
    part.and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default()
}

/// Bytes that say how long a part is.
const LENGTH: usize = size_of::<usize>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_asked_for_again_as_it_was() {
        let headers: &[(&str, &[u8])] = &[("host", b"a"), ("X-Empty", b""), ("x", b"\xff\0"), ("host", b"b")];
        for headers in [headers, &[]] {
            let request = Request { method: "GET", path: "/a?b", host: "a:80", headers };
            let same = Asked::of(&request).ask(|again| {
                assert_eq!((again.method, again.path, again.host), ("GET", "/a?b", "a:80"));
                again.headers == headers
            });
            assert!(same);
        }
    }
}
