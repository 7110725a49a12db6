//! Datagrams from addresses and ports that the sender chooses: UDP in IPv4 (RFC 791) or IPv6 (RFC 8200).
//!
//! Contract: a query costs no socket. Any address and port may be written into a header, so a port can be drawn for each
//! query, from all that there are, and many datagrams leave in one system call. Needs `CAP_NET_RAW`. A datagram
//! that is longer than the device's MTU is refused by the kernel (`EMSGSIZE`): nothing is fragmented here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::answers::ALWAYS_FITS;
use super::batch::send_all;

/// The kernel adds nothing to what is sent by a socket of this protocol.
const IPPROTO_RAW: i32 = 255;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TTL: u8 = 64;
/// Bytes of a message that no link of IPv4 is too narrow for: RFC 791's 576, without headers.
const NEVER_CUT: usize = 576 - IPV4_HEADER - UDP_HEADER;
/// Bytes that may be on their way.
const SEND_BUFFER: usize = 4 << 20;

/// A datagram, whom it is from, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub message: &'a [u8],
}

/// What routers may do with a datagram that is longer than the next link's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    Never,
    /// Cut it, in IPv4. Nobody hears of a link of IPv6 that is too narrow, so what may be too long for one is refused there
    /// ([`ALWAYS_FITS`]).
    OnTheWay,
}

/// Headers of a datagram, up to its message.
#[derive(Clone, Copy, Debug)]
struct Headers {
    bytes: [u8; IPV6_HEADER + UDP_HEADER],
    length: usize,
}

impl Headers {
    /// None for addresses of two families, or a message that no datagram can hold.
    fn of(datagram: &Datagram<'_>, fragments: Fragments) -> Option<Headers> {
        let Datagram { from, to, message } = datagram;
        let length = u16::try_from(UDP_HEADER + message.len()).ok()?;
        let mut headers = Headers { bytes: [0; IPV6_HEADER + UDP_HEADER], length: 0 };
        // What the sum covers beside header and message (RFC 768; RFC 8200, section 8.1).
        let mut sum = Sum::default();
        sum.add_word(u16::from(UDP));
        sum.add_word(length);
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let all = u16::try_from(IPV4_HEADER).ok()?.checked_add(length)?;
                headers.put(&[0x45, 0]);
                headers.put(&all.to_be_bytes());
                // With DF the identification says nothing (RFC 6864); 0 has the kernel look for one, which takes it
                // longer than the rest of the header. The header's checksum is the kernel's.
                let may_be_cut = fragments == Fragments::OnTheWay && message.len() > NEVER_CUT;
                headers.put(if may_be_cut { &[0; 4] } else { &[0, 1, 0x40, 0] });
                headers.put(&[TTL, UDP, 0, 0]);
                headers.put(&from.octets());
                headers.put(&to.octets());
                sum.add(&from.octets());
                sum.add(&to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                headers.put(&[0x60, 0, 0, 0]);
                headers.put(&length.to_be_bytes());
                headers.put(&[UDP, TTL]);
                headers.put(&from.octets());
                headers.put(&to.octets());
                sum.add(&from.octets());
                sum.add(&to.octets());
            }
            _ => return None,
        }
        for word in [from.port(), to.port(), length] {
            headers.put(&word.to_be_bytes());
            sum.add_word(word);
        }
        sum.add(message);
        headers.put(&sum.checksum().to_be_bytes());
        Some(headers)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The sum of 16-bit words (RFC 1071).
#[derive(Clone, Copy, Debug, Default)]
struct Sum(u32);

impl Sum {
    fn add_word(&mut self, word: u16) {
        self.0 += u32::from(word);
    }

    /// A last odd byte counts as if a zero followed. 64 KiB of words do not overflow the sum.
    fn add(&mut self, bytes: &[u8]) {
        let pairs = bytes.chunks_exact(2);
        if let [last] = pairs.remainder() {
            self.add_word(u16::from_be_bytes([*last, 0]));
        }
        pairs.for_each(|pair| self.add_word(u16::from_be_bytes([pair[0], pair[1]])));
    }

    /// Zero would mean "no checksum".
    fn checksum(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        match !(sum as u16) {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// A socket of each family.
#[derive(Debug)]
pub struct RawSockets {
    fragments: Fragments,
    v4: Socket,
    v6: Socket,
}

impl RawSockets {
    /// `mark` is put on what is sent.
    ///
    /// # Errors
    /// No `CAP_NET_RAW`, or no such family in the kernel.
    pub fn new(mark: u32, fragments: Fragments) -> io::Result<RawSockets> {
        let open = |domain| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::Mark, &mark)?;
            if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
                socket.set_send_buffer_size(SEND_BUFFER)?;
            }
            Ok(socket)
        };
        Ok(RawSockets { fragments, v4: open(Domain::IPV4)?, v6: open(Domain::IPV6)? })
    }

