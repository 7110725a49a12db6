//! Queries, replies and refusals: what is let through and what is made here. PURE.
//!
//! Contract: a query is forwarded as it was sent, byte for byte but for its id, so that the letter
//! case of its name and its EDNS options arrive as they are. What is forwarded can be read in one way
//! only: one question, written out, and nothing behind the last record. A reply counts only when it
//! answers the question that was asked: same id, name, type and class.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::wire::{
    CLASS_IN, Fault, HEADER, Header, Question, Reader, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_AXFR, TYPE_IXFR,
    TYPE_OPT,
};
use crate::fqdn::{Learned, Record, RecordData};

/// What UDP payload an OPT record of ours offers (DNS Flag Day 2020).
const OUR_PAYLOAD: u16 = 1232;
const DNSSEC_OK: u32 = 0x8000;

/// Response codes that are made here (RFC 1035, section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
}

/// A query that may be forwarded once policy says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    pub question: Question,
    /// As it was written.
    question_wire: SmallVec<[u8; 64]>,
    recursion_desired: bool,
    /// The flags of its OPT record, if it has one.
    edns: Option<u32>,
}

/// A message that is not forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// No answer is due: too short to have an id, or itself a response.
    Drop(Fault),
    /// Answered with this message.
    Answer(Fault, Vec<u8>),
}

impl Unfit {
    pub fn fault(&self) -> Fault {
        match self {
            Unfit::Drop(fault) | Unfit::Answer(fault, _) => *fault,
        }
    }
}

impl Query {
    pub fn parse(message: &[u8]) -> Result<Query, Unfit> {
        let mut reader = Reader::new(message);
        let header = reader.header().map_err(Unfit::Drop)?;
        if header.is_response() {
            return Err(Unfit::Drop(Fault("a response where a query was expected")));
        }
        if header.opcode() != 0 {
            let fault = Fault("an operation other than a query");
            return Err(Unfit::Answer(fault, bare(&header, ResponseCode::NotImp)));
        }
        Query::read(&header, &mut reader)
            .map_err(|fault| Unfit::Answer(fault, bare(&header, ResponseCode::FormErr)))
    }

    fn read(header: &Header, reader: &mut Reader<'_>) -> Result<Query, Fault> {
        if header.questions != 1 || header.answers != 0 {
            return Err(Fault("a query has one question and no answers"));
        }
        // The first name of a message has nothing before it to point to: it is always written out.
        let question = reader.question()?;
        let question_wire = SmallVec::from_slice(reader.since(HEADER));
        let mut edns = None;
        for index in 0..u32::from(header.authorities) + u32::from(header.additionals) {
            let record = reader.record()?;
            if record.kind == TYPE_OPT {
                if !record.owner.is_empty() || edns.is_some() || index < u32::from(header.authorities) {
                    return Err(Fault("a misplaced OPT record"));
                }
                edns = Some(record.ttl);
            }
        }
        if !reader.is_at_end() {
            return Err(Fault("bytes behind the last record"));
        }
        let recursion_desired = header.recursion_desired();
        Ok(Query { id: header.id, question, question_wire, recursion_desired, edns })
    }

    /// Many messages may answer it (RFC 5936).
    pub fn is_transfer(&self) -> bool {
        matches!(self.question.kind, TYPE_AXFR | TYPE_IXFR)
    }

    /// An answer that has the client ask again over TCP (RFC 1035, section 4.2.1).
    pub fn truncation(&self) -> Vec<u8> {
        let mut answer = self.refusal(ResponseCode::NoError);
        answer[2] |= 0x02;
        answer
    }

