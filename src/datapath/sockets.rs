//! The program that finds a proxy's listening socket for the stack (`find_proxy`, type `sk_lookup`).
//!
//! It hangs on the network namespace of the agent, by a pinned link like the programs of devices: it stays
//! while no agent runs, and a new agent replaces the program inside the link.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::SkLookup;
use aya::programs::links::{FdLink, PinnedLink};

use super::DatapathError;
use super::pins::Pins;
use super::sys;

/// Name of the program and of its link's pin.
pub const PROGRAM: &str = "find_proxy";

const NAMESPACE: &str = "/proc/thread-self/ns/net";

fn failed(operation: &'static str, error: impl std::fmt::Display) -> DatapathError {
    DatapathError::Attach {
        operation,
        program: PROGRAM,
        device: "the network namespace".to_owned(),
        reason: error.to_string(),
    }
}

/// Puts the loaded program on the namespace of the calling thread, in place of an earlier agent's.
pub fn attach(program: &mut SkLookup, pins: &Pins) -> Result<(), DatapathError> {
    let namespace = File::open(NAMESPACE).map_err(|e| failed("open namespace", e))?;
    let pin = pins.links().join(PROGRAM);
    if replace(program, &namespace, &pin)? {
        return Ok(());
    }
    for version in pins.other_versions() {
        let old = version.join("links").join(PROGRAM);
        if replace(program, &namespace, &old)? {
            // The same link gets its new name before it loses the old one.
            let link = PinnedLink::from_pin(&old).map_err(|e| failed("open link", e))?;
            FdLink::from(link).pin(&pin).map_err(|e| failed("pin link", e))?;
            return Pins::unpin(&old);
        }
    }
    let id = program.attach(&namespace).map_err(|e| failed("attach (sk_lookup)", e))?;
    let link: FdLink = program.take_link(id).map_err(|e| failed("take link", e))?.into();
    link.pin(&pin).map_err(|e| failed("pin link", e))?;
    Ok(())
}

/// Replaces the program inside a pinned link. `false`: there is no link, or it is of another namespace (then
/// the pin goes too).
fn replace(program: &SkLookup, namespace: &File, pin: &Path) -> Result<bool, DatapathError> {
    let Some(link) = sys::open_pin(pin).map_err(|e| failed("BPF_OBJ_GET", e))? else { return Ok(false) };
    let info = sys::link_info(&link).map_err(|e| failed("BPF_OBJ_GET_INFO_BY_FD", e))?;
    let here = namespace.metadata().map_err(|e| failed("stat namespace", e))?.st_ino();
    if u64::from(info.namespace_inode()) != here {
        Pins::unpin(pin)?;
        return Ok(false);
    }
    let fd = program.fd().map_err(|e| failed("open program", e))?;
    sys::update_link(&link, fd.as_fd()).map_err(|e| failed("BPF_LINK_UPDATE", e))?;
    Ok(true)
}
