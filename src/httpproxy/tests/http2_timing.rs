//! Who may take how long, over HTTP/2.

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use h2::Reason;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};

use super::*;

/// How often somebody who is slow says something.
const OFTEN: Duration = Duration::from_millis(60);

fn patient() -> Limits {
    let limits = Limits::default();
    Limits { body_timeout: PATIENCE, response_timeout: PATIENCE, header_timeout: PATIENCE, ..limits }
}

/// A request whose body is open, at both of its ends.
pub(super) struct Open {
    pub(super) answer: ResponseFuture,
    pub(super) up: SendStream<Bytes>,
    pub(super) received: RecvStream,
    pub(super) respond: SendResponse<Bytes>,
}

async fn open(rig: &Rig) -> Open {
    open_with(rig, Request::post("http://a/ok").body(()).unwrap()).await
}

pub(super) async fn open_with(rig: &Rig, request: Request<()>) -> Open {
    let (mut client, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let (answer, up) = client.send_request(request, false).unwrap();
    let mut server = h2::server::handshake(rig.server().await).await.unwrap();
    let (request, respond) = patiently(server.accept()).await.unwrap().unwrap();
    tokio::spawn(async move {
        let _client = client;
        while server.accept().await.is_some() {}
    });
    Open { answer, up, received: request.into_body(), respond }
}

/// One frame, from one side to the other.
pub(super) async fn passes(from: &mut SendStream<Bytes>, to: &mut RecvStream) {
    from.send_data(Bytes::from_static(b"x"), false).unwrap();
    let data = patiently(to.data()).await.unwrap().unwrap();
    to.flow_control().release_capacity(data.len()).unwrap();
    assert_eq!(data, "x");
}

#[tokio::test]
async fn a_long_upload_does_not_use_up_the_servers_time_to_answer() {
    let limits = Limits { response_timeout: 8 * OFTEN, ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    for _ in 0..20 {
        tokio::time::sleep(OFTEN).await;
        passes(&mut open.up, &mut open.received).await;
    }
    open.up.send_data(Bytes::new(), true).unwrap();
    open.respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(patiently(open.answer).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stream_that_only_the_server_writes_to_is_not_reset() {
    let limits = Limits { body_timeout: 8 * OFTEN, ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    let mut down = open.respond.send_response(Response::new(()), false).unwrap();
    let mut got = patiently(open.answer).await.unwrap().into_body();
    for _ in 0..20 {
        tokio::time::sleep(OFTEN).await;
        passes(&mut down, &mut got).await;
    }
    passes(&mut open.up, &mut open.received).await;
    assert_eq!(rig.counters.timeouts.get(), 0);
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_is_reset_on_both_sides() {
    let limits = Limits { body_timeout: Duration::from_millis(100), ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    let _down = open.respond.send_response(Response::new(()), false).unwrap();
    let mut got = patiently(open.answer).await.unwrap().into_body();
    for stream in [&mut got, &mut open.received] {
        let error = patiently(stream.data()).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    }
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_body_that_does_not_go_on_is_the_clients_timeout() {
    let limits = Limits { body_timeout: Duration::from_millis(100), ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    passes(&mut open.up, &mut open.received).await;
    assert_eq!(patiently(open.answer).await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    let error = patiently(open.received.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_server_that_does_not_answer_a_whole_request_is_late() {
    let limits = Limits { response_timeout: Duration::from_millis(100), ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    open.up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(patiently(open.answer).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_server_whose_interim_answers_have_no_end_is_given_up() {
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, patient()).await;
    let mut open = open(&rig).await;
    let endless = async {
        let interim = || Response::builder().status(102).body(()).unwrap();
        while open.respond.send_informational(interim()).is_ok() {
            tokio::task::yield_now().await;
        }
        std::future::pending().await
    };
    let answer = tokio::select! {
        answer = patiently(open.answer) => answer.unwrap(),
        () = endless => unreachable!(),
    };
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Failed, 502)]);
    assert_eq!(rig.counters.upstream_failures.get(), 1);
}

#[tokio::test]
async fn a_client_that_gives_no_room_for_its_answer_is_late() {
    let limits = Limits { body_timeout: Duration::from_millis(200), ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    open.up.send_data(Bytes::new(), true).unwrap();
    let mut down = open.respond.send_response(Response::new(()), false).unwrap();
    // More than all windows on the way hold; what comes of it is never taken.
    down.send_data(Bytes::from(vec![7; 4 << 20]), false).unwrap();
    let _never_read = patiently(open.answer).await.unwrap();
    let reason = patiently(std::future::poll_fn(|cx| down.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, Reason::CANCEL);
    let (begun, late) = ((RecordVerdict::Forwarded, 200), (RecordVerdict::Failed, 200));
    assert_eq!(outcomes(&rig, 2).await, [begun, late]);
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_server_that_gives_no_room_for_a_body_is_late_and_not_its_client() {
    let limits = Limits { body_timeout: Duration::from_millis(200), ..patient() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let mut open = open(&rig).await;
    open.up.send_data(Bytes::from(vec![7; 4 << 20]), false).unwrap();
    assert_eq!(patiently(open.answer).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Failed, 504)]);
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_server_that_takes_no_further_stream_is_late() {
    let limits = Limits { response_timeout: Duration::from_millis(200), ..patient() };
    let rig = Rig::with(http(&[("GET", "/ok")]), Protocol::Http, limits).await;
    let (mut client, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let get = || Request::get("http://a/ok").body(()).unwrap();
    let (first, _) = client.send_request(get(), true).unwrap();
    let mut server = h2::server::Builder::new();
    let mut server =
        server.max_concurrent_streams(1).handshake::<_, Bytes>(rig.server().await).await.unwrap();
    let (_, mut respond) = patiently(server.accept()).await.unwrap().unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    let mut got = patiently(first).await.unwrap().into_body();
    passes(&mut down, &mut got).await;
    let (second, _) = client.send_request(get(), true).unwrap();
    assert_eq!(patiently(second).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    passes(&mut down, &mut got).await;
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn streams_do_not_wait_for_a_server_that_is_away_one_after_the_other() {
    const STREAMS: u32 = 16;
    let limits = Limits { connect_timeout: Duration::from_millis(250), ..patient() };
    let rig = Rig::with(http(&[("GET", "/ok")]), Protocol::Http, limits).await;
    rig.is_away.store(true, Ordering::Relaxed);
    let (mut client, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let begun = Instant::now();
    let get = || Request::get("http://a/ok").body(()).unwrap();
    let answers: Vec<_> = (0..STREAMS).map(|_| client.send_request(get(), true).unwrap().0).collect();
    for answer in answers {
        assert_eq!(patiently(answer).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!(begun.elapsed() < STREAMS / 2 * limits.connect_timeout, "{:?}", begun.elapsed());
}
