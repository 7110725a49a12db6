//! Reading DNS messages, strictly. PURE.
//!
//! Contract (RFC 1035, section 4; RFC 6891): never panics, never loops, reads nothing twice. A
//! compression pointer must lead backwards, and each one further back than the last, so that a name
//! costs no more steps than it has bytes. Names come out as canonical text ([`Reader::name`]).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::fqdn::{Record, RecordData};

/// Bytes of the fixed header.
pub const HEADER: usize = 12;
/// Longest name on the wire, with its length bytes and the root.
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

pub const TYPE_A: u16 = 1;
pub const TYPE_CNAME: u16 = 5;
pub const TYPE_AAAA: u16 = 28;
pub const TYPE_OPT: u16 = 41;
pub const TYPE_IXFR: u16 = 251;
pub const TYPE_AXFR: u16 = 252;
/// Every type (RFC 1035, section 3.2.3).
pub const TYPE_ANY: u16 = 255;
pub const CLASS_IN: u16 = 1;

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub &'static str);

/// The fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: u16,
    flags: u16,
    pub questions: u16,
    pub answers: u16,
    pub authorities: u16,
    pub additionals: u16,
}

impl Header {
    pub fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    pub fn opcode(&self) -> u8 {
        (self.flags >> 11 & 0xf) as u8
    }

    pub fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    pub fn recursion_desired(&self) -> bool {
        self.flags & 0x0100 != 0
    }

    /// The lower four bits of the response code; the rest is in the OPT record.
    pub fn rcode(&self) -> u8 {
        (self.flags & 0xf) as u8
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Canonical text; empty is the root.
    pub name: Arc<str>,
    pub kind: u16,
    pub class: u16,
}

/// What stands before a record's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHead {
    pub owner: Arc<str>,
    pub kind: u16,
    /// Payload size in an OPT record.
    pub class: u16,
    pub ttl: u32,
    /// Where the data is.
    pub start: usize,
    pub end: usize,
}

