//! What bounds an exchange: one clock for both of its directions.
//!
//! Contract: an exchange is given up when nothing of it has moved for `body_timeout`, in neither direction. A long upload
//! whose answer comes at its end, a watch that only the server writes to and a download under a silent request
//! side all go on. The server's time to answer begins when it has the request, not before; interim answers prolong it
//! [`MOST_INTERIM`] times.
//!
//! Who goes away (HTTP/1) ends the waits for what it was to get: nobody else would notice before there is something to
//! be sent.
//!
//! So do rules that change against the request ([`super::standing`]).
//!
//! A wait that was over at once has taken no time: only the end of one that really waited is a move.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::io::Alarm;
use super::policy::Verdict;
use super::presence;
use super::standing::{Look, Standing};

/// Interim answers (1xx) to one request: each is a move, so that a server could keep its request for ever with them. Most come
/// once (100, 103), some now and then (102, an upload's progress). The clients that count them take fewer or as many
/// (Go 5, CPython 100, neon 128), so that none misses an answer because of us.
pub(super) const MOST_INTERIM: usize = 128;

/// When an exchange last moved. Both directions run in one task, which is all that the atomics are for: the task may
/// be sent to another thread, but nothing of it runs on two.
#[derive(Debug)]
pub(super) struct Pace {
    begun: Instant,
    /// Nanoseconds from `begun`.
    moved: AtomicU64,
    uploading: AtomicBool,
}

/// What there is of a request when the wait for its answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// All of it was sent on.
    Done,
    /// Its body follows.
    Underway,
}

impl Pace {
    pub(super) fn new(begun: Instant, sending: Sending) -> Pace {
        Pace { begun, moved: AtomicU64::new(0), uploading: AtomicBool::new(sending == Sending::Underway) }
    }

    /// A byte, a frame, an interim answer.
    pub(super) fn moved(&self) {
        let since = self.begun.elapsed().as_nanos();
        self.moved.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Nothing more of the request is going to be sent on: from now on the server is waited for.
    pub(super) fn sent(&self) {
        self.moved();
        self.uploading.store(false, Ordering::Relaxed);
    }

    /// The last move, or when a wait began that was the first.
    fn last(&self, wait: Instant) -> Instant {
        wait.max(self.begun + Duration::from_nanos(self.moved.load(Ordering::Relaxed)))
    }

    /// When an answer is late. While the request is under way it is not: then this is when to ask again, which is
    /// no later than any time that may be said next.
    pub(super) fn answer_due(&self, wait: Instant, limit: Duration) -> Instant {
        if self.uploading.load(Ordering::Relaxed) { Instant::now() + limit } else { self.last(wait) + limit }
    }
}

/// A wait for one side looks so late whether the other one is still there, and whether the rules have changed. Most
/// are over sooner, and cost nothing for it.
const LOOK: Duration = Duration::from_secs(1);

/// Why a wait did not bring what it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    Late,
    /// Who was to get it has gone meanwhile.
    SinkGone,
    /// New rules do not let the request pass.
    Refused(Box<Verdict>),
}

/// Waits of one direction, one after the other.
#[derive(Debug)]
pub(super) struct Waits<'a> {
    alarm: &'a mut Alarm,
    pace: &'a Pace,
    limit: Duration,
    /// Over HTTP/2 the connection looks for all of its streams.
    look: Option<Look<'a>>,
}

