//! Carries what packets wrote into maps that take the place of others, so that an upgrade or another size costs no
//! connection.
//!
//! Two cases, and one way through both: the new map is filled before the new programs run, and once more when they
//! all do, with what the old programs wrote meanwhile; then the old map goes. Entries that are in the new map
//! already stay as they are.
//!
//! - **Another size** of a map of this ABI version (the configuration gives room for more connections, say). The old
//!   pin is set aside as `<name>_before`. A table that would no longer fit is refused before anything is changed.
//! - **Another ABI version.** Conntrack, masquerade and affinity go over where this version knows their layout
//!   ([`before_sets`] for connections). Policies are written anew and have other epochs, so every connection is judged once more
//!   at its next packet, as what it is: the entry still says who opened it. What has another layout stays behind,
//!   and is told ([`Carried`]): such connections are judged as if they began.

mod before_sets;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::DatapathError;
use super::abi::*;
use super::clock;
use super::connections::{Connections, Keeper, Kept};
use super::pins::Pins;
use super::programs::Programs;
use super::sys;
use super::table::{KernelTable, Key, Value};
use super::tables::{MapSpec, name};

/// The first ABI version whose masquerade and affinity maps have the layout of this one. To be raised when one of `nat_key`,
/// `nat_entry`, `affinity_key`, `affinity_entry` changes.
const NAT_SINCE: u32 = 1;

/// Of no policy: [`super::policies`] counts up from 1.
const FOREIGN_EPOCH: u32 = u32::MAX;

/// What became of one map's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    pub map: &'static str,
    /// The pin that it was read from.
    pub from: PathBuf,
    /// Elements that the new map got, or why it got none.
    pub outcome: Result<usize, String>,
}

