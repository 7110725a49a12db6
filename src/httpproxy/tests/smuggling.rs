//! Messages that two readers could read in two ways: answered 400, closed, and not a byte of them forwarded.

use super::*;
use crate::policy::l7::{HeaderMatch, HeaderValue, Mismatch};

/// Each is sent on a connection of its own.
const AMBIGUOUS: &[(&str, &str)] = &[
    (
        "length and chunks",
        "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks and length",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
    (
        "two equal lengths",
        "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    ("a list of lengths", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd"),
    ("a signed length", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd"),
    ("a negative length", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd"),
    ("a hexadecimal length", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd"),
    ("an empty length", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
    ("an endless length", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"),
    ("another coding", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked twice", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    (
        "chunked, then identity",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    ("quoted chunked", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("xchunked", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (
        "a control character before chunked",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunks in HTTP/1.0", "POST /ok HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (
        "a space before a colon",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a tab before a colon", "GET /ok HTTP/1.1\r\nHost: a\r\nX\t: 1\r\n\r\n"),
    ("a space before a name", "GET /ok HTTP/1.1\r\n Host: a\r\n\r\n"),
    ("a folded line", "GET /ok HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"),
    ("a folded encoding", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("bare LF", "GET /ok HTTP/1.1\nHost: a\n\n"),
    ("bare LF in the middle", "GET /ok HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n"),
    ("bare LF at the end", "GET /ok HTTP/1.1\r\nHost: a\r\n\n"),
    ("bare CR", "GET /ok HTTP/1.1\r\nHost: a\rX: 1\r\n\r\n"),
    ("CR CR LF", "GET /ok HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    ("a null byte in a value", "GET /ok HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    ("a null byte in a name", "GET /ok HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n"),
    ("a null byte in the target", "GET /o\0k HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no colon", "GET /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding chunked\r\n\r\n"),
    ("an empty name", "GET /ok HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n"),
    ("no Host", "GET /ok HTTP/1.1\r\nX: 1\r\n\r\n"),
    ("two Hosts", "GET /ok HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ("a list of Hosts", "GET /ok HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    ("a Host with user information", "GET /ok HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    ("a Host with a query", "GET /ok HTTP/1.1\r\nHost: a?b\r\n\r\n"),
    ("another host in the target", "GET http://b/ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("user information in the target", "GET http://x@a/ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no host in the target", "GET http:///ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("another scheme", "GET ftp://a/ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a fragment", "GET /ok#x HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a relative target", "GET ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a star", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("an escaped null byte", "GET /ok%00 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("two spaces before the target", "GET  /ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("two spaces after the target", "GET /ok  HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a tab in the request line", "GET\t/ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a space in the target", "GET /ok /no HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no version", "GET /ok\r\nHost: a\r\n\r\n"),
    ("another version", "GET /ok HTTP/1.2\r\nHost: a\r\n\r\n"),
    ("HTTP/2 in a request line", "GET /ok HTTP/2.0\r\nHost: a\r\n\r\n"),
    ("a lower-case version", "GET /ok http/1.1\r\nHost: a\r\n\r\n"),
    ("two empty lines before", "\r\n\r\nGET /ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a space before the method", " GET /ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a method that is no token", "G(T /ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "Connection names Content-Length",
        "POST /ok HTTP/1.1\r\nHost: a\r\nConnection: Content-Length\r\nContent-Length: 1\r\n\r\na",
    ),
    ("Connection names Host", "GET /ok HTTP/1.1\r\nHost: a\r\nConnection: close, host\r\n\r\n"),
    (
        "a chunk that is too short",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk with bare LF",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
    ),
    (
        "an extension with bare LF",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with 0x",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with a space",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nab\r\n0\r\n\r\n",
    ),
    (
        "a chunk size that overflows",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a length in the trailers",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 9\r\n\r\n",
    ),
    (
        "a trailer without a colon",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nfoo\r\n\r\n",
    ),
    (
        "two codings that are the same",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding with a parameter",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    ),
    ("identity", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    ("an empty coding", "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n"),
    (
        "a space before the colon of a length",
        "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd",
    ),
    ("a length with a space inside", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 1 4\r\n\r\nabcd"),
    ("a length with a fraction", "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 4.0\r\n\r\nabcd"),
    ("a name with a bracket", "GET /ok HTTP/1.1\r\nHost: a\r\nX(Y): 1\r\n\r\n"),
    ("a name beyond ASCII", "GET /ok HTTP/1.1\r\nHost: a\r\nX\u{e9}: 1\r\n\r\n"),
    ("a line of spaces", "GET /ok HTTP/1.1\r\nHost: a\r\n \r\n\r\n"),
    ("a DEL in a value", "GET /ok HTTP/1.1\r\nHost: a\r\nX: a\u{7f}b\r\n\r\n"),
    ("a control character in a Host", "GET /ok HTTP/1.1\r\nHost: a\u{b}\r\n\r\n"),
    ("a Host beyond ASCII", "GET /ok HTTP/1.1\r\nHost: \u{e9}\r\n\r\n"),
    ("a port in the target alone", "GET http://a:80/ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a target with a host and no Host", "GET http://a/ok HTTP/1.1\r\n\r\n"),
    ("a space behind the version", "GET /ok HTTP/1.1 \r\nHost: a\r\n\r\n"),
    ("a version with more digits", "GET /ok HTTP/1.10\r\nHost: a\r\n\r\n"),
    ("a version with a zero before", "GET /ok HTTP/01.1\r\nHost: a\r\n\r\n"),
    ("a target beyond ASCII", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a DEL in the target", "GET /ok\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a star with a path", "OPTIONS *ok HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "a signed chunk size",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a chunk size of nothing",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nab\r\n0\r\n\r\n",
    ),
    (
        "an extension with a bare CR",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;a\rb\r\nab\r\n0\r\n\r\n",
    ),
    (
        "an extension with a null byte",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;\0\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a chunk that is too long",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a coding in the trailers",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (
        "a Host in the trailers",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
    ),
    (
        "a folded trailer",
        "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n 2\r\n\r\n",
    ),
];

#[tokio::test]
async fn what_is_ambiguous_is_refused_and_never_forwarded() {
    let rig = Rig::new(http(&[(".*", ".*")])).await;
    for (what, message) in AMBIGUOUS {
        let mut client = rig.client().await;
        // What an attacker hides behind the message must not be served either.
        send(&mut client, &format!("{message}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{what}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{what}: {answer:?}");
    }
    assert_eq!(rig.counters.malformed.get(), AMBIGUOUS.len() as u64);
    let nobody = tokio::time::timeout(Duration::from_millis(1), rig.upstream.accept()).await;
    assert!(nobody.is_err(), "a connection to the server was made");
}

#[tokio::test]
async fn a_body_that_turns_out_ambiguous_ends_both_connections() {
    let rig = Rig::new(http(&[(".*", ".*")])).await;
    let mut client = rig.client().await;
    let head = "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n";
    send(&mut client, head).await;
    let mut server = rig.server().await;
    expect(&mut server, head).await;
    send(&mut client, "2\nab\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn ambiguous_answers_do_not_reach_the_client() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n folded\r\n\r\nab",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let rig = Rig::new(http(&[(".*", ".*")])).await;
        let mut client = rig.client().await;
        send(&mut client, "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut server = rig.server().await;
        expect(&mut server, "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n").await;
        send(&mut server, answer).await;
        let got = rest(&mut client).await;
        assert!(got.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer:?}: {got:?}");
    }
}

/// Requests whose header matches have this `mismatch`.
fn changing(name: &str, mismatch: Mismatch) -> L7Policy {
    let header = HeaderMatch { name: name.into(), value: HeaderValue::Exact("0".into()), mismatch };
    under(Proxy::Http, L7Rules::Http(vec![HttpRule { headers: vec![header], ..HttpRule::default() }]))
}

#[tokio::test]
async fn no_rule_makes_a_second_request_of_a_body() {
    let request = "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\nDELETE /all HTTP/1.1\r\nHost: victim\r\n\r\n";
    for mismatch in [Mismatch::Delete, Mismatch::Replace, Mismatch::Add] {
        let rig = Rig::new(changing("content-length", mismatch)).await;
        let mut client = rig.client().await;
        send(&mut client, request).await;
        expect(&mut client, DENIED).await;
        assert_eq!(rig.counters.forwarded.get(), 0);
    }
}