/// Reads a message front to back.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    message: &'a [u8],
    at: usize,
    /// The name behind the header: what most records point to.
    first: Option<Arc<str>>,
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8]) -> Reader<'a> {
        Reader { message, at: 0, first: None }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.message.len()
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(length).ok_or(Fault("message ends early"))?;
        let bytes = self.message.get(self.at..end).ok_or(Fault("message ends early"))?;
        self.at = end;
        Ok(bytes)
    }

    pub fn header(&mut self) -> Result<Header, Fault> {
        Ok(Header {
            id: self.u16()?,
            flags: self.u16()?,
            questions: self.u16()?,
            answers: self.u16()?,
            authorities: self.u16()?,
            additionals: self.u16()?,
        })
    }

    /// What was read from here on.
    pub fn since(&self, start: usize) -> &'a [u8] {
        self.message.get(start..self.at).unwrap_or_default()
    }

    /// Steps over the first question of the message if it is `question`, which is written so. `false`: it may be written
    /// in another way.
    pub fn repeats(&mut self, wire: &[u8], question: &Question) -> bool {
        let is_so = self.at == HEADER && self.message[HEADER.min(self.message.len())..].starts_with(wire);
        if is_so {
            self.at += wire.len();
            self.first = Some(question.name.clone());
        }
        is_so
    }

    pub fn question(&mut self) -> Result<Question, Fault> {
        let is_first = self.at == HEADER;
        let name = self.name()?;
        if is_first {
            self.first = Some(name.clone());
        }
        Ok(Question { name, kind: self.u16()?, class: self.u16()? })
    }

    /// Reads a record and steps over its data.
    pub fn record(&mut self) -> Result<RecordHead, Fault> {
        let owner = self.name()?;
        let (kind, class, ttl) = (self.u16()?, self.u16()?, self.u32()?);
        let length = usize::from(self.u16()?);
        let start = self.at;
        self.take(length)?;
        Ok(RecordHead { owner, kind, class, ttl, start, end: self.at })
    }

    /// What a record of the answer section says about addresses; `None` for other types, and for IPv4 addresses in the
    /// guise of IPv6.
    pub fn address_data(&self, head: &RecordHead) -> Result<Option<Record>, Fault> {
        if head.class != CLASS_IN {
            return Ok(None);
        }
        let data = &self.message[head.start..head.end];
        let data = match head.kind {
            TYPE_A => {
                let bytes = <[u8; 4]>::try_from(data).map_err(|_| Fault("A record is not 4 bytes"))?;
                RecordData::Address(IpAddr::from(bytes))
            }
            TYPE_AAAA => {
                let address = <[u8; 16]>::try_from(data).map_err(|_| Fault("AAAA record is not 16 bytes"))?;
                let address = Ipv6Addr::from(address);
                // No packet has such an address (RFC 4291, section 2.5.5.2), and in the kernel's tables it means an IPv4
                // address, of which an AAAA record has nothing to say.
                if address.to_ipv4_mapped().is_some() {
                    return Ok(None);
                }
                RecordData::Address(IpAddr::V6(address))
            }
            TYPE_CNAME => {
                let mut inner = Reader { message: self.message, at: head.start, first: self.first.clone() };
                let target = inner.name()?.to_string();
                if inner.at != head.end {
                    return Err(Fault("CNAME record is not one name"));
                }
                RecordData::Cname(target)
            }
            _ => return Ok(None),
        };
        // RFC 2181, section 8: a TTL with the highest bit set is zero.
        let ttl = if head.ttl > i32::MAX as u32 { 0 } else { head.ttl };
        Ok(Some(Record { owner: head.owner.clone(), ttl: Duration::from_secs(u64::from(ttl)), data }))
    }

    /// A name as canonical text: lower case, dots between labels, none at the end. A dot, a
    /// backslash or a byte that is no visible ASCII inside a label is escaped as `\DDD`, so that a
    /// label can never look like two.
    pub fn name(&mut self) -> Result<Arc<str>, Fault> {
        if let (Some(first), Some([0xc0, place])) = (&self.first, self.message.get(self.at..self.at + 2))
            && usize::from(*place) == HEADER
        {
            self.at += 2;
            return Ok(first.clone());
        }
        let mut text = Text::new();
        let mut length = 1;
        // Where the name began that is being read: pointers must lead to before it.
        let mut begin = self.at;
        let mut at = self.at;
        let mut resume = None;
        loop {
            let first = *self.message.get(at).ok_or(Fault("name ends early"))?;
            match first >> 6 {
                0b00 if first == 0 => {
                    self.at = resume.unwrap_or(at + 1);
                    return Ok(str::from_utf8(&text).map_err(|_| Fault("name is no text"))?.into());
                }
                0b00 => {
                    let size = usize::from(first);
                    debug_assert!(size <= MAX_LABEL);
                    length += size + 1;
                    if length > MAX_NAME {
                        return Err(Fault("name is longer than 255 bytes"));
                    }
                    let label = self.message.get(at + 1..at + 1 + size).ok_or(Fault("name ends early"))?;
                    if !text.is_empty() {
                        text.push(b'.');
                    }
                    push_label(&mut text, label);
                    at += size + 1;
                }
                0b11 => {
                    let second = *self.message.get(at + 1).ok_or(Fault("name ends early"))?;
                    let target = usize::from(first & 0x3f) << 8 | usize::from(second);
                    if target >= begin || target < HEADER {
                        return Err(Fault("compression pointer does not lead backwards"));
                    }
                    resume.get_or_insert(at + 2);
                    begin = target;
                    at = target;
                }
                _ => return Err(Fault("label of an unknown kind")),
            }
        }
    }
}

/// ASCII. Most names are put together on the stack.
type Text = SmallVec<[u8; 128]>;

