//! HTTP/1.0 and 1.1.

use super::*;

const GET: &str = "GET /ok HTTP/1.1\r\nhOsT: a\r\nX-B: 1\r\nx-A: 2\r\n\r\n";
const OK: &str = "HTTP/1.1 200 Fine\r\nContent-LENGTH: 2\r\nx-Z: 1\r\n\r\nok";

#[tokio::test]
async fn requests_and_answers_pass_byte_for_byte_and_a_refusal_keeps_the_connection() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    send(&mut client, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n").await;
    expect(&mut client, DENIED).await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
    send(&mut client, "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    expect(&mut client, DENIED).await;
    send(&mut client, GET).await;
    expect(&mut server, GET).await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
    // A record is made when its answer has been sent.
    patiently(async {
        while rig.records.lock().len() < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let records = rig.records.lock();
    let seen: Vec<(RecordVerdict, u16)> = records
        .iter()
        .map(|record| match &record.l7 {
            L7::Http { status, .. } => (record.verdict, *status),
            other => panic!("{other:?}"),
        })
        .collect();
    let denied = (RecordVerdict::Denied, 403);
    assert_eq!(seen, [denied, (RecordVerdict::Forwarded, 200), denied, (RecordVerdict::Forwarded, 200)]);
    assert!(records.iter().all(|record| *record.rules == [rule_ref()]));
}

#[tokio::test]
async fn pipelined_requests_are_judged_and_answered_in_order() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    send(&mut client, &format!("{GET}GET /no HTTP/1.1\r\nHost: a\r\n\r\n{GET}")).await;
    let mut server = rig.server().await;
    for first in [true, false] {
        expect(&mut server, GET).await;
        send(&mut server, OK).await;
        expect(&mut client, OK).await;
        if first {
            expect(&mut client, DENIED).await;
        }
    }
}

#[tokio::test]
async fn new_rules_hold_for_the_next_request_of_a_connection() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
    rig.swap(&http(&[("GET", "/other")]));
    send(&mut client, GET).await;
    expect(&mut client, DENIED).await;
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways_as_they_are() {
    let rig = Rig::new(http(&[("POST", "/ok")])).await;
    let mut client = rig.client().await;
    let request = "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\nX-Sum: 9\r\n\r\n";
    let mut server = None;
    for piece in request.as_bytes().chunks(11) {
        client.write_all(piece).await.unwrap();
        client.flush().await.unwrap();
    }
    let server = server.get_or_insert(rig.server().await);
    expect(server, request).await;
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for piece in answer.as_bytes().chunks(7) {
        server.write_all(piece).await.unwrap();
    }
    expect(&mut client, answer).await;
    send(&mut client, request).await;
    expect(server, request).await;
}

#[tokio::test]
async fn an_interim_answer_lets_the_client_send_its_body() {
    let rig = Rig::new(http(&[("PUT", "/ok")])).await;
    let mut client = rig.client().await;
    let head = "PUT /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    send(&mut client, head).await;
    let mut server = rig.server().await;
    expect(&mut server, head).await;
    send(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
    expect(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    send(&mut client, "body").await;
    expect(&mut server, "body").await;
    send(&mut server, OK).await;
    expect(&mut client, OK).await;
}

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn an_upgraded_connection_carries_anything_until_the_rules_change() {
    let rig = Rig::new(http(&[("GET", "/ws")])).await;
    let mut client = rig.client().await;
    send(&mut client, &format!("{UPGRADE}early")).await;
    let mut server = rig.server().await;
    expect(&mut server, UPGRADE).await;
    send(&mut server, &format!("{SWITCHED}\u{1}frame")).await;
    expect(&mut client, &format!("{SWITCHED}\u{1}frame")).await;
    expect(&mut server, "early").await;
    rig.swap(&http(&[("GET", "/ws|/more")]));
    send(&mut client, "still").await;
    expect(&mut server, "still").await;
    rig.swap(&http(&[("GET", "/other")]));
    assert_eq!(rest(&mut client).await, "");
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(rig.counters.tunnels_cut.get(), 1);
    let told = [(RecordVerdict::Forwarded, 101), (RecordVerdict::Denied, 101)];
    assert_eq!(outcomes(&rig, 2).await, told, "what was cut is recorded");
}

/// The kernel's timer of a connection, as `/proc/net/tcp` tells it: 2 is the one of its probes.
fn timer(local: u16, remote: u16) -> Option<u8> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&local) && fields.get(2)?.ends_with(&remote);
        is_it.then(|| fields.get(5)?.get(..2)?.parse().ok()).flatten()
    })
}

