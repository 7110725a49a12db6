//! Records as bytes, many at a time.
//!
//! Contract: what was encoded is decoded, and anything else is an error. Texts and lists of rules stand once in a batch:
//! records of one moment are much alike, and what is decoded shares them, too. The form is protobuf, so that
//! proxies and an agent of neighbouring versions understand each other as far as they know the same members. What is
//! variable in length lies in one piece of memory for all of a batch, on both sides: there are thousands of records a
//! second, and traffic waits for the CPU meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use prost::Message as _;

use super::record::{Record, RecordVerdict};
use super::{HttpVersion, L7};
use crate::model::{Direction, Identity, Kind, ObjectRef};
use crate::policy::rule::RuleRef;

/// The bytes are no batch of records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a batch of records: {0}")]
pub struct NotABatch(String);

impl NotABatch {
    fn new(text: &str) -> NotABatch {
        NotABatch(text.to_owned())
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    /// UTF-8.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    texts: Vec<Bytes>,
    #[prost(message, repeated, tag = "2")]
    lists: Vec<Rules>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<Row>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Rules {
    #[prost(message, repeated, tag = "1")]
    rules: Vec<Rule>,
}

/// `kind`, `namespace` and `name` are places among the texts.
#[derive(Clone, PartialEq, prost::Message)]
struct Rule {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "2")]
    namespace: u32,
    #[prost(uint32, tag = "3")]
    name: u32,
    #[prost(uint32, tag = "4")]
    spec: u32,
    #[prost(uint32, tag = "5")]
    rule: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Row {
    #[prost(fixed64, tag = "1")]
    time_ns: u64,
    #[prost(bool, tag = "2")]
    is_ingress: bool,
    #[prost(uint32, tag = "3")]
    verdict: u32,
    #[prost(uint32, tag = "4")]
    protocol: u32,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "5")]
    client: Bytes,
    #[prost(uint32, tag = "6")]
    client_port: u32,
    #[prost(bytes = "bytes", tag = "7")]
    server: Bytes,
    #[prost(uint32, tag = "8")]
    server_port: u32,
    #[prost(uint32, tag = "9")]
    client_identity: u32,
    #[prost(uint32, tag = "10")]
    server_identity: u32,
    /// A place among the lists.
    #[prost(uint32, tag = "11")]
    rules: u32,
    #[prost(oneof = "Seen", tags = "12, 13, 14")]
    seen: Option<Seen>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Seen {
    #[prost(message, tag = "12")]
    Http(Http),
    #[prost(message, tag = "13")]
    Dns(Dns),
    #[prost(message, tag = "14")]
    Tls(Tls),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Http {
    #[prost(uint32, tag = "1")]
    method: u32,
    #[prost(uint32, tag = "2")]
    path: u32,
    #[prost(uint32, tag = "3")]
    host: u32,
    #[prost(uint32, tag = "4")]
    status: u32,
    #[prost(uint64, tag = "5")]
    latency_us: u64,
    /// 10, 11 or 20.
    #[prost(uint32, tag = "6")]
    version: u32,
    #[prost(uint32, repeated, tag = "7")]
    mismatches: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Dns {
    #[prost(uint32, tag = "1")]
    query: u32,
    #[prost(uint32, tag = "2")]
    query_type: u32,
    #[prost(uint32, tag = "3")]
    rcode: u32,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    answers: Vec<Bytes>,
    #[prost(uint64, tag = "5")]
    latency_us: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tls {
    #[prost(uint32, optional, tag = "1")]
    server_name: Option<u32>,
}

/// Texts and lists, each once.
#[derive(Default)]
struct Encoder<'a> {
    texts: HashMap<&'a str, u32>,
    lists: HashMap<&'a [RuleRef], u32>,
    room: Room,
    batch: Batch,
}

/// Memory that many short pieces share.
#[derive(Default)]
struct Room(BytesMut);

/// Bytes that are asked for at once.
const ROOM: usize = 4096;

impl Room {
    fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if self.0.capacity() < bytes.len() {
            self.0.reserve(bytes.len().max(ROOM));
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }

    fn octets(&mut self, address: &IpAddr) -> Bytes {
        match address {
            IpAddr::V4(address) => self.keep(&address.octets()),
            IpAddr::V6(address) => self.keep(&address.octets()),
        }
    }
}

impl<'a> Encoder<'a> {
    fn text(&mut self, text: &'a str) -> u32 {
        let (Batch { texts, .. }, room) = (&mut self.batch, &mut self.room);
        *self.texts.entry(text).or_insert_with(|| {
            texts.push(room.keep(text.as_bytes()));
            texts.len() as u32 - 1
        })
    }

    fn list(&mut self, rules: &'a [RuleRef]) -> u32 {
        if let Some(place) = self.lists.get(rules) {
            return *place;
        }
        let rule = |encoder: &mut Encoder<'a>, rule: &'a RuleRef| Rule {
            kind: kind_number(rule.object.kind),
            namespace: encoder.text(&rule.object.namespace),
            name: encoder.text(&rule.object.name),
            spec: rule.spec as u32,
            rule: rule.rule as u32,
        };
        let list = Rules { rules: rules.iter().map(|one| rule(self, one)).collect() };
        self.batch.lists.push(list);
        let place = self.batch.lists.len() as u32 - 1;
        self.lists.insert(rules, place);
        place
    }

    fn add(&mut self, record: &'a Record) {
        let seen = match &record.l7 {
            L7::Http { method, path, host, status, latency_us, version, mismatches } => Seen::Http(Http {
                method: self.text(method),
                path: self.text(path),
                host: self.text(host),
                status: (*status).into(),
                latency_us: *latency_us,
                version: match version {
                    HttpVersion::Http10 => 10,
                    HttpVersion::Http11 => 11,
                    HttpVersion::Http2 => 20,
                },
                mismatches: mismatches.iter().map(|name| self.text(name)).collect(),
            }),
            L7::Dns { query, query_type, rcode, answers, latency_us } => Seen::Dns(Dns {
                query: self.text(query),
                query_type: self.text(query_type),
                rcode: self.text(rcode),
                answers: answers.iter().map(|answer| self.room.octets(answer)).collect(),
                latency_us: *latency_us,
            }),
            L7::Tls { server_name } => {
                Seen::Tls(Tls { server_name: server_name.as_ref().map(|name| self.text(name)) })
            }
        };
        let row = Row {
            time_ns: record.time_ns,
            is_ingress: record.direction == Direction::Ingress,
            verdict: match record.verdict {
                RecordVerdict::Forwarded => 0,
                RecordVerdict::Denied => 1,
                RecordVerdict::Failed => 2,
            },
            protocol: record.protocol.into(),
            client: self.room.octets(&record.client.ip()),
            client_port: record.client.port().into(),
            server: self.room.octets(&record.server.ip()),
            server_port: record.server.port().into(),
            client_identity: record.client_identity.0,
            server_identity: record.server_identity.0,
            rules: self.list(&record.rules),
            seen: Some(seen),
        };
        self.batch.records.push(row);
    }
}

/// Records after which the encoder pauses.
const STRETCH: usize = 8;

/// Bytes of these records. `pause` is called every few microseconds: others may want the CPU.
pub fn encode(records: &[Record], mut pause: impl FnMut()) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for some in records.chunks(STRETCH) {
        some.iter().for_each(|record| encoder.add(record));
        pause();
    }
    encoder.batch.encode_to_vec()
}

/// The records, in their order.
pub fn decode(bytes: Bytes) -> Result<Vec<Record>, NotABatch> {
    let batch = Batch::decode(bytes).map_err(|error| NotABatch(error.to_string()))?;
    let text = |bytes: &Bytes| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Arc::from(text)),
        Err(_) => Err(NotABatch::new("a text that is not UTF-8")),
    };
    let texts: Vec<Arc<str>> = batch.texts.iter().map(text).collect::<Result<_, _>>()?;
    let text = |place: u32| {
        texts.get(place as usize).cloned().ok_or_else(|| NotABatch::new("a text that is not there"))
    };
    let rule = |rule: &Rule| {
        let kind = Kind::ALL.into_iter().find(|kind| kind_number(*kind) == rule.kind);
        let object = ObjectRef {
            kind: kind.ok_or_else(|| NotABatch::new("a kind of object that is not known"))?,
            namespace: text(rule.namespace)?,
            name: text(rule.name)?,
        };
        Ok(RuleRef { object, spec: rule.spec as usize, rule: rule.rule as usize })
    };
    let lists: Vec<Arc<[RuleRef]>> =
        batch.lists.iter().map(|list| list.rules.iter().map(rule).collect()).collect::<Result<_, _>>()?;
    batch.records.into_iter().map(|row| record(row, &text, &lists)).collect()
}

