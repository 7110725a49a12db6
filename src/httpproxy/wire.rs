//! What a proxied request is read from and written to: sockets by system calls that are nothing else.
//!
//! In a process with threads glibc's `recv` and `send` are points at which a thread may be cancelled, which takes two atomic
//! operations around each call, and a request makes four.
//!
//! A read that does not fill its buffer has emptied the socket, which counts as not readable from then on: nobody asks again
//! only to hear so. What arrives later is told by epoll, edge by edge. (So do tokio's own streams. `try_read` does not.) The
//! same goes for a write that was not taken whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connection, or one direction of it: as with tokio's halves, one task reads and one writes at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire<'a>(pub(super) &'a TcpStream);

impl Wire<'_> {
    /// Moves bytes of which there is room for `most`. `WouldBlock`: wait for readiness.
    fn attempt(
        self,
        interest: Interest,
        most: usize,
        call: impl FnOnce() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let mut moved = None;
        let result = self.0.try_io(interest, || {
            let count = call()?;
            moved = Some(count);
            // 0 is the end, and stays so.
            if count > 0 && count < most { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
        });
        moved.map_or(result, Ok)
    }
}

impl AsyncRead for Wire<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = into.initialize_unfilled();
        let most = room.len();
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let take = || Ok(recv(self.0, &mut *room, RecvFlags::empty())?.0);
            match self.attempt(Interest::READABLE, most, take) {
                Ok(count) => {
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            let give = || send(self.0, bytes, SendFlags::NOSIGNAL);
            match self.attempt(Interest::WRITABLE, bytes.len(), give) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.0, Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    /// Bytes in which a piece that is lost, or comes twice, shows.
    fn pattern(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i % 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_comes_after_a_read_that_emptied_the_socket_is_told() {
        let (ours, mut theirs) = pair().await;
        let mut room = [0; 64];
        for round in 0..100u8 {
            theirs.write_all(&[round]).await.unwrap();
            let count = Wire(&ours).read(&mut room).await.unwrap();
            assert_eq!(room[..count], [round]);
            // Not a call that says that there is nothing: nobody is to make one.
            let again = poll_fn(|cx| Poll::Ready(ours.poll_read_ready(cx).is_ready())).await;
            assert!(!again, "still readable in round {round}");
        }
        drop(theirs);
        assert_eq!(Wire(&ours).read(&mut room).await.unwrap(), 0, "the end");
        assert_eq!(Wire(&ours).read(&mut room).await.unwrap(), 0, "and it stays so");
    }

    #[tokio::test]
    async fn an_end_that_came_with_the_last_bytes_is_seen() {
        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"last").await.unwrap();
        drop(theirs);
        ours.readable().await.unwrap();
        let mut room = [0; 64];
        assert_eq!(Wire(&ours).read(&mut room).await.unwrap(), 4);
        let end = tokio::time::timeout(Duration::from_secs(5), Wire(&ours).read(&mut room)).await;
        assert_eq!(end.expect("told").unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_the_socket_takes_goes_through_whole() {
        let (ours, mut theirs) = pair().await;
        let sent = pattern(8 << 20);
        let mut got = Vec::new();
        let (written, read) = tokio::join!(
            async {
                Wire(&ours).write_all(&sent).await?;
                Wire(&ours).shutdown().await
            },
            theirs.read_to_end(&mut got)
        );
        written.unwrap();
        assert_eq!(read.unwrap(), sent.len());
        assert!(got == sent, "the bytes are others");
    }

    #[tokio::test]
    async fn a_write_to_nobody_is_an_error_and_no_signal() {
        let (ours, theirs) = pair().await;
        socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        let mut result = Ok(());
        while result.is_ok() {
            result = Wire(&ours).write_all(&[0; 1024]).await;
        }
        assert!(matches!(
            result.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ));
    }
}
