//! Flow events: from the kernel's ring to model types.
//!
//! The ring is pinned: what happened while no agent ran is still there when the next one reads. What the
//! kernel did not tell (a full ring, too much of the same) is counted by cause ([`EventReader::untold`]). A
//! record that is too short, or that holds a number that this version does not know, is counted as
//! undecodable and skipped.
//!
//! The kernel wakes a reader only when it makes a record that the reader would have to wait for, that is when
//! everything before it was read. So a reader that comes back at once after every record is woken for every
//! record, and one that lets [`PACE`] pass between two visits is woken once for all that came meanwhile. A
//! lone event wakes the reader at once.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use super::DatapathError;
use super::abi::convert::{action_from_number, direction_from_number};
use super::abi::*;
use super::pins::Pins;
use super::sys;
use super::tables::name;
use crate::model::{Direction, DropReason, Identity, Protocol};
use crate::policy::map_state::{RuleSetId, SlotAction};

/// What happened to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEventKind {
    Dropped(DropReason),
    /// The first packet of a flow was judged, and passed.
    Verdict,
    /// A packet of a known flow passed.
    Trace,
}

/// Where in the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservationPoint {
    FromContainer,
    ToContainer,
    FromNetwork,
    ToNetwork,
    FromOverlay,
}

/// One packet that the kernel told us about. Addresses are those that policy saw: after Service
/// translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    pub time: SystemTime,
    pub kind: FlowEventKind,
    pub observation: ObservationPoint,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_identity: Identity,
    pub destination_identity: Identity,
    pub protocol: Protocol,
    /// TCP, UDP, SCTP; 0 otherwise.
    pub source_port: u16,
    pub destination_port: u16,
    /// TCP flag byte.
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Bytes, link layer included.
    pub length: u32,
    /// Device that the program runs on.
    pub ifindex: u32,
    /// Service address and port that the client named.
    pub frontend: Option<(IpAddr, u16)>,
    /// Side whose policy decided (or would have).
    pub direction: Direction,
    /// Local endpoint whose policy is meant; 0 is the host.
    pub endpoint_id: u16,
    /// Identity that the policy belongs to, while it exists.
    pub policy_subject: Option<Identity>,
    /// What the policy said; `None` when none was asked.
    pub action: Option<SlotAction>,
    /// Rules behind the action; [`RuleSetId`] 0 is none.
    pub rules: RuleSetId,
    /// Nothing matched.
    pub default_deny: bool,
    pub reply: bool,
    pub established: bool,
    pub fragment: bool,
    /// The sender was told (RST, ICMP).
    pub rejected: bool,
    /// Drops like this one that were not told, since the last that was.
    pub repeats: u32,
}

/// Events that the kernel did not tell, by cause. Its counters of packets know them all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// Drops, verdicts and traces that found the ring full; the latter two leave a quarter of it to drops.
    pub drops: u64,
    pub verdicts: u64,
    pub traces: u64,
    /// Drops like others of the same second ([`FlowEvent::repeats`] says how many, with the next that is told).
    pub repeated: u64,
    /// Drops beyond what one device may tell in a second about one reason.
    pub over_limit: u64,
}

impl Untold {
    /// From the elements of `sl_event_lost`.
    pub(super) fn read(
        mut cause: impl FnMut(u32) -> Result<u64, DatapathError>,
    ) -> Result<Untold, DatapathError> {
        Ok(Untold {
            drops: cause(LOST_DROP)?,
            verdicts: cause(LOST_VERDICT)?,
            traces: cause(LOST_TRACE)?,
            repeated: cause(LOST_REPEATED)?,
            over_limit: cause(LOST_LIMIT)?,
        })
    }

    /// What a slow reader cost: it should have been told, and was not.
    pub fn lost(self) -> u64 {
        self.drops + self.verdicts + self.traces
    }
}

/// Policy id -> subject identity, shared with the writer.
#[derive(Clone, Debug)]
pub struct PolicySubjects(Arc<[AtomicU32]>);

impl Default for PolicySubjects {
    fn default() -> Self {
        PolicySubjects((0..MAX_POLICIES).map(|_| AtomicU32::new(0)).collect())
    }
}

impl PolicySubjects {
    /// Replaces the table. An id that changes hands is rare, and only names a subject in a table.
    pub(super) fn set(&self, subjects: impl Iterator<Item = (Identity, u32)>) {
        let mut table = vec![0; self.0.len()];
        for (identity, id) in subjects {
            if let Some(slot) = table.get_mut(id as usize) {
                *slot = identity.0;
            }
        }
        self.0.iter().zip(table).for_each(|(slot, value)| slot.store(value, Ordering::Relaxed));
    }

