//! Sides that want different proxies: one that judges for both passes what two in a row would pass.

use super::tls::hello;
use super::*;
use crate::flow::L7;
use crate::flow::record::RecordVerdict;
use crate::model::Direction;

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Listed,
    Unlisted,
    Get,
    Post,
    Other,
}

impl Says {
    const ALL: [Says; 5] = [Says::Listed, Says::Unlisted, Says::Get, Says::Post, Says::Other];

    fn bytes(self) -> Vec<u8> {
        match self {
            Says::Listed => hello("a.example"),
            Says::Unlisted => hello("a.other"),
            Says::Get => b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            Says::Post => b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".to_vec(),
            Says::Other => b"SSH-2.0-OpenSSH_9.2p1 and so on\r\n".to_vec(),
        }
    }
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    Through,
    Reset,
    /// Closed without an answer.
    End,
    Answer(&'static str),
}

const FORBIDDEN: Comes = Comes::Answer("HTTP/1.1 403");
const MALFORMED: Comes = Comes::Answer("HTTP/1.1 400");

fn observing(policy: L7Policy) -> L7Policy {
    L7Policy { enforced: false, ..policy }
}

/// GET, or names below `example`.
fn rules(proxy: Proxy) -> L7Policy {
    match proxy {
        Proxy::Http => http(&[("GET", "/.*")]),
        Proxy::Tls | Proxy::Dns => server_names(&["*.example"]),
    }
}

fn compiled(policy: &L7Policy) -> SidePolicy {
    SidePolicy::compile(policy, &|_, _, _| None).unwrap()
}

/// Both pods on one node: the kernel gives the connection to the listener for TLS.
async fn one_proxy(egress: &L7Policy, ingress: &L7Policy) -> Rig {
    Rig::start(egress, compiled(ingress), Protocol::Tls, Limits::default()).await
}

/// The same between nodes; the second is the server's.
async fn two_proxies(egress: &L7Policy, ingress: &L7Policy) -> (Rig, Rig) {
    let listener = |policy: &L7Policy| match policy.outcome {
        Outcome::Redirect(Proxy::Http) => Protocol::Http,
        _ => Protocol::Tls,
    };
    let open = L7Policy { outcome: Outcome::Allow, rules: Vec::new(), ..http(&[]) };
    let back = Rig::start(&open, compiled(ingress), listener(ingress), Limits::default()).await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sides = (egress, SidePolicy::open());
    let front = Rig::in_front_of(back.address, unused, sides, listener(egress), Limits::default()).await;
    (front, back)
}

/// The client says something to `front`, and the server that is behind `back` says a word to whoever gets through.
async fn comes(front: &Rig, back: &Rig, says: Says) -> Comes {
    let bytes = says.bytes();
    let mut client = front.client().await;
    client.write_all(&bytes).await.unwrap();
    let mut first = [0; 12];
    tokio::select! {
        server = back.server() => {
            let mut server = server;
            let mut got = vec![0; bytes.len()];
            patiently(server.read_exact(&mut got)).await.unwrap();
            assert_eq!(got, bytes, "untouched");
            Comes::Through
        }
        read = patiently(client.read_exact(&mut first)) => match read {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Comes::Reset,
            Err(_) => Comes::End,
            Ok(_) => [FORBIDDEN, MALFORMED, Comes::Answer("HTTP/1.1 502")]
                .into_iter()
                .find(|known| matches!(known, Comes::Answer(text) if text.as_bytes() == first))
                .unwrap_or_else(|| panic!("{says:?}: {}", String::from_utf8_lossy(&first))),
        },
    }
}

fn pairs() -> Vec<(L7Policy, L7Policy)> {
    let both = |proxy| [rules(proxy), observing(rules(proxy))];
    let pairs = |one, other| {
        both(one).into_iter().flat_map(move |egress| both(other).map(|ingress| (egress.clone(), ingress)))
    };
    pairs(Proxy::Tls, Proxy::Http).chain(pairs(Proxy::Http, Proxy::Tls)).collect()
}

#[tokio::test]
async fn one_proxy_passes_what_two_in_a_row_pass() {
    for (egress, ingress) in pairs() {
        let one = one_proxy(&egress, &ingress).await;
        let (front, back) = two_proxies(&egress, &ingress).await;
        for says in Says::ALL {
            let here = comes(&one, &one, says).await;
            let there = comes(&front, &back, says).await;
            let why = format!("{says:?} under {egress:?} and {ingress:?}");
            match (here, there) {
                // What the second resets, the first closes; one that has read a request tells its client that the server
                // hung up.
                (Comes::Reset, Comes::End | Comes::Answer("HTTP/1.1 502")) => {}
                _ => assert_eq!(here, there, "{why}"),
            }
        }
    }
}

async fn all(egress: &L7Policy, ingress: &L7Policy) -> [Comes; 5] {
    let rig = one_proxy(egress, ingress).await;
    let mut all = [Comes::Through; 5];
    for (says, comes) in Says::ALL.into_iter().zip(&mut all) {
        *comes = self::comes(&rig, &rig, says).await;
    }
    all
}

#[tokio::test]
async fn a_side_that_refuses_nothing_lets_the_other_protocol_through() {
    use Comes::{Reset, Through};
    let (tls, http) = (rules(Proxy::Tls), rules(Proxy::Http));
    let (watched_tls, watched_http) = (observing(tls.clone()), observing(http.clone()));
    let lifted_http = L7Policy { lifted: true, ..http.clone() };
    let by_name = [Through, Reset, Reset, Reset, Reset];
    let by_request = [MALFORMED, MALFORMED, Through, FORBIDDEN, MALFORMED];
    for watched in [&watched_http, &lifted_http] {
        assert_eq!(all(&tls, watched).await, by_name);
        assert_eq!(all(watched, &tls).await, by_name);
        assert_eq!(all(&watched_tls, watched).await, [Through; 5]);
        assert_eq!(all(watched, &watched_tls).await, [Through; 5]);
    }
    assert_eq!(all(&watched_tls, &http).await, by_request);
    assert_eq!(all(&http, &watched_tls).await, by_request);
}

#[tokio::test]
async fn nothing_is_both_and_the_side_that_refuses_is_named() {
    let (tls, http) = (rules(Proxy::Tls), rules(Proxy::Http));
    let wanted = [
        (&tls, &http, [MALFORMED, Comes::Reset, Comes::Reset, Comes::Reset, Comes::Reset]),
        (&http, &tls, [MALFORMED, MALFORMED, Comes::Reset, FORBIDDEN, MALFORMED]),
    ];
    for (egress, ingress, wanted) in wanted {
        assert_eq!(all(egress, ingress).await, wanted);
    }
    let rig = one_proxy(&http, &tls).await;
    comes(&rig, &rig, Says::Get).await;
    comes(&rig, &rig, Says::Post).await;
    let records = rig.records.lock();
    assert!(records.iter().all(|record| record.verdict == RecordVerdict::Denied));
    assert_eq!(records[0].l7, L7::Tls { server_name: None });
    assert_eq!(records[0].direction, Direction::Ingress);
    assert!(matches!(&records[1].l7, L7::Http { status: 403, .. }));
    assert_eq!(records[1].direction, Direction::Egress);
}

#[tokio::test]
async fn http2_is_reset_by_rules_for_tls() {
    let rig = one_proxy(&rules(Proxy::Http), &rules(Proxy::Tls)).await;
    let (mut send, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = ::http::Request::get("http://a/").body(()).unwrap();
    let (answer, _) = send.send_request(request, true).unwrap();
    assert!(patiently(answer).await.unwrap_err().is_reset());
    assert_eq!(rig.records.lock()[0].l7, L7::Tls { server_name: None });
}

/// A request may come long after the connection; two proxies in a row would have waited for it.
#[tokio::test]
async fn a_client_that_takes_its_time_is_still_judged_by_its_request() {
    let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
    let (egress, ingress) = (observing(rules(Proxy::Tls)), rules(Proxy::Http));
    let rig = Rig::start(&egress, compiled(&ingress), Protocol::Tls, limits).await;
    let mut client = rig.client().await;
    assert!(tokio::time::timeout(Duration::from_millis(300), client.read(&mut [0])).await.is_err());
    client.write_all(&Says::Post.bytes()).await.unwrap();
    expect(&mut client, DENIED).await;
}
