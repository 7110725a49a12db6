//! Messages of another implementation against ours, and what must not pass.

use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query as Asked, ResponseCode as Code};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record as Answer, RecordType};
use proptest::prelude::*;

use super::*;
use crate::fqdn::RecordData;

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    edns.set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.add_queries(query.queries.iter().cloned());
    reply
}

#[test]
fn a_query_is_read_whole() {
    let message = with_edns(question("WwW.Example.", RecordType::AAAA));
    let query = Query::parse(&message.to_vec().unwrap()).unwrap();
    assert_eq!((query.id, &*query.question.name), (message.metadata.id, "www.example"));
    assert!(query.edns.is_some() && query.recursion_desired && !query.is_transfer());
}

#[test]
fn a_truncation_asks_for_tcp() {
    let query = Query::parse(&question("a.example.", RecordType::A).to_vec().unwrap()).unwrap();
    let read = Message::from_vec(&query.truncation()).unwrap();
    assert!(read.metadata.truncation && read.answers.is_empty());
    assert_eq!((read.metadata.response_code, read.metadata.id), (Code::NoError, query.id));
}

#[test]
fn a_refusal_echoes_the_question_as_it_was_written_and_edns() {
    let wire = with_edns(question("WwW.Example.", RecordType::A)).to_vec().unwrap();
    let query = Query::parse(&wire).unwrap();
    let refusal = query.refusal(ResponseCode::Refused);
    let read = Message::from_vec(&refusal).unwrap();
    assert_eq!(read.metadata.response_code, Code::Refused);
    assert_eq!(read.metadata.id, query.id);
    assert!(read.metadata.recursion_desired);
    assert_eq!(read.queries[0].name().to_ascii(), "WwW.Example.");
    assert!(read.edns.unwrap().flags().dnssec_ok);
    let plain = question("a.", RecordType::A).to_vec().unwrap();
    let refusal = Query::parse(&plain).unwrap().refusal(ResponseCode::NxDomain);
    let read = Message::from_vec(&refusal).unwrap();
    assert!(read.edns.is_none());
    assert_eq!(read.metadata.response_code, Code::NXDomain);
}

