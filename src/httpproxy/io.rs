//! Buffers and bounded waits.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// First size of a buffer, and the size it grows to while a body streams.
const SMALL: usize = 8 * 1024;
const LARGE: usize = 64 * 1024;

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
            *self = Inbox::default();
        }
    }

    /// Reads more; 0 is the end.
    pub(super) async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.make_room();
        let count = from.read(&mut self.bytes[self.end..]).await?;
        self.took(count);
        Ok(count)
    }

    /// Reads what has arrived; 0 is the end.
    pub(super) fn try_fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        self.make_room();
        let count = from.try_read(&mut self.bytes[self.end..])?;
        self.took(count);
        Ok(count)
    }

    fn make_room(&mut self) {
        if self.end < self.bytes.len() {
            return;
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else {
            let wanted = if self.bytes.is_empty() { SMALL } else { (self.bytes.len() * 2).max(LARGE) };
            self.bytes.resize(wanted, 0);
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
