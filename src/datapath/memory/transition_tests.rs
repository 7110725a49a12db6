//! No packet finds a hole: after every single write of a transaction, what passes is passed by the
//! state before the transaction or by the state after it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::cluster::delta::{AddressKind, IpcacheEntry, Presence};
use crate::datapath::table::Observer;
use crate::model::PortRange;
use crate::policy::map_state::{
    Basis, CellKinds, DirectionInfo, PolicyEntry, PolicyInfo, PolicyKey, PortClass, PortClassRange,
    Precedence, Slot, SubjectDelta,
};

const SUBJECT: Identity = Identity(300);
const WIDE: u32 = 1 << 24;
const NARROW: u32 = WIDE + 1;

/// A small policy with all that can interfere: a wide prefix with or without a narrower one inside,
/// cells of both identities and of any, one range of ports or none, default deny or not.
#[derive(Clone, Debug)]
struct State {
    narrow: bool,
    /// Class of ports 80..=90; the number of a class is never used for another set.
    range: Option<u32>,
    default_deny: bool,
    cells: BTreeMap<(u32, Port), bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Any,
    Exact80,
    Range,
}

fn states() -> impl Strategy<Value = State> {
    let identity = prop_oneof![Just(0), Just(WIDE), Just(NARROW)];
    let port = prop_oneof![Just(Port::Any), Just(Port::Exact80), Just(Port::Range)];
    let cells = proptest::collection::btree_map((identity, port), any::<bool>(), 0..7);
    (any::<bool>(), any::<bool>(), any::<bool>(), cells).prop_map(
        |(narrow, range, default_deny, mut cells)| {
            // As the engine does: no cells of identities that no address has, nor of classes without ports;
            // a port inside a range has no cell of its own.
            cells.retain(|(identity, port), _| {
                (narrow || *identity != NARROW)
                    && match port {
                        Port::Any => true,
                        Port::Exact80 => !range,
                        Port::Range => range,
                    }
            });
            State { narrow, range: range.then_some(1), default_deny, cells }
        },
    )
}

impl State {
    fn entries(&self) -> BTreeMap<PolicyKey, PolicyEntry> {
        let entry = |((identity, port), allow): (&(u32, Port), &bool)| {
            let key = PolicyKey {
                direction: Direction::Egress,
                identity: Identity(*identity),
                protocol: Some(Protocol::Tcp),
                port: match port {
                    Port::Any => PortClass::Any,
                    Port::Exact80 => PortClass::Exact(80),
                    Port::Range => PortClass::Class(self.range.unwrap_or_default()),
                },
            };
            let (precedence, action) =
                if *allow { (Precedence(10), SlotAction::Allow) } else { (Precedence(20), SlotAction::Deny) };
            let slot = Slot { precedence, action, rules: RuleSetId(1), basis: Basis::Peer };
            (key, PolicyEntry { admin: None, normal: Some(slot) })
        };
        self.cells.iter().map(entry).collect()
    }

    fn ranges(&self) -> Vec<PortClassRange> {
        let range = |class| PortClassRange {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            range: PortRange::new(80, 90).unwrap(),
            class,
        };
        self.range.map(range).into_iter().collect()
    }

    /// The transaction that leads from `old` here.
    fn delta(&self, old: &State) -> Delta {
        let (before, after) = (old.entries(), self.entries());
        let cells = CellKinds {
            id_exact: true,
            id_protocol: true,
            any_exact: true,
            any_protocol: true,
            ..Default::default()
        };
        let egress = DirectionInfo {
            default_deny: self.default_deny,
            ranges: self.range.is_some(),
            cells,
            ..Default::default()
        };
        let subject = SubjectDelta {
            subject: SUBJECT,
            info: PolicyInfo { egress, ..Default::default() },
            upserts: (after.iter().filter(|(key, entry)| before.get(key) != Some(entry)))
                .map(|(key, entry)| (*key, *entry))
                .collect(),
            deletes: before.keys().filter(|key| !after.contains_key(key)).copied().collect(),
            class_upserts: self.ranges().into_iter().filter(|r| !old.ranges().contains(r)).collect(),
            class_deletes: old.ranges().into_iter().filter(|r| !self.ranges().contains(r)).collect(),
            removed: false,
        };
        let world = |identity| IpcacheEntry {
            identity: Identity(identity),
            tunnel_endpoint: None,
            class: AddressKind::World,
        };
        let mut ipcache = vec![("10.0.0.0/8".parse().unwrap(), Some(world(WIDE)))];
        if self.narrow != old.narrow {
            ipcache.push(("10.1.0.0/16".parse().unwrap(), self.narrow.then(|| world(NARROW))));
        }
        Delta { ipcache, policies: vec![subject], ..Default::default() }
    }
}

