//! HTTP/2 as no library would send it: fields that two readers could read in two ways.

use super::*;

const DATA_AND_HEADERS_END: u8 = 0x5;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// Literal fields without indexing, names and values as they are (RFC 7541, section 6.2.2).
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in list {
        out.push(0);
        for text in [name, value] {
            out.push(u8::try_from(text.len()).expect("short"));
            out.extend(text.bytes());
        }
    }
    out
}

fn request(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[]));
    out.extend(frame(1, DATA_AND_HEADERS_END, 1, &fields(list)));
    out
}

/// How a connection was answered.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// A response whose field block starts with this byte: 0x88 is 200, 0x8c is 400.
    Response(u8),
    Reset,
    GoAway,
    Closed,
}

async fn said(client: &mut TcpStream) -> Said {
    loop {
        let mut head = [0; 9];
        if patiently(client.read_exact(&mut head)).await.is_err() {
            return Said::Closed;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if patiently(client.read_exact(&mut payload)).await.is_err() {
            return Said::Closed;
        }
        match head[3] {
            1 => return Said::Response(payload[0]),
            3 => return Said::Reset,
            7 => return Said::GoAway,
            _ => {}
        }
    }
}

const M: (&str, &str) = (":method", "GET");
const S: (&str, &str) = (":scheme", "http");
const P: (&str, &str) = (":path", "/ok");
const A: (&str, &str) = (":authority", "a");

#[tokio::test]
async fn fields_with_two_meanings_are_never_forwarded() {
    let ambiguous: &[(&str, &[(&str, &str)])] = &[
        ("no method", &[S, P, A]),
        ("no path", &[M, S, A]),
        ("no scheme", &[M, P, A]),
        ("an empty path", &[M, S, (":path", ""), A]),
        ("two paths", &[M, S, P, (":path", "/other"), A]),
        ("two methods", &[M, (":method", "POST"), S, P, A]),
        ("two authorities", &[M, S, P, A, (":authority", "b")]),
        ("an unknown pseudo-header field", &[M, S, P, A, (":fields", "x")]),
        ("a status", &[M, S, P, A, (":status", "200")]),
        ("a pseudo-header field behind others", &[M, S, A, ("x", "1"), P]),
        ("upper case", &[M, S, P, A, ("X-Upper", "1")]),
        ("a name with a space", &[M, S, P, A, ("x y", "1")]),
        ("a name with a colon", &[M, S, P, A, ("x:y", "1")]),
        ("a name with a null byte", &[M, S, P, A, ("x\0", "1")]),
        ("a name with a line end", &[M, S, P, A, ("x\r\ny", "1")]),
        ("an empty name", &[M, S, P, A, ("", "1")]),
        ("a value with a line end", &[M, S, P, A, ("x", "1\r\ny: 2")]),
        ("a value with a null byte", &[M, S, P, A, ("x", "1\x002")]),
        ("Connection", &[M, S, P, A, ("connection", "close")]),
        ("Transfer-Encoding", &[M, S, P, A, ("transfer-encoding", "chunked")]),
        ("Upgrade", &[M, S, P, A, ("upgrade", "h2c")]),
        ("Keep-Alive", &[M, S, P, A, ("keep-alive", "1")]),
        ("another TE", &[M, S, P, A, ("te", "gzip")]),
        ("another Host", &[M, S, P, A, ("host", "b")]),
        ("two Hosts", &[M, S, P, ("host", "a"), ("host", "a")]),
        ("no host at all", &[M, S, P]),
        ("user information", &[M, S, P, (":authority", "x@a")]),
        ("an authority with a query", &[M, S, P, (":authority", "a?b")]),
        ("an authority with a space", &[M, S, P, (":authority", "a b")]),
        ("a Host with a space", &[M, S, P, ("host", "a b")]),
        ("two lengths", &[M, S, P, A, ("content-length", "0"), ("content-length", "0")]),
        ("a length that is none", &[M, S, P, A, ("content-length", "+0")]),
        ("a length without a body", &[M, S, P, A, ("content-length", "5")]),
        ("a path with a space", &[M, S, (":path", "/ok HTTP/1.1"), A]),
        ("a path with a line end", &[M, S, (":path", "/ok\r\nx: 1"), A]),
        ("a relative path", &[M, S, (":path", "ok"), A]),
        ("an absolute path", &[M, S, (":path", "http://b/ok"), A]),
        ("an escaped null byte", &[M, S, (":path", "/ok%00"), A]),
        ("a star", &[M, S, (":path", "*"), A]),
        ("a method with a space", &[(":method", "GET /no"), S, P, A]),
        ("an empty method", &[(":method", ""), S, P, A]),
    ];
    let rig = Rig::new(http(&[(".*", ".*")])).await;
    for (what, list) in ambiguous {
        let mut client = rig.client().await;
        client.write_all(&request(list)).await.unwrap();
        let said = said(&mut client).await;
        assert!(
            said == Said::Reset || said == Said::GoAway || said == Said::Response(0x8c),
            "{what}: {said:?}"
        );
    }
    let nobody = tokio::time::timeout(Duration::from_millis(1), rig.upstream.accept()).await;
    assert!(nobody.is_err(), "a connection to the server was made");
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_the_connection_and_no_other() {
    let rig = Rig::new(http(&[(".*", ".*")])).await;
    let block = fields(&[M, S, P, A]);
    let cases: &[(&str, Vec<u8>)] = &[
        ("DATA on no stream", frame(0, 1, 1, b"x")),
        ("HEADERS on stream 0", frame(1, 5, 0, &block)),
        ("an even stream", frame(1, 5, 2, &block)),
        ("CONTINUATION out of place", frame(9, 4, 1, &block)),
        ("a broken field block", frame(1, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff])),
        ("a frame that is too large", frame(0, 0, 1, &vec![0; 20_000])),
        ("padding that is longer than its frame", frame(1, 0xd, 1, &[200, 0])),
        (
            "a window that overflows",
            [frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat(),
        ),
        ("PUSH_PROMISE of a client", frame(5, 4, 1, &[0, 0, 0, 2])),
    ];
    for (what, bytes) in cases {
        let mut client = rig.client().await;
        let mut message = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        message.extend(frame(4, 0, 0, &[]));
        message.extend(bytes);
        client.write_all(&message).await.unwrap();
        client.shutdown().await.ok();
        let said = said(&mut client).await;
        assert!(matches!(said, Said::GoAway | Said::Reset | Said::Closed), "{what}: {said:?}");
    }
    let nobody = tokio::time::timeout(Duration::from_millis(1), rig.upstream.accept()).await;
    assert!(nobody.is_err(), "a connection to the server was made");
}

#[tokio::test]
async fn streams_that_are_reset_at_once_are_reset_towards_the_server_too() {
    let limits = Limits { streams: 4, ..Limits::default() };
    let rig = Rig::with(http(&[(".*", ".*")]), Protocol::Http, limits).await;
    let mut client = rig.client().await;
    let mut message = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    message.extend(frame(4, 0, 0, &[]));
    message.extend(frame(1, DATA_AND_HEADERS_END, 1, &fields(&[M, S, P, A])));
    client.write_all(&message).await.unwrap();
    let mut server = h2::server::handshake(rig.server().await).await.unwrap();
    let (request, mut respond) = patiently(server.accept()).await.unwrap().unwrap();
    assert_eq!(request.uri().path(), "/ok");
    client.write_all(&frame(3, 0, 1, &[0, 0, 0, 8])).await.unwrap();
    let reset = async {
        tokio::select! {
            reason = std::future::poll_fn(|cx| respond.poll_reset(cx)) => reason.unwrap(),
            _ = server.accept() => panic!("the connection ended"),
        }
    };
    assert_eq!(patiently(reset).await, h2::Reason::CANCEL);
}

/// Ends when the proxy has closed the connection.
async fn closed(client: &mut TcpStream) {
    let mut bytes = [0; 1024];
    while let Ok(1..) = patiently(client.read(&mut bytes)).await {}
}

#[tokio::test]
async fn a_frame_that_does_not_come_to_its_end_ends_the_connection() {
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let rig = Rig::with(http(&[(".*", ".*")]), Protocol::Http, limits).await;
    let block = frame(1, 0, 1, &fields(&[M, S, P, A]));
    let cases = [
        ("half a frame", frame(1, DATA_AND_HEADERS_END, 1, &fields(&[M, S, P, A]))[..15].to_vec()),
        ("half a head", vec![0, 0]),
        ("half a SETTINGS", frame(4, 0, 0, &[0; 6])[..12].to_vec()),
        ("a block without its end", block.clone()),
        ("a block that goes on and on", [block, frame(9, 0, 1, &fields(&[("x", "1")]))].concat()),
    ];
    for (count, (what, bytes)) in cases.into_iter().enumerate() {
        let mut client = rig.client().await;
        let begun = Instant::now();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        client.write_all(&bytes).await.unwrap();
        closed(&mut client).await;
        assert!(begun.elapsed() >= limits.header_timeout, "{what}");
        assert_eq!(rig.counters.timeouts.get(), count as u64 + 1, "{what}");
    }
}

#[tokio::test]
async fn a_head_that_drips_ends_a_connection_whose_other_streams_go_on() {
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let rig = Rig::with(http(&[(".*", ".*")]), Protocol::Http, limits).await;
    let mut client = rig.client().await;
    client.write_all(&request(&[M, S, P, A])).await.unwrap();
    let mut server = h2::server::handshake(rig.server().await).await.unwrap();
    let _first = patiently(server.accept()).await.unwrap().unwrap();
    let (mut read, mut write) = client.into_split();
    let drip = tokio::spawn(async move {
        for byte in frame(1, DATA_AND_HEADERS_END, 3, &[b'x'; 10_000]) {
            if write.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut bytes = [0; 1024];
    while let Ok(1..) = patiently(read.read(&mut bytes)).await {}
    assert_eq!(rig.counters.timeouts.get(), 1);
    drip.abort();
}

#[tokio::test]
async fn a_client_that_does_not_answer_when_it_is_told_to_go_is_closed() {
    let timeout = Duration::from_millis(200);
    let limits = Limits { idle_timeout: timeout, header_timeout: timeout, ..Limits::default() };
    let rig = Rig::with(http(&[(".*", ".*")]), Protocol::Http, limits).await;
    let mut client = rig.client().await;
    let begun = Instant::now();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    assert_eq!(said(&mut client).await, Said::GoAway);
    closed(&mut client).await;
    assert!(begun.elapsed() >= 2 * timeout, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_reads_nothing_of_its_answers_ends_its_connection() {
    const SIZE: usize = 200 * 1024;
    let limits = Limits { body_timeout: Duration::from_secs(1), ..Limits::default() };
    let rig = Rig::with(http(&[(".*", ".*")]), Protocol::Http, limits).await;
    let mut client = rig.client().await;
    let wide = (1u32 << 30).to_be_bytes();
    let mut message = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    message.extend(frame(4, 0, 0, &[&[0, 4][..], &wide].concat()));
    message.extend(frame(8, 0, 0, &wide));
    for stream in 0..200 {
        message.extend(frame(1, DATA_AND_HEADERS_END, 2 * stream + 1, &fields(&[M, S, P, A])));
    }
    client.write_all(&message).await.unwrap();
    // Its answers fit into what the streams may have on their way, so that none of them is late.
    let mut server = h2::server::handshake(rig.server().await).await.unwrap();
    patiently(async {
        while let Some(Ok((_, mut respond))) = server.accept().await {
            let mut down = respond.send_response(::http::Response::new(()), false).unwrap();
            down.send_data(bytes::Bytes::from(vec![7; SIZE]), true).unwrap();
        }
    })
    .await;
}
