//! The table of connections, as user space sees it: `sl_ct`, an array of sets (`bpf/lib/ct_table.h` says how, and why it is no
//! hash of the kernel's).
//!
//! The programs write it under a lock of their own, so nobody else does: [`Keeper`] runs one of them to bring a
//! connection from elsewhere. Readers take no lock here either; a set that changed while it was read is read again.
//!
//! Which set a connection is in depends on a secret, drawn when the table is made: nobody can open connections that all
//! meet in one set. It is kept in `sl_ct_secret` for as long as the table, and told to the programs when they are loaded.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use aya::EbpfLoader;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::DatapathError;
use super::abi::*;
use super::pins::Pins;
use super::sys;
use super::table::{KernelTable, Shared, Table};
use super::tables::name;
use crate::model::Protocol;

/// Name of the program that brings connections.
pub(super) const KEEPER: &str = "keep_connection";

const TC_ACT_OK: u32 = 0;
const TC_ACT_PIPE: u32 = 3;

/// `SLUICE_CT_MIX`.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// A set that changes faster than it can be read is not met in practice: its writers hold it for nanoseconds.
const READS: usize = 16;

/// Runs of the keeper for one connection.
const ATTEMPTS: usize = 1000;

/// Sets of a table with room for so many connections.
pub(super) fn sets_for(connections: u32) -> u32 {
    connections.div_ceil(CT_WAYS).max(1)
}

/// Where a connection of this key is. The twin of `ct_hash()` and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) set: u32,
    tag: u16,
}

impl CtSecret {
    /// The table's own, or one that is new.
    ///
    /// # Errors
    /// When the pin cannot be read, or the kernel has no random numbers.
    pub(super) fn of_pins(pins: &Pins) -> Result<CtSecret, DatapathError> {
        let kept = CtSecret::kept(pins)?;
        kept.map_or_else(CtSecret::draw, Ok)
    }

    fn kept(pins: &Pins) -> Result<Option<CtSecret>, DatapathError> {
        let path = pins.map(name::CT_SECRET);
        let failed = |operation| {
            let object = path.display().to_string();
            move |source| DatapathError::Syscall { operation, object, source }
        };
        let Some(fd) = sys::open_pin(&path).map_err(failed("BPF_OBJ_GET"))? else { return Ok(None) };
        let secret: Option<CtSecret> = sys::lookup(&fd, &0_u32).map_err(failed("BPF_MAP_LOOKUP_ELEM"))?;
        // An agent that ended before it wrote one left nothing that anybody uses.
        Ok(secret.filter(|secret| *secret != CtSecret::default()))
    }

    /// Random factors.
    pub(super) fn draw() -> Result<CtSecret, DatapathError> {
        use ring::rand::{SecureRandom as _, SystemRandom};
        let mut secret = CtSecret::default();
        for factor in &mut secret.factors {
            let mut bytes = [0; 8];
            SystemRandom::new().fill(&mut bytes).map_err(|_| DatapathError::Syscall {
                operation: "getrandom",
                object: "the secret of the table of connections".into(),
                source: io::Error::other("the kernel has no random numbers"),
            })?;
            *factor = u64::from_ne_bytes(bytes);
        }
        Ok(secret)
    }

    /// Writes it beside the table.
    pub(super) fn keep(&self, pins: &Pins) -> Result<(), DatapathError> {
        let fd = pins.open_map(name::CT_SECRET)?;
        sys::update(&fd, &0_u32, self).map_err(|source| DatapathError::Syscall {
            operation: "BPF_MAP_UPDATE_ELEM",
            object: format!("map {}", name::CT_SECRET),
            source,
        })
    }

    /// Tells the programs of an object that is about to be loaded, and how many sets there are.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>, sets: &'a u32) {
        loader.override_global("sl_ct_factors", &self.factors[..], true).override_global(
            "sl_ct_sets",
            sets,
            true,
        );
    }

    pub(super) fn place(&self, key: &CtKey, sets: u32) -> Place {
        let mut sum = self.factors[CT_SECRETS as usize - 1];
        let words = sys::as_bytes(key);
        for (factor, word) in self.factors.iter().zip(words.chunks_exact(4)) {
            let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            sum = sum.wrapping_add(factor.wrapping_mul(u64::from(word)));
        }
        sum ^= sum >> 32;
        let hash = (sum.wrapping_mul(MIX) >> 32) as u32;
        let set = ((u64::from(hash) * u64::from(sets)) >> 32) as u32;
        Place { set, tag: if hash as u16 == 0 { 1 } else { hash as u16 } }
    }
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub key: CtKey,
    pub entry: CtEntry,
    /// Seconds since boot.
    pub expires: u32,
}