fn record(
    row: Row,
    text: &impl Fn(u32) -> Result<Arc<str>, NotABatch>,
    lists: &[Arc<[RuleRef]>],
) -> Result<Record, NotABatch> {
    let l7 = match row.seen.ok_or_else(|| NotABatch::new("a record of nothing that is known"))? {
        Seen::Http(http) => L7::Http {
            method: text(http.method)?,
            path: text(http.path)?,
            host: text(http.host)?,
            status: number(http.status)?,
            latency_us: http.latency_us,
            version: match http.version {
                10 => HttpVersion::Http10,
                20 => HttpVersion::Http2,
                _ => HttpVersion::Http11,
            },
            mismatches: http.mismatches.into_iter().map(text).collect::<Result<_, _>>()?,
        },
        Seen::Dns(dns) => L7::Dns {
            query: text(dns.query)?,
            query_type: text(dns.query_type)?,
            rcode: text(dns.rcode)?,
            answers: dns.answers.iter().map(|bytes| address(bytes)).collect::<Result<_, _>>()?,
            latency_us: dns.latency_us,
        },
        Seen::Tls(tls) => L7::Tls { server_name: tls.server_name.map(text).transpose()? },
    };
    Ok(Record {
        time_ns: row.time_ns,
        direction: if row.is_ingress { Direction::Ingress } else { Direction::Egress },
        verdict: match row.verdict {
            0 => RecordVerdict::Forwarded,
            1 => RecordVerdict::Denied,
            _ => RecordVerdict::Failed,
        },
        protocol: number(row.protocol)?,
        client: SocketAddr::new(address(&row.client)?, number(row.client_port)?),
        server: SocketAddr::new(address(&row.server)?, number(row.server_port)?),
        client_identity: Identity(row.client_identity),
        server_identity: Identity(row.server_identity),
        rules: lists
            .get(row.rules as usize)
            .cloned()
            .ok_or_else(|| NotABatch::new("a list of rules that is not there"))?,
        l7,
    })
}

