//! Loads the embedded object: maps from their pins or new, then every program, unless an earlier agent left the very same
//! ones ([`super::programs`]).

use aya::programs::{Program, SchedClassifier, SkLookup};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::DatapathError;
use super::abi::CtSecret;
use super::attach::Hook;
use super::carry::Carry;
use super::config::Capacity;
use super::connections::{KEEPER, sets_for};
use super::pins::Pins;
use super::programs::Programs;
use super::tables::{MapSpec, name, specs};

/// `bpf/datapath.c`, compiled by build.rs.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.bpf.o"));

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Loads maps and programs. Maps are taken from `pins` where they are there and fit, else made and
/// pinned; those that take the place of others are filled from them.
///
/// # Errors
/// A pinned map of another shape; anything that the kernel refuses, with its verifier's words. The pins are
/// then as they were.
pub fn load(pins: &Pins, capacity: &Capacity) -> Result<(Programs, Carry), DatapathError> {
    let specs = specs(capacity);
    pins.create()?;
    let mut carry = Carry::plan(pins, &specs)?;
    if let Some(mut programs) = Programs::find(pins, &specs) {
        carry.fill(pins, &mut programs)?;
        return Ok((programs, carry));
    }
    let loaded = load_object(pins, capacity, &specs)
        .and_then(|ebpf| Programs::keep(ebpf, pins))
        .and_then(|mut programs| carry.fill(pins, &mut programs).map(|()| programs));
    match loaded {
        Ok(programs) => Ok((programs, carry)),
        Err(error) => {
            carry.undo(pins)?;
            Err(error)
        }
    }
}

fn load_object(pins: &Pins, capacity: &Capacity, specs: &[MapSpec]) -> Result<Ebpf, DatapathError> {
    let secret = CtSecret::of_pins(pins)?;
    let sets = sets_for(capacity.connections);
    let mut loader = EbpfLoader::new();
    // The object uses no kernel types: reading the kernel's BTF would cost time and memory.
    loader.btf(None);
    super::clock::tell(&mut loader)?;
    secret.tell(&mut loader, &sets);
    for spec in specs {
        loader.map_pin_path(spec.name, pins.map(spec.name));
    }
    loader
        .map_max_entries(name::POLICY, capacity.policy_entries)
        .map_max_entries(name::IPCACHE_EXACT, capacity.ipcache)
        .map_max_entries(name::CT, sets)
        .map_max_entries(name::EVENTS, capacity.event_bytes);
    let mut ebpf = loader.load(OBJECT).map_err(|error: EbpfError| DatapathError::Load {
        program: "datapath.bpf.o".to_owned(),
        reason: chain(&error),
    })?;
    secret.keep(pins)?;
    verify(&mut ebpf)?;
    // Checked after loading too: what was just made must be what we think we made.
    pins.check(specs)?;
    Ok(ebpf)
}

/// Hands the programs to the verifier, all at once: it takes a CPU for most of the time that an agent
/// needs to start.
fn verify(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let refused = |program: &str, reason: String| DatapathError::Load { program: program.to_owned(), reason };
    for hook in Hook::ALL {
        if ebpf.program(hook.program()).is_none() {
            return Err(refused(hook.program(), "the object has no such program".to_owned()));
        }
    }
    let load = |name: &str, program: &mut Program| {
        let classifier: &mut SchedClassifier =
            program.try_into().map_err(|error| refused(name, chain(&error)))?;
        classifier.load().map_err(|error| refused(name, chain(&error)))
    };
    let lookup = super::sockets::PROGRAM;
    let absent = || refused(lookup, "the object has no such program".to_owned());
    let sockets: &mut SkLookup = (ebpf.program_mut(lookup).ok_or_else(absent)?)
        .try_into()
        .map_err(|error| refused(lookup, chain(&error)))?;
    sockets.load().map_err(|error| refused(lookup, chain(&error)))?;
    let ours = |name: &str| name == KEEPER || Hook::ALL.iter().any(|hook| hook.program() == name);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (ebpf.programs_mut())
            .filter(|(name, _)| ours(name))
            .map(|(name, program)| scope.spawn(move || load(name, program)))
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(loaded) => loaded,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}
