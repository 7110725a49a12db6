//! The server name in a TLS ClientHello, without terminating TLS.
//!
//! Contract (RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3): the handshake message may be split over
//! records, and records over packets, up to [`LARGEST`] bytes. Unknown extensions and values (GREASE) are
//! skipped. With encrypted ClientHello the outer name counts: it is the one that is on the wire.

/// Most bytes until the ClientHello is whole.
pub const LARGEST: usize = 16 * 1024;

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
        records.take(available);
        if available < length {
            break;
        }
    }
    if bytes.len() >= LARGEST { Hello::NotTls } else { Hello::Partial }
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
