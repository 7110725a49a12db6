//! What proxies read from pods and servers: DNS messages, HTTP heads, and the expressions of policies.

use std::hint::black_box;

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use sluice::dnsproxy::message::{Query, Reply, ResponseCode};
use sluice::policy::l7::http::check_expression;
use sluice::policy::l7::message::check_head;
use sluice::policy::l7::target::{Target as Normal, normalize};

use crate::Target;

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("a question")
}

fn answer(name: &str, alias: &str) -> Vec<u8> {
    let (name, alias) = (Name::from_ascii(name).expect("a name"), Name::from_ascii(alias).expect("a name"));
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(Question::query(name.clone(), RecordType::A));
    message.add_answer(Record::from_rdata(
        name,
        30,
        RData::CNAME(hickory_proto::rr::rdata::CNAME(alias.clone())),
    ));
    message.add_answer(Record::from_rdata(
        alias,
        30,
        RData::A(hickory_proto::rr::rdata::A::new(203, 0, 113, 1)),
    ));
    message.to_vec().expect("an answer")
}

/// Questions of pods.
pub struct DnsQueries;

impl Target for DnsQueries {
    fn name(&self) -> &'static str {
        "dns-queries"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![
            question("api.stripe.com.", RecordType::A),
            question("xn--bcher-kva.example.", RecordType::AAAA),
            question("a.b.c.d.e.f.example.org.", RecordType::HTTPS),
        ]
    }

    fn check(&mut self, input: &[u8]) {
        if let Ok(query) = Query::parse(input) {
            let refusal = query.refusal(input, ResponseCode::Refused);
            assert_eq!(refusal.get(..2), input.get(..2), "the answer has the question's id");
        }
    }
}

/// Answers of servers to a question that we asked (CVE-2025-23028 in a peer).
pub struct DnsReplies;

impl Target for DnsReplies {
    fn name(&self) -> &'static str {
        "dns-replies"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![answer("pay.example.com.", "api.stripe.com."), answer("pay.example.com.", "b.example.com.")]
    }

    fn check(&mut self, input: &[u8]) {
        let query = Query::parse(&question("pay.example.com.", RecordType::A)).expect("our question");
        let _ = black_box(Reply::parse(&query, 7, input));
    }
}

/// Request lines and header lines.
pub struct HttpHeads;

impl Target for HttpHeads {
    fn name(&self) -> &'static str {
        "http-heads"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        [
            "GET\n/a/../b/%2e%2e/c?x=/../y\nhost: web\ncontent-length: 3",
            "POST\n//a%2Fb\\c/./\ntransfer-encoding: chunked\ncontent-length: 3\ncontent-length: 3",
            "OPTIONS\n*\nhost: web\ntransfer-encoding: gzip, chunked",
            "CONNECT\nweb:443\nhost: web\ncontent-length: +1",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    fn check(&mut self, input: &[u8]) {
        let mut lines = input.split(|byte| *byte == b'\n');
        let method = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let target = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let headers: Vec<(String, &[u8])> = lines
            .filter_map(|line| {
                let at = line.windows(2).position(|two| two == b": ")?;
                Some((String::from_utf8_lossy(&line[..at]).to_ascii_lowercase(), &line[at + 2..]))
            })
            .collect();
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let _ = black_box(check_head(&method, &headers));
        if let Normal::Forward(path) = normalize(&target) {
            assert_eq!(normalize(&path), Normal::Forward(path.clone()), "what is forwarded is normal");
        }
    }
}

/// Regular expressions of HTTP rules.
pub struct HttpExpressions;

impl Target for HttpExpressions {
    fn name(&self) -> &'static str {
        "http-expressions"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        ["/api/v[0-9]+/.*", "GET|HEAD", "(?i)a{1,10}(b|c)*[^d]+\\pL", "^/x$"]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
    }

    fn longest(&self) -> usize {
        2048
    }

    fn check(&mut self, input: &[u8]) {
        let _ = black_box(check_expression(&String::from_utf8_lossy(input)));
    }
}
