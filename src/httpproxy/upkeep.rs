//! How long a client may keep an HTTP/2 connection on which nothing is asked.
//!
//! - Without a stream for `idle_timeout`, it is told to go (GOAWAY); so it is when the process is to end.
//! - Told so, and without a stream for `header_timeout` after that, it is closed: going takes an answer of the
//!   client (to a PING), and one that does not give it would stay for ever.
//! - A frame that is not whole `header_timeout` after its first byte ends the connection. While there are streams a
//!   body may be as slow as `body_timeout` lets it be.

use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::Limits;
use super::frames::{Mark, Pending, Watch};
use super::io::Alarm;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Tell the client to go.
    Idle,
    /// It was told, and has not gone.
    Stays,
    /// A frame does not come to its end.
    Slow,
}

/// Of one connection.
#[derive(Debug)]
pub(super) struct Upkeep {
    alarm: Alarm,
    watch: Watch,
    /// Since when there is no stream.
    quiet: Option<Instant>,
    told_to_go: Option<Instant>,
    mark: Mark,
    /// Since when `mark` is what it is.
    marked: Instant,
}

impl Upkeep {
    pub(super) fn new(watch: Watch) -> Upkeep {
        let now = Instant::now();
        let mark = watch.mark();
        Upkeep { alarm: Alarm::new(), watch, quiet: Some(now), told_to_go: None, mark, marked: now }
    }

    /// There is a stream.
    pub(super) fn busy(&mut self) {
        self.quiet = None;
    }

    /// There is none.
    pub(super) fn quiet(&mut self) {
        self.quiet.get_or_insert_with(Instant::now);
    }

    pub(super) fn told_to_go(&mut self) {
        self.told_to_go.get_or_insert_with(Instant::now);
    }

    pub(super) fn is_told_to_go(&self) -> bool {
        self.told_to_go.is_some()
    }

    /// Ready when something is due. To be asked whenever the connection was read.
    pub(super) fn poll(&mut self, limits: &Limits, cx: &mut Context<'_>) -> Poll<Due> {
        let mark = self.watch.mark();
        if mark != self.mark {
            self.mark = mark;
            if mark.pending() != Pending::Nothing {
                self.marked = Instant::now();
            }
        }
        let Some((at, due)) = self.next(limits) else { return Poll::Pending };
        ready!(self.alarm.poll_until(at, cx));
        Poll::Ready(due)
    }

    fn next(&self, limits: &Limits) -> Option<(Instant, Due)> {
        let quiet = match (self.quiet, self.told_to_go) {
            (None, _) => None,
            (Some(quiet), None) => Some((quiet + limits.idle_timeout, Due::Idle)),
            (Some(quiet), Some(told)) => Some((quiet.max(told) + limits.header_timeout, Due::Stays)),
        };
        let slow = match (self.mark.pending(), self.quiet) {
            (Pending::Nothing, _) | (Pending::Data, None) => None,
            (Pending::Data, Some(quiet)) => Some(quiet.max(self.marked)),
            (Pending::Other, _) => Some(self.marked),
        };
        let slow = slow.map(|since| (since + limits.header_timeout, Due::Slow));
        quiet.into_iter().chain(slow).min_by_key(|(at, _)| *at)
    }
}
