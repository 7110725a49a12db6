//! What proxies read from pods and servers: DNS messages, HTTP heads, and the expressions of policies.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use sluice::dnsproxy::message::{Query, Reply, ResponseCode};
use sluice::dnsproxy::unreachable::{read_v4, read_v6};
use sluice::flow::record::{Record as FlowRecord, RecordVerdict};
use sluice::flow::{L7, record_batch};
use sluice::fqdn::Learned;
use sluice::model::{Direction, Identity};
use sluice::policy::l7::expressions::check_expression;
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

/// The question of [`DnsReplies`] as a response, with these counts of records and what stands behind.
fn response(flags: u16, [answers, additionals]: [u16; 2], rest: &[u8]) -> Vec<u8> {
    let asked = question("pay.example.com.", RecordType::A);
    let mut message = Vec::new();
    for word in [7, 0x8180 | flags, 1, answers, 0, additionals] {
        message.extend(word.to_be_bytes());
    }
    message.extend(&asked[12..]);
    message.extend(rest);
    message
}

/// An A record whose owner is written like this.
fn address_record(owner: &[u8], address: [u8; 4]) -> Vec<u8> {
    [owner, &[0, 1, 0, 1, 0, 0, 0, 30, 0, 4], &address].concat()
}

/// Owners that point at themselves and at each other.
fn looping() -> Vec<u8> {
    let at = response(0, [0, 0], &[]).len() as u8;
    let own = address_record(&[0xc0, at], [192, 0, 2, 1]);
    let other = address_record(&[1, b'a', 0xc0, at + own.len() as u8], [192, 0, 2, 2]);
    response(0, [2, 0], &[own, other].concat())
}

/// An address that nobody asked for, behind the answer and in it.
fn poisoned() -> Vec<u8> {
    let bank = address_record(b"\x04bank\x07example\x00", [192, 0, 2, 66]);
    let asked = address_record(&[0xc0, 12], [192, 0, 2, 1]);
    response(0, [2, 1], &[bank.clone(), asked, bank].concat())
}

/// As many addresses as a message holds.
fn giant() -> Vec<u8> {
    let records: Vec<u8> =
        (0..4000u32).flat_map(|n| address_record(&[0xc0, 12], (0x0a00_0000 + n).to_be_bytes())).collect();
    response(0, [4000, 0], &records)
}

/// Cut in the middle of a record, and it says so.
fn truncated() -> Vec<u8> {
    let record = address_record(&[0xc0, 12], [192, 0, 2, 1]);
    response(0x0200, [5, 0], &[record.clone(), record[..9].to_vec()].concat())
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
            let refusal = query.refusal(ResponseCode::Refused);
            assert_eq!(refusal.get(..2), input.get(..2), "the answer has the question's id");
        }
    }
}

/// ICMP messages that say that a query did not arrive.
pub struct IcmpErrors;

impl Target for IcmpErrors {
    fn name(&self) -> &'static str {
        "icmp-errors"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let udp = [0x13, 0x88, 0, 53, 0, 8, 0, 0];
        let mut v4 = vec![0x45; 20];
        v4.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        v4.extend([0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let mut v6 = vec![1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 8, 17, 64];
        v6.extend([0xfd; 32]);
        [v4, v6].map(|message| [message, udp.to_vec()].concat()).into()
    }

    fn check(&mut self, input: &[u8]) {
        for (from, to) in [read_v4(input), read_v6(input)].into_iter().flatten() {
            assert_eq!(from.is_ipv4(), to.is_ipv4(), "both ends of a datagram are of one family");
        }
    }
}

/// What a proxy tells the agent, which trusts it with nothing but memory.
pub struct RecordBatches;

impl Target for RecordBatches {
    fn name(&self) -> &'static str {
        "record-batches"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let tls = |port: u16| FlowRecord {
            time_ns: 1,
            direction: Direction::Egress,
            verdict: RecordVerdict::Forwarded,
            protocol: 6,
            client: ([10, 0, 0, 1], port).into(),
            server: ([10, 0, 0, 2], 443).into(),
            client_identity: Identity(300),
            server_identity: Identity(301),
            rules: [].into(),
            l7: L7::Tls { server_name: Some("a.example".into()) },
        };
        vec![record_batch::encode(&[tls(1), tls(2)], || ())]
    }

    fn check(&mut self, input: &[u8]) {
        if let Ok(records) = record_batch::decode(input.to_vec().into()) {
            assert!(records.len() <= input.len(), "more records than there is room for");
            let again =
                record_batch::decode(record_batch::encode(&records, || ()).into()).expect("our own batch");
            assert_eq!(again, records);
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
        vec![
            answer("pay.example.com.", "api.stripe.com."),
            answer("pay.example.com.", "b.example.com."),
            looping(),
            poisoned(),
            giant(),
            truncated(),
        ]
    }

    fn check(&mut self, input: &[u8]) {
        let query = Query::parse(&question("pay.example.com.", RecordType::A)).expect("our question");
        let Ok(reply) = Reply::parse(&query, 7, input) else { return };
        let learned = Learned::from_answer(&query.question.name, &reply.records);
        assert!(learned.addresses.len() * 4 <= input.len(), "more addresses than there is room for");
        // Whatever was done to the message: nothing is learned that another reader does not find in its answers.
        let Ok(message) = Message::from_vec(input) else { return };
        let said: BTreeSet<IpAddr> = message
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            })
            .collect();
        for (address, _) in &learned.addresses {
            assert!(said.contains(address), "{address} is not in the answer section");
        }
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
