//! Port classes: ranges cut into pieces that no rule of one side tells apart.
//!
//! A port is in a class when a range of more than one port covers it; the class is the set of all
//! ranges that cover it, single ports included. Any other port is `PortClass::Exact`, and costs
//! no lookup of its class. A class keeps its number while its set of ranges exists; the number of
//! one that is gone is not reused before the delta that says so was taken, so that during an update
//! every port meets the whole old policy or the whole new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::model::{Direction, PortRange, Protocol};
use crate::policy::map_state::{PortClass, PortClassRange};

/// Most (class, range) pairs of one side: a hundred ranges that all overlap need 10,000.
pub(super) const MAX_COVERINGS: usize = 262_144;

/// More than [`MAX_COVERINGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyClasses;

type Key = (Protocol, Arc<[PortRange]>);

/// Classes of one direction of a subject.
#[derive(Debug, Default)]
pub(super) struct PortClasses {
    /// Disjoint, ascending.
    pieces: BTreeMap<Protocol, Vec<(PortRange, u32)>>,
    numbers: HashMap<Key, u32>,
    /// Gone since the last delta.
    retired: HashMap<Key, u32>,
}

impl PortClasses {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Cuts anew. `ranges` holds every range and single port that some rule names. `true` when
    /// anything changed. On an error there are no classes.
    pub(super) fn rebuild(
        &mut self,
        ranges: &BTreeSet<(Protocol, PortRange)>,
    ) -> Result<bool, TooManyClasses> {
        let mut by_protocol: BTreeMap<Protocol, Vec<PortRange>> = BTreeMap::new();
        for (protocol, range) in ranges {
            by_protocol.entry(*protocol).or_default().push(*range);
        }
        let mut coverings = 0;
        let mut cut_all: Vec<(Protocol, Vec<Piece>)> = Vec::new();
        for (protocol, ranges) in by_protocol {
            if ranges.iter().any(is_wide) {
                match cut(&ranges, &mut coverings) {
                    Ok(pieces) => cut_all.push((protocol, pieces)),
                    Err(error) => {
                        self.retired.extend(self.numbers.drain());
                        self.pieces.clear();
                        return Err(error);
                    }
                }
            }
        }
        let old = std::mem::take(&mut self.numbers);
        let taken: BTreeSet<u32> = old.values().chain(self.retired.values()).copied().collect();
        let mut free = (1..).filter(|number| !taken.contains(number));
        let mut pieces = BTreeMap::new();
        for (protocol, cut) in cut_all {
            let mut numbered = Vec::with_capacity(cut.len());
            for (range, covering) in cut {
                let key = (protocol, covering);
                let known = self.numbers.get(&key).or_else(|| old.get(&key)).copied();
                let known = known.or_else(|| self.retired.remove(&key));
                let number = known.or_else(|| free.next()).expect("2^32 numbers suffice for 65536 ports");
                self.numbers.insert(key, number);
                numbered.push((range, number));
            }
            pieces.insert(protocol, numbered);
        }
        for (key, number) in old {
            if !self.numbers.contains_key(&key) {
                self.retired.insert(key, number);
            }
        }
        let changed = pieces != self.pieces;
        self.pieces = pieces;
        Ok(changed)
    }

    /// Old numbers may be reused.
    pub(super) fn delta_taken(&mut self) {
        self.retired.clear();
    }

    /// The port member of the key that a port is looked up with.
    pub(super) fn class_of(&self, protocol: Protocol, port: u16) -> PortClass {
        self.pieces
            .get(&protocol)
            .and_then(|pieces| {
                let index = pieces.partition_point(|(range, _)| range.last() < port);
                pieces.get(index).filter(|(range, _)| range.contains(port))
            })
            .map_or(PortClass::Exact(port), |(_, class)| PortClass::Class(*class))
    }

