//! The cluster DNS, and what a DNS proxy learns from its answers.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::world::World;
use crate::fqdn::{Learned, Record, RecordData};
use crate::lab::dns::Carrier;
use crate::model::Family;
use crate::policy::l7::names::canonical;
use crate::policy::oracle;

/// What the cluster DNS answers.
#[derive(Clone, Debug)]
pub(super) struct DnsAnswer {
    /// The answer was cut: the client has to ask again over TCP.
    pub(super) truncated: bool,
    pub(super) addresses: Vec<IpAddr>,
    records: Vec<Record>,
}

/// The record type of addresses of a family.
pub(super) fn address_record(family: Family) -> &'static str {
    match family {
        Family::IPv4 => "A",
        Family::IPv6 => "AAAA",
    }
}

impl World {
    /// `None`: a name or type that cannot be asked for.
    pub(super) fn ask(&self, name: &str, record: &str, carrier: Carrier) -> Option<DnsAnswer> {
        let mut absolute = Name::from_ascii(name).ok()?;
        absolute.set_fqdn(true);
        let record: RecordType = record.parse().ok()?;
        let mut question = Message::query();
        question.add_query(Query::query(absolute, record));
        let wire = self.zone.answer(&question.to_vec().ok()?, carrier)?;
        let answer = Message::from_vec(&wire).ok()?;
        let records: Vec<Record> = answer
            .answers
            .iter()
            .filter_map(|record| {
                let data = match &record.data {
                    RData::A(address) => RecordData::Address(IpAddr::V4(address.0)),
                    RData::AAAA(address) => RecordData::Address(IpAddr::V6(address.0)),
                    RData::CNAME(target) => RecordData::Cname(target.0.to_ascii()),
                    _ => return None,
                };
                let ttl = Duration::from_secs(u64::from(record.ttl));
                Some(Record { owner: record.name.to_ascii().into(), ttl, data })
            })
            .collect();
        let addresses = records.iter().filter_map(|record| match record.data {
            RecordData::Address(address) => Some(address),
            RecordData::Cname(_) => None,
        });
        Some(DnsAnswer { truncated: answer.metadata.truncation, addresses: addresses.collect(), records })
    }

    /// The proxy of `node` has released the answer for `name` to a pod.
    pub(super) fn release(&mut self, node: &str, name: &str, answer: &DnsAnswer) {
        let learned = Learned::from_answer(&name.into(), &answer.records);
        // The evaluator in its own words: the asked name owns every address of the answer, for
        // the shortest time that any record on the way gives, and long enough to connect at once.
        let ttl = answer.records.iter().map(|record| record.ttl).min().unwrap_or_default();
        let ttl = ttl.max(Duration::from_secs(1));
        let answers = answer.addresses.iter().map(|address| oracle::Answer {
            node: node.to_owned(),
            name: canonical(name),
            address: *address,
            expires: self.now + ttl,
        });
        let answers = answers.collect();
        self.learn(node, &learned, answers);
    }
}
