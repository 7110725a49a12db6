//! ICMP errors about queries: a server that is not there is known at once, not after a timeout.
//!
//! Contract: "destination unreachable" (RFC 792; RFC 4443, section 3.1) about a datagram tells where that came from and
//! where it was going. Anybody on the way can say so, and is believed only by a query that has just these ports.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

const UDP: u8 = 17;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
const ICMP_UNREACHABLE: u8 = 3;
/// Of a path that is narrower than its ends; queries are not.
const ICMP_TOO_BIG: u8 = 4;
const ICMPV6_UNREACHABLE: u8 = 1;

/// From where, and to where, the datagram went that did not arrive.
pub type Undelivered = (SocketAddr, SocketAddr);

/// What an ICMP message says, with the IPv4 header before it.
pub fn read_v4(packet: &[u8]) -> Option<Undelivered> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..)?;
    if *icmp.first()? != ICMP_UNREACHABLE || *icmp.get(1)? == ICMP_TOO_BIG {
        return None;
    }
    let quoted = icmp.get(ICMP_HEADER..)?;
    let header = usize::from(quoted.first()? & 0xf) * 4;
    if header < IPV4_HEADER || *quoted.get(9)? != UDP {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 4] = quoted.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    ends(address(12)?, address(16)?, quoted.get(header..)?)
}

/// What an ICMPv6 message says, which the kernel gives without the IPv6 header.
pub fn read_v6(message: &[u8]) -> Option<Undelivered> {
    if *message.first()? != ICMPV6_UNREACHABLE {
        return None;
    }
    let quoted = message.get(ICMP_HEADER..)?;
    // A query of ours has no extension headers.
    if *quoted.get(6)? != UDP {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 16] = quoted.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    ends(address(8)?, address(24)?, quoted.get(IPV6_HEADER..)?)
}

fn ends(from: IpAddr, to: IpAddr, udp: &[u8]) -> Option<Undelivered> {
    let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    Some((SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?)))
}

/// A socket that gets nothing but these messages; the kernel drops others before they wake anybody.
///
/// # Errors
/// No `CAP_NET_RAW`.
pub fn listen(domain: Domain) -> io::Result<Socket> {
    let (protocol, filter) = match domain == Domain::IPV4 {
        // X = length of the IPv4 header; A = type.
        true => (
            Protocol::ICMPV4,
            vec![
                statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
                statement(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0),
                unless(ICMP_UNREACHABLE),
                statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
                statement(libc::BPF_RET | libc::BPF_K, 0),
            ],
        ),
        false => (
            Protocol::ICMPV6,
            vec![
                statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
                unless(ICMPV6_UNREACHABLE),
                statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
                statement(libc::BPF_RET | libc::BPF_K, 0),
            ],
        ),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.attach_filter(&filter)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn statement(code: u32, value: u32) -> SockFilter {
    SockFilter::new(code as u16, 0, 0, value)
}

/// Skips the next statement if A is anything else.
fn unless(kind: u8) -> SockFilter {
    SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, kind.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quoted_v4() -> Vec<u8> {
        let mut packet = vec![0x45; 20];
        packet.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        packet.extend([0x46, 0, 0, 60, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1]);
        packet.extend([0x13, 0x88, 0, 53]);
        packet
    }

    #[test]
    fn an_error_names_the_ends_of_what_it_quotes() {
        let ends = Some(("10.0.0.1:5000".parse().unwrap(), "10.0.0.2:53".parse().unwrap()));
        assert_eq!(read_v4(&quoted_v4()), ends);
        let mut too_big = quoted_v4();
        too_big[21] = ICMP_TOO_BIG;
        assert_eq!(read_v4(&too_big), None);
        let mut tcp = quoted_v4();
        tcp[37] = 6;
        assert_eq!(read_v4(&tcp), None);
        let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 40, 17, 64];
        message.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        message.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        message.extend([0x13, 0x88, 0, 53]);
        let ends = Some(("[2001:db8::1]:5000".parse().unwrap(), "[2001:db8::2]:53".parse().unwrap()));
        assert_eq!(read_v6(&message), ends);
    }

    proptest! {
        #[test]
        fn what_is_cut_or_changed_anywhere_does_no_harm(cut in 0usize..60, place in 0usize..60, byte in any::<u8>()) {
            let mut packet = quoted_v4();
            packet.truncate(cut);
            if let Some(target) = packet.get_mut(place) {
                *target = byte;
            }
            read_v4(&packet);
            read_v6(&packet);
        }
    }
}