impl CtSet {
    pub(super) fn kept(&self) -> impl Iterator<Item = Kept> {
        let used = |(tag, _): &(&u16, _)| **tag != 0;
        let ways = self.ways.iter().zip(&self.expires);
        let kept = |(_, (way, expires)): (_, (&CtWay, &u32))| Kept {
            key: way.key,
            entry: way.entry,
            expires: *expires,
        };
        self.tags.iter().zip(ways).filter(used).map(kept)
    }
}

/// Seconds that a connection lives without a packet. The twin of `ct_timeout()` in `bpf/lib/conntrack.h`.
pub(super) fn timeout(protocol: Protocol, flags: u32) -> u32 {
    let answered = |yes| if flags & CT_SEEN_REPLY != 0 { yes } else { CT_SECONDS_OPENING };
    match protocol {
        Protocol::Tcp => {
            let finished = CT_FIN_LO | CT_FIN_HI;
            if flags & CT_RST != 0 || flags & finished == finished {
                CT_SECONDS_TCP_CLOSING
            } else if flags & CT_SYN_ONLY != 0 {
                CT_SECONDS_OPENING
            } else {
                CT_SECONDS_TCP
            }
        }
        Protocol::Sctp => answered(CT_SECONDS_SCTP),
        Protocol::Icmp | Protocol::Icmpv6 => CT_SECONDS_ICMP,
        _ => answered(CT_SECONDS_ANSWERED),
    }
}

/// Reads the table.
#[derive(Clone, Debug)]
pub struct Connections {
    sets: Shared<u32, CtSet>,
    secret: CtSecret,
}

impl Connections {
    /// Opens the pins below an agent's BPF directory.
    ///
    /// # Errors
    /// When no agent of this ABI version ever ran there.
    pub fn open(bpffs: &Path) -> Result<Connections, DatapathError> {
        Connections::of_pins(&Pins::at(bpffs))
    }

    pub(super) fn of_pins(pins: &Pins) -> Result<Connections, DatapathError> {
        let sets = KernelTable::open(name::CT, pins.open_map(name::CT)?)?;
        let secret = CtSecret::kept(pins)?.ok_or_else(|| DatapathError::Syscall {
            operation: "read",
            object: format!("map {}", name::CT_SECRET),
            source: io::Error::new(io::ErrorKind::InvalidData, "no agent has drawn it"),
        })?;
        Ok(Connections { sets, secret })
    }

    /// Room for this many connections.
    pub fn room(&self) -> u32 {
        self.sets.max_entries() * CT_WAYS
    }

    /// The entry of a connection.
    pub fn get(&self, key: &CtKey) -> Result<Option<CtEntry>, DatapathError> {
        let Place { set: index, tag } = self.secret.place(key, self.sets.max_entries());
        let mut set = self.sets.get(&index)?.unwrap_or_default();
        for _ in 0..READS {
            let again = self.sets.get(&index)?.unwrap_or_default();
            if set.version.is_multiple_of(2) && again.version == set.version {
                break;
            }
            set = again;
        }
        let tagged = |kept: &Kept| self.secret.place(&kept.key, self.sets.max_entries()).tag == tag;
        Ok(set.kept().find(|kept| tagged(kept) && kept.key == *key).map(|kept| kept.entry))
    }

    /// Every connection, expired ones included. Those that come or go meanwhile may be missed.
    pub fn for_each(&self, visit: &mut dyn FnMut(&Kept)) -> Result<(), DatapathError> {
        visit_sets(&*self.sets, visit)
    }

    /// The same for a table whose secret nobody knows any more.
    pub(super) fn visit(table: OwnedFd, visit: &mut dyn FnMut(&Kept)) -> Result<(), DatapathError> {
        visit_sets(&*KernelTable::open(name::CT, table)?, visit)
    }
}