    /// The cells of a rule on `range`, which must be one that the classes were cut for, or a
    /// single port.
    pub(super) fn cells(&self, protocol: Protocol, range: PortRange) -> Vec<PortClass> {
        if !is_wide(&range) {
            return vec![self.class_of(protocol, range.first())];
        }
        let pieces = self.pieces.get(&protocol).map_or(&[][..], |pieces| pieces);
        let start = pieces.partition_point(|(piece, _)| piece.last() < range.first());
        let mut classes: Vec<PortClass> = pieces[start..]
            .iter()
            .take_while(|(piece, _)| piece.first() <= range.last())
            .map(|(_, class)| PortClass::Class(*class))
            .collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// What the datapath's trie holds: blocks whose size is a power of two that divides their first
    /// port, so that each is one prefix.
    pub(super) fn blocks(&self, direction: Direction) -> Vec<PortClassRange> {
        let mut blocks = Vec::new();
        for (protocol, pieces) in &self.pieces {
            for (piece, class) in pieces {
                blocks.extend(aligned(*piece).map(|range| PortClassRange {
                    direction,
                    protocol: *protocol,
                    range,
                    class: *class,
                }));
            }
        }
        blocks
    }
}

pub(super) fn is_wide(range: &PortRange) -> bool {
    range.first() < range.last()
}

type Piece = (PortRange, Arc<[PortRange]>);

/// Cuts at every end of a range; keeps the pieces that a wide range covers.
fn cut(ranges: &[PortRange], coverings: &mut usize) -> Result<Vec<Piece>, TooManyClasses> {
    // One past port 65535 exists here, so u32.
    let mut starts: Vec<(u32, PortRange)> = ranges.iter().map(|r| (u32::from(r.first()), *r)).collect();
    let mut ends: Vec<(u32, PortRange)> = ranges.iter().map(|r| (u32::from(r.last()) + 1, *r)).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    let cuts: BTreeSet<u32> = starts.iter().chain(&ends).map(|(port, _)| *port).collect();
    let cuts: Vec<u32> = cuts.into_iter().collect();
    let (mut starts, mut ends) = (starts.into_iter().peekable(), ends.into_iter().peekable());
    let mut open: BTreeSet<PortRange> = BTreeSet::new();
    let mut wide = 0usize;
    let mut pieces = Vec::new();
    for window in cuts.windows(2) {
        while let Some((_, range)) = ends.next_if(|(port, _)| *port <= window[0]) {
            wide -= usize::from(is_wide(&range) && open.remove(&range));
            open.remove(&range);
        }
        while let Some((_, range)) = starts.next_if(|(port, _)| *port <= window[0]) {
            wide += usize::from(is_wide(&range) && open.insert(range));
            open.insert(range);
        }
        if wide == 0 {
            continue;
        }
        *coverings += open.len();
        if *coverings > MAX_COVERINGS {
            return Err(TooManyClasses);
        }
        let range = PortRange::new(window[0] as u16, (window[1] - 1) as u16).expect("cuts ascend from 1");
        pieces.push((range, open.iter().copied().collect()));
    }
    Ok(pieces)
}

fn aligned(range: PortRange) -> impl Iterator<Item = PortRange> {
    let mut next = u32::from(range.first());
    let end = u32::from(range.last()) + 1;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let fits = 1 << (end - next).ilog2();
        let size = fits.min(next & next.wrapping_neg());
        let block = PortRange::new(next as u16, (next + size - 1) as u16)?;
        next += size;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> (Protocol, PortRange) {
        (Protocol::Tcp, PortRange::new(first, last).unwrap())
    }

    fn built(ranges: &[(Protocol, PortRange)]) -> PortClasses {
        let mut classes = PortClasses::default();
        classes.rebuild(&ranges.iter().copied().collect()).unwrap();
        classes
    }

    #[test]
    fn single_ports_alone_make_no_class() {
        let classes = built(&[range(80, 80), range(443, 443)]);
        assert!(classes.is_empty());
        assert_eq!(classes.cells(Protocol::Tcp, range(80, 80).1), [PortClass::Exact(80)]);
    }

    #[test]
    fn a_single_port_inside_a_range_is_a_class_and_one_outside_is_not() {
        let classes = built(&[range(80, 80), range(8080, 8080), range(8000, 8100)]);
        assert_eq!(classes.class_of(Protocol::Tcp, 80), PortClass::Exact(80));
        assert_ne!(classes.class_of(Protocol::Tcp, 8080), classes.class_of(Protocol::Tcp, 8000));
        assert_eq!(classes.class_of(Protocol::Tcp, 8100), classes.class_of(Protocol::Tcp, 8000));
        assert_eq!(classes.class_of(Protocol::Udp, 8000), PortClass::Exact(8000));
        assert_eq!(classes.cells(Protocol::Tcp, range(8000, 8100).1).len(), 2);
    }

    #[test]
    fn the_last_port_is_covered() {
        let classes = built(&[range(1, 65535), range(65535, 65535)]);
        assert!(matches!(classes.class_of(Protocol::Tcp, 65535), PortClass::Class(_)));
        assert_ne!(classes.class_of(Protocol::Tcp, 65535), classes.class_of(Protocol::Tcp, 1));
    }

    #[test]
    fn a_number_is_not_reused_for_another_class_before_the_delta() {
        let mut classes = built(&[range(1, 10)]);
        let old = classes.class_of(Protocol::Tcp, 5);
        classes.rebuild(&[range(5, 20)].into_iter().collect()).unwrap();
        assert_ne!(classes.class_of(Protocol::Tcp, 5), old);
        classes.rebuild(&[range(1, 10)].into_iter().collect()).unwrap();
        assert_eq!(classes.class_of(Protocol::Tcp, 5), old);
    }

    #[test]
    fn a_thicket_of_ranges_is_refused() {
        let ranges: BTreeSet<_> = (1..2000).map(|n| range(n, 30_000 + n)).collect();
        let mut classes = PortClasses::default();
        assert_eq!(classes.rebuild(&ranges), Err(TooManyClasses));
        assert!(classes.is_empty());
    }

    fn port() -> impl Strategy<Value = u16> {
        prop_oneof![1u16..40, 65_500..=65_535u16, 1..=65_535u16]
    }

    proptest! {
        #[test]
        fn a_rule_on_a_range_has_the_cell_of_a_port_exactly_when_it_covers_it(
            ends in prop::collection::vec((port(), port()), 1..12),
            probes in prop::collection::vec(port(), 1..40),
        ) {
            let ranges: Vec<_> = ends.iter().map(|(a, b)| range(*a.min(b), *a.max(b))).collect();
            let classes = built(&ranges);
            let ends = ranges.iter().flat_map(|(_, range)| [range.first(), range.last()]);
            for probe in probes.into_iter().chain(ends) {
                let class = classes.class_of(Protocol::Tcp, probe);
                for (protocol, range) in &ranges {
                    let cells = classes.cells(*protocol, *range);
                    prop_assert_eq!(cells.contains(&class), range.contains(probe));
                }
            }
        }

        #[test]
        fn blocks_are_prefixes_and_cover_exactly_the_classes(
            ends in prop::collection::vec((port(), port()), 1..6),
            probes in prop::collection::vec(port(), 1..40),
        ) {
            let ranges: Vec<_> = ends.iter().map(|(a, b)| range(*a.min(b), *a.max(b))).collect();
            let classes = built(&ranges);
            let blocks = classes.blocks(Direction::Ingress);
            for block in &blocks {
                let size = u32::from(block.range.last()) - u32::from(block.range.first()) + 1;
                prop_assert!(size.is_power_of_two() && u32::from(block.range.first()) % size == 0);
            }
            for probe in probes {
                let found: Vec<_> = blocks.iter().filter(|block| block.range.contains(probe)).collect();
                let class = found.first().map_or(PortClass::Exact(probe), |b| PortClass::Class(b.class));
                prop_assert!(found.len() <= 1);
                prop_assert_eq!(class, classes.class_of(Protocol::Tcp, probe));
            }
        }
    }
}
