//! The programs, loaded: by this agent, or by an earlier one from the same object and with the same maps.
//!
//! The verifier takes a CPU for most of a start. So programs are pinned beside their maps
//! (`<bpffs>/v<ABI>/programs/<name>_<object>`, the second part names the object that they came from), and an agent that
//! starts again uses those that it would load itself: same object, and no map of ours but those that are pinned now. Anything
//! else (another build, a map of another size, a pin that is missing) loads anew, and the old pins go.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError, ProgramInfo, SchedClassifier, SkLookup};

use super::DatapathError;
use super::attach::Hook;
use super::connections::{KEEPER, Keeper};
use super::loader::{OBJECT, chain};
use super::pins::Pins;
use super::sockets;
use super::tables::MapSpec;

/// The kernel keeps so many bytes of a map's name (`BPF_OBJ_NAME_LEN` without its zero).
const KERNEL_NAME: usize = 15;

/// Every program of the object. They stay in the kernel for as long as they are attached or pinned.
#[derive(Debug)]
pub struct Programs {
    classifiers: BTreeMap<Hook, Classifier>,
    sockets: SkLookup,
    keeper: SchedClassifier,
}

#[derive(Debug)]
struct Classifier {
    program: SchedClassifier,
    id: u32,
}

fn refused(program: &str, error: &dyn std::error::Error) -> DatapathError {
    DatapathError::Load { program: program.to_owned(), reason: chain(error) }
}

fn missing(program: &str) -> DatapathError {
    DatapathError::Load { program: program.to_owned(), reason: "the object has no such program".to_owned() }
}

/// Names of all programs.
fn names() -> impl Iterator<Item = &'static str> {
    Hook::ALL.into_iter().map(Hook::program).chain([sockets::PROGRAM, KEEPER])
}

fn pin(pins: &Pins, program: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    pins.programs().join(format!("{program}_{:016x}", hasher.finish()))
}

impl Programs {
    /// What an earlier agent loaded, if it is what this one would load.
    pub fn find(pins: &Pins, specs: &[MapSpec]) -> Option<Programs> {
        if !names().all(|name| pin(pins, name).exists()) {
            return None;
        }
        let programs = Programs::open(pins).ok()?;
        let maps: BTreeSet<u32> =
            specs.iter().filter_map(|spec| Some(pins.map_info(spec.name).ok()??.id)).collect();
        let all_pinned = maps.len() == specs.len();
        (all_pinned && programs.use_only(&maps, specs).unwrap_or(false)).then_some(programs)
    }

    /// Pins what was just loaded, in place of what was pinned before.
    pub fn keep(mut ebpf: Ebpf, pins: &Pins) -> Result<Programs, DatapathError> {
        pins.remove_programs()?;
        for name in names() {
            let program: &mut Program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
            program.pin(pin(pins, name)).map_err(|error| refused(name, &error))?;
        }
        Programs::open(pins)
    }

    fn open(pins: &Pins) -> Result<Programs, DatapathError> {
        let classifier = |hook: Hook| -> Result<(Hook, Classifier), ProgramError> {
            let program = SchedClassifier::from_pin(pin(pins, hook.program()))?;
            let id = program.info()?.id();
            Ok((hook, Classifier { program, id }))
        };
        let classifiers = Hook::ALL
            .into_iter()
            .map(|hook| classifier(hook).map_err(|error| refused(hook.program(), &error)))
            .collect::<Result<_, _>>()?;
        let sockets = SkLookup::from_pin(pin(pins, sockets::PROGRAM))
            .map_err(|error| refused(sockets::PROGRAM, &error))?;
        let keeper = SchedClassifier::from_pin(pin(pins, KEEPER)).map_err(|error| refused(KEEPER, &error))?;
        Ok(Programs { classifiers, sockets, keeper })
    }

    /// Of the maps that are pinned, all programs together use these and no other of that name. (Scratch space and constants are
    /// each load's own.)
    fn use_only(&self, maps: &BTreeSet<u32>, specs: &[MapSpec]) -> Result<bool, ProgramError> {
        let is_pinned = |name: &str| specs.iter().any(|spec| kernel_name(spec.name) == name);
        let infos = self.classifiers.values().map(|classifier| classifier.program.info());
        for info in infos.chain([self.sockets.info(), self.keeper.info()]) {
            let info: ProgramInfo = info?;
            // A kernel that does not tell (before 4.15) cannot run us.
            for id in info.map_ids()?.unwrap_or_default() {
                let other = || MapInfo::from_id(id).map(|map| map.name_as_str().is_none_or(is_pinned));
                if !maps.contains(&id) && other().unwrap_or(true) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The program of a hook.
    pub fn classifier(&mut self, hook: Hook) -> Result<&mut SchedClassifier, DatapathError> {
        let found = self.classifiers.get_mut(&hook);
        found.map(|classifier| &mut classifier.program).ok_or_else(|| missing(hook.program()))
    }

    /// The kernel's number of the program of a hook.
    pub fn id(&self, hook: Hook) -> Option<u32> {
        self.classifiers.get(&hook).map(|classifier| classifier.id)
    }

    /// The program that finds a proxy's socket.
    pub fn sockets(&mut self) -> &mut SkLookup {
        &mut self.sockets
    }

    /// What puts connections into the table.
    pub fn keeper(&mut self) -> Keeper<'_> {
        Keeper(&mut self.keeper)
    }
}

fn kernel_name(name: &str) -> &str {
    name.get(..KERNEL_NAME).unwrap_or(name)
}