type Verdicts = Vec<bool>;

/// Which of all kinds of packets pass.
fn verdicts(tables: &Tables, id: u32) -> Verdicts {
    let peers = [IpAddr::from([10, 1, 0, 1]), IpAddr::from([10, 2, 0, 1]), IpAddr::from([8, 8, 8, 8])];
    let ports = [80, 85, 443];
    let packets = peers.iter().flat_map(|peer| ports.map(|port| (*peer, port)));
    packets
        .map(|(peer, port)| {
            let verdict = tables.judge(id, Direction::Egress, peer, Protocol::Tcp, Some(port)).unwrap();
            matches!(verdict, SideVerdict::Allow(_))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_passes_in_between_that_both_states_deny(old in states(), new in states()) {
        let seen: Arc<Mutex<Vec<Verdicts>>> = Arc::default();
        let watched: Arc<OnceLock<(Tables, u32)>> = Arc::default();
        let observer = {
            let (seen, watched) = (seen.clone(), watched.clone());
            Observer::new(move || {
                if let Some((tables, id)) = watched.get() {
                    seen.lock().push(verdicts(tables, *id));
                }
            })
        };
        let tables = Tables::in_memory_observed(&Capacity::default(), &observer);
        let mut datapath = MemoryDatapath::from_tables(tables.clone()).unwrap();
        let nothing = State { narrow: false, range: None, default_deny: false, cells: BTreeMap::new() };
        datapath.apply(&old.delta(&nothing)).unwrap();
        let id = datapath.writer.policies.id(SUBJECT).unwrap();
        let before = verdicts(&tables, id);
        watched.set((tables.clone(), id)).unwrap();
        datapath.apply(&new.delta(&old)).unwrap();
        let after = verdicts(&tables, id);
        for between in seen.lock().iter() {
            for (packet, passes) in between.iter().enumerate() {
                prop_assert!(
                    !passes || before[packet] || after[packet],
                    "packet {packet} passes in between; before {before:?}, after {after:?}"
                );
            }
        }
    }
}

/// Another pod, whose identity comes and goes with a cell that denies it.
const DENIED: Identity = Identity(400);

#[test]
fn a_packet_from_a_node_may_name_an_identity_only_while_its_cells_are_there() {
    let key = PolicyKey {
        direction: Direction::Egress,
        identity: DENIED,
        protocol: Some(Protocol::Tcp),
        port: PortClass::Any,
    };
    let deny = Slot {
        precedence: Precedence(20),
        action: SlotAction::Deny,
        rules: RuleSetId(1),
        basis: Basis::Peer,
    };
    let entry = PolicyEntry { admin: None, normal: Some(deny) };
    let delta = |presence, upserts, deletes| {
        let nothing = State { narrow: false, range: None, default_deny: false, cells: BTreeMap::new() };
        let mut delta = nothing.delta(&nothing);
        let cells = CellKinds { id_protocol: true, ..Default::default() };
        delta.policies[0].info.egress.cells = cells;
        delta.policies[0].upserts = upserts;
        delta.policies[0].deletes = deletes;
        Delta { identities: vec![(DENIED, presence)], ..delta }
    };
    let known = |tables: &Tables| {
        let bits = tables.identities.get(&(DENIED.0 / 64)).unwrap().unwrap_or_default();
        bits >> (DENIED.0 % 64) & 1 == 1
    };
    let writes: Arc<Mutex<Vec<(bool, bool)>>> = Arc::default();
    let watched: Arc<OnceLock<Tables>> = Arc::default();
    let observer = {
        let (writes, watched) = (writes.clone(), watched.clone());
        Observer::new(move || {
            let Some(tables) = watched.get() else { return };
            let mut denied = false;
            tables.policy.for_each(&mut |key, _| denied |= key.identity == DENIED.0).unwrap();
            writes.lock().push((known(tables), denied));
        })
    };
    let tables = Tables::in_memory_observed(&Capacity::default(), &observer);
    let mut datapath = MemoryDatapath::from_tables(tables.clone()).unwrap();
    watched.set(tables.clone()).unwrap();
    datapath.apply(&delta(Presence::Known, vec![(key, entry)], vec![])).unwrap();
    assert!(known(&tables));
    datapath.apply(&delta(Presence::Gone, vec![], vec![key])).unwrap();
    assert!(!known(&tables));
    let writes = writes.lock();
    assert!(writes.contains(&(true, true)));
    assert!(writes.iter().all(|(known, denied)| *denied || !known), "{writes:?}");
}
