//! Who may take how long, over HTTP/1.

use super::*;
use crate::httpproxy::waits::MOST_INTERIM;

const GET: &str = "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// How often somebody who is slow says something.
const OFTEN: Duration = Duration::from_millis(60);

fn patient() -> Limits {
    let limits = Limits::default();
    Limits { body_timeout: PATIENCE, response_timeout: PATIENCE, header_timeout: PATIENCE, ..limits }
}

async fn rig(limits: Limits) -> Rig {
    Rig::with(http(&[(".*", "/ok")]), Protocol::Http, limits).await
}

#[tokio::test]
async fn a_long_upload_does_not_use_up_the_servers_time_to_answer() {
    let rig = rig(Limits { response_timeout: 8 * OFTEN, ..patient() }).await;
    let mut client = rig.client().await;
    let head = "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n";
    send(&mut client, head).await;
    let mut server = rig.server().await;
    expect(&mut server, head).await;
    for _ in 0..20 {
        tokio::time::sleep(OFTEN).await;
        send(&mut client, "x").await;
        expect(&mut server, "x").await;
    }
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
    // With the next one, which it has whole at once, the server is late.
    send(&mut client, head).await;
    send(&mut client, &"x".repeat(20)).await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 504 "));
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn an_answer_that_streams_under_a_silent_request_is_not_cut() {
    let rig = rig(Limits { body_timeout: 8 * OFTEN, ..patient() }).await;
    let mut client = rig.client().await;
    let head = "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    send(&mut client, head).await;
    let mut server = rig.server().await;
    expect(&mut server, head).await;
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    send(&mut server, answer).await;
    expect(&mut client, answer).await;
    for _ in 0..20 {
        tokio::time::sleep(OFTEN).await;
        send(&mut server, "1\r\nb\r\n").await;
        expect(&mut client, "1\r\nb\r\n").await;
    }
    send(&mut client, "0\r\n\r\n").await;
    expect(&mut server, "0\r\n\r\n").await;
    send(&mut server, "0\r\n\r\n").await;
    expect(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_body_that_does_not_go_on_is_the_clients_timeout() {
    let rig = rig(Limits { body_timeout: Duration::from_millis(50), ..patient() }).await;
    let mut client = rig.client().await;
    send(&mut client, "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 408 "));
    assert_eq!(rig.counters.timeouts.get(), 1);
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Failed, 408)]);
}

#[tokio::test]
async fn a_server_that_takes_no_more_of_a_body_is_late() {
    let rig = rig(Limits { body_timeout: Duration::from_millis(200), ..patient() }).await;
    let mut client = rig.client().await;
    send(&mut client, &format!("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1u64 << 40))
        .await;
    let _server = rig.server().await;
    let (mut read, mut write) = client.split();
    let sending = async {
        let piece = vec![7; 64 * 1024];
        while write.write_all(&piece).await.is_ok() {}
    };
    let receiving = async {
        let mut line = [0; 13];
        patiently(read.read_exact(&mut line)).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 504 ");
    };
    tokio::select! {
        () = receiving => {}
        () = async { sending.await; std::future::pending().await } => {}
    }
}

#[tokio::test]
async fn an_answer_that_stops_is_given_up() {
    let rig = rig(Limits { body_timeout: Duration::from_millis(50), ..patient() }).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    send(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await;
    assert_eq!(rest(&mut client).await, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_request() {
    let rig = rig(patient()).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    super::super::io::reset(client);
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(outcomes(&rig, 1).await, [(RecordVerdict::Failed, 0)]);
    assert_eq!(rig.counters.timeouts.get(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_an_answer_that_has_stopped() {
    let rig = rig(patient()).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha";
    send(&mut server, half).await;
    expect(&mut client, half).await;
    super::super::io::reset(client);
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn a_client_that_only_sends_no_more_gets_its_answer() {
    let rig = rig(patient()).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    client.shutdown().await.unwrap();
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    // Longer than it takes until somebody looks after the client.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
}

#[tokio::test]
async fn a_head_of_the_server_that_drips_is_given_up() {
    let rig = rig(Limits { header_timeout: Duration::from_millis(200), ..patient() }).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    let drip = async {
        send(&mut server, "HTTP/1.1 200 OK\r\nX: ").await;
        while server.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        answer = rest(&mut client) => assert!(answer.starts_with("HTTP/1.1 504 "), "{answer:?}"),
        () = drip => {}
    }
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_server_whose_interim_answers_have_no_end_is_given_up() {
    let rig = rig(patient()).await;
    let interim = "HTTP/1.1 102 Processing\r\n\r\n";
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    send(&mut server, &format!("{}{OK}", interim.repeat(MOST_INTERIM))).await;
    expect(&mut client, &format!("{}{OK}", interim.repeat(MOST_INTERIM))).await;
    send(&mut client, GET).await;
    expect(&mut server, GET).await;
    let endless = async { while server.write_all(interim.as_bytes()).await.is_ok() {} };
    let (answer, ()) = patiently(async { tokio::join!(rest(&mut client), endless) }).await;
    let last = answer.strip_prefix(&interim.repeat(MOST_INTERIM)).expect("as many as there may be");
    assert!(last.starts_with("HTTP/1.1 502 "), "{last:?}");
    assert_eq!(outcomes(&rig, 2).await, [(RecordVerdict::Forwarded, 200), (RecordVerdict::Failed, 502)]);
    assert_eq!(rig.counters.upstream_failures.get(), 1);
}

#[tokio::test]
async fn a_server_that_closes_unasked_gives_502_on_a_new_connection_and_the_close_on_an_old_one() {
    let rig = rig(patient()).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    drop(server);
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 502 "));
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
    send(&mut client, GET).await;
    expect(&mut server, GET).await;
    drop(server);
    assert_eq!(rest(&mut client).await, "");
    let (passed, failed) = ((RecordVerdict::Forwarded, 200), (RecordVerdict::Failed, 502));
    assert_eq!(outcomes(&rig, 3).await, [failed, passed, failed]);
}

#[tokio::test]
async fn idle_connections_of_one_client_leave_room_for_others() {
    let rig = rig(Limits { connections: 8, ..patient() }).await;
    let mut mine = [rig.client().await, rig.client().await];
    for client in &mut mine {
        send(client, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(client, DENIED).await;
    }
    assert_eq!(rest(&mut rig.client().await).await, "");
    assert_eq!((rig.counters.connections_refused.get(), rig.counters.clients_at_limit.get()), (1, 1));
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(rig.address).await.unwrap();
    send(&mut other, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n").await;
    expect(&mut other, DENIED).await;
    // A place is free again when its connection has ended.
    drop(mine);
    patiently(async {
        loop {
            let mut next = rig.client().await;
            next.write_all(b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n").await.ok();
            if rest_of_one(&mut next).await == DENIED {
                return;
            }
        }
    })
    .await;
}

/// As much as a refusal is long, or what there is.
async fn rest_of_one(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; DENIED.len()];
    let mut count = 0;
    while count < bytes.len() {
        match patiently(stream.read(&mut bytes[count..])).await {
            Ok(0) | Err(_) => break,
            Ok(read) => count += read,
        }
    }
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}
