//! The difference between what the datapath was told last and what is compiled now.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::column::{Cell, Column};
use super::subject::{Side, SubjectState};
use crate::model::{Direction, Identity};
use crate::policy::map_state::{PolicyEntry, PolicyKey, SlotAction, SubjectDelta};

/// What changed in a subject since it was announced; `None` when nothing did. Afterwards it is
/// announced as it is.
pub(super) fn take(id: Identity, subject: &mut SubjectState) -> Option<SubjectDelta> {
    let info = subject.info();
    let mut delta = SubjectDelta {
        subject: id,
        info,
        upserts: Vec::new(),
        deletes: Vec::new(),
        class_upserts: Vec::new(),
        class_deletes: Vec::new(),
        removed: !subject.alive,
    };
    let mut deletes: Vec<(PolicyKey, PolicyEntry)> = Vec::new();
    for direction in Direction::BOTH {
        let side = subject.side_mut(direction);
        take_columns(side, direction, &mut delta, &mut deletes);
        take_classes(side, direction, &mut delta);
    }
    let announced = if subject.alive { subject.announced.replace(info) } else { subject.announced.take() };
    if !subject.alive {
        let empty = SubjectDelta { info, upserts: Vec::new(), deletes: Vec::new(), ..delta };
        return announced.map(|_| SubjectDelta {
            class_upserts: Vec::new(),
            class_deletes: Vec::new(),
            ..empty
        });
    }
    // Denies first: see `SubjectDelta`.
    delta.upserts.sort_by_key(|(key, entry)| (!denies(entry), *key));
    deletes.sort_by_key(|(key, was)| (denies(was), *key));
    delta.deletes = deletes.into_iter().map(|(key, _)| key).collect();
    let unchanged = announced == Some(info)
        && delta.upserts.is_empty()
        && delta.deletes.is_empty()
        && delta.class_upserts.is_empty()
        && delta.class_deletes.is_empty();
    (!unchanged).then_some(delta)
}

fn denies(entry: &PolicyEntry) -> bool {
    [entry.admin, entry.normal].into_iter().flatten().any(|slot| slot.action == SlotAction::Deny)
}

fn take_columns(
    side: &mut Side,
    direction: Direction,
    delta: &mut SubjectDelta,
    deletes: &mut Vec<(PolicyKey, PolicyEntry)>,
) {
    for (peer, was) in std::mem::take(&mut side.before) {
        let is = side.column(peer);
        if let (Some(was), Some(is)) = (&was, is)
            && Arc::ptr_eq(was, is)
        {
            continue;
        }
        let key =
            |cell: &Cell| PolicyKey { direction, identity: peer, protocol: cell.protocol, port: cell.port };
        let cells = |column: Option<&Arc<Column>>| column.map_or_else(Arc::default, Arc::clone);
        let (was, is) = (cells(was.as_ref()), cells(is));
        let mut old = was.cells.iter().peekable();
        for (cell, entry) in &is.cells {
            while let Some((gone, was)) = old.next_if(|(old, _)| old < cell) {
                deletes.push((key(gone), *was));
            }
            let same = old.next_if(|(old, _)| old == cell).is_some_and(|(_, old)| old == entry);
            if !same {
                delta.upserts.push((key(cell), *entry));
            }
        }
        deletes.extend(old.map(|(gone, was)| (key(gone), *was)));
    }
}

fn take_classes(side: &mut Side, direction: Direction, delta: &mut SubjectDelta) {
    if side.classes.is_empty() && side.announced_classes.is_empty() {
        side.classes.delta_taken();
        return;
    }
    let now = side.classes.blocks(direction);
    let block = |class: &crate::policy::map_state::PortClassRange| (class.protocol, class.range);
    let old: BTreeSet<_> = side.announced_classes.iter().copied().collect();
    let kept: BTreeSet<_> = now.iter().map(block).collect();
    delta.class_upserts.extend(now.iter().filter(|class| !old.contains(*class)));
    delta.class_deletes.extend(old.iter().filter(|class| !kept.contains(&block(class))));
    side.announced_classes = now;
    side.classes.delta_taken();
}
