//! SCTP in its one-to-one style: an association, and an echo over it.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::{Observed, Source, patiently};

/// Says one thing to an echo. On a kernel without SCTP this is [`Observed::Unsupported`].
pub async fn sctp(source: &Source, destination: SocketAddr, patience: Duration) -> Observed {
    const MESSAGE: &[u8] = b"sluice lab";
    patiently(patience, async {
        let socket = source.socket(destination, Type::STREAM, Protocol::SCTP)?;
        // Tokio only connects, polls, reads and writes: all that a one-to-one socket needs.
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(destination).await?;
        stream.write_all(MESSAGE).await?;
        let mut answer = [0u8; MESSAGE.len()];
        stream.read_exact(&mut answer).await?;
        Ok(if answer == MESSAGE { Observed::Answered } else { Observed::Strange("another echo".to_owned()) })
    })
    .await
}