    fn get(&self, id: u32) -> Option<Identity> {
        let identity = self.0.get(id as usize)?.load(Ordering::Relaxed);
        (identity != 0).then_some(Identity(identity))
    }
}

/// Turns CLOCK_MONOTONIC into wall clock time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall clock when CLOCK_MONOTONIC was 0, as far as the wall clock says now.
    boot: SystemTime,
}

impl Clock {
    /// Reads both clocks.
    pub fn now() -> Result<Clock, DatapathError> {
        let monotonic = sys::monotonic_now().map_err(|source| DatapathError::Syscall {
            operation: "clock_gettime",
            object: "CLOCK_MONOTONIC".to_owned(),
            source,
        })?;
        Ok(Clock { boot: SystemTime::now() - monotonic })
    }

    fn at(self, timestamp_ns: u64) -> SystemTime {
        self.boot + Duration::from_nanos(timestamp_ns)
    }
}

fn observation(number: u8) -> Option<ObservationPoint> {
    match u32::from(number) {
        OBS_FROM_CONTAINER => Some(ObservationPoint::FromContainer),
        OBS_TO_CONTAINER => Some(ObservationPoint::ToContainer),
        OBS_FROM_NETWORK => Some(ObservationPoint::FromNetwork),
        OBS_TO_NETWORK => Some(ObservationPoint::ToNetwork),
        OBS_FROM_OVERLAY => Some(ObservationPoint::FromOverlay),
        _ => None,
    }
}

/// Decodes a record; `None` when it is too short or says something unknown.
pub fn decode(record: &[u8], clock: Clock, subjects: &PolicySubjects) -> Option<FlowEvent> {
    let raw: RawFlowEvent = sys::from_bytes(record)?;
    let has = |flag: u32| u32::from(raw.flags) & flag != 0;
    let kind = match u32::from(raw.kind) {
        EVENT_DROP => FlowEventKind::Dropped(DropReason::from_number(raw.reason)?),
        EVENT_VERDICT => FlowEventKind::Verdict,
        EVENT_TRACE => FlowEventKind::Trace,
        _ => return None,
    };
    Some(FlowEvent {
        time: clock.at(raw.timestamp_ns),
        kind,
        observation: observation(raw.observation)?,
        source: raw.saddr.to_ip_or_unspecified(),
        destination: raw.daddr.to_ip_or_unspecified(),
        source_identity: Identity(raw.src_identity),
        destination_identity: Identity(raw.dst_identity),
        protocol: Protocol::from_number(raw.protocol),
        source_port: raw.sport,
        destination_port: raw.dport,
        tcp_flags: raw.tcp_flags,
        icmp_type: raw.icmp_type,
        icmp_code: raw.icmp_code,
        length: raw.length,
        ifindex: raw.ifindex,
        frontend: has(EVF_SERVICE).then(|| (raw.svc_addr.to_ip_or_unspecified(), raw.svc_port)),
        direction: direction_from_number(raw.direction)?,
        endpoint_id: raw.endpoint_id,
        policy_subject: subjects.get(raw.policy_id),
        action: action_from_number(u32::from(raw.action)),
        rules: RuleSetId(raw.rule_set),
        default_deny: has(EVF_DEFAULT_DENY),
        reply: has(EVF_REPLY),
        established: has(EVF_ESTABLISHED),
        fragment: has(EVF_FRAGMENT),
        rejected: has(EVF_REJECTED),
        repeats: raw.repeats,
    })
}

/// Reads the ring.
pub struct EventReader {
    ring: AsyncFd<RingBuf<MapData>>,
    lost: OwnedFd,
    cpus: usize,
    subjects: PolicySubjects,
    undecodable: u64,
    /// When the ring was found empty after records had been read.
    emptied: Option<Instant>,
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").field("undecodable", &self.undecodable).finish_non_exhaustive()
    }
}

/// Events handed over at a time at most.
const BATCH: usize = 4096;

/// Between the end of one visit to the ring and the next: what an event may have to wait, and what saves a
/// wakeup for each.
pub const PACE: Duration = Duration::from_millis(1);

fn failed(operation: &'static str, source: std::io::Error) -> DatapathError {
    DatapathError::Syscall { operation, object: format!("map {}", name::EVENTS), source }
}

