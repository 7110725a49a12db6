//! Asking the server that the pod addressed: one socket and one random id for each query.

use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::message::{Query, Reply, Stray, set_id};
use super::proxy::Proxy;

/// Largest message over either transport.
pub(super) const MAX_MESSAGE: usize = 65_535;

/// Why there is no reply. Timeouts are the caller's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the server cannot be asked: {0}")]
    Io(#[from] io::Error),
    #[error("the server's reply cannot be read: {0}")]
    Malformed(Stray),
}

/// A reply as it came, but for the client's id.
#[derive(Debug)]
pub(super) struct Replied {
    pub message: Vec<u8>,
    pub reply: Reply,
}

/// Messages over TCP: two bytes of length, then the message (RFC 1035, section 4.2.2).
pub(super) type Frames = Framed<TcpStream, LengthDelimitedCodec>;

pub(super) fn frames(stream: TcpStream) -> Frames {
    LengthDelimitedCodec::builder().length_field_length(2).max_frame_length(MAX_MESSAGE).new_framed(stream)
}

/// An id that nobody can guess.
fn fresh_id() -> io::Result<u16> {
    let mut id = [0; 2];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id)
        .map_err(|_| io::Error::other("the kernel has no random numbers"))?;
    Ok(u16::from_be_bytes(id))
}

impl Proxy {
    /// Asks over UDP and waits for the reply; messages that answer something else are ignored.
    pub(super) async fn ask_udp(
        &self,
        query: &Query,
        message: &[u8],
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Replied, Failure> {
        let socket = self.sockets.upstream_udp(client.ip(), server)?;
        let id = fresh_id()?;
        let mut sent = message.to_vec();
        set_id(&mut sent, id);
        socket.send(&sent).await?;
        let mut received = Vec::with_capacity(4096);
        loop {
            received.clear();
            received.reserve(MAX_MESSAGE);
            socket.recv_buf(&mut received).await?;
            match Reply::parse(query, id, &received) {
                Ok(reply) => {
                    let mut message = received.as_slice().to_vec();
                    set_id(&mut message, query.id);
                    return Ok(Replied { message, reply });
                }
                Err(Stray::Mismatch) => self.counters.stray_replies.add(),
                Err(malformed) => return Err(Failure::Malformed(malformed)),
            }
        }
    }

    /// Asks over a connection of its own. The second part is for what follows the first reply of a
    /// transfer.
    pub(super) async fn ask_tcp(
        &self,
        query: &Query,
        message: &[u8],
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<(Replied, Rest), Failure> {
        let mut frames = frames(self.sockets.upstream_tcp(client.ip(), server).await?);
        let id = fresh_id()?;
        let mut sent = BytesMut::from(message);
        set_id(&mut sent, id);
        frames.send(sent.freeze()).await?;
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection");
        let received = frames.next().await.ok_or_else(ended)??;
        match Reply::parse(query, id, &received) {
            Ok(reply) => {
                let mut message = received.to_vec();
                set_id(&mut message, query.id);
                Ok((Replied { message, reply }, Rest { frames, id, client_id: query.id }))
            }
            Err(stray) => {
                if stray == Stray::Mismatch {
                    self.counters.stray_replies.add();
                }
                Err(Failure::Malformed(stray))
            }
        }
    }
}

/// Further messages of a zone transfer (RFC 5936, section 2.2).
#[derive(Debug)]
pub(super) struct Rest {
    frames: Frames,
    id: u16,
    client_id: u16,
}

impl Rest {
    /// The next message; none when the transfer is over or what comes is not part of it.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        let mut message = self.frames.next().await?.ok()?.to_vec();
        if message.get(..2)? != self.id.to_be_bytes() {
            return None;
        }
        set_id(&mut message, self.client_id);
        Some(message)
    }
}