fn push_label(text: &mut Text, label: &[u8]) {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if label.iter().all(is_plain) {
        let start = text.len();
        text.extend_from_slice(label);
        text[start..].make_ascii_lowercase();
        return;
    }
    for byte in label {
        if byte.is_ascii_graphic() && !matches!(byte, b'.' | b'\\') {
            text.push(byte.to_ascii_lowercase());
        } else {
            text.push(b'\\');
            text.extend([byte / 100, byte / 10 % 10, byte % 10].map(|digit| b'0' + digit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    /// Reads a name behind an empty header; places are counted from there.
    fn name_at(names: &[u8], at: usize) -> Result<(Arc<str>, usize), Fault> {
        let message = [&[0; HEADER], names].concat();
        let mut reader = Reader { message: &message, at: HEADER + at, first: None };
        let name = reader.name()?;
        Ok((name, reader.at - HEADER))
    }

    #[test]
    fn a_name_is_lower_case_text_without_the_last_dot() {
        assert_eq!(name_at(b"\x03wWw\x07Example\x00", 0), Ok(("www.example".into(), 13)));
        assert_eq!(name_at(b"\x00", 0), Ok(("".into(), 1)));
    }

    #[test]
    fn a_dot_inside_a_label_is_no_separator() {
        assert_eq!(&*name_at(b"\x03a.b\x01c\x00", 0).unwrap().0, "a\\046b.c");
        assert_eq!(&*name_at(b"\x03a\\\x00\x00", 0).unwrap().0, "a\\092\\000");
    }

    #[test]
    fn pointers_lead_backwards_or_nowhere() {
        let message = b"\x01b\x00\x01a\xc0\x0c\xc0\x0f";
        assert_eq!(name_at(message, 3), Ok(("a.b".into(), 7)));
        assert_eq!(name_at(message, 7), Ok(("a.b".into(), 9)));
        for looping in
            [&b"\xc0\x0c"[..], b"\x01a\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\xc0\x0e\x00", b"\xc0\x04\x00"]
        {
            assert!(name_at(looping, 0).is_err(), "{looping:?}");
        }
        assert!(name_at(b"\x01a\xc0\x0e", 2).is_err());
    }

    #[test]
    fn names_that_are_too_long_or_cut_are_refused() {
        let long = [[63u8; 64]; 4].concat();
        assert_eq!(name_at(&long, 0), Err(Fault("name is longer than 255 bytes")));
        for cut in [&b""[..], b"\x03ab", b"\x01a", b"\xc0", b"\x40a\x00", b"\x80a\x00"] {
            assert!(name_at(cut, 0).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn an_aaaa_record_says_nothing_about_ipv4_addresses() {
        let says = |address: &str| {
            let address: Ipv6Addr = address.parse().unwrap();
            let mut message = b"\x01a\x00\x00\x1c\x00\x01\x00\x00\x00\x3c\x00\x10".to_vec();
            message.extend(address.octets());
            let mut reader = Reader::new(&message);
            let head = reader.record().unwrap();
            reader.address_data(&head).unwrap().map(|record| record.data)
        };
        assert_eq!(says("::ffff:10.0.0.1"), None);
        let known = "2001:db8::1".parse().unwrap();
        assert_eq!(says("2001:db8::1"), Some(RecordData::Address(known)));
    }

    /// Reads everything there is to read.
    fn read_all(message: &[u8]) -> Result<usize, Fault> {
        let mut reader = Reader::new(message);
        let header = reader.header()?;
        for _ in 0..header.questions {
            reader.question()?;
        }
        let records =
            u32::from(header.answers) + u32::from(header.authorities) + u32::from(header.additionals);
        for _ in 0..records {
            let head = reader.record()?;
            reader.address_data(&head)?;
        }
        Ok(reader.position())
    }

    proptest! {
        #[test]
        fn noise_never_panics(message in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read_all(&message);
        }

        #[test]
        fn noise_after_a_plausible_header_never_panics(
            mut message in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xc0), Just(12), any::<u8>()], 12..300),
        ) {
            message[4..12].copy_from_slice(&[0, 1, 0, 4, 0, 0, 0, 1]);
            let _ = read_all(&message);
        }

        #[test]
        fn another_reader_reads_the_same_question(
            labels in prop::collection::vec("[a-zA-Z0-9_][a-zA-Z0-9_-]{0,19}", 1..6),
            kind in prop_oneof![Just(RecordType::A), Just(RecordType::TXT), Just(RecordType::AAAA)],
        ) {
            let name = Name::from_ascii(labels.join(".") + ".").unwrap();
            let mut message = Message::query();
            message.add_query(Query::query(name, kind));
            let wire = message.to_vec().unwrap();
            let mut reader = Reader::new(&wire);
            prop_assert_eq!(reader.header().unwrap().id, message.metadata.id);
            let question = reader.question().unwrap();
            prop_assert_eq!(&*question.name, labels.join(".").to_ascii_lowercase());
            prop_assert_eq!(question.kind, u16::from(kind));
            prop_assert!(reader.is_at_end());
        }
    }
}
