//! HTTP/2 with prior knowledge.

use ::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use h2::client::SendRequest;

use super::*;

async fn connect(rig: &Rig) -> SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    send
}

/// Answers every request with its own path, body and trailers.
fn echo(stream: TcpStream) {
    tokio::spawn(async move {
        let mut server = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            tokio::spawn(async move {
                let path = request.uri().path_and_query().unwrap().as_str().to_owned();
                let mut body = request.into_body();
                let response = Response::builder().header("x-path", path).body(()).unwrap();
                let mut send = respond.send_response(response, false).unwrap();
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).unwrap();
                    send.send_data(data, false).unwrap();
                }
                let trailers = body.trailers().await.unwrap().unwrap_or_default();
                send.send_trailers(trailers).unwrap();
            });
        }
    });
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://a{path}")).body(()).unwrap()
}

#[tokio::test]
async fn each_stream_is_judged_and_bodies_and_trailers_pass() {
    let rig = Rig::new(http(&[("POST", "/ok")])).await;
    let mut client = connect(&rig).await;
    let (denied, _) = client.send_request(post("/no"), true).unwrap();
    let denied = patiently(denied).await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(patiently(denied.into_body().data()).await.unwrap().unwrap(), "Access denied\r\n");

    let (answer, mut send) = client.send_request(post("/x/../ok"), false).unwrap();
    send.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    send.send_trailers(trailers.clone()).unwrap();
    echo(rig.server().await);
    let answer = patiently(answer).await.unwrap();
    assert_eq!(answer.headers()["x-path"], "/ok");
    let mut body = answer.into_body();
    assert_eq!(patiently(body.data()).await.unwrap().unwrap(), "hello");
    assert_eq!(patiently(body.trailers()).await.unwrap().unwrap(), trailers);

    rig.swap(&http(&[("POST", "/other")]));
    let (denied, _) = client.send_request(post("/ok"), true).unwrap();
    assert_eq!(patiently(denied).await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_refused_grpc_call_says_permission_denied() {
    let rig = Rig::new(http(&[("POST", "/ok")])).await;
    let mut client = connect(&rig).await;
    let mut call = post("/pkg.Service/Call");
    call.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    let (denied, _) = client.send_request(call, true).unwrap();
    let denied = patiently(denied).await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(denied.headers()["grpc-status"], "7");
}

#[tokio::test]
async fn a_host_that_differs_from_the_authority_is_refused() {
    let rig = Rig::new(http(&[("POST", "/ok")])).await;
    let mut client = connect(&rig).await;
    let mut request = post("/ok");
    request.headers_mut().insert("host", "b".parse().unwrap());
    let (answer, _) = client.send_request(request, true).unwrap();
    assert_eq!(patiently(answer).await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_body_larger_than_the_windows_streams_through() {
    const SIZE: usize = 4 << 20;
    let rig = Rig::new(http(&[("POST", "/ok")])).await;
    let mut client = connect(&rig).await;
    let (answer, mut send) = client.send_request(post("/ok"), false).unwrap();
    echo(rig.server().await);
    let sending = tokio::spawn(async move {
        let mut data = Bytes::from(vec![7; SIZE]);
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
            let piece = data.split_to(room);
            send.send_data(piece, data.is_empty()).unwrap();
        }
    });
    let mut body = patiently(answer).await.unwrap().into_body();
    let mut received = 0;
    while let Some(data) = patiently(body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        received += data.len();
    }
    assert_eq!(received, SIZE);
    patiently(sending).await.unwrap();
}

#[tokio::test]
async fn a_connection_without_streams_ends_after_its_time_and_one_with_a_stream_does_not() {
    let idle_timeout = Duration::from_millis(300);
    let limits = Limits { idle_timeout, ..Limits::default() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let (mut client, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    let ended = tokio::spawn(connection);
    let (answer, send) = client.send_request(post("/ok"), false).unwrap();
    echo(rig.server().await);
    let answer = patiently(answer).await.unwrap();
    // The request goes on for more than twice the time.
    assert!(tokio::time::timeout(3 * idle_timeout, answer.into_body().data()).await.is_err());
    assert!(!ended.is_finished());
    let begun = std::time::Instant::now();
    drop(send);
    patiently(ended).await.unwrap().ok();
    assert!(begun.elapsed() >= idle_timeout - Duration::from_millis(5), "{:?}", begun.elapsed());
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_client_that_is_refused_again_and_again_is_not_idle() {
    let idle_timeout = Duration::from_millis(300);
    let limits = Limits { idle_timeout, ..Limits::default() };
    let rig = Rig::with(http(&[("POST", "/ok")]), Protocol::Http, limits).await;
    let (mut client, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    let ended = tokio::spawn(connection);
    let begun = std::time::Instant::now();
    while begun.elapsed() < 3 * idle_timeout {
        let (denied, _) = client.send_request(post("/no"), true).unwrap();
        assert_eq!(patiently(denied).await.unwrap().status(), StatusCode::FORBIDDEN);
        assert!(tokio::time::timeout(idle_timeout / 4, std::future::pending::<()>()).await.is_err());
    }
    assert!(!ended.is_finished());
    assert_eq!(rig.counters.timeouts.get(), 0);
}
