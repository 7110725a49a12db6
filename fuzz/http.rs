//! What the HTTP proxy reads: whole messages of HTTP/1, HTTP/2 connections, ClientHellos.

use std::hint::black_box;

use sluice::httpproxy::Limits;
use sluice::httpproxy::body::Body;
use sluice::httpproxy::call::{Call, Checked};
use sluice::httpproxy::head::{self, Parsed, RequestHead, Scan};
use sluice::httpproxy::hello::{self, Hello};
use tokio::io::AsyncWriteExt as _;

use crate::Target;

const MOST: usize = 64;

fn texts<const N: usize>(texts: [&str; N]) -> Vec<Vec<u8>> {
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Reads a head in pieces, as it may come from the wire.
fn in_pieces<T>(input: &[u8], mut parse: impl FnMut(&[u8], &mut Scan) -> Parsed<T>) -> Parsed<T> {
    let mut scan = Scan::default();
    let step = 1 + input.len() % 7;
    for count in (0..input.len()).step_by(step) {
        match parse(&input[..count], &mut scan) {
            Parsed::Partial => {}
            other => return other,
        }
    }
    parse(input, &mut scan)
}

/// A request with its body.
pub struct Requests;

impl Target for Requests {
    fn name(&self) -> &'static str {
        "http1-requests"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        texts([
            "GET /a/../b?x=1 HTTP/1.1\r\nHost: web\r\nX-A: 1\r\nx-a: 2\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
            "PUT /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
            "GET http://a/ok HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        ])
    }

    fn check(&mut self, input: &[u8]) {
        let mut whole = RequestHead::default();
        let at_once = head::request(input, &mut Scan::default(), MOST, &mut whole);
        let mut pieces = RequestHead::default();
        let piecemeal = in_pieces(input, |bytes, scan| head::request(bytes, scan, MOST, &mut pieces));
        let Parsed::Complete(()) = at_once else {
            assert!(!matches!(piecemeal, Parsed::Complete(())), "refused at once, and not in pieces");
            return;
        };
        assert_eq!((piecemeal, &pieces), (Parsed::Complete(()), &whole), "pieces make no difference");
        let bytes = &input[..whole.len];
        let target = whole.target(bytes).to_owned();
        // What is forwarded says the same to the next reader.
        let forwarded = head::rewritten(bytes, &whole, &target, &[]);
        let mut again = RequestHead::default();
        let parsed = head::request(&forwarded, &mut Scan::default(), MOST, &mut again);
        assert_eq!(parsed, Parsed::Complete(()), "what is forwarded is a request");
        assert_eq!(again.length, whole.length);
        assert!(!again.strip_upgrade, "the offer is gone");
        let rest = &input[whole.len..];
        let (mut body, mut slowly) = (Body::from(whole.length), Body::from(whole.length));
        let taken = body.accept(rest);
        let mut count = 0;
        for byte in rest {
            match slowly.accept(std::slice::from_ref(byte)) {
                Ok(1) => count += 1,
                Ok(_) => break,
                Err(_) => {
                    assert!(taken.is_err(), "refused by pieces alone");
                    return;
                }
            }
        }
        assert_eq!(taken, Ok(count), "a body is as long in pieces as at once");
    }
}

/// The head of a response.
pub struct Responses;

impl Target for Responses {
    fn name(&self) -> &'static str {
        "http1-responses"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        texts([
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.0 301 Moved\r\nLocation: /\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        ])
    }

    fn check(&mut self, input: &[u8]) {
        let parsed = head::response(input, &mut Scan::default(), MOST, false);
        let piecemeal = in_pieces(input, |bytes, scan| head::response(bytes, scan, MOST, false));
        let Parsed::Complete(head) = parsed else { return };
        assert_eq!(piecemeal, Parsed::Complete(head.clone()), "pieces make no difference");
        let last = head::with_close(&input[..head.len]);
        let Parsed::Complete(closing) = head::response(&last, &mut Scan::default(), MOST + 1, false) else {
            panic!("an answer that says close is no answer");
        };
        assert_eq!((closing.status, closing.length, closing.keep_alive), (head.status, head.length, false));
    }
}

/// Frames and fields of HTTP/2, behind the preface.
pub struct Http2(tokio::runtime::Runtime);

impl Http2 {
    pub fn new() -> Http2 {
        Http2(tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"))
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in list {
        out.push(0);
        for text in [name, value] {
            out.push(text.len() as u8);
            out.extend(text.bytes());
        }
    }
    out
}

impl Target for Http2 {
    fn name(&self) -> &'static str {
        "http2-connections"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let get = [(":method", "GET"), (":scheme", "http"), (":path", "/a/../b%2e?x"), (":authority", "a")];
        let call = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/pkg.Service/Call"),
            ("host", "a"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]);
        vec![
            [settings.clone(), frame(1, 5, 1, &fields(&get)), frame(8, 0, 0, &[0, 0, 1, 0])].concat(),
            [
                settings,
                frame(1, 4, 1, &fields(&call)),
                frame(0, 0, 1, b"\0\0\0\0\x02hi"),
                frame(1, 5, 1, &fields(&[("x-sum", "1")])),
                frame(3, 0, 1, &[0, 0, 0, 8]),
                frame(6, 0, 0, &[7; 8]),
            ]
            .concat(),
        ]
    }

    fn longest(&self) -> usize {
        4096
    }

    fn check(&mut self, input: &[u8]) {
        let limits = Limits { header_bytes: 1024, header_count: 16, ..Limits::default() };
        self.0.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("room");
            client.write_all(input).await.expect("room");
            client.shutdown().await.expect("open");
            let Ok(mut connection) = h2::server::handshake(server).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (mut call, target) = Call::new(request.into_parts().0, std::time::Instant::now());
                if let Checked::Forward = call.check(&target, &limits) {
                    black_box(call.request(&[]));
                }
                respond.send_reset(h2::Reason::CANCEL);
            }
        });
    }
}

/// The first bytes of a TLS connection.
pub struct Hellos;

fn client_hello(name: &'static str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name).expect("a name");
    let mut connection =
        rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a connection");
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).expect("a hello");
    bytes
}

impl Target for Hellos {
    fn name(&self) -> &'static str {
        "client-hellos"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let whole = client_hello("api.stripe.example");
        let mut split = Vec::new();
        for piece in whole[5..].chunks(50) {
            split.extend([22, 3, 1, 0, piece.len() as u8]);
            split.extend(piece);
        }
        vec![whole, split, client_hello("10.0.0.1")]
    }

    fn check(&mut self, input: &[u8]) {
        let read = hello::read(input);
        let cut = hello::read(&input[..input.len() / 2]);
        // What was said of the first half holds for the whole.
        match cut {
            Hello::Partial => {}
            Hello::Name(name) => assert_eq!(read, Hello::Name(name)),
            Hello::NotTls => assert_eq!(read, Hello::NotTls),
        }
    }
}
