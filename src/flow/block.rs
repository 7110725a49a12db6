//! Many flows as one block of bytes, and back: what history keeps.
//!
//! A block is self-contained. Parties, decisions and the like stand once in a table (JSON, so that a later
//! version may add members); a flow is a row of variable-length integers (LEB128) that point into the tables,
//! about 25 bytes. Nothing is compressed here.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::{Decision, EventKind, Flow, Interface, L7, Observation, Party, ServiceRef, Verdict};
use crate::model::{Direction, DropReason, Protocol};

/// Of the layout below.
const VERSION: u8 = 1;

/// The bytes are no block of a version that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a block of flows: {0}")]
pub struct NotABlock(&'static str);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Tables {
    parties: Vec<Arc<Party>>,
    decisions: Vec<Arc<Decision>>,
    services: Vec<Arc<ServiceRef>>,
    interfaces: Vec<Arc<Interface>>,
    /// Of nodes and used DNS names.
    names: Vec<Arc<str>>,
    /// One for each flow that has one, in their order.
    l7: Vec<L7>,
}

/// Numbers for what was already put into a table. Flows share what is the same, so the pointer tells.
#[derive(Debug, Default)]
struct Index<K>(HashMap<K, u64>);

impl<K: Hash + Eq> Index<K> {
    fn of<T: ?Sized>(&mut self, key: K, table: &mut Vec<Arc<T>>, value: &Arc<T>) -> u64 {
        *self.0.entry(key).or_insert_with(|| {
            table.push(Arc::clone(value));
            table.len() as u64 - 1
        })
    }
}

