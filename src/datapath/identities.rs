//! Which identities of pods the policies know: one bit each in `sl_identities`.
//!
//! Contract: a bit is set after every entry that the identity has in some policy was written, and cleared before the
//! first of them goes. A packet from another node that claims an identity without a bit is dropped.

use std::collections::BTreeMap;

use super::DatapathError;
use super::tables::Tables;
use crate::cluster::delta::Presence;
use crate::model::Identity;

/// Identities in one word of the map.
const BITS: u32 = u64::BITS;

type Changes = [(Identity, Presence)];

fn words(changes: &Changes, wanted: Presence) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for (identity, _) in changes.iter().filter(|(id, presence)| *presence == wanted && id.is_cluster_scope())
    {
        *words.entry(identity.0 / BITS).or_default() |= 1 << (identity.0 % BITS);
    }
    words
}

fn rewrite(
    tables: &Tables,
    words: BTreeMap<u32, u64>,
    change: impl Fn(u64, u64) -> u64,
) -> Result<(), DatapathError> {
    for (word, bits) in words {
        let old = tables.identities.get(&word)?.unwrap_or_default();
        let new = change(old, bits);
        if new != old {
            tables.identities.upsert(&[word], &[new])?;
        }
    }
    Ok(())
}

/// Clears the bits of what goes.
pub fn forget(tables: &Tables, changes: &Changes) -> Result<(), DatapathError> {
    rewrite(tables, words(changes, Presence::Gone), |old, bits| old & !bits)
}

/// Sets the bits of what came.
pub fn make_known(tables: &Tables, changes: &Changes) -> Result<(), DatapathError> {
    rewrite(tables, words(changes, Presence::Known), |old, bits| old | bits)
}

/// What makes the map hold exactly the known ones of `full`.
pub fn changes(tables: &Tables, full: &Changes) -> Result<Vec<(Identity, Presence)>, DatapathError> {
    let mut wanted = words(full, Presence::Known);
    let mut changes = Vec::new();
    let mut compare = |word: u32, old: u64, new: u64| {
        let differing = (0..BITS).filter(|bit| (old ^ new) >> bit & 1 == 1);
        changes.extend(differing.map(|bit| {
            let presence = if new >> bit & 1 == 1 { Presence::Known } else { Presence::Gone };
            (Identity(word * BITS + bit), presence)
        }));
    };
    tables.identities.for_each(&mut |word, old| {
        compare(*word, *old, wanted.remove(word).unwrap_or_default());
    })?;
    // The twin in memory has no words that nobody wrote.
    wanted.into_iter().for_each(|(word, new)| compare(word, 0, new));
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::config::Capacity;

    const A: Identity = Identity(256);
    const B: Identity = Identity(257);
    const LAST: Identity = Identity(65535);

    #[test]
    fn a_bit_is_one_identity() {
        let tables = Tables::in_memory(&Capacity::default());
        make_known(&tables, &[(A, Presence::Known), (B, Presence::Known), (LAST, Presence::Known)]).unwrap();
        assert!(
            changes(&tables, &[(LAST, Presence::Known), (A, Presence::Known), (B, Presence::Known)])
                .unwrap()
                .is_empty()
        );
        forget(&tables, &[(A, Presence::Gone), (B, Presence::Known)]).unwrap();
        let restart = changes(&tables, &[(A, Presence::Known), (B, Presence::Known)]).unwrap();
        assert_eq!(restart, [(A, Presence::Known), (LAST, Presence::Gone)]);
    }

    #[test]
    fn other_scopes_have_no_bit() {
        let tables = Tables::in_memory(&Capacity::default());
        let others = [Identity::HOST, Identity(1 << 24), Identity::WORLD].map(|id| (id, Presence::Known));
        make_known(&tables, &others).unwrap();
        assert!(changes(&tables, &[]).unwrap().is_empty());
    }
}
