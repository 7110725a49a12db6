//! Rules that change against requests that are under way.

use ::http::{Request, Response, StatusCode};
use h2::Reason;

use super::http2_timing::{Open, open_with, passes};
use super::*;

const GET: &str = "GET /ok HTTP/1.1\r\nHost: a\r\nX-Token: 1\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const CHUNK: &str = "1\r\nb\r\n";
const LATE_DENIED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 15\r\nContent-Type: text/plain\r\n\
                           Connection: close\r\n\r\nAccess denied\r\n";

fn ok() -> L7Policy {
    http(&[(".*", "/ok")])
}

/// The same request passes by another rule.
fn wider() -> L7Policy {
    http(&[(".*", "/ok|/more")])
}

fn other() -> L7Policy {
    http(&[(".*", "/other")])
}

/// Clients with this token.
fn token(value: &str) -> L7Policy {
    let header = crate::policy::l7::HeaderMatch {
        name: "x-token".into(),
        value: crate::policy::l7::HeaderValue::Exact(value.into()),
        mismatch: crate::policy::l7::Mismatch::Deny,
    };
    under(Proxy::Http, L7Rules::Http(vec![HttpRule { headers: vec![header], ..HttpRule::default() }]))
}

/// A request that the server has.
async fn asked(rig: &Rig) -> (TcpStream, TcpStream) {
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    (client, server)
}

#[tokio::test]
async fn an_answer_that_streams_is_cut_by_new_rules_and_not_by_those_that_let_it_pass() {
    let rig = Rig::new(ok()).await;
    let (mut client, mut server) = asked(&rig).await;
    send(&mut server, CHUNKED).await;
    expect(&mut client, CHUNKED).await;
    for policy in [wider(), token("1")] {
        rig.swap(&policy);
        send(&mut server, CHUNK).await;
        expect(&mut client, CHUNK).await;
    }
    // Nothing is said any more, so that nothing but the change can be the reason.
    rig.swap(&token("2"));
    let error = patiently(client.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Denied, 200)]);
    assert_eq!((rig.counters.requests_cut.get(), rig.counters.denied.get()), (1, 0));
    assert_eq!(rig.counters.upstream_failures.get(), 0);
}

#[tokio::test]
async fn an_answer_that_never_pauses_is_cut_by_new_rules() {
    for head in [CHUNKED.to_owned(), format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 40)] {
        let rig = Rig::new(ok()).await;
        let (mut client, mut server) = asked(&rig).await;
        send(&mut server, &head).await;
        expect(&mut client, &head).await;
        let sending = tokio::spawn(async move {
            let piece = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
            while server.write_all(piece.as_bytes()).await.is_ok() {}
        });
        let mut bytes = vec![0; 64 * 1024];
        patiently(client.read_exact(&mut bytes)).await.unwrap();
        rig.swap(&other());
        while let Ok(1..) = patiently(client.read(&mut bytes)).await {}
        patiently(sending).await.unwrap();
        assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Denied, 200)]);
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_refused_by_new_rules() {
    let rig = Rig::new(ok()).await;
    let (mut client, mut server) = asked(&rig).await;
    rig.swap(&other());
    assert_eq!(rest(&mut client).await, LATE_DENIED);
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Denied, 403)]);
    assert_eq!((rig.counters.requests_cut.get(), rig.counters.denied.get()), (1, 1));
}

#[tokio::test]
async fn an_upload_is_refused_by_new_rules_and_what_follows_one_is_not_lost() {
    let rig = Rig::new(ok()).await;
    let mut client = rig.client().await;
    let head = "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    send(&mut client, head).await;
    let mut server = rig.server().await;
    expect(&mut server, head).await;
    // The end of the body, and the next request.
    send(&mut client, &format!("0\r\n\r\n{head}")).await;
    expect(&mut server, "0\r\n\r\n").await;
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    send(&mut server, answer).await;
    expect(&mut client, answer).await;
    expect(&mut server, head).await;
    rig.swap(&wider());
    send(&mut client, CHUNK).await;
    expect(&mut server, CHUNK).await;
    rig.swap(&other());
    assert_eq!(rest(&mut client).await, LATE_DENIED);
    assert_eq!(rest(&mut server).await, "");
    let (passed, denied) = ((RecordVerdict::Forwarded, 204), (RecordVerdict::Denied, 403));
    assert_eq!(outcomes(&rig, 2).await, [passed, denied]);
}

async fn stream(rig: &Rig) -> Open {
    let request = Request::post("http://a/ok").header("x-token", "1");
    open_with(rig, request.header("content-type", "application/grpc").body(()).unwrap()).await
}

#[tokio::test]
async fn a_stream_is_reset_by_new_rules_and_not_by_those_that_let_it_pass() {
    let rig = Rig::new(ok()).await;
    let mut open = stream(&rig).await;
    let mut down = open.respond.send_response(Response::new(()), false).unwrap();
    let mut got = patiently(open.answer).await.unwrap().into_body();
    for policy in [wider(), token("1")] {
        rig.swap(&policy);
        passes(&mut down, &mut got).await;
        passes(&mut open.up, &mut open.received).await;
    }
    rig.swap(&token("2"));
    for stream in [&mut got, &mut open.received] {
        let error = patiently(stream.data()).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    }
    let (passed, cut) = ((RecordVerdict::Forwarded, 200), (RecordVerdict::Denied, 200));
    assert_eq!(outcomes(&rig, 2).await, [passed, cut]);
    assert_eq!((rig.counters.requests_cut.get(), rig.counters.denied.get()), (1, 0));
}

#[tokio::test]
async fn a_grpc_call_without_an_answer_is_denied_by_new_rules() {
    let rig = Rig::new(ok()).await;
    let mut open = stream(&rig).await;
    rig.swap(&other());
    let denied = patiently(open.answer).await.unwrap();
    assert_eq!(
        (denied.status(), &denied.headers()["grpc-status"]),
        (StatusCode::FORBIDDEN, &"7".parse().unwrap())
    );
    let error = patiently(open.received.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Denied, 403)]);
    assert_eq!((rig.counters.requests_cut.get(), rig.counters.denied.get()), (1, 1));
}
