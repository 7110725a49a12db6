//! Packets made and taken apart by hand, with an implementation of the checksums that shares nothing with
//! the one under test.

use std::net::IpAddr;

/// TCP flag bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: TcpFlags = TcpFlags(0x01);
    pub const SYN: TcpFlags = TcpFlags(0x02);
    pub const RST: TcpFlags = TcpFlags(0x04);
    pub const ACK: TcpFlags = TcpFlags(0x10);
    pub const SYN_ACK: TcpFlags = TcpFlags(0x12);
    pub const FIN_ACK: TcpFlags = TcpFlags(0x11);
}

/// What follows the IP header.
#[derive(Clone, Debug)]
pub enum L4 {
    Tcp {
        sport: u16,
        dport: u16,
        flags: TcpFlags,
    },
    Udp {
        sport: u16,
        dport: u16,
    },
    Sctp {
        sport: u16,
        dport: u16,
    },
    /// Either ICMP or ICMPv6, by the addresses.
    Icmp {
        kind: u8,
        code: u8,
        id: u16,
    },
    /// An ICMP error that quotes this packet (without its Ethernet header).
    IcmpError {
        kind: u8,
        code: u8,
        quoted: Vec<u8>,
    },
    /// Any protocol, any bytes.
    Raw {
        protocol: u8,
        bytes: Vec<u8>,
    },
}

/// A piece of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    pub id: u32,
    /// In bytes, a multiple of 8.
    pub offset: u16,
    pub more: bool,
}