    /// An answer without records: the question echoed, EDNS answered with EDNS.
    pub fn refusal(&self, code: ResponseCode) -> Vec<u8> {
        let question = &self.question_wire;
        let mut answer = Vec::with_capacity(HEADER + question.len() + 11);
        // QR and RA; a resolver that hears "no recursion" may turn to another server.
        let flags = 0x8080 | u16::from(self.recursion_desired) << 8 | code as u16;
        let counts = [self.id, flags, 1, 0, 0, u16::from(self.edns.is_some())];
        counts.iter().for_each(|word| answer.extend(word.to_be_bytes()));
        answer.extend_from_slice(question);
        if let Some(edns) = self.edns {
            answer.push(0);
            answer.extend(TYPE_OPT.to_be_bytes());
            answer.extend(OUR_PAYLOAD.to_be_bytes());
            answer.extend((edns & DNSSEC_OK).to_be_bytes());
            answer.extend(0u16.to_be_bytes());
        }
        answer
    }
}

/// A header alone, for queries whose question cannot be read.
fn bare(query: &Header, code: ResponseCode) -> Vec<u8> {
    let opcode = u16::from(query.opcode()) << 11;
    let flags = 0x8000 | opcode | u16::from(query.recursion_desired()) << 8 | code as u16;
    [query.id, flags, 0, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Gives a message another id. The message has a header.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// A reply that answers the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub rcode: u8,
    pub is_truncated: bool,
    /// Addresses and aliases of the answer section, in order.
    pub records: Vec<Record>,
}

/// Why a message that came back is no reply to the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stray {
    #[error("it answers another question")]
    Mismatch,
    /// It answers the question, in a way that cannot be read.
    #[error("{0}")]
    Malformed(Fault),
}

impl Reply {
    /// `id` is the one under which the query went upstream.
    pub fn parse(query: &Query, id: u16, message: &[u8]) -> Result<Reply, Stray> {
        let mut reader = Reader::new(message);
        let header = reader.header().map_err(|_| Stray::Mismatch)?;
        if !header.is_response() || header.id != id || header.opcode() != 0 {
            return Err(Stray::Mismatch);
        }
        let reply = |records| Reply { rcode: header.rcode(), is_truncated: header.is_truncated(), records };
        // A server that could not read the question need not repeat it; it cannot know an answer.
        if header.questions == 0 && header.rcode() != 0 && header.answers == 0 {
            return Ok(reply(Vec::new()));
        }
        // Most servers repeat it as it was sent.
        if header.questions != 1
            || !reader.repeats(&query.question_wire, &query.question)
                && reader.question().map_err(|_| Stray::Mismatch)? != query.question
        {
            return Err(Stray::Mismatch);
        }
        match read_answers(&mut reader, header.answers) {
            Ok(records) => Ok(reply(records)),
            // What was cut off may have been cut anywhere: the client asks again over TCP.
            Err(_) if header.is_truncated() => Ok(reply(Vec::new())),
            Err(fault) => Err(Stray::Malformed(fault)),
        }
    }
}

impl Reply {
    /// What the pod may reach because of it: the addresses that were asked for. A reply that does not say NOERROR (in its
    /// header, which is all that most clients look at) has none, whatever records it carries, and neither has one to a
    /// question of another kind: what a client does not take for the name's addresses is not to be opened.
    pub fn learned(&self, question: &Question) -> Learned {
        let is_asked_for = |record: &Record| match &record.data {
            RecordData::Address(IpAddr::V4(_)) => matches!(question.kind, TYPE_A | TYPE_ANY),
            RecordData::Address(IpAddr::V6(_)) => matches!(question.kind, TYPE_AAAA | TYPE_ANY),
            RecordData::Cname(_) => true,
        };
        let asks = matches!(question.kind, TYPE_A | TYPE_AAAA | TYPE_ANY) && question.class == CLASS_IN;
        if !asks || self.rcode != ResponseCode::NoError as u8 {
            return Learned { name: question.name.clone(), addresses: Vec::new() };
        }
        if self.records.iter().all(is_asked_for) {
            return Learned::from_answer(&question.name, &self.records);
        }
        let records: Vec<Record> =
            self.records.iter().filter(|record| is_asked_for(record)).cloned().collect();
        Learned::from_answer(&question.name, &records)
    }
}

fn read_answers(reader: &mut Reader<'_>, count: u16) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    for _ in 0..count {
        let head = reader.record()?;
        records.extend(reader.address_data(&head)?);
    }
    Ok(records)
}

#[cfg(test)]
mod tests;
