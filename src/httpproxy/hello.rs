//! The server name in a TLS ClientHello, without terminating TLS.
//!
//! Contract (RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3): the handshake message may be split over
//! records, and records over packets, up to [`LARGEST`] bytes. Unknown extensions and values (GREASE) are
//! skipped. With encrypted ClientHello the outer name counts: it is the one that is on the wire.

/// Most bytes of a ClientHello.
pub const LARGEST: usize = 16 * 1024;
/// The same with the heads of the records that carry it, in however small pieces.
const LARGEST_FLIGHT: usize = 4 * LARGEST;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    Partial,
    /// A ClientHello; `None` without a name.
    Name(Option<String>),
    NotTls,
}

/// Bytes that are read from the front; `None` when there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// A vector behind its length, which has so many bytes.
    fn vector(&mut self, length: usize) -> Option<Reader<'a>> {
        let count = self.number(length)?;
        self.take(count).map(Reader)
    }
}

/// Reads what is there of a connection's first flight.
pub fn read(bytes: &[u8]) -> Hello {
    let mut records = Reader(bytes);
    let mut message: Vec<u8> = Vec::new();
    while !records.0.is_empty() {
        let head = records.0;
        // Handshake, and a version 3.x.
        if head[0] != 22 || head.get(1).is_some_and(|major| *major != 3) {
            return Hello::NotTls;
        }
        let (Some(_), Some(length)) = (records.take(3), records.number(2)) else { break };
        if length == 0 || length > LARGEST + 256 {
            return Hello::NotTls;
        }
        let available = length.min(records.0.len());
        message.extend_from_slice(&records.0[..available]);
        if message.first().is_some_and(|kind| *kind != 1) {
            return Hello::NotTls;
        }
        if message.len() > LARGEST {
            return Hello::NotTls;
        }
        let mut handshake = Reader(&message);
        if let (Some(_), Some(body)) = (handshake.take(1), handshake.vector(3)) {
            return client_hello(body).map_or(Hello::NotTls, Hello::Name);
        }
        // What it says of its length is enough to know that it is too long.
        if message.get(1..4).is_some_and(|length| Reader(length).number(3).unwrap_or(0) + 4 > LARGEST) {
            return Hello::NotTls;
        }
        records.take(available);
        if available < length {
            break;
        }
    }
    if bytes.len() >= LARGEST_FLIGHT { Hello::NotTls } else { Hello::Partial }
}

/// `None`: malformed.
fn client_hello(mut hello: Reader<'_>) -> Option<Option<String>> {
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = hello.vector(2)?;
    let mut name: Option<Option<String>> = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.vector(2)?;
        if kind == 0 {
            // Two lists of names could be read in two ways.
            if name.replace(server_name(content)?).is_some() {
                return None;
            }
        }
    }
    Some(name.flatten())
}