/// A packet to be made. `..Frame::new(src, dst, l4)` gives the rest.
#[derive(Clone, Debug)]
pub struct Frame {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub l4: L4,
    pub payload: Vec<u8>,
    /// For a fragment with an offset, `l4` is left out and `payload` is what it carries.
    pub fragment: Option<Fragment>,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: (number, bytes of which the first is overwritten with the next number).
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl Frame {
    pub fn new(src: IpAddr, dst: IpAddr, l4: L4) -> Frame {
        Frame {
            src_mac: [0; 6],
            dst_mac: [0; 6],
            src,
            dst,
            ttl: 64,
            l4,
            payload: b"hello, world".to_vec(),
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    fn protocol(&self) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => 6,
            L4::Udp { .. } => 17,
            L4::Sctp { .. } => 132,
            L4::Icmp { .. } | L4::IcmpError { .. } => {
                if self.src.is_ipv4() {
                    1
                } else {
                    58
                }
            }
            L4::Raw { protocol, .. } => protocol,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports = |sport: u16, dport: u16| [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        let mut bytes = match &self.l4 {
            L4::Tcp { sport, dport, flags } => {
                let mut tcp = ports(*sport, *dport);
                tcp.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags.0, 0xff, 0xff, 0, 0, 0, 0]);
                tcp
            }
            L4::Udp { sport, dport } => {
                let mut udp = ports(*sport, *dport);
                udp.extend((8 + self.payload.len() as u16).to_be_bytes());
                udp.extend([0, 0]);
                udp
            }
            L4::Sctp { sport, dport } => {
                let mut sctp = ports(*sport, *dport);
                sctp.extend([0, 0, 0, 7, 0, 0, 0, 0]);
                sctp
            }
            L4::Icmp { kind, code, id } => {
                let mut icmp = vec![*kind, *code, 0, 0];
                icmp.extend(id.to_be_bytes());
                icmp.extend([0, 1]);
                icmp
            }
            L4::IcmpError { kind, code, quoted } => {
                let mut icmp = vec![*kind, *code, 0, 0, 0, 0, 0, 0];
                icmp.extend(quoted);
                icmp
            }
            L4::Raw { bytes, .. } => bytes.clone(),
        };
        if !matches!(self.l4, L4::IcmpError { .. }) {
            bytes.extend(&self.payload);
        }
        let protocol = self.protocol();
        if matches!(self.l4, L4::Raw { .. }) {
            return bytes;
        }
        if protocol == 132 {
            let crc = crc32c(&bytes).to_le_bytes();
            bytes[8..12].copy_from_slice(&crc);
        } else if let Some(at) = checksum_offset(protocol) {
            let sum = checksum(&[&pseudo_header(self.src, self.dst, protocol, bytes.len()), &bytes]);
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// From the IP header on.
    pub fn packet(&self) -> Vec<u8> {
        let transport = match self.fragment {
            Some(fragment) if fragment.offset > 0 => self.payload.clone(),
            _ => self.transport(),
        };
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = 20 + self.options.len();
                let mut ip = vec![0x40 | (header / 4) as u8, 0];
                ip.extend(((header + transport.len()) as u16).to_be_bytes());
                let (id, offset) = self
                    .fragment
                    .map_or((0, 0), |f| (f.id as u16, (f.offset / 8) | if f.more { 0x2000 } else { 0 }));
                ip.extend(id.to_be_bytes());
                ip.extend(offset.to_be_bytes());
                ip.extend([self.ttl, self.protocol(), 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(&self.options);
                let sum = checksum(&[&ip]);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                ip.extend(transport);
                ip
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut headers = self.extensions.clone();
                if let Some(f) = self.fragment {
                    let mut bytes = vec![0, 0];
                    bytes.extend((f.offset | u16::from(f.more)).to_be_bytes());
                    bytes.extend(f.id.to_be_bytes());
                    headers.push((44, bytes));
                }
                let mut body = Vec::new();
                for i in 0..headers.len() {
                    let next = headers.get(i + 1).map_or(self.protocol(), |h| h.0);
                    let at = body.len();
                    body.extend(&headers[i].1);
                    body[at] = next;
                }
                body.extend(transport);
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend((body.len() as u16).to_be_bytes());
                ip.extend([headers.first().map_or(self.protocol(), |h| h.0), self.ttl]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(body);
                ip
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// With Ethernet header.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.dst_mac, self.src_mac].concat();
        bytes.extend(if self.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        bytes.extend(self.packet());
        bytes
    }
}

/// A packet taken apart. Extension headers other than a fragment header are not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub protocol: u8,
    /// 0 for protocols without; the id for ICMP echo.
    pub sport: u16,
    pub dport: u16,
    pub tcp_flags: u8,
    pub icmp: (u8, u8),
    /// From the transport header on.
    pub transport: Vec<u8>,
}

impl Seen {
    /// # Panics
    /// When a checksum is wrong, or the packet is not IP.
    pub fn parse(frame: &[u8]) -> Seen {
        let ip = &frame[14..];
        let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
        let (src, dst, ttl, protocol, start, end, fragment): (IpAddr, IpAddr, _, _, _, _, u16) =
            match ip[0] >> 4 {
                4 => {
                    let header = usize::from(ip[0] & 15) * 4;
                    assert_eq!(checksum(&[&ip[..header]]), 0, "IPv4 header checksum");
                    let quad = |at: usize| -> [u8; 4] { ip[at..at + 4].try_into().expect("four bytes") };
                    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
                    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
                    (quad(12).into(), quad(16).into(), ip[8], ip[9], header, total, fragment)
                }
                6 => {
                    let wide = |at: usize| -> [u8; 16] { ip[at..at + 16].try_into().expect("sixteen bytes") };
                    let total = 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
                    let (protocol, start, fragment) = match ip[6] {
                        44 => (ip[40], 48, u16::from_be_bytes([ip[42], ip[43]])),
                        other => (other, 40, 0),
                    };
                    (wide(8).into(), wide(24).into(), ip[7], protocol, start, total, fragment)
                }
                version => panic!("IP version {version}"),
            };
        let transport = ip[start..end].to_vec();
        let later = fragment & 0x1fff != 0 && !(fragment == 1 && src.is_ipv6());
        if fragment == 0 {
            verify(src, dst, protocol, &transport);
        }
        let word = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        let (sport, dport) = match protocol {
            _ if later => (0, 0),
            6 | 17 | 132 => (word(0), word(2)),
            1 | 58 => (word(4), word(4)),
            _ => (0, 0),
        };
        let icmp = if !later && matches!(protocol, 1 | 58) { (transport[0], transport[1]) } else { (0, 0) };
        let tcp_flags = if !later && protocol == 6 { transport[13] } else { 0 };
        Seen {
            src_mac: mac(6),
            dst_mac: mac(0),
            src,
            dst,
            ttl,
            protocol,
            sport,
            dport,
            tcp_flags,
            icmp,
            transport,
        }
    }
}

fn verify(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) {
    if protocol == 132 {
        let mut bytes = transport.to_vec();
        let stored = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        bytes[8..12].fill(0);
        assert_eq!(crc32c(&bytes), stored, "SCTP checksum");
    } else if checksum_offset(protocol).is_some() {
        let pseudo = pseudo_header(src, dst, protocol, transport.len());
        assert_eq!(checksum(&[&pseudo, transport]), 0, "transport checksum of protocol {protocol}");
    }
}

fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    }
}

/// Empty for ICMP over IPv4, which has none.
fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => return bytes,
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => panic!("addresses of two families"),
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The Internet checksum (RFC 1071) over several pieces; all but the last have an even length. 0 over data
/// that includes a right checksum.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC32c (RFC 9260 appendix A), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