/// The order in which they are listed, which only grows.
fn kind_number(kind: Kind) -> u32 {
    kind as u32
}

fn number<T: TryFrom<u32>>(number: u32) -> Result<T, NotABatch> {
    T::try_from(number).map_err(|_| NotABatch::new("a number that is too large"))
}

fn address(bytes: &[u8]) -> Result<IpAddr, NotABatch> {
    match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (Ok(v4), _) => Ok(v4.into()),
        (_, Ok(v6)) => Ok(v6.into()),
        _ => Err(NotABatch::new("an address of neither 4 nor 16 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(port: u16, rules: &Arc<[RuleRef]>, l7: L7) -> Record {
        Record {
            time_ns: 1_700_000_000_000_000_000 + u64::from(port),
            direction: Direction::Ingress,
            verdict: RecordVerdict::Denied,
            protocol: 17,
            client: SocketAddr::new("2001:db8::1".parse().unwrap(), port),
            server: "10.0.0.2:53".parse().unwrap(),
            client_identity: Identity(300),
            server_identity: Identity(1 << 24),
            rules: Arc::clone(rules),
            l7,
        }
    }

    fn records() -> Vec<Record> {
        let object = ObjectRef::new(Kind::CiliumNetworkPolicy, "shop", "names");
        let rules: Arc<[RuleRef]> = Arc::from([RuleRef { object, spec: 1, rule: 2 }]);
        let dns = L7::Dns {
            query: "a.example".into(),
            query_type: "A".into(),
            rcode: "NOERROR".into(),
            answers: vec!["192.0.2.1".parse().unwrap(), "2001:db8::2".parse().unwrap()],
            latency_us: 17,
        };
        let http = L7::Http {
            method: "GET".into(),
            path: "/a".into(),
            host: "a.example".into(),
            status: 403,
            latency_us: 1,
            version: HttpVersion::Http2,
            mismatches: vec!["x-token".into(), "a.example".into()],
        };
        let none = Arc::from([]);
        vec![
            record(1, &rules, dns),
            record(2, &none, http),
            record(3, &rules, L7::Tls { server_name: None }),
            record(4, &rules, L7::Tls { server_name: Some("a.example".into()) }),
        ]
    }

    #[test]
    fn records_come_back_as_they_were_and_share_what_is_the_same() {
        let decoded = decode(encode(&records(), || ()).into()).unwrap();
        assert_eq!(decoded, records());
        assert!(Arc::ptr_eq(&decoded[0].rules, &decoded[3].rules));
        let (L7::Dns { query, .. }, L7::Http { host, .. }) = (&decoded[0].l7, &decoded[1].l7) else {
            panic!()
        };
        assert!(Arc::ptr_eq(query, host));
    }

    #[test]
    fn every_kind_has_a_number_of_its_own() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind_number(kind) as usize, place);
        }
    }

    proptest! {
        #[test]
        fn other_bytes_are_refused_or_read_but_never_panic(
            place in 0usize..400, byte in any::<u8>(), noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            decode(noise.into()).ok();
            let mut bytes = encode(&records(), || ());
            if let Some(target) = bytes.get_mut(place) {
                *target = byte;
            }
            decode(bytes.into()).ok();
        }
    }
}