#[test]
fn what_can_be_read_in_two_ways_is_a_format_error() {
    let good = with_edns(question("a.example.", RecordType::A)).to_vec().unwrap();
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut wire = good.clone();
        change(&mut wire);
        wire
    };
    for (what, wire) in [
        ("no question", broken(&|wire| wire[5] = 0)),
        ("two questions", broken(&|wire| wire[5] = 2)),
        ("an answer", broken(&|wire| wire[7] = 1)),
        ("a record that is not there", broken(&|wire| wire[11] = 2)),
        ("bytes behind", broken(&|wire| wire.push(0))),
        ("cut", broken(&|wire| wire.truncate(wire.len() - 1))),
        ("a pointer to itself", broken(&|wire| wire[12..14].copy_from_slice(&[0xc0, 12]))),
        ("a pointer into the header", broken(&|wire| wire[12..14].copy_from_slice(&[0xc0, 4]))),
        ("OPT as an authority", broken(&|wire| (wire[9], wire[11]) = (1, 0))),
    ] {
        match Query::parse(&wire) {
            Err(Unfit::Answer(_, answer)) => {
                let read = Message::from_vec(&answer).unwrap();
                assert_eq!(read.metadata.response_code, Code::FormErr, "{what}");
                assert_eq!(answer[..2], wire[..2], "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn responses_and_scraps_get_no_answer() {
    let reply = reply_to(&question("a.", RecordType::A)).to_vec().unwrap();
    assert!(matches!(Query::parse(&reply), Err(Unfit::Drop(_))));
    assert!(matches!(Query::parse(b"short"), Err(Unfit::Drop(_))));
    let mut update = question("a.", RecordType::A).to_vec().unwrap();
    update[2] |= 5 << 3;
    assert!(matches!(Query::parse(&update), Err(Unfit::Answer(_, answer)) if answer[3] & 0xf == 4));
}

#[test]
fn a_reply_must_answer_the_question() {
    let asked = question("a.example.", RecordType::A);
    let query = Query::parse(&asked.to_vec().unwrap()).unwrap();
    let reply = |change: &dyn Fn(&mut Message)| {
        let mut reply = reply_to(&asked);
        change(&mut reply);
        Reply::parse(&query, asked.metadata.id, &reply.to_vec().unwrap())
    };
    assert!(reply(&|_| ()).is_ok());
    let other = |name, kind| Asked::query(Name::from_ascii(name).unwrap(), kind);
    assert_eq!(reply(&|reply| reply.metadata.id ^= 1), Err(Stray::Mismatch));
    assert_eq!(
        reply(&|reply| reply.queries = vec![other("b.example.", RecordType::A)]),
        Err(Stray::Mismatch)
    );
    assert_eq!(
        reply(&|reply| reply.queries = vec![other("a.example.", RecordType::TXT)]),
        Err(Stray::Mismatch)
    );
    assert_eq!(reply(&|reply| reply.queries.clear()), Err(Stray::Mismatch));
    assert!(reply(&|reply| reply.queries = vec![other("A.eXample.", RecordType::A)]).is_ok());
    let failed = reply(&|reply| {
        reply.queries.clear();
        reply.metadata.response_code = Code::ServFail;
    });
    assert_eq!(failed.unwrap().rcode, 2);
    assert_eq!(Reply::parse(&query, asked.metadata.id, &asked.to_vec().unwrap()), Err(Stray::Mismatch));
}

/// Server failures with an address, and addresses in replies to TXT queries, were learned.
#[test]
fn only_addresses_that_were_asked_for_are_learned() {
    let learned = |kind, code, records: &[(&str, RData)]| {
        let asked = question("a.example.", kind);
        let query = Query::parse(&asked.to_vec().unwrap()).unwrap();
        let mut reply = reply_to(&asked);
        reply.metadata.response_code = code;
        for (owner, data) in records {
            reply.add_answer(Answer::from_rdata(Name::from_ascii(owner).unwrap(), 60, data.clone()));
        }
        let reply = Reply::parse(&query, query.id, &reply.to_vec().unwrap()).unwrap();
        let addresses = reply.learned(&query.question).addresses;
        addresses.into_iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>()
    };
    let (v4, v6) = (RData::A(A::new(192, 0, 2, 1)), RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));
    let alias = RData::CNAME(CNAME(Name::from_ascii("b.example.").unwrap()));
    let both = [("a.example.", v4.clone()), ("a.example.", v6.clone())];
    let chain = [("a.example.", alias), ("b.example.", v4), ("b.example.", v6)];
    for records in [&both[..], &chain[..]] {
        assert_eq!(learned(RecordType::A, Code::NoError, records), ["192.0.2.1"]);
        assert_eq!(learned(RecordType::AAAA, Code::NoError, records), ["2001:db8::1"]);
        assert_eq!(learned(RecordType::ANY, Code::NoError, records), ["192.0.2.1", "2001:db8::1"]);
        for kind in [RecordType::TXT, RecordType::CNAME, RecordType::HTTPS, RecordType::SRV] {
            assert!(learned(kind, Code::NoError, records).is_empty(), "{kind}");
        }
        for code in [Code::ServFail, Code::NXDomain, Code::Refused, Code::FormErr] {
            assert!(learned(RecordType::A, code, records).is_empty(), "{code}");
        }
    }
}

#[test]
fn the_records_of_a_reply_are_read_through_compression() {
    let asked = question("www.example.", RecordType::A);
    let query = Query::parse(&asked.to_vec().unwrap()).unwrap();
    let mut reply = reply_to(&asked);
    let cdn = Name::from_ascii("edge.Example.").unwrap();
    reply.add_answer(Answer::from_rdata(
        asked.queries[0].name().clone(),
        60,
        RData::CNAME(CNAME(cdn.clone())),
    ));
    reply.add_answer(Answer::from_rdata(cdn, 5, RData::A(A::new(192, 0, 2, 1))));
    let mut wire = reply.to_vec().unwrap();
    let read = Reply::parse(&query, asked.metadata.id, &wire).unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(
        read.records,
        [
            Record {
                owner: "www.example".into(),
                ttl: seconds(60),
                data: RecordData::Cname("edge.example".into())
            },
            Record {
                owner: "edge.example".into(),
                ttl: seconds(5),
                data: RecordData::Address("192.0.2.1".parse().unwrap())
            },
        ]
    );
    wire.truncate(wire.len() - 1);
    assert!(matches!(Reply::parse(&query, asked.metadata.id, &wire), Err(Stray::Malformed(_))));
    wire[2] |= 2;
    let cut = Reply::parse(&query, asked.metadata.id, &wire).unwrap();
    assert!(cut.is_truncated && cut.records.is_empty(), "a truncated reply may be cut anywhere");
}

proptest! {
    #[test]
    fn no_change_of_a_byte_panics_or_makes_an_unreadable_answer(
        at in 0usize..60, value: u8, cut in 0usize..60,
    ) {
        let mut wire = with_edns(question("www.example.", RecordType::A)).to_vec().unwrap();
        let place = at % wire.len();
        wire[place] = value;
        wire.truncate(wire.len().saturating_sub(cut / 2));
        match Query::parse(&wire) {
            Ok(query) => {
                let refusal = query.refusal(ResponseCode::Refused);
                prop_assert!(Message::from_vec(&refusal).is_ok());
                let _ = Reply::parse(&query, query.id, &wire);
                let _ = Reply::parse(&query, query.id, &refusal);
            }
            Err(Unfit::Answer(_, answer)) => prop_assert!(Message::from_vec(&answer).is_ok()),
            Err(Unfit::Drop(_)) => {}
        }
    }
}

/// Crafted answers (CVE-2025-23028 in a peer): each is refused or read, and opens nothing that was not asked for.
#[test]
fn crafted_answers_open_nothing_more() {
    let query = Query::parse(&question("pay.example.", RecordType::A).to_vec().unwrap()).unwrap();
    let mut asked = question("pay.example.", RecordType::A);
    asked.metadata.id = 7;
    let asked = asked.to_vec().unwrap();
    let response = |flags: u8, answers: u16, rest: &[u8]| {
        let mut message = asked.clone();
        message[2] |= 0x80 | flags;
        message[6..8].copy_from_slice(&answers.to_be_bytes());
        message.extend(rest);
        message
    };
    let record = |owner: &[u8], last: u8| [owner, &[0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, last]].concat();
    let learned = |message: &[u8]| {
        let reply = Reply::parse(&query, 7, message)?;
        Ok::<_, Stray>(reply.learned(&query.question).addresses.len())
    };
    let at = asked.len() as u8;
    assert_eq!(learned(&response(0, 1, &record(&[0xc0, 12], 1))), Ok(1));
    for looping in [[0xc0, at], [0xc0, at + 1], [0xff, 0xff]] {
        assert!(matches!(learned(&response(0, 1, &record(&looping, 1))), Err(Stray::Malformed(_))));
    }
    let poison = record(b"\x04bank\x00", 66);
    assert_eq!(learned(&response(0, 1, &poison)), Ok(0), "another name");
    assert_eq!(learned(&response(0, 0, &record(&[0xc0, 12], 1))), Ok(0), "behind the answer section");
    let giant: Vec<u8> = (0..3000).flat_map(|_| record(&[0xc0, 12], 1)).collect();
    assert_eq!(learned(&response(0, 3000, &giant)), Ok(1), "the same address, again and again");
    let cut = [record(&[0xc0, 12], 1), record(&[0xc0, 12], 2)[..9].to_vec()].concat();
    assert!(matches!(learned(&response(0, 2, &cut)), Err(Stray::Malformed(_))));
    assert_eq!(learned(&response(2, 2, &cut)), Ok(0), "truncated: the client asks again over TCP");
}
