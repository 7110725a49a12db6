//! UDP and ICMP: send, and wait for the echo.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::net::UdpSocket;

use super::{Observed, Source, patiently};

/// Silence after which a datagram is sent again: one lost to a full queue must not look denied.
const RESEND: Duration = Duration::from_millis(200);

static NONCE: AtomicU32 = AtomicU32::new(1);

/// A UDP "connection": one source port, as conntrack sees it.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
}

impl UdpFlow {
    /// Sends to an echo and waits.
    pub async fn open(
        source: &Source,
        destination: SocketAddr,
        patience: Duration,
    ) -> (Observed, Option<UdpFlow>) {
        let opened = async {
            let socket = source.socket(destination, Type::DGRAM, Protocol::UDP)?;
            let socket = UdpSocket::from_std(socket.into())?;
            socket.connect(destination).await?;
            io::Result::Ok(UdpFlow { socket })
        };
        match opened.await {
            Ok(mut flow) => (flow.send(patience).await, Some(flow)),
            Err(error) => (Observed::from_error(&error), None),
        }
    }

    /// One more datagram with its echo.
    pub async fn send(&mut self, patience: Duration) -> Observed {
        let payload = format!("sluice lab {}", NONCE.fetch_add(1, Ordering::Relaxed)).into_bytes();
        let accept = |answer: &[u8]| (answer == payload).then_some(Observed::Answered);
        patiently(patience, insist(&self.socket, &payload, accept)).await
    }
}

/// Sends `message` again and again until an answer is accepted.
pub(super) async fn insist(
    socket: &UdpSocket,
    message: &[u8],
    accept: impl Fn(&[u8]) -> Option<Observed>,
) -> io::Result<Observed> {
    let mut buffer = vec![0u8; 65535];
    loop {
        socket.send(message).await?;
        let answered = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Anything else is a late answer to an earlier question.
                if let Some(observed) = accept(&buffer[..length]) {
                    return io::Result::Ok(observed);
                }
            }
        };
        if let Ok(result) = tokio::time::timeout(RESEND, answered).await {
            return result;
        }
    }
}

/// ICMP or ICMPv6 echo request and reply (RFC 792, RFC 4443), through the kernel's ping sockets: it
/// numbers, sums and sorts.
pub async fn ping(source: &Source, destination: IpAddr, patience: Duration) -> Observed {
    let (protocol, request, reply) = match destination {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8u8, 0u8),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128, 129),
    };
    let nonce = NONCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Type, code, checksum, identifier (both the kernel's), sequence, data.
    let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
    message.extend(nonce);
    patiently(patience, async {
        let destination = SocketAddr::new(destination, 0);
        let socket = source.socket(destination, Type::DGRAM, protocol)?;
        socket.connect(&destination.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let accept = |answer: &[u8]| {
            (answer.first() == Some(&reply) && answer.ends_with(&nonce)).then_some(Observed::Answered)
        };
        insist(&socket, &message, accept).await
    })
    .await
}
