//! The cluster's DNS: Services and the names of externals, NXDOMAIN for everything else.
//!
//! [`Zone`] is PURE: a question in, an answer out. Names are absolute and compared without case.
//! Aliases are followed inside the zone, so that one answer holds the whole chain.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::topology::{ServiceAnswer, Topology};

/// TTL of cluster names, in seconds.
const CLUSTER_TTL: u32 = 5;
const CLUSTER_DOMAIN: &str = "svc.cluster.local";
/// Most aliases that are followed for one question.
const MAX_ALIASES: usize = 8;
/// What a client takes over UDP without EDNS (RFC 1035).
const PLAIN_UDP_SIZE: usize = 512;
/// What we offer and never exceed over UDP: the size that DNS Flag Day 2020 settled on.
const MAX_UDP_SIZE: u16 = 1232;

/// How the question came, which limits the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// What a name has; times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// Each with the time that its own host or Service gives it.
    Addresses(Vec<(IpAddr, u32)>),
    Alias {
        target: String,
        ttl: u32,
    },
}

/// Every name that the cluster DNS knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    owners: BTreeMap<String, Owner>,
}

impl Zone {
    pub fn of(topology: &Topology) -> Zone {
        let mut zone = Zone::default();
        for service in &topology.services {
            let name = format!("{}.{}.{CLUSTER_DOMAIN}", service.name, service.namespace);
            let owner = match &service.answer {
                ServiceAnswer::Addresses(addresses) => {
                    Owner::Addresses(addresses.iter().map(|address| (*address, CLUSTER_TTL)).collect())
                }
                ServiceAnswer::Alias(target) => Owner::Alias { target: key(target), ttl: CLUSTER_TTL },
            };
            zone.owners.insert(key(&name), owner);
        }
        for external in &topology.externals {
            for name in &external.names {
                let owner = zone.owners.entry(key(name)).or_insert(Owner::Addresses(Vec::new()));
                // Several externals may share a name: a round robin of all their addresses.
                if let Owner::Addresses(addresses) = owner {
                    addresses.extend(external.addresses.iter().map(|address| (*address, external.ttl)));
                }
            }
            for alias in &external.aliases {
                let owner = Owner::Alias { target: key(&alias.target), ttl: external.ttl };
                zone.owners.insert(key(&alias.name), owner);
            }
        }
        zone
    }

    /// The wire form of the answer to a wire question. `None` for what is no question at all.
    pub fn answer(&self, question: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        let request = Message::from_vec(question).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let response = self.respond(&request);
        let limit = match carrier {
            Carrier::Tcp => usize::from(u16::MAX),
            Carrier::Udp => request
                .edns
                .as_ref()
                .map_or(PLAIN_UDP_SIZE, |edns| usize::from(edns.max_payload().clamp(512, MAX_UDP_SIZE))),
        };
        let wire = response.to_vec().ok()?;
        if wire.len() <= limit { Some(wire) } else { response.truncate().to_vec().ok() }
    }

    fn respond(&self, request: &Message) -> Message {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_SIZE);
            response.set_edns(edns);
        }
        response.metadata.response_code = match request.queries.as_slice() {
            _ if request.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
            [query] if query.query_class() == DNSClass::IN => {
                response.metadata.authoritative = true;
                self.resolve(query, &mut response)
            }
            [_] => ResponseCode::Refused,
            _ => ResponseCode::FormErr,
        };
        response
    }

    fn resolve(&self, query: &Query, response: &mut Message) -> ResponseCode {
        let mut owner = query.name().clone();
        for _ in 0..MAX_ALIASES {
            let Some(found) = self.owners.get(&key(&owner.to_ascii())) else {
                // RFC 6604: the code belongs to the last name of the chain.
                return ResponseCode::NXDomain;
            };
            match found {
                Owner::Addresses(addresses) => {
                    let wanted = addresses
                        .iter()
                        .filter_map(|(address, ttl)| Some((record(*address, query.query_type())?, *ttl)));
                    // Records of one name and type have one TTL (RFC 2181, section 5.2): the shortest one.
                    let ttl = wanted.clone().map(|(_, ttl)| ttl).min().unwrap_or_default();
                    for (data, _) in wanted {
                        response.add_answer(Record::from_rdata(owner.clone(), ttl, data));
                    }
                    return ResponseCode::NoError;
                }
                Owner::Alias { target, ttl } => {
                    let Ok(target) = Name::from_ascii(format!("{target}.")) else {
                        return ResponseCode::ServFail;
                    };
                    let data = RData::CNAME(CNAME(target.clone()));
                    response.add_answer(Record::from_rdata(owner, *ttl, data));
                    if query.query_type() == RecordType::CNAME {
                        return ResponseCode::NoError;
                    }
                    owner = target;
                }
            }
        }
        ResponseCode::ServFail
    }
}

