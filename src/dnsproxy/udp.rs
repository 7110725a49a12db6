//! Queries in datagrams. The loop judges; what is released waits in a task of its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::proxy::{Proxy, Received, Sorted};
use super::upstream::MAX_MESSAGE;
use crate::model::Protocol;

pub(super) async fn serve(proxy: Arc<Proxy>, socket: UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    loop {
        let datagram =
            socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer, &mut control)).await?;
        // A datagram without its addresses cannot be answered.
        let Some((length, client, server)) = datagram else { continue };
        let received = Received {
            message: buffer[..length].to_vec(),
            client,
            server,
            protocol: Protocol::Udp,
            since: Instant::now(),
        };
        match proxy.sort(&received) {
            Sorted::Done(None) => {}
            Sorted::Done(Some(answer)) => send(&proxy, &received, &answer),
            Sorted::Released(query, ruling) => match proxy.queries.enter(client.ip()) {
                None => send(&proxy, &received, &proxy.overflow(&received, &query, ruling)),
                Some(permit) => {
                    let proxy = Arc::clone(&proxy);
                    tokio::spawn(async move {
                        let (answer, _) = proxy.resolve(&received, &query, ruling).await;
                        send(&proxy, &received, &answer);
                        drop(permit);
                    });
                }
            },
        }
    }
}

fn send(proxy: &Proxy, received: &Received, answer: &[u8]) {
    // As with every datagram: who misses it asks again.
    if let Err(error) = proxy.sockets.answer(received.server, received.client, answer) {
        proxy.counters.lost_answers.add();
        tracing::debug!(%error, client = %received.client, "an answer was not sent");
    }
}

/// A datagram's length, its source, and where it was sent to.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> io::Result<Option<(usize, SocketAddr, SocketAddr)>> {
    let mut slices = [io::IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let mut original = None;
    for control in message.cmsgs()? {
        original = match control {
            ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(SocketAddr::from((
                Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)),
                u16::from_be(address.sin_port),
            ))),
            ControlMessageOwned::Ipv6OrigDstAddr(address) => Some(SocketAddr::from((
                Ipv6Addr::from(address.sin6_addr.s6_addr),
                u16::from_be(address.sin6_port),
            ))),
            _ => original,
        };
    }
    let source = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
    });
    Ok(source.zip(original).map(|(source, original)| (message.bytes, source, original)))
}
