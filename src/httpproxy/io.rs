//! Buffers and bounded waits.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::wire::Wire;

/// First size of a buffer, and the size it grows to while a body streams.
const SMALL: usize = 8 * 1024;
const LARGE: usize = 64 * 1024;
/// Small buffers that a thread keeps for the next connection.
const KEPT: usize = 64;

thread_local! {
    /// A buffer is needed only while a message is under way: connections of one thread take turns.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn small_buffer() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SMALL])
}

fn give_back(buffer: Vec<u8>) {
    if buffer.len() == SMALL {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }
}

/// Bytes that were read and not used yet. Idle connections hold none.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the memory of an empty buffer back.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            give_back(std::mem::take(&mut self.bytes));
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads more; 0 is the end.
    pub(super) async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.make_room();
        let count = from.read(&mut self.bytes[self.end..]).await?;
        self.took(count);
        Ok(count)
    }

    /// The same, and no memory is held while there is nothing to read.
    pub(super) fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(from.poll_read_ready(cx))?;
        self.make_room();
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        let read = Pin::new(&mut Wire(from)).poll_read(cx, &mut room);
        let count = room.filled().len();
        self.took(count);
        self.release();
        read.map_ok(|()| count)
    }

    fn make_room(&mut self) {
        if self.end < self.bytes.len() {
            return;
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else if self.bytes.is_empty() {
            self.bytes = small_buffer();
        } else {
            self.bytes.resize((self.bytes.len() * 2).max(LARGE), 0);
        }
    }

    fn took(&mut self, count: usize) {
        self.end += count;
        // A buffer that was filled at once is too small for what streams here.
        if self.end == self.bytes.len() && self.bytes.len() < LARGE {
            self.bytes.resize(LARGE, 0);
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.bytes));
    }
}

/// Bounds waits, one after the other, with one timer that is made for the first wait and seldom touched: it is
/// moved only for a wait that is due earlier, and looks at the clock when it fires too early for the one that
/// is going on.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm::default()
    }

    /// Waits so long at most.
    pub(super) async fn within<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        self.bound(limit, work).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The same; `None` when it took too long.
    pub(super) async fn bound<T>(&mut self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        self.until(|wait| wait + limit, work).await
    }

    /// The same, until `due`, which is told when the wait began: it is asked when `work` is first found unfinished, and
    /// whenever the time that it said has come. By then it may say a later one.
    pub(super) async fn until<T>(
        &mut self,
        mut due: impl FnMut(Instant) -> Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let mut said = None;
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => loop {
                let (wait, last) = *said.get_or_insert_with(|| {
                    let now = Instant::now();
                    (now, due(now))
                });
                ready!(self.poll_until(last, cx));
                let next = due(wait);
                if next <= last {
                    return Poll::Ready(None);
                }
                said = Some((wait, next));
            },
        })
        .await
    }

    /// Ready once it is `due`.
    pub(super) fn poll_until(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= due {
                // The next wait starts with a timer that has not fired.
                timer.as_mut().reset(due + Duration::from_secs(3600));
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// Waits so long at most.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The close of this socket is a reset: the other side knows that something was refused.
pub(super) fn reset(stream: TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a refused connection is closed, not reset");
    }
}

/// A stream with what was read of it already.
#[derive(Debug)]
pub(super) struct Rewound {
    pub(super) inbox: Inbox,
    pub(super) stream: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.inbox.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let count = self.inbox.data().len().min(into.remaining());
        into.put_slice(&self.inbox.data()[..count]);
        self.inbox.consume(count);
        self.inbox.release();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_timer_bounds_every_wait_by_its_own_limit() {
        let mut alarm = Alarm::new();
        for millis in [40, 3, 20, 1, 30] {
            let limit = Duration::from_millis(millis);
            let begun = Instant::now();
            let waited = alarm.within::<()>(limit, std::future::pending()).await;
            assert_eq!(waited.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(begun.elapsed() >= limit);
            assert_eq!(alarm.within(limit, async { Ok(7) }).await.unwrap(), 7);
        }
    }
}