/// Lower case, without the trailing dot.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The address as a record of the wanted type, if it is one.
fn record(address: IpAddr, wanted: RecordType) -> Option<RData> {
    match (address, wanted) {
        (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A(A(address))),
        (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(address))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::{Alias, ExternalSpec, ServiceSpec};

    fn zone() -> Zone {
        let addresses = |range: std::ops::RangeInclusive<u8>| -> Vec<IpAddr> {
            range.map(|last| IpAddr::from([203, 0, 113, last])).collect()
        };
        let external = |name: &str, addresses, aliases| ExternalSpec {
            name: name.into(),
            addresses,
            ports: vec![],
            names: vec![format!("{name}.example")],
            aliases,
            ttl: 30,
        };
        let alias = Alias { name: "pay.example".into(), target: "assets.media.svc.cluster.local".into() };
        Zone::of(&Topology {
            externals: vec![
                external("cdn", addresses(10..=11), vec![alias]),
                external("big", addresses(1..=200), vec![]),
            ],
            services: vec![ServiceSpec {
                namespace: "media".into(),
                name: "assets".into(),
                answer: ServiceAnswer::Alias("cdn.example".into()),
            }],
            ..Topology::default()
        })
    }

    fn ask(name: &str, kind: RecordType, carrier: Carrier) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = zone().answer(&question.to_vec().unwrap(), carrier).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        assert_eq!(answer.queries, question.queries);
        answer
    }

    #[test]
    fn an_alias_chain_is_answered_whole_with_each_owners_ttl() {
        let answer = ask("Pay.Example.", RecordType::A, Carrier::Udp);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        let ttls: Vec<u32> = answer.answers.iter().map(|record| record.ttl).collect();
        assert_eq!(ttls, [30, CLUSTER_TTL, 30, 30]);
        assert_eq!(answer.answers[1].name, Name::from_ascii("assets.media.svc.cluster.local.").unwrap());
    }

    #[test]
    fn externals_that_share_a_name_give_the_shortest_ttl_of_what_is_answered() {
        let external = |address: &str, ttl| ExternalSpec {
            name: format!("{ttl}"),
            addresses: vec![address.parse().unwrap()],
            ports: vec![],
            names: vec!["shared.example".into()],
            aliases: vec![],
            ttl,
        };
        let zone = Zone::of(&Topology {
            externals: vec![
                external("203.0.113.1", 60),
                external("203.0.113.2", 10),
                external("2001:db8::1", 5),
            ],
            ..Topology::default()
        });
        let ttls = |kind| -> Vec<u32> {
            let mut question = Message::query();
            question.add_query(Query::query(Name::from_ascii("shared.example.").unwrap(), kind));
            let answer = zone.answer(&question.to_vec().unwrap(), Carrier::Udp).unwrap();
            Message::from_vec(&answer).unwrap().answers.iter().map(|record| record.ttl).collect()
        };
        assert_eq!((ttls(RecordType::A), ttls(RecordType::AAAA)), (vec![10, 10], vec![5]));
    }

    #[test]
    fn a_known_name_without_the_type_is_empty_and_an_unknown_name_does_not_exist() {
        let answer = ask("cdn.example.", RecordType::AAAA, Carrier::Udp);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        let answer = ask("evil.example.", RecordType::A, Carrier::Udp);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
        let answer = ask("big.example.", RecordType::A, Carrier::Udp);
        assert!(answer.metadata.truncation);
        assert_eq!(ask("big.example.", RecordType::A, Carrier::Tcp).answers.len(), 200);
    }

    #[test]
    fn noise_gets_no_answer() {
        assert_eq!(zone().answer(b"GET / HTTP/1.1\r\n\r\n", Carrier::Udp), None);
        let own_answer = zone().answer(&Message::query().to_vec().unwrap(), Carrier::Udp).unwrap();
        assert_eq!(zone().answer(&own_answer, Carrier::Udp), None, "answers are not answered");
    }
}