/// The old maps, until they are gone.
#[derive(Debug, Default)]
pub struct Carry {
    resized: Vec<(&'static str, PathBuf)>,
    /// Those that this start set aside.
    set_aside: Vec<(&'static str, PathBuf)>,
    versions: Vec<(u32, PathBuf)>,
    carried: Vec<Carried>,
}

/// Maps whose size is configured.
const SIZED: [&str; 4] = [name::POLICY, name::IPCACHE_EXACT, name::CT, name::EVENTS];

fn failed(operation: &'static str, path: &Path, source: std::io::Error) -> DatapathError {
    DatapathError::Syscall { operation, object: path.display().to_string(), source }
}

fn exists(pin: &Path) -> Result<bool, DatapathError> {
    sys::open_pin(pin).map(|fd| fd.is_some()).map_err(|e| failed("BPF_OBJ_GET", pin, e))
}

impl Carry {
    /// Sets pinned maps of another size aside, so that the loader makes new ones.
    ///
    /// # Errors
    /// A pinned map of another type or element size; one whose content would not fit. Nothing is changed then.
    pub fn plan(pins: &Pins, specs: &[MapSpec]) -> Result<Carry, DatapathError> {
        let mut carry = Carry::default();
        for path in pins.other_versions() {
            let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse().ok());
            carry.versions.extend(number.map(|number: u32| (number, path)));
        }
        let differing = pins.differing(specs)?;
        for (spec, found) in &differing {
            if !(SIZED.contains(&spec.name) && found.same_elements(spec)) {
                return Err(pins.misfit(spec, found));
            }
            check_room(pins, spec)?;
        }
        for name in SIZED {
            let before = pins.before(name);
            // An agent that was killed in the middle of this, once or twice: its work is finished, too.
            let between = pins.map(&format!("{name}_between"));
            let unfinished = exists(&before)?;
            if differing.iter().any(|(spec, _)| spec.name == name) {
                let aside = if unfinished { &between } else { &before };
                std::fs::rename(pins.map(name), aside).map_err(|e| failed("rename", aside, e))?;
                carry.set_aside.push((name, aside.clone()));
            }
            for pin in [before, between] {
                if exists(&pin)? {
                    carry.resized.push((name, pin));
                }
            }
        }
        Ok(carry)
    }

    /// Puts the pins back where they were: the new programs could not be loaded, the old ones go on.
    pub fn undo(self, pins: &Pins) -> Result<(), DatapathError> {
        for (name, before) in &self.set_aside {
            let pin = pins.map(name);
            Pins::unpin(&pin)?;
            std::fs::rename(before, &pin).map_err(|e| failed("rename", &pin, e))?;
        }
        Ok(())
    }

    /// Fills the new maps. The new programs are loaded, and run nowhere yet.
    pub fn fill(&mut self, pins: &Pins, programs: &mut Programs) -> Result<(), DatapathError> {
        for (name, before) in self.resized.clone() {
            let outcome = match name {
                name::CT => copy_connections(&before, programs.keeper(), |entry| entry)?,
                _ => copy_sized(name, &before, &pins.map(name))?,
            };
            self.tell(name, before, Ok(outcome));
        }
        self.take_versions(pins, programs)
    }

    /// Brings what the old programs wrote since. The new programs run everywhere.
    pub fn catch_up(&mut self, pins: &Pins, programs: &mut Programs) -> Result<(), DatapathError> {
        for (_, before) in self.resized.iter().filter(|(name, _)| *name == name::CT) {
            copy_connections(before, programs.keeper(), |entry| entry)?;
        }
        self.take_versions(pins, programs)
    }

    /// The last word: nobody writes the old maps any more. Those of other versions go with their directories.
    pub fn finish(&mut self, pins: &Pins, programs: &mut Programs) -> Result<(), DatapathError> {
        self.catch_up(pins, programs)?;
        for (_, before) in self.resized.drain(..) {
            Pins::unpin(&before)?;
        }
        self.set_aside.clear();
        self.versions.clear();
        Ok(())
    }

    /// What was carried, and what was not.
    pub fn carried(&self) -> &[Carried] {
        &self.carried
    }

    fn tell(&mut self, map: &'static str, from: PathBuf, outcome: Result<usize, String>) {
        match self.carried.iter_mut().find(|known| known.map == map && known.from == from) {
            Some(Carried { outcome: Ok(total), .. }) => *total += outcome.unwrap_or(0),
            Some(_) => {}
            None => self.carried.push(Carried { map, from, outcome }),
        }
    }

    fn take_versions(&mut self, pins: &Pins, programs: &mut Programs) -> Result<(), DatapathError> {
        for (version, dir) in self.versions.clone() {
            let pin = |name| dir.join("maps").join(name);
            let ct = pin(name::CT);
            let connections = match version {
                1..before_sets::NEXT => before_sets::copy(&ct, programs.keeper(), judged_anew),
                before_sets::NEXT..=ABI_VERSION => copy_connections(&ct, programs.keeper(), judged_anew),
                _ => {
                    let reason = format!("ABI version {version} lays connections out in another way");
                    self.tell(name::CT, ct, Err(reason));
                    continue;
                }
            };
            self.tell_version(name::CT, ct, connections)?;
            if (NAT_SINCE..=ABI_VERSION).contains(&version) {
                let (nat, affinity) = (pin(name::NAT), pin(name::AFFINITY));
                let copied = copy::<NatKey, NatValue>(name::NAT, &nat, &pins.map(name::NAT));
                self.tell_version(name::NAT, nat, copied)?;
                let to = pins.map(name::AFFINITY);
                let copied = copy::<AffinityKey, AffinityValue>(name::AFFINITY, &affinity, &to);
                self.tell_version(name::AFFINITY, affinity, copied)?;
            }
        }
        Ok(())
    }

    /// A layout that is not ours is no failure: what was in there is judged as new.
    fn tell_version(
        &mut self,
        map: &'static str,
        from: PathBuf,
        copied: Result<usize, DatapathError>,
    ) -> Result<(), DatapathError> {
        match copied {
            Ok(elements) => self.tell(map, from, Ok(elements)),
            Err(error @ DatapathError::MapShape { .. }) => self.tell(map, from, Err(error.to_string())),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Would everything that user space wrote fit? (Connections make room for each other, events are read or lost.)
fn check_room(pins: &Pins, spec: &MapSpec) -> Result<(), DatapathError> {
    let used = match spec.name {
        name::POLICY => {
            KernelTable::open::<PolicyMapKey, PolicyMapEntry>(spec.name, pins.open_map(spec.name)?)?
                .count()?
        }
        name::IPCACHE_EXACT => {
            KernelTable::open::<Addr, IpcacheValue>(spec.name, pins.open_map(spec.name)?)?.count()?
        }
        _ => 0,
    };
    if used > u64::from(spec.max_entries) {
        return Err(DatapathError::MapFull {
            map: spec.name,
            entries: spec.max_entries,
            what: format!("{used} elements are in use now; configure room for at least as many"),
        });
    }
    Ok(())
}

fn copy_sized(name: &'static str, from: &Path, to: &Path) -> Result<usize, DatapathError> {
    match name {
        name::POLICY => copy::<PolicyMapKey, PolicyMapEntry>(name, from, to),
        name::IPCACHE_EXACT => copy::<Addr, IpcacheValue>(name, from, to),
        // Events that nobody read: the agent that would have is the one that starts now.
        _ => Ok(0),
    }
}

fn open(pin: &Path) -> Result<Option<OwnedFd>, DatapathError> {
    sys::open_pin(pin).map_err(|e| failed("BPF_OBJ_GET", pin, e))
}

/// Inserts what is in `from` and not in `to`. No map at `from` is an empty one.
fn copy<K: Key, V: Value>(map: &'static str, from: &Path, to: &Path) -> Result<usize, DatapathError> {
    let Some(from) = open(from)? else { return Ok(0) };
    let Some(target) = open(to)? else { return Ok(0) };
    let mut elements = Vec::new();
    KernelTable::open::<K, V>(map, from)?.for_each(&mut |key, value| elements.push((*key, *value)))?;
    let mut inserted = 0;
    for (key, value) in &elements {
        inserted +=
            usize::from(sys::insert(&target, key, value).map_err(|e| failed("BPF_MAP_UPDATE_ELEM", to, e))?);
    }
    Ok(inserted)
}

/// Inserts the connections of another table of sets.
fn copy_connections(
    from: &Path,
    keeper: Keeper<'_>,
    change: impl Fn(CtEntry) -> CtEntry,
) -> Result<usize, DatapathError> {
    let Some(from) = open(from)? else { return Ok(0) };
    let mut found = Vec::new();
    Connections::visit(from, &mut |kept| found.push(Kept { entry: change(kept.entry), ..*kept }))?;
    insert(&found, keeper)
}

/// Those that have not expired.
fn insert(connections: &[Kept], mut keeper: Keeper<'_>) -> Result<usize, DatapathError> {
    let now = clock::seconds_since_boot()?;
    let mut inserted = 0;
    for kept in connections.iter().filter(|kept| u64::from(kept.expires) >= now) {
        inserted += usize::from(keeper.insert(kept)?);
    }
    Ok(inserted)
}

/// An entry that no policy of today vouches for.
fn judged_anew(entry: CtEntry) -> CtEntry {
    let side = |side: CtSide| CtSide {
        // A side without a policy (a remote pod, the proxy's own connection) has nothing to judge.
        epoch: if side.policy_id == 0 { side.epoch } else { FOREIGN_EPOCH },
        ..side
    };
    CtEntry { lo: side(entry.lo), hi: side(entry.hi), ..entry }
}