#[tokio::test]
async fn a_tunnel_whose_side_vanishes_is_found_out_by_probes_of_both_sides() {
    let rig = Rig::new(http(&[("GET", "/ws")])).await;
    let mut client = rig.client().await;
    send(&mut client, UPGRADE).await;
    let mut server = rig.server().await;
    expect(&mut server, UPGRADE).await;
    send(&mut server, SWITCHED).await;
    expect(&mut client, SWITCHED).await;
    let legs = [
        (rig.address.port(), client.local_addr().unwrap().port()),
        (server.peer_addr().unwrap().port(), server.local_addr().unwrap().port()),
    ];
    for (local, remote) in legs {
        patiently(async {
            while timer(local, remote) != Some(2) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn requests_after_a_refused_upgrade_are_judged() {
    let rig = Rig::new(http(&[("GET", "/ws")])).await;
    let mut client = rig.client().await;
    send(&mut client, &format!("{UPGRADE}GET /no HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    let mut server = rig.server().await;
    expect(&mut server, UPGRADE).await;
    send(&mut server, OK).await;
    expect(&mut client, &format!("{OK}{DENIED}")).await;
}

#[tokio::test]
async fn an_offer_of_http2_is_taken_out() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    let head = "GET /ok HTTP/1.1\r\nHost: a\r\n";
    send(
        &mut client,
        &format!(
            "{head}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\nX: 1\r\n\r\n"
        ),
    )
    .await;
    let mut server = rig.server().await;
    expect(&mut server, &format!("{head}X: 1\r\n\r\n")).await;
    // A server that switches all the same is not let through.
    send(&mut server, SWITCHED).await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn the_path_is_forwarded_as_it_was_matched() {
    let rig = Rig::new(http(&[("GET", "/ok.*")])).await;
    let mut client = rig.client().await;
    let mut server = None;
    for (sent, forwarded) in [
        ("/x/..//ok?q=/../a", "/ok?q=/../a"),
        ("/%2e/ok", "/ok"),
        ("http://A/ok", "/ok"),
        ("/ok%20x", "/ok%20x"),
    ] {
        send(&mut client, &format!("GET {sent} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        if server.is_none() {
            server = Some(rig.server().await);
        }
        let server = server.as_mut().unwrap();
        expect(server, &format!("GET {forwarded} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        send(server, OK).await;
        expect(&mut client, OK).await;
    }
    send(&mut client, "GET /a%2Fb?c HTTP/1.1\r\nHost: a\r\n\r\n").await;
    expect(&mut client, "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nLocation: /a/b?c\r\n\r\n")
        .await;
    send(&mut client, "CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n").await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn http_1_0_ends_with_its_connection() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    send(&mut client, "GET /ok HTTP/1.0\r\n\r\n").await;
    let mut server = rig.server().await;
    expect(&mut server, "GET /ok HTTP/1.0\r\n\r\n").await;
    send(&mut server, "HTTP/1.0 200 OK\r\n\r\nall of it").await;
    drop(server);
    assert_eq!(rest(&mut client).await, "HTTP/1.0 200 OK\r\n\r\nall of it");
}

#[tokio::test]
async fn a_large_body_streams_while_its_answer_comes() {
    const SIZE: usize = 8 << 20;
    let rig = Rig::new(http(&[("PUT", "/ok")])).await;
    let mut client = rig.client().await;
    send(&mut client, &format!("PUT /ok HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let mut server = rig.server().await;
    let head = format!("PUT /ok HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
    expect(&mut server, &head).await;
    send(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = server.split();
        tokio::io::copy(&mut read, &mut write).await
    });
    let (mut read, mut write) = client.split();
    let sending = async {
        let piece = vec![7; 64 * 1024];
        for _ in 0..SIZE / piece.len() {
            write.write_all(&piece).await.unwrap();
        }
    };
    let receiving = async {
        let mut head = vec![0; format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").len()];
        read.read_exact(&mut head).await.unwrap();
        let mut body = vec![0; SIZE];
        read.read_exact(&mut body).await.unwrap();
        assert!(body.iter().all(|byte| *byte == 7));
    };
    patiently(async { tokio::join!(sending, receiving) }).await;
    drop(client);
    patiently(echo).await.unwrap().ok();
}

#[tokio::test]
async fn slow_heads_and_silent_servers_are_given_up() {
    let limits = Limits {
        header_timeout: Duration::from_millis(50),
        response_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let rig = Rig::with(http(&[("GET", "/ok")]), Protocol::Http, limits).await;
    let mut client = rig.client().await;
    send(&mut client, "GET /ok HTT").await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 408 "));
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let _silent = rig.server().await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 504 "));
    assert_eq!(rig.counters.timeouts.get(), 2);
}

#[tokio::test]
async fn a_cut_answer_does_not_look_whole() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    send(&mut client, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    send(&mut server, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel").await;
    expect(&mut client, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel").await;
    drop(server);
    let error = patiently(client.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn heads_are_bounded() {
    let limits = Limits { header_bytes: 4096, ..Limits::default() };
    let rig = Rig::with(http(&[("GET", "/ok")]), Protocol::Http, limits).await;
    let mut client = rig.client().await;
    send(&mut client, &format!("GET /ok HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(5000))).await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 431 "));
    let mut client = rig.client().await;
    send(&mut client, &format!("GET /ok HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(200))).await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 431 "));
    assert_eq!((rig.counters.headers_too_large.get(), rig.counters.headers_too_many.get()), (1, 1));
}

#[tokio::test]
async fn heads_of_servers_are_bounded_and_counted() {
    let limits = Limits { header_bytes: 4096, ..Limits::default() };
    let rig = Rig::with(http(&[("GET", "/ok")]), Protocol::Http, limits).await;
    for field in [format!("X: {}\r\n", "x".repeat(5000)), "a: b\r\n".repeat(200)] {
        let mut client = rig.client().await;
        send(&mut client, GET).await;
        let mut server = rig.server().await;
        expect(&mut server, GET).await;
        send(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{field}\r\n")).await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 502 "));
    }
    assert_eq!((rig.counters.headers_too_large.get(), rig.counters.headers_too_many.get()), (1, 1));
}

#[tokio::test]
async fn draining_serves_what_comes_and_tells_connections_to_end() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let (mut idle, mut busy) = (rig.client().await, rig.client().await);
    for client in [&mut idle, &mut busy] {
        send(client, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n").await;
        expect(client, DENIED).await;
    }
    send(&mut busy, GET).await;
    let mut server = rig.server().await;
    expect(&mut server, GET).await;
    rig.drain.send_replace(true);
    send(&mut server, OK).await;
    let last = "HTTP/1.1 200 Fine\r\nContent-LENGTH: 2\r\nx-Z: 1\r\nConnection: close\r\n\r\nok";
    assert_eq!(rest(&mut busy).await, last);
    // A connection that was on its way to this process, and one that waits.
    for mut client in [rig.client().await, idle] {
        send(&mut client, GET).await;
        let mut server = rig.server().await;
        expect(&mut server, GET).await;
        send(&mut server, OK).await;
        assert_eq!(rest(&mut client).await, last);
    }
    patiently(rig.running).await.unwrap().unwrap();
    assert_eq!(rig.counters.drained_late.get(), 0);
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_and_counted() {
    let limits = Limits { drain_timeout: Duration::from_millis(50), ..Limits::default() };
    let rig = Rig::with(http(&[("GET", "/ok")]), Protocol::Http, limits).await;
    let mut idle = rig.client().await;
    send(&mut idle, "GET /no HTTP/1.1\r\nHost: a\r\n\r\n").await;
    expect(&mut idle, DENIED).await;
    rig.drain.send_replace(true);
    patiently(rig.running).await.unwrap().unwrap();
    assert_eq!(rig.counters.drained_late.get(), 1);
    assert_eq!(rest(&mut idle).await, "");
}

#[tokio::test]
async fn where_nothing_is_refused_other_protocols_pass_and_elsewhere_they_do_not() {
    let lifted = L7Policy { lifted: true, ..http(&[("GET", "/ok")]) };
    let rig = Rig::new(lifted).await;
    let mut client = rig.client().await;
    send(&mut client, "SSH-2.0-x\r\n").await;
    let mut server = rig.server().await;
    expect(&mut server, "SSH-2.0-x\r\n").await;
    // A server that speaks first.
    let mut client = rig.client().await;
    let mut server = rig.server().await;
    send(&mut server, "220 ready\r\n").await;
    expect(&mut client, "220 ready\r\n").await;
    // New rules reach what is no protocol of ours.
    rig.swap(&http(&[("GET", "/ok")]));
    assert_eq!(rest(&mut client).await, "");
    let mut client = rig.client().await;
    send(&mut client, "SSH-2.0-x\r\n").await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn where_nothing_is_refused_few_bytes_that_could_begin_a_request_reach_the_server() {
    let limits = Limits { header_timeout: Duration::from_millis(100), ..Limits::default() };
    let lifted = L7Policy { lifted: true, ..http(&[("GET", "/ok")]) };
    let rig = Rig::with(lifted, Protocol::Http, limits).await;
    let mut client = rig.client().await;
    send(&mut client, "hello").await;
    let mut server = rig.server().await;
    expect(&mut server, "hello").await;
    send(&mut server, "and to you").await;
    expect(&mut client, "and to you").await;
    let mut client = rig.client().await;
    send(&mut client, "bye").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut rig.server().await).await, "bye");
    assert_eq!((rig.counters.timeouts.get(), rig.counters.malformed.get()), (0, 0));
}

#[tokio::test]
async fn a_connection_on_which_neither_side_speaks_is_idle() {
    let limits = Limits { idle_timeout: Duration::from_millis(100), ..Limits::default() };
    let lifted = L7Policy { lifted: true, ..http(&[("GET", "/ok")]) };
    let rig = Rig::with(lifted, Protocol::Http, limits).await;
    let mut client = rig.client().await;
    let mut server = rig.server().await;
    assert_eq!(rest(&mut client).await, "");
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(rig.counters.timeouts.get(), 1);
}

#[tokio::test]
async fn a_connection_lives_on_after_an_answer_that_left_no_room_in_its_buffer_or_was_spliced() {
    let rig = Rig::new(http(&[("GET", "/ok")])).await;
    let mut client = rig.client().await;
    let mut server = None;
    for size in [8 * 1024, 64 * 1024, 1 << 20, 5 << 20] {
        send(&mut client, GET).await;
        if server.is_none() {
            server = Some(rig.server().await);
        }
        let server = server.as_mut().unwrap();
        expect(server, GET).await;
        // Both together are as large as a buffer.
        let head = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let length = size - head(size).len();
        let answer = format!("{}{}", head(length), "x".repeat(length));
        let (sent, ()) = patiently(async {
            tokio::join!(server.write_all(answer.as_bytes()), expect(&mut client, &answer))
        })
        .await;
        sent.unwrap();
        // The connection is waited on for its next request before that comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    send(&mut client, GET).await;
    expect(server.as_mut().unwrap(), GET).await;
}
