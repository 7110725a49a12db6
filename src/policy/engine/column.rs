//! A column: all entries of one peer in one direction of a subject.
//!
//! It is a function of the rules that match the peer (and, where ports are named, of the names at
//! the destination) and of the subject's port classes. Peers that the same rules match share one
//! column, so the cost of ten thousand identities behind one selector is ten thousand pointers.

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;

use super::LOCALHOST_RULES;
use super::ports::PortClasses;
use super::precedence;
use super::repository::{Repository, RuleId, SlotKind};
use super::rule_sets::RuleSets;
use super::slab::Slab;
use crate::model::{Direction, Family, Protocol};
use crate::policy::map_state::{Basis, PolicyEntry, PortClass, Precedence, Slot, SlotAction};
use crate::policy::named_port::NamedPort;
use crate::policy::rule::{PortMatch, Ports};

/// The part of a key that is left inside a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Cell {
    pub(super) protocol: Option<Protocol>,
    pub(super) port: PortClass,
}

impl Cell {
    pub(super) const ANY: Cell = Cell { protocol: None, port: PortClass::Any };

    pub(super) fn protocol(protocol: Protocol) -> Cell {
        Cell { protocol: Some(protocol), port: PortClass::Any }
    }
}

/// Which kinds of cells a column has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) exact: bool,
    pub(super) protocol: bool,
    pub(super) any: bool,
}

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Column {
    /// Ascending.
    pub(super) cells: Box<[(Cell, PolicyEntry)]>,
    pub(super) kinds: Kinds,
}

impl Column {
    pub(super) fn get(&self, cell: Cell) -> Option<&PolicyEntry> {
        let index = self.cells.binary_search_by_key(&cell, |(cell, _)| *cell).ok()?;
        Some(&self.cells[index].1)
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.cells.iter().flat_map(|(_, entry)| entry.admin.iter().chain(&entry.normal))
    }
}

/// What a column is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ColumnKey {
    /// Ascending.
    pub(super) rules: Box<[RuleId]>,
    /// Rules of which only the port names are here, the rest in the column of the peer's group or of
    /// every peer; ascending.
    pub(super) names: Box<[RuleId]>,
    pub(super) peer: PeerScope,
    /// The local node may pass whatever the rules say.
    pub(super) localhost: bool,
}

impl ColumnKey {
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.names.is_empty() && !self.localhost
    }
}

/// For whom a column is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerScope {
    /// Every peer (identity 0), or everybody of a group.
    Many,
    /// One peer, with its port names where the rules ask for them.
    Identity(Option<Arc<[NamedPort]>>),
}

/// How much of a rule comes into a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Whole,
    /// What its port names stand for at the peer.
    Names,
}

/// What compiling needs beside the key.
pub(super) struct Compiler<'a> {
    pub(super) repository: &'a Repository,
    pub(super) rule_sets: &'a mut RuleSets,
    pub(super) classes: &'a PortClasses,
    pub(super) direction: Direction,
    /// Port names of the subject.
    pub(super) subject_ports: Option<&'a [NamedPort]>,
}

/// One rule in one slot. The order is that of cells and slots, best rule first; at one rank (which
/// only a crowded priority has) deny is best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Contribution {
    cell: Cell,
    slot: SlotKind,
    precedence: Reverse<Precedence>,
    not_deny: bool,
    rule: RuleId,
}