impl<'a> Waits<'a> {
    /// `limit`: how long nothing may move.
    pub(super) fn new(alarm: &'a mut Alarm, pace: &'a Pace, limit: Duration) -> Waits<'a> {
        Waits { alarm, pace, limit, look: None }
    }

    /// The same, for as long as the request passes.
    pub(super) fn under(self, standing: &'a Standing<'a>) -> Waits<'a> {
        Waits { look: Some(Look::new(standing)), ..self }
    }

    pub(super) fn pace(&self) -> &'a Pace {
        self.pace
    }

    /// Waits for the next move; `None`: nothing has moved for too long, the other way neither.
    pub(super) async fn step<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let (pace, limit) = (self.pace, self.limit);
        let mut has_waited = false;
        let due = |wait| {
            has_waited = true;
            pace.last(wait) + limit
        };
        let done = self.alarm.until(due, work).await?;
        if has_waited {
            pace.moved();
        }
        Some(done)
    }

    /// Waits for the server to begin its answer; `None`: it is late.
    pub(super) fn answer<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Option<T>> {
        let pace = self.pace;
        self.alarm.until(move |wait| pace.answer_due(wait, limit), work)
    }

    /// [`Waits::step`] for what `sink` is to get.
    pub(super) async fn step_for<T>(
        &mut self,
        sink: &TcpStream,
        work: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        // A body that never pauses has no long waits.
        if let Some(verdict) = self.look.as_mut().and_then(Look::refusal) {
            return Err(Lost::Refused(verdict));
        }
        let (pace, limit) = (self.pace, self.limit);
        let mut has_waited = false;
        let due = |wait| {
            has_waited = true;
            pace.last(wait) + limit
        };
        let done = self.unless_gone(sink, due, work).await?;
        if has_waited {
            pace.moved();
        }
        Ok(done)
    }

    /// [`Waits::answer`] for this client.
    pub(super) fn answer_for<T>(
        &mut self,
        client: &TcpStream,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Result<T, Lost>> {
        let pace = self.pace;
        self.unless_gone(client, move |wait| pace.answer_due(wait, limit), work)
    }

    /// Waits until `due` for the rest of a head that this client is to get.
    pub(super) fn head_for<T>(
        &mut self,
        client: &TcpStream,
        due: Instant,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Result<T, Lost>> {
        self.unless_gone(client, move |_| due, work)
    }

    async fn unless_gone<T>(
        &mut self,
        sink: &TcpStream,
        mut due: impl FnMut(Instant) -> Instant,
        work: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        let mut work = pin!(work);
        let mut begun = None;
        let soon = |wait| due(*begun.insert(wait)).min(wait + LOOK);
        if let Some(done) = self.alarm.until(soon, work.as_mut()).await {
            return Ok(done);
        }
        presence::probe(sink);
        let Waits { alarm, look, .. } = self;
        // Seldom, and large: not a part of what every connection keeps.
        let watched = Box::pin(async {
            tokio::select! {
                biased;
                done = work => Ok(done),
                () = presence::failed(sink) => Err(Lost::SinkGone),
                verdict = refused(look) => Err(Lost::Refused(verdict)),
            }
        });
        alarm.until(|wait| due(begun.unwrap_or(wait)), watched).await.unwrap_or(Err(Lost::Late))
    }
}

async fn refused(look: &mut Option<Look<'_>>) -> Box<Verdict> {
    match look {
        Some(look) => look.refused().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const OFTEN: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_quiet_direction_is_not_late_while_the_other_one_moves() {
        let pace = Pace::new(Instant::now(), Sending::Done);
        let (mut up, mut down) = (Alarm::new(), Alarm::new());
        let begun = Instant::now();
        let quiet = async {
            let late = Waits::new(&mut up, &pace, LIMIT).step(pending::<()>()).await;
            assert_eq!(late, None);
        };
        let busy = async {
            let mut waits = Waits::new(&mut down, &pace, LIMIT);
            for _ in 0..15 {
                waits.step(sleep(OFTEN)).await.expect("moves");
            }
        };
        tokio::join!(quiet, busy);
        assert!(begun.elapsed() >= 15 * OFTEN + LIMIT, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn the_time_to_answer_begins_when_the_request_was_sent() {
        let pace = Pace::new(Instant::now(), Sending::Underway);
        let (mut up, mut down) = (Alarm::new(), Alarm::new());
        let begun = Instant::now();
        let upload = async {
            let mut waits = Waits::new(&mut up, &pace, LIMIT);
            for _ in 0..15 {
                waits.step(sleep(OFTEN)).await.expect("moves");
            }
            pace.sent();
        };
        let answer = async {
            let late = Waits::new(&mut down, &pace, LIMIT).answer(3 * OFTEN, pending::<()>()).await;
            assert_eq!(late, None);
        };
        tokio::join!(upload, answer);
        assert!(begun.elapsed() >= 18 * OFTEN, "{:?}", begun.elapsed());
    }
}
