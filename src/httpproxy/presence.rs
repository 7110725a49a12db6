//! Whether the other side of a connection is still there, when nothing is to be read from it or sent to it.
//!
//! A peer that went away with a reset is seen at once, one that vanished by the kernel's probes. A client that has
//! closed is the hard case: its FIN is also that of one that has sent all it has to say and reads on, which is
//! legal. A probe tells them apart: the kernel of a client that has closed forgets the connection after a minute
//! (Linux: `tcp_fin_timeout`), and answers the next probe with a reset.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A connection that is quiet for so long is probed,
const QUIET: Duration = Duration::from_secs(60);
/// again and again,
const AGAIN: Duration = Duration::from_secs(15);
/// and is dead when so many probes in a row were not answered.
const UNANSWERED: u32 = 4;

/// Has the kernel probe a quiet connection: one whose peer has vanished fails after two minutes.
pub(super) fn probe(stream: &TcpStream) {
    let probes = TcpKeepalive::new().with_time(QUIET).with_interval(AGAIN).with_retries(UNANSWERED);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&probes) {
        tracing::debug!(%error, "a connection is not probed");
    }
}

/// What was sent and has not been acknowledged, or not been taken, for so long ends the connection (TCP_USER_TIMEOUT,
/// RFC 5482). It bounds the probes of a quiet one, too.
pub(super) fn bound(stream: &TcpStream, limit: Duration) {
    if let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(limit)) {
        tracing::debug!(%error, "a connection waits for its peer as long as the kernel does");
    }
}

/// Ready when the connection has failed. That its peer sends no more is no failure.
pub(super) async fn failed(stream: &TcpStream) {
    // An error is the end of a connection that cannot be watched, too.
    stream.ready(Interest::ERROR).await.ok();
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_reset_is_a_failure_and_the_end_of_what_is_sent_is_none() {
        let (ours, mut theirs) = pair().await;
        tokio::io::AsyncWriteExt::shutdown(&mut theirs).await.unwrap();
        assert_eq!(ours.peek(&mut [0]).await.unwrap(), 0);
        let watched = tokio::time::timeout(Duration::from_millis(20), failed(&ours)).await;
        assert!(watched.is_err(), "half-closed");
        super::super::io::reset(theirs);
        tokio::time::timeout(Duration::from_secs(30), failed(&ours)).await.expect("reset");
    }

    #[tokio::test]
    async fn a_probed_connection_has_the_kernels_probes() {
        let (ours, _theirs) = pair().await;
        probe(&ours);
        let socket = SockRef::from(&ours);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), QUIET);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), AGAIN);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), UNANSWERED);
        bound(&ours, Duration::from_secs(7));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
    }
}
