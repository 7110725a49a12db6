//! Answers to datagrams.
//!
//! Contract: an answer leaves this node in one piece. Fragments without ports could not be given the address of a Service,
//! so one that is too long is not cut: the client is told to ask again over TCP (RFC 1035, section 4.2.1). As with
//! every datagram, who misses one asks again.

use std::io;

use super::message::Query;
use super::proxy::Received;
use super::raw::Datagram;
use super::sockets::Sockets;
use crate::model::Protocol;

/// Bytes of a message that every way carries: the least MTU of IPv6, without headers (RFC 8200, section 5).
pub(super) const ALWAYS_FITS: usize = 1232;

/// A message for the client, from the server that it had asked.
#[derive(Debug)]
pub(super) struct Answer {
    server: std::net::SocketAddr,
    client: std::net::SocketAddr,
    message: Vec<u8>,
    /// Where `message` may be too long.
    truncated: Option<Vec<u8>>,
}

impl Answer {
    pub(super) fn new(received: &Received, message: Vec<u8>) -> Answer {
        debug_assert!(received.protocol == Protocol::Udp);
        Answer { server: received.server, client: received.client, message, truncated: None }
    }

    /// What a server has replied.
    pub(super) fn of_reply(received: &Received, query: &Query, message: Vec<u8>) -> Answer {
        let truncated = (message.len() > ALWAYS_FITS).then(|| query.truncation());
        Answer { truncated, ..Answer::new(received, message) }
    }

    fn datagram<'a>(&'a self, message: &'a [u8]) -> Datagram<'a> {
        Datagram { from: self.server, to: self.client, message }
    }
}

/// Sends them, as many as possible in a call. `lost` hears of each that could not be sent.
pub(super) fn send(sockets: &dyn Sockets, answers: &[Answer], lost: &mut dyn FnMut(&Answer, io::Error)) {
    let whole: Vec<Datagram<'_>> = answers.iter().map(|answer| answer.datagram(&answer.message)).collect();
    let mut long: Vec<(&Answer, &[u8])> = Vec::new();
    sockets.answer(&whole, &mut |index, error| {
        let answer = &answers[index];
        match &answer.truncated {
            Some(truncated) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                long.push((answer, truncated));
            }
            _ => lost(answer, error),
        }
    });
    if !long.is_empty() {
        let truncated: Vec<Datagram<'_>> =
            long.iter().map(|(answer, message)| answer.datagram(message)).collect();
        sockets.answer(&truncated, &mut |index, error| lost(long[index].0, error));
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "answer of {} to {}", self.server, self.client)
    }
}
