//! Asking over a connection the server that the pod addressed: one connection and one random id for each query.

use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::message::{Query, Reply, Stray, set_id};
use super::proxy::Proxy;
use super::random::Random;

/// Largest message over either transport.
pub(super) const MAX_MESSAGE: usize = 65_535;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the server cannot be asked: {0}")]
    Io(#[from] io::Error),
    #[error("the server's reply cannot be read: {0}")]
    Malformed(Stray),
    #[error("the server did not answer in time")]
    Silence,
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

impl Proxy {
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
        let id = Random::new()?.next();
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