impl EventReader {
    /// Opens the pinned ring. To be called inside a tokio runtime.
    pub(super) fn open(pins: &Pins, subjects: PolicySubjects) -> Result<EventReader, DatapathError> {
        let other =
            |error: aya::maps::MapError| DatapathError::Other(format!("map {}: {error}", name::EVENTS));
        let data = MapData::from_fd(pins.open_map(name::EVENTS)?).map_err(other)?;
        let ring = RingBuf::try_from(Map::from_map_data(data).map_err(other)?).map_err(other)?;
        // SAFETY: the ring owns its file descriptor, does not change it, and lives in the `AsyncFd`.
        #[allow(unsafe_code)]
        let ring = unsafe { AsyncFd::register_with_interest(ring, tokio::io::Interest::READABLE) };
        let ring = ring.map_err(|e| failed("epoll_ctl", e.into_parts().1))?;
        let cpus = sys::possible_cpus().map_err(|e| failed("read possible CPUs", e))?;
        Ok(EventReader {
            ring,
            lost: pins.open_map(name::EVENT_LOST)?,
            cpus,
            subjects,
            undecodable: 0,
            emptied: None,
        })
    }

    /// Waits for events and appends them to `events` (at least one record was read; undecodable ones
    /// append nothing).
    pub async fn read(&mut self, events: &mut Vec<FlowEvent>) -> Result<(), DatapathError> {
        if let Some(emptied) = self.emptied.take() {
            tokio::time::sleep_until((emptied + PACE).into()).await;
        }
        loop {
            let mut ready = self.ring.readable_mut().await.map_err(|e| failed("epoll_wait", e))?;
            let clock = Clock::now()?;
            let mut records = 0;
            while records < BATCH {
                let Some(record) = ready.get_inner_mut().next() else { break };
                records += 1;
                match decode(&record, clock, &self.subjects) {
                    Some(event) => events.push(event),
                    None => self.undecodable += 1,
                }
            }
            if records < BATCH {
                ready.clear_ready();
                self.emptied = Some(Instant::now());
            }
            if records > 0 {
                return Ok(());
            }
        }
    }

    /// Events that were not told, since the map was made.
    pub fn untold(&self) -> Result<Untold, DatapathError> {
        Untold::read(|cause| {
            let counts: Option<Vec<u64>> = sys::lookup_per_cpu(&self.lost, &cause, self.cpus)
                .map_err(|e| failed("BPF_MAP_LOOKUP_ELEM", e))?;
            Ok(counts.unwrap_or_default().iter().sum())
        })
    }

    /// Records that were too short or not understood, since this reader was opened.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drop_record() -> RawFlowEvent {
        RawFlowEvent {
            timestamp_ns: 5_000_000_000,
            saddr: IpAddr::from([10, 0, 0, 1]).into(),
            daddr: IpAddr::from([10, 0, 0, 2]).into(),
            src_identity: 300,
            dst_identity: 301,
            policy_id: 4,
            sport: 40000,
            dport: 80,
            endpoint_id: 7,
            kind: EVENT_DROP as u8,
            reason: DropReason::PolicyDenied as u8,
            protocol: 6,
            direction: DIR_INGRESS as u8,
            action: ACTION_DENY as u8,
            observation: OBS_FROM_CONTAINER as u8,
            flags: EVF_DEFAULT_DENY as u8,
            ..Default::default()
        }
    }

    #[test]
    fn a_drop_is_decoded() {
        let subjects = PolicySubjects::default();
        subjects.set([(Identity(301), 4)].into_iter());
        let clock = Clock { boot: SystemTime::UNIX_EPOCH };
        let event = decode(sys::as_bytes(&drop_record()), clock, &subjects).unwrap();
        assert_eq!(event.kind, FlowEventKind::Dropped(DropReason::PolicyDenied));
        assert_eq!(event.time, SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(event.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!((event.policy_subject, event.endpoint_id), (Some(Identity(301)), 7));
        assert_eq!((event.direction, event.default_deny), (Direction::Ingress, true));
        assert_eq!((event.action, event.frontend), (Some(SlotAction::Deny), None));
    }

    #[test]
    fn a_truncated_record_is_no_event() {
        let record = drop_record();
        let bytes = sys::as_bytes(&record);
        let clock = Clock { boot: SystemTime::UNIX_EPOCH };
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length], clock, &PolicySubjects::default()), None);
        }
    }

    proptest! {
        #[test]
        fn no_record_panics(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            let clock = Clock { boot: SystemTime::UNIX_EPOCH };
            decode(&bytes, clock, &PolicySubjects::default());
        }
    }
}
