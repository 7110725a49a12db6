//! DNS questions, over UDP with a retry over TCP when the answer was cut, or over TCP at once.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use socket2::{Protocol, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::datagram::insist;
use super::http::connect;
use super::{Observed, Source, patiently};
use crate::lab::dns::Carrier;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsQuestion {
    /// Absolute, with or without the final dot.
    pub name: String,
    /// `A`, `AAAA`, `TXT` ...
    pub kind: String,
    pub carrier: Carrier,
}

/// Asks `server`. Any answer but REFUSED counts as answered; its addresses come along.
pub async fn lookup(
    source: &Source,
    server: SocketAddr,
    question: &DnsQuestion,
    patience: Duration,
) -> (Observed, Vec<IpAddr>) {
    let mut addresses = Vec::new();
    let observed = patiently(patience, async {
        let query = query(question).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let wire = query.to_vec().map_err(io::Error::other)?;
        let mut answer = match question.carrier {
            Carrier::Udp => match over_udp(source, server, &query, &wire).await? {
                Ok(answer) => answer,
                Err(observed) => return Ok(observed),
            },
            Carrier::Tcp => over_tcp(source, server, &wire).await?,
        };
        if answer.metadata.truncation {
            answer = over_tcp(source, server, &wire).await?;
        }
        if answer.metadata.response_code == ResponseCode::Refused {
            return Ok(Observed::DnsRefused);
        }
        addresses.extend(answer.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        }));
        Ok(Observed::Answered)
    })
    .await;
    (observed, addresses)
}

fn query(question: &DnsQuestion) -> Result<Message, String> {
    let mut name = Name::from_ascii(&question.name).map_err(|e| format!("{}: {e}", question.name))?;
    name.set_fqdn(true);
    let kind: RecordType = question.kind.parse().map_err(|e| format!("{}: {e}", question.kind))?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    Ok(message)
}

async fn over_udp(
    source: &Source,
    server: SocketAddr,
    query: &Message,
    wire: &[u8],
) -> io::Result<Result<Message, Observed>> {
    let socket = source.socket(server, Type::DGRAM, Protocol::UDP)?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(server).await?;
    let answer = std::cell::RefCell::new(None);
    let observed = insist(&socket, wire, |bytes| {
        let message = Message::from_vec(bytes).ok().filter(|m| m.metadata.id == query.metadata.id)?;
        *answer.borrow_mut() = Some(message);
        Some(Observed::Answered)
    })
    .await?;
    Ok(answer.into_inner().ok_or(observed))
}

async fn over_tcp(source: &Source, server: SocketAddr, wire: &[u8]) -> io::Result<Message> {
    let mut stream = connect(source, server).await?;
    let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(wire);
    stream.write_all(&framed).await?;
    let mut answer = vec![0u8; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}
