//! Connections of ABI versions 1 to 4: a hash of the kernel's, whose entries say when their last packet came.

use std::path::Path;

use super::super::DatapathError;
use super::super::abi::*;
use super::super::connections::{Keeper, Kept, timeout};
use super::super::table::KernelTable;
use super::super::tables::name;
use super::{insert, open};
use crate::model::Protocol;

/// The first version with a table of sets.
pub(super) const NEXT: u32 = 5;

/// `ct_entry` as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Entry {
    lo: CtSide,
    hi: CtSide,
    last_seen: u32,
    flags: u16,
    svc_port: u16,
    svc_addr: Addr,
    lo_mac: [u8; 6],
    hi_mac: [u8; 6],
    rule_set: u32,
    packets: [u64; 2],
    bytes: [u64; 2],
}

const _: () = assert!(size_of::<Entry>() == 104);

// SAFETY: `repr(C)`, `Copy`, integers and arrays of integers that fill all of its 104 bytes.
#[allow(unsafe_code)]
unsafe impl aya::Pod for Entry {}

impl Entry {
    fn kept(&self, key: &CtKey) -> Kept {
        let Entry { lo, hi, flags, svc_port, svc_addr, lo_mac, hi_mac, rule_set, packets, bytes, .. } = *self;
        let pad = [0; 2];
        let (lo_pad, hi_pad) = (pad, pad);
        let entry = CtEntry {
            lo,
            hi,
            flags,
            svc_port,
            rule_set,
            svc_addr,
            lo_mac,
            lo_pad,
            hi_mac,
            hi_pad,
            packets,
            bytes,
        };
        let lives = timeout(Protocol::from_number(key.protocol), u32::from(flags));
        Kept { key: *key, entry, expires: self.last_seen.saturating_add(lives) }
    }
}

/// Inserts the connections of a map of these versions.
pub(super) fn copy(
    from: &Path,
    keeper: Keeper<'_>,
    change: impl Fn(CtEntry) -> CtEntry,
) -> Result<usize, DatapathError> {
    let Some(from) = open(from)? else { return Ok(0) };
    let mut found = Vec::new();
    KernelTable::open::<CtKey, Entry>(name::CT, from)?.for_each(&mut |key, entry| {
        let kept = entry.kept(key);
        found.push(Kept { entry: change(kept.entry), ..kept });
    })?;
    insert(&found, keeper)
}