fn server_name(mut extension: Reader<'_>) -> Option<Option<String>> {
    let mut list = extension.vector(2)?;
    if !extension.0.is_empty() {
        return None;
    }
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.number(1)?;
        let text = list.vector(2)?;
        if kind == 0 {
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
            if name.is_some() || text.0.is_empty() || !text.0.iter().all(is_name) {
                return None;
            }
            name = Some(String::from_utf8_lossy(text.0).into_owned());
        }
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello as rustls sends it.
    fn real(name: &'static str) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_of_a_real_hello_is_found_wherever_it_is_cut() {
        let bytes = real("api.stripe.example");
        for cut in 1..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Hello::Partial, "{cut}");
        }
        assert_eq!(read(&bytes), Hello::Name(Some("api.stripe.example".into())));
        assert_eq!(read(&real("10.0.0.1")), Hello::Name(None));
    }

    #[test]
    fn a_message_may_be_split_over_records() {
        let bytes = real("a.example");
        let mut split = Vec::new();
        for piece in bytes[5..].chunks(7) {
            split.extend([22, 3, 1, 0, piece.len() as u8]);
            split.extend(piece);
        }
        assert_eq!(read(&split), Hello::Name(Some("a.example".into())));
    }

    /// A ClientHello with these extensions, in one record.
    fn made(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut all = Vec::new();
        for (kind, content) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend((content.len() as u16).to_be_bytes());
            all.extend(content);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        // No session; a GREASE cipher suite (RFC 8701) and a real one; no compression.
        body.extend([0, 0, 4, 0x0a, 0x0a, 0x13, 0x01, 1, 0]);
        body.extend((all.len() as u16).to_be_bytes());
        body.extend(all);
        let mut message = vec![1];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        let mut record = vec![22, 3, 1];
        record.extend((message.len() as u16).to_be_bytes());
        record.extend(message);
        record
    }

    fn named(name: &str) -> (u16, Vec<u8>) {
        let mut content = ((name.len() + 3) as u16).to_be_bytes().to_vec();
        content.push(0);
        content.extend((name.len() as u16).to_be_bytes());
        content.extend(name.bytes());
        (0, content)
    }

    #[test]
    fn grease_and_an_encrypted_hello_do_not_hide_the_outer_name() {
        let grease = |value: u16| (value, vec![0]);
        let ech = (0xfe0d, vec![0xaa; 200]);
        let bytes = made(&[grease(0x1a1a), ech, named("outer.example"), grease(0xfafa)]);
        assert_eq!(read(&bytes), Hello::Name(Some("outer.example".into())));
        assert_eq!(read(&made(&[grease(0x0a0a)])), Hello::Name(None));
    }

    #[test]
    fn names_that_could_be_read_in_two_ways_are_no_names() {
        let two = [named("a.example"), named("b.example")];
        assert_eq!(read(&made(&two)), Hello::NotTls);
        for name in ["", "a\0b", "a b", "a/b", "\u{e9}.example"] {
            assert_eq!(read(&made(&[named(name)])), Hello::NotTls, "{name:?}");
        }
        let (kind, mut content) = named("a.example");
        content.push(0);
        assert_eq!(read(&made(&[(kind, content)])), Hello::NotTls);
    }

    #[test]
    fn a_hello_of_16_kib_is_read_and_a_larger_one_is_not() {
        let overhead = made(&[named("a.example"), (21, Vec::new())]).len() - 5;
        let padded = |length: usize| made(&[named("a.example"), (21, vec![0; length - overhead])]);
        let largest = padded(LARGEST);
        for cut in [LARGEST - 1, LARGEST, LARGEST + 4] {
            assert_eq!(read(&largest[..cut]), Hello::Partial, "{cut}");
        }
        assert_eq!(read(&largest), Hello::Name(Some("a.example".into())));
        let mut split = Vec::new();
        for piece in largest[5..].chunks(40) {
            split.extend([22, 3, 1, 0, piece.len() as u8]);
            split.extend(piece);
        }
        assert_eq!(read(&split), Hello::Name(Some("a.example".into())));
        let larger = padded(LARGEST + 1);
        assert_eq!(read(&larger), Hello::NotTls);
        assert_eq!(read(&larger[..100]), Hello::NotTls, "known by what it says of its length");
    }

    #[test]
    fn what_is_not_tls_is_known_early() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"SSH-2.0", b"\x16\x02\x00", b"\x16\x03\x01\x00\x05\x02"] {
            assert_eq!(read(bytes), Hello::NotTls);
        }
        let endless = [&[22, 3, 1, 0, 0xff, 1, 0, 0xff, 0xff][..], &[0; 250]].concat();
        assert_eq!(read(&endless.repeat(80)), Hello::NotTls);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), tls in any::<bool>()) {
            if tls && bytes.len() > 6 {
                bytes[..6].copy_from_slice(&[22, 3, 1, 1, 0, 1]);
            }
            read(&bytes);
        }
    }
}