    fn is_too_long(&self, datagram: &Datagram<'_>) -> bool {
        self.fragments == Fragments::OnTheWay && datagram.to.is_ipv6() && datagram.message.len() > ALWAYS_FITS
    }

    /// Sends all of them, as few calls as possible. `unsent` hears of those that did not leave, by index.
    pub fn send(&self, datagrams: &[Datagram<'_>], unsent: &mut dyn FnMut(usize, io::Error)) {
        // In most rounds all are of one family.
        let is_v4 = |datagram: &Datagram<'_>| datagram.to.is_ipv4();
        let mut start = 0;
        for run in datagrams.chunk_by(|one, next| is_v4(one) == is_v4(next)) {
            let socket: BorrowedFd<'_> = if is_v4(&run[0]) { self.v4.as_fd() } else { self.v6.as_fd() };
            let mut ready = Vec::with_capacity(run.len());
            for (index, datagram) in (start..).zip(run) {
                match Headers::of(datagram, self.fragments) {
                    Some(_) if self.is_too_long(datagram) => {
                        unsent(index, io::Error::from_raw_os_error(nix::libc::EMSGSIZE));
                    }
                    Some(headers) => ready.push((index, headers, datagram)),
                    None => unsent(index, io::ErrorKind::InvalidInput.into()),
                }
            }
            let item = |place: usize| {
                let (_, headers, datagram): &(usize, Headers, &Datagram<'_>) = &ready[place];
                let slices = [io::IoSlice::new(headers.as_slice()), io::IoSlice::new(datagram.message)];
                // To the kernel a port would be a protocol.
                (SocketAddr::new(datagram.to.ip(), 0), slices)
            };
            send_all(socket, ready.len(), item, |place, error| unsent(ready[place].0, error));
            start += run.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(from: &str, to: &str, message: &[u8]) -> Option<Vec<u8>> {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Headers::of(&Datagram { from, to, message }, Fragments::Never)
            .map(|headers| headers.as_slice().to_vec())
    }

    #[test]
    fn headers_are_those_of_the_standards() {
        let v4 = headers("10.0.0.1:5000", "10.0.0.2:53", b"abc").unwrap();
        assert_eq!(v4[..12], [0x45, 0, 0, 31, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        assert_eq!(v4[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(v4[20..], [0x13, 0x88, 0, 53, 0, 11, 0x13, 0xb6]);
        let v6 = headers("[2001:db8::1]:5000", "[2001:db8::2]:53", b"abcd").unwrap();
        assert_eq!(v6[..8], [0x60, 0, 0, 0, 0, 12, 17, 64]);
        assert_eq!(v6.len(), 48);
        let long = Datagram {
            from: "10.0.0.1:53".parse().unwrap(),
            to: "10.0.0.2:5000".parse().unwrap(),
            message: &[0; NEVER_CUT + 1],
        };
        let flags = |fragments| Headers::of(&long, fragments).unwrap().bytes[4..8].to_vec();
        assert_eq!(flags(Fragments::OnTheWay), [0, 0, 0, 0], "the kernel's identification, and no DF");
        assert_eq!(flags(Fragments::Never), [0, 1, 0x40, 0]);
        assert_eq!(headers("10.0.0.1:1", "[2001:db8::2]:53", b""), None);
        assert_eq!(headers("10.0.0.1:1", "10.0.0.2:53", &[0; 65_530]), None);
    }

    proptest! {
        /// Whoever receives it adds everything up and gets all ones.
        #[test]
        fn the_checksum_holds(
            from in any::<[u8; 4]>(), to in any::<[u8; 4]>(), ports in any::<(u16, u16)>(),
            message in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let datagram = Datagram {
                from: (from, ports.0).into(),
                to: (to, ports.1).into(),
                message: &message,
            };
            let headers = Headers::of(&datagram, Fragments::OnTheWay).unwrap();
            let udp = &headers.as_slice()[IPV4_HEADER..];
            let mut sum = Sum::default();
            for part in [&from[..], &to, &[0, UDP], &udp[4..6], udp, &message] {
                sum.add(part);
            }
            let mut total = sum.0;
            while total > 0xffff {
                total = (total & 0xffff) + (total >> 16);
            }
            prop_assert_eq!(total, 0xffff);
        }
    }
}