impl Compiler<'_> {
    pub(super) fn compile(&mut self, key: &ColumnKey) -> Column {
        let mut contributions = Vec::new();
        let of =
            |rules: &'_ [RuleId], extent| rules.iter().map(move |rule| (*rule, extent)).collect::<Vec<_>>();
        for (rule, extent) in of(&key.rules, Extent::Whole).into_iter().chain(of(&key.names, Extent::Names)) {
            let state = self.repository.rule_state(rule);
            self.cells_of(rule, extent, &key.peer, |cell| {
                contributions.push(Contribution {
                    cell,
                    slot: state.slot,
                    precedence: Reverse(state.precedence),
                    not_deny: state.action != SlotAction::Deny,
                    rule,
                });
            });
        }
        contributions.sort_unstable();
        contributions.dedup();
        let mut cells: Vec<(Cell, PolicyEntry)> = Vec::new();
        if key.localhost {
            let slot = Slot {
                precedence: precedence::LOCALHOST,
                action: SlotAction::Allow,
                rules: LOCALHOST_RULES,
                basis: Basis::Peer,
            };
            cells.push((Cell::ANY, PolicyEntry { admin: Some(slot), normal: None }));
        }
        for group in contributions.chunk_by(|a, b| (a.cell, a.slot) == (b.cell, b.slot)) {
            let best = &group[0];
            if cells.last().is_none_or(|(cell, _)| *cell != best.cell) {
                cells.push((best.cell, PolicyEntry::default()));
            }
            let Some((_, entry)) = cells.last_mut() else { continue };
            let slot = match best.slot {
                SlotKind::Admin => &mut entry.admin,
                SlotKind::Normal => &mut entry.normal,
            };
            if slot.is_some() {
                continue; // the local node's
            }
            let equal = group.partition_point(|other| {
                (other.precedence, other.not_deny) == (best.precedence, best.not_deny)
            });
            *slot = Some(self.slot(&group[..equal]));
        }
        // `Cell::ANY` sorts first, so the cells are ascending with the local node's, too.
        let mut kinds = Kinds::default();
        for (cell, _) in &cells {
            match (cell.protocol, cell.port) {
                (None, _) => kinds.any = true,
                (Some(_), PortClass::Any) => kinds.protocol = true,
                (Some(_), _) => kinds.exact = true,
            }
        }
        Column { cells: cells.into(), kinds }
    }

    fn slot(&mut self, best: &[Contribution]) -> Slot {
        let repository = self.repository;
        let state = repository.rule_state(best[0].rule);
        let rules = if let [only] = best {
            self.rule_sets.acquire(&[state.number], || Box::from([repository.reference(only.rule)]))
        } else {
            let mut numbers: Vec<_> =
                best.iter().map(|other| repository.rule_state(other.rule).number).collect();
            numbers.sort_unstable();
            self.rule_sets.acquire(&numbers, || {
                let mut rules: Vec<_> = best.iter().map(|other| repository.reference(other.rule)).collect();
                rules.sort_unstable();
                rules.into()
            })
        };
        let by_name = best.iter().any(|other| repository.rule_state(other.rule).basis == Basis::Name);
        // Only what lets pass is outlived.
        let basis = match state.action {
            SlotAction::Allow | SlotAction::Redirect(_) if by_name => Basis::Name,
            _ => Basis::Peer,
        };
        Slot { precedence: state.precedence, action: state.action, rules, basis }
    }

    /// The cells of a rule in a column.
    fn cells_of(&self, rule: RuleId, extent: Extent, peer: &PeerScope, mut emit: impl FnMut(Cell)) {
        let here = extent == Extent::Whole;
        let ports = match &self.repository.rule(rule).ports {
            Ports::Any => {
                if here {
                    emit(Cell::ANY);
                }
                return;
            }
            Ports::OneOf(ports) => ports,
        };
        for port in ports {
            match port {
                PortMatch::Named(protocol, name) => {
                    let names = match (self.direction, peer) {
                        (Direction::Ingress, _) if here => self.subject_ports,
                        (Direction::Egress, PeerScope::Identity(names)) => names.as_deref(),
                        _ => None,
                    };
                    let numbers = names.unwrap_or(&[]).iter();
                    for named in numbers.filter(|named| named.protocol == *protocol && named.name == *name) {
                        emit(Cell {
                            protocol: Some(*protocol),
                            port: self.classes.class_of(*protocol, named.port),
                        });
                    }
                }
                _ if !here => {}
                PortMatch::Protocol(protocol) => emit(Cell::protocol(*protocol)),
                PortMatch::Range(protocol, range) => {
                    for class in self.classes.cells(*protocol, *range) {
                        emit(Cell { protocol: Some(*protocol), port: class });
                    }
                }
                PortMatch::IcmpType(family, kind) => {
                    emit(Cell { protocol: Some(icmp(*family)), port: PortClass::Exact(u16::from(*kind)) });
                }
            }
        }
    }
}

/// The ICMP of a family.
pub(super) fn icmp(family: Family) -> Protocol {
    match family {
        Family::IPv4 => Protocol::Icmp,
        Family::IPv6 => Protocol::Icmpv6,
    }
}

/// The columns of one direction of a subject, each kind of peer once.
#[derive(Debug, Default)]
pub(super) struct Pool {
    columns: Slab<Pooled>,
    by_key: HashMap<Arc<ColumnKey>, u32>,
}

#[derive(Debug)]
struct Pooled {
    key: Arc<ColumnKey>,
    column: Arc<Column>,
    uses: u32,
}

impl Pool {
    pub(super) fn get(&self, number: u32) -> &Arc<Column> {
        &self.columns.get(number).column
    }

    /// The column for a key, compiled if need be; one more use of it.
    pub(super) fn acquire(&mut self, key: ColumnKey, compiler: &mut Compiler<'_>) -> u32 {
        if let Some(&number) = self.by_key.get(&key) {
            self.columns.get_mut(number).uses += 1;
            return number;
        }
        let column = Arc::new(compiler.compile(&key));
        let key = Arc::new(key);
        let number = self.columns.insert(Pooled { key: key.clone(), column, uses: 1 });
        self.by_key.insert(key, number);
        number
    }

    /// One use less.
    pub(super) fn release(&mut self, number: u32, rule_sets: &mut RuleSets) {
        let pooled = self.columns.get_mut(number);
        pooled.uses -= 1;
        if pooled.uses > 0 {
            return;
        }
        let pooled = self.columns.remove(number);
        self.columns.reclaim();
        self.by_key.remove(&pooled.key);
        pooled.column.slots().for_each(|slot| rule_sets.release(slot.rules));
    }
}