fn pointer<T>(value: &Arc<T>) -> usize {
    Arc::as_ptr(value).addr()
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Small differences of either sign become small numbers.
fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

const REPLY: u8 = 1 << 3;
const ESTABLISHED: u8 = 1 << 4;
const L7_FOLLOWS: u8 = 1 << 5;
const ICMP_FOLLOWS: u8 = 1 << 6;
const INGRESS: u8 = 1 << 2;

/// Flows, or kilobytes of tables, after which the encoder pauses.
const STRETCH: usize = 8;

/// Bytes that are written with pauses.
struct Paced<P> {
    bytes: Vec<u8>,
    paused_at: usize,
    pause: P,
}

impl<P: FnMut()> std::io::Write for Paced<P> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() - self.paused_at > STRETCH << 10 {
            self.paused_at = self.bytes.len();
            (self.pause)();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A block of these flows. `pause` is called every few microseconds: others may want the CPU.
pub fn encode(flows: &[Arc<Flow>], mut pause: impl FnMut()) -> Vec<u8> {
    let mut tables = Tables::default();
    let mut parties = Index::<usize>::default();
    let mut decisions = Index::<usize>::default();
    let mut services = Index::<usize>::default();
    let mut interfaces = Index::<usize>::default();
    let mut names = Index::<Arc<str>>::default();
    let mut rows = Vec::with_capacity(flows.len() * 32);
    let (mut time, mut sequence) = (0_i64, 0_i64);
    for (number, flow) in flows.iter().enumerate() {
        if number % (8 * STRETCH) == 0 {
            pause();
        }
        put(&mut rows, zigzag((flow.time_ns as i64).wrapping_sub(time)));
        put(&mut rows, zigzag((flow.sequence as i64).wrapping_sub(sequence)));
        (time, sequence) = (flow.time_ns as i64, flow.sequence as i64);
        let mut flags = kind_number(flow.kind);
        let mut set = |flag, is_set: bool| flags |= if is_set { flag } else { 0 };
        set(INGRESS, flow.direction == Direction::Ingress);
        set(REPLY, flow.is_reply);
        set(ESTABLISHED, flow.is_established);
        set(L7_FOLLOWS, flow.l7.is_some());
        set(ICMP_FOLLOWS, flow.icmp.is_some());
        rows.extend([
            flags,
            verdict_number(flow.verdict),
            observation_number(flow.observation),
            flow.protocol.number(),
            flow.tcp_flags,
        ]);
        if let Some((kind, code)) = flow.icmp {
            rows.extend([kind, code]);
        }
        let mut name = |name: &Arc<str>| names.of(Arc::clone(name), &mut tables.names, name);
        put(&mut rows, name(&flow.node));
        put(&mut rows, flow.source_name.as_ref().map_or(0, |used| name(used) + 1));
        put(&mut rows, flow.destination_name.as_ref().map_or(0, |used| name(used) + 1));
        for (party, port) in [(&flow.source, flow.source_port), (&flow.destination, flow.destination_port)] {
            put(&mut rows, parties.of(pointer(party), &mut tables.parties, party));
            put(&mut rows, port.map_or(0, |port| u64::from(port) + 1));
        }
        put(&mut rows, decisions.of(pointer(&flow.decision), &mut tables.decisions, &flow.decision));
        let service = (flow.service.as_ref())
            .map_or(0, |service| services.of(pointer(service), &mut tables.services, service) + 1);
        put(&mut rows, service);
        let interface = (flow.interface.as_ref())
            .map_or(0, |one| interfaces.of(pointer(one), &mut tables.interfaces, one) + 1);
        put(&mut rows, interface);
        put(&mut rows, u64::from(flow.length));
        put(&mut rows, u64::from(flow.count));
        tables.l7.extend(flow.l7.as_deref().cloned());
    }
    let mut text = Paced { bytes: Vec::new(), paused_at: 0, pause };
    serde_json::to_writer(&mut text, &tables).expect("tables of strings and numbers are JSON");
    let tables = text.bytes;
    let mut block = vec![VERSION];
    put(&mut block, flows.len() as u64);
    put(&mut block, tables.len() as u64);
    block.extend(tables);
    block.extend(rows);
    block
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, NotABlock> {
        let (first, rest) = self.0.split_first().ok_or(NotABlock("it ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, NotABlock> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(NotABlock("a number is too long"))
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, NotABlock> {
        T::try_from(self.number()?).map_err(|_| NotABlock("a number is too large"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], NotABlock> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NotABlock("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Number 0 is none.
    fn entry<T: ?Sized>(&mut self, table: &[Arc<T>]) -> Result<Option<Arc<T>>, NotABlock> {
        match self.number()? {
            0 => Ok(None),
            number => entry(table, number - 1).map(Some),
        }
    }

    fn sure<T: ?Sized>(&mut self, table: &[Arc<T>]) -> Result<Arc<T>, NotABlock> {
        let number = self.number()?;
        entry(table, number)
    }

    fn port(&mut self) -> Result<Option<u16>, NotABlock> {
        match self.number()? {
            0 => Ok(None),
            port => u16::try_from(port - 1).map(Some).map_err(|_| NotABlock("a port is too large")),
        }
    }
}

fn entry<T: ?Sized>(table: &[Arc<T>], number: u64) -> Result<Arc<T>, NotABlock> {
    let index = usize::try_from(number).unwrap_or(usize::MAX);
    table.get(index).cloned().ok_or(NotABlock("it points outside a table"))
}

/// The flows of a block, in their order.
///
/// # Errors
/// The bytes are no block; nothing of them is used.
pub fn decode(bytes: &[u8]) -> Result<Vec<Flow>, NotABlock> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return Err(NotABlock("of another version"));
    }
    let count: usize = reader.small()?;
    let length: usize = reader.small()?;
    let tables: Tables = serde_json::from_slice(reader.take(length)?)
        .map_err(|_| NotABlock("its tables are not understood"))?;
    // A row has 16 bytes at least: a wrong count cannot make us reserve much.
    if count > reader.0.len() / 16 {
        return Err(NotABlock("it ends early"));
    }
    let mut l7 = tables.l7.into_iter();
    let (mut time, mut sequence) = (0_i64, 0_i64);
    let mut flows = Vec::with_capacity(count);
    for _ in 0..count {
        time = time.wrapping_add(unzigzag(reader.number()?));
        sequence = sequence.wrapping_add(unzigzag(reader.number()?));
        let flags = reader.byte()?;
        let verdict = verdict_from(reader.byte()?)?;
        let observation = observation_from(reader.byte()?)?;
        let protocol = Protocol::from_number(reader.byte()?);
        let tcp_flags = reader.byte()?;
        let icmp = match flags & ICMP_FOLLOWS {
            0 => None,
            _ => Some((reader.byte()?, reader.byte()?)),
        };
        let node = reader.sure(&tables.names)?;
        let source_name = reader.entry(&tables.names)?;
        let destination_name = reader.entry(&tables.names)?;
        let (source, source_port) = (reader.sure(&tables.parties)?, reader.port()?);
        let (destination, destination_port) = (reader.sure(&tables.parties)?, reader.port()?);
        flows.push(Flow {
            time_ns: time as u64,
            sequence: sequence as u64,
            node,
            kind: kind_from(flags & 3),
            verdict,
            direction: if flags & INGRESS == 0 { Direction::Egress } else { Direction::Ingress },
            source,
            source_port,
            source_name,
            destination,
            destination_port,
            destination_name,
            protocol,
            tcp_flags,
            icmp,
            is_reply: flags & REPLY != 0,
            is_established: flags & ESTABLISHED != 0,
            decision: reader.sure(&tables.decisions)?,
            service: reader.entry(&tables.services)?,
            interface: reader.entry(&tables.interfaces)?,
            length: reader.small()?,
            count: reader.small()?,
            observation,
            l7: match flags & L7_FOLLOWS {
                0 => None,
                _ => Some(Box::new(l7.next().ok_or(NotABlock("a record of a proxy is missing"))?)),
            },
        });
    }
    Ok(flows)
}

fn kind_number(kind: EventKind) -> u8 {
    match kind {
        EventKind::Drop => 0,
        EventKind::PolicyVerdict => 1,
        EventKind::Trace => 2,
        EventKind::L7 => 3,
    }
}

fn kind_from(number: u8) -> EventKind {
    match number {
        0 => EventKind::Drop,
        1 => EventKind::PolicyVerdict,
        2 => EventKind::Trace,
        _ => EventKind::L7,
    }
}

/// Drop reasons have numbers from 130 on.
fn verdict_number(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Forwarded => 0,
        Verdict::Redirected => 1,
        Verdict::Audit => 2,
        Verdict::Error => 3,
        Verdict::Dropped(reason) => reason as u8,
    }
}

fn verdict_from(number: u8) -> Result<Verdict, NotABlock> {
    Ok(match number {
        0 => Verdict::Forwarded,
        1 => Verdict::Redirected,
        2 => Verdict::Audit,
        3 => Verdict::Error,
        reason => Verdict::Dropped(
            DropReason::from_number(reason).ok_or(NotABlock("its drop reason is not known"))?,
        ),
    })
}

const OBSERVATIONS: [Observation; 6] = [
    Observation::FromEndpoint,
    Observation::ToEndpoint,
    Observation::FromNetwork,
    Observation::ToNetwork,
    Observation::FromOverlay,
    Observation::Proxy,
];

fn observation_number(observation: Observation) -> u8 {
    OBSERVATIONS.iter().position(|one| *one == observation).unwrap_or_default() as u8
}

fn observation_from(number: u8) -> Result<Observation, NotABlock> {
    let known = OBSERVATIONS.get(usize::from(number));
    known.copied().ok_or(NotABlock("its observation point is not known"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::DecidedBy;
    use crate::flow::tests::flow;
    use crate::model::{Kind, ObjectRef};

    fn samples() -> Vec<Arc<Flow>> {
        let plain = flow(80);
        let by = DecidedBy::DefaultDeny(vec![ObjectRef::new(Kind::NetworkPolicy, "shop", "deny")]);
        let dropped = Flow {
            kind: EventKind::Drop,
            verdict: Verdict::Dropped(DropReason::PolicyDenied),
            decision: Arc::new(Decision { by, revision: 7, matched: None }),
            direction: Direction::Ingress,
            sequence: 9,
            time_ns: plain.time_ns - 5,
            ..flow(443)
        };
        let icmp = Flow {
            protocol: Protocol::Icmp,
            source_port: None,
            destination_port: None,
            icmp: Some((8, 0)),
            ..plain.clone()
        };
        let request = Flow {
            kind: EventKind::L7,
            observation: Observation::Proxy,
            destination_name: Some("api.example".into()),
            service: Some(Arc::new(ServiceRef {
                name: Some("shop/backend".into()),
                address: "10.96.0.1".parse().unwrap(),
                port: 80,
            })),
            interface: Some(Arc::new(Interface { index: 4, name: Some("lxc4".into()) })),
            l7: Some(Box::new(L7::Tls { server_name: Some("api.example".into()) })),
            is_reply: true,
            count: 12,
            ..plain.clone()
        };
        [plain, dropped, icmp, request].map(Arc::new).to_vec()
    }

    #[test]
    fn flows_come_back_as_they_were() {
        let flows = samples();
        let back: Vec<_> = decode(&encode(&flows, || ())).unwrap().into_iter().map(Arc::new).collect();
        assert_eq!(back, flows);
        assert_eq!(decode(&encode(&[], || ())).unwrap(), []);
    }

    #[test]
    fn a_row_is_small() {
        let one = Arc::new(flow(80));
        let many: Vec<_> = (0..1000)
            .map(|n| Arc::new(Flow { sequence: n, time_ns: one.time_ns + n * 7000, ..(*one).clone() }))
            .collect();
        let bytes = encode(&many, || ()).len() - encode(&many[..1], || ()).len();
        assert!(bytes / 999 <= 30, "{} bytes a flow", bytes / 999);
    }

    #[test]
    fn a_cut_block_is_refused() {
        let block = encode(&samples(), || ());
        for length in 0..block.len() {
            assert!(decode(&block[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0_usize..2000, value: u8, bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut block = encode(&samples(), || ());
            let at = at % block.len();
            block[at] = value;
            let _ = decode(&block);
            let _ = decode(&bytes);
        }
    }
}
