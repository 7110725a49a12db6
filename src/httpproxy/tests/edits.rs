//! What rules of both sides do to the headers of a request, when one proxy judges for both.

use ::http::Request;

use super::*;
use crate::policy::l7::{HeaderMatch, HeaderValue, Mismatch};

fn with_header(value: HeaderValue, mismatch: Mismatch) -> L7Policy {
    let header = HeaderMatch { name: "x-token".into(), value, mismatch };
    under(Proxy::Http, L7Rules::Http(vec![HttpRule { headers: vec![header], ..HttpRule::default() }]))
}

fn exactly(value: &str, mismatch: Mismatch) -> L7Policy {
    with_header(HeaderValue::Exact(value.into()), mismatch)
}

const SENT: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Token: bad\r\n\r\n";

#[tokio::test]
async fn a_header_that_egress_deletes_is_not_there_for_ingress() {
    let delete = exactly("good", Mismatch::Delete);
    let rig = Rig::between(&delete, &with_header(HeaderValue::Present, Mismatch::Deny)).await;
    let mut client = rig.client().await;
    send(&mut client, SENT).await;
    expect(&mut client, DENIED).await;
    let good = SENT.replace("bad", "good");
    send(&mut client, &good).await;
    let mut server = rig.server().await;
    expect(&mut server, &good).await;
}

/// The values of `x-token` that a server gets over HTTP/1 and over HTTP/2.
async fn received(egress: &L7Policy, ingress: &L7Policy) -> [Vec<String>; 2] {
    let rig = Rig::between(egress, ingress).await;
    let mut client = rig.client().await;
    send(&mut client, SENT).await;
    let mut server = rig.server().await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(patiently(server.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let values = |line: &str| Some(line.to_lowercase().strip_prefix("x-token: ")?.to_owned());
    let first = head.lines().filter_map(values).collect();

    let (mut send, connection) = h2::client::handshake(rig.client().await).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::get("http://a/").header("x-token", "bad").body(()).unwrap();
    let (_answer, _) = send.send_request(request, true).unwrap();
    let mut server = h2::server::handshake(rig.server().await).await.unwrap();
    let (request, _respond) = patiently(server.accept()).await.unwrap().unwrap();
    let values = request.headers().get_all("x-token").iter();
    [first, values.map(|value| value.to_str().unwrap().to_owned()).collect()]
}

#[tokio::test]
async fn both_sides_edit_in_their_order_and_both_protocols_have_the_same_result() {
    let replace = |value| exactly(value, Mismatch::Replace);
    let add = |value| exactly(value, Mismatch::Add);
    let delete = || exactly("none", Mismatch::Delete);
    for (egress, ingress, expected) in [
        (replace("1"), replace("2"), &["2"][..]),
        (replace("1"), replace("1"), &["1"]),
        (add("1"), add("2"), &["bad", "1", "2"]),
        (add("1"), add("bad,1"), &["bad", "1"]),
        (add("1"), delete(), &[]),
        (delete(), add("2"), &["2"]),
        (exactly("1", Mismatch::Log), replace("2"), &["2"]),
    ] {
        for received in received(&egress, &ingress).await {
            assert_eq!(received, expected, "{egress:?} {ingress:?}");
        }
    }
}

#[tokio::test]
async fn a_header_that_is_only_logged_is_named_in_the_record() {
    let log = exactly("good", Mismatch::Log);
    let rig = Rig::between(&log, &with_header(HeaderValue::Present, Mismatch::Deny)).await;
    let mut client = rig.client().await;
    send(&mut client, SENT).await;
    let mut server = rig.server().await;
    expect(&mut server, SENT).await;
    send(&mut server, "HTTP/1.1 204 Fine\r\n\r\n").await;
    expect(&mut client, "HTTP/1.1 204 Fine\r\n\r\n").await;
    patiently(async {
        while rig.records.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let L7::Http { mismatches, .. } = &rig.records.lock()[0].l7 else { panic!() };
    assert_eq!(mismatches[..], ["x-token".into()]);
}
