//! Datagrams by the dozen: one system call for all that wait, one for all that leave.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg, sendmmsg,
};

use super::raw::Datagram;
use super::wire::HEADER;

/// Datagrams of one call.
pub(super) const BATCH: usize = 32;

/// Room for what one call receives.
#[derive(Debug)]
pub struct Inbox {
    slots: Vec<u8>,
    longest: usize,
}

impl Inbox {
    /// For messages of so many bytes. Of one that is longer, the header is given alone.
    pub fn new(longest: usize) -> Inbox {
        Inbox { slots: vec![0; BATCH * longest], longest }
    }

    /// Takes what waits at a socket, at most [`BATCH`] datagrams, in one piece if there is any. Returns whether more may
    /// wait.
    ///
    /// # Errors
    /// The socket has failed.
    pub fn receive(&mut self, socket: &UdpSocket, take: impl FnOnce(&[Datagram<'_>])) -> io::Result<bool> {
        let mut slices: Vec<[io::IoSliceMut<'_>; 1]> =
            self.slots.chunks_exact_mut(self.longest).map(|slot| [io::IoSliceMut::new(slot)]).collect();
        // Made anew each time: the kernel shortens what the headers say about their room.
        let space = nix::cmsg_space!(nix::libc::sockaddr_in6);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(space));
        let received =
            match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)
            {
                Ok(received) => received,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
        let mut count = 0;
        let mut datagrams = Vec::with_capacity(BATCH);
        for message in received {
            count += 1;
            // A datagram without its addresses cannot be answered.
            let Some((from, to)) = ends(&message)? else { continue };
            let whole = message.iovs().next().unwrap_or_default();
            let is_cut = message.flags.contains(MsgFlags::MSG_TRUNC);
            let message = if is_cut { whole.get(..HEADER).unwrap_or(whole) } else { whole };
            datagrams.push(Datagram { from, to, message });
        }
        if !datagrams.is_empty() {
            take(&datagrams);
        }
        Ok(count == BATCH)
    }
}

fn ends(message: &RecvMsg<'_, '_, SockaddrStorage>) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
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
    Ok(source.zip(original))
}

/// Sends items 0 to `count`. `lost` hears of each that was not sent, by number.
pub(super) fn send_all<'a, const PARTS: usize>(
    socket: impl AsFd,
    count: usize,
    item: impl Fn(usize) -> (SocketAddr, [io::IoSlice<'a>; PARTS]),
    mut lost: impl FnMut(usize, io::Error),
) {
    let mut first = 0;
    while first < count {
        let now = (count - first).min(BATCH);
        let (addresses, slices): (Vec<Option<SockaddrStorage>>, Vec<_>) = (first..first + now)
            .map(|number| {
                let (address, slices) = item(number);
                (Some(SockaddrStorage::from(address)), slices)
            })
            .unzip();
        let mut headers = MultiHeaders::preallocate(now, None);
        let sent = sendmmsg(
            socket.as_fd().as_raw_fd(),
            &mut headers,
            slices.iter(),
            addresses.as_slice(),
            [] as [ControlMessage<'_>; 0],
            MsgFlags::MSG_DONTWAIT,
        )
        .map(Iterator::count);
        match sent {
            // The kernel says what is wrong with a datagram when it is the first of a call.
            Ok(sent) => first += sent.max(1),
            Err(nix::Error::EINTR) => {}
            Err(error) => {
                lost(first, error.into());
                first += 1;
            }
        }
    }
}