fn visit_sets(sets: &dyn Table<u32, CtSet>, visit: &mut dyn FnMut(&Kept)) -> Result<(), DatapathError> {
    sets.for_each(&mut |_, set| set.kept().for_each(|kept| visit(&kept)))
}

/// Puts connections into the table.
#[derive(Debug)]
pub struct Keeper<'a>(pub &'a mut SchedClassifier);

impl Keeper<'_> {
    /// Inserts; `false` when the connection is there already, which then stays as it is.
    ///
    /// # Errors
    /// What the kernel says, or a set whose lock could not be had.
    pub fn insert(&mut self, kept: &Kept) -> Result<bool, DatapathError> {
        self.run(kept, 0)
    }

    /// Inserts or replaces.
    pub fn replace(&mut self, kept: &Kept) -> Result<(), DatapathError> {
        self.run(kept, 1).map(drop)
    }

    fn run(&mut self, kept: &Kept, replace: u32) -> Result<bool, DatapathError> {
        let Kept { key, entry, expires } = *kept;
        let record = CtRecord { key, entry, expires, replace };
        let failed = |source| DatapathError::Syscall {
            operation: "BPF_PROG_TEST_RUN",
            object: format!("program {KEEPER}"),
            source,
        };
        // Packets write the set, too, and one of their writers may have been stopped in the middle.
        for _ in 0..ATTEMPTS {
            let options =
                TestRunOptions { data_in: Some(sys::as_bytes(&record)), repeat: 1, ..Default::default() };
            let result = self.0.test_run(options).map_err(|error| failed(io::Error::other(error)))?;
            match result.return_value {
                TC_ACT_OK => return Ok(true),
                TC_ACT_PIPE => return Ok(false),
                _ => std::thread::yield_now(),
            }
        }
        Err(failed(io::Error::other("it could not get at the set")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: u32, port: u16) -> CtKey {
        let address = |n: u32| Addr::from(std::net::IpAddr::from(n.to_be_bytes()));
        CtKey {
            lo_addr: address(0x0a00_0000 + client),
            hi_addr: address(0x0a01_0000),
            lo_port: port,
            hi_port: 443,
            protocol: 6,
            ..Default::default()
        }
    }

    /// As many as half of the places, with ports in a row: what a set has no room for is a small part, whatever was drawn.
    #[test]
    fn connections_spread_over_the_sets() {
        const SETS: u32 = 1024;
        for _ in 0..64 {
            let secret = CtSecret::draw().unwrap();
            let mut full = vec![0_u32; SETS as usize];
            for n in 0..SETS * CT_WAYS / 2 {
                full[secret.place(&key(n / 4096, (n % 4096) as u16), SETS).set as usize] += 1;
            }
            let beyond: u32 = full.iter().map(|n| n.saturating_sub(CT_WAYS)).sum();
            assert!(beyond < SETS * CT_WAYS / 2 / 100, "{beyond} with {secret:?}");
        }
    }

    #[test]
    fn every_word_of_a_key_counts() {
        let secret = CtSecret::draw().unwrap();
        let base = key(1, 40000);
        let changed = [
            CtKey { lo_port: 40001, ..base },
            CtKey { hi_port: 444, ..base },
            CtKey { protocol: 17, ..base },
            CtKey { hi_addr: base.lo_addr, ..base },
            key(2, 40000),
        ];
        let place = |key| secret.place(key, u32::MAX);
        assert!(changed.iter().all(|key| place(key) != place(&base)));
        assert_eq!((sets_for(0), sets_for(16), sets_for(17)), (1, 1, 2));
    }

    #[test]
    fn an_entry_without_packets_expires_by_its_state() {
        let lives = [
            (6, CT_SYN_ONLY, 60),
            (6, CT_SEEN_REPLY, 21600),
            (6, CT_SEEN_REPLY | CT_FIN_LO, 21600),
            (6, CT_SEEN_REPLY | CT_FIN_LO | CT_FIN_HI, 10),
            (6, CT_RST, 10),
            (17, 0, 60),
            (17, CT_SEEN_REPLY, 180),
            (132, 0, 60),
            (132, CT_SEEN_REPLY, 3600),
            (1, CT_SEEN_REPLY, 30),
            (58, 0, 30),
        ];
        for (protocol, flags, seconds) in lives {
            assert_eq!(timeout(Protocol::from_number(protocol), flags), seconds, "{protocol} {flags:#x}");
        }
    }
}
