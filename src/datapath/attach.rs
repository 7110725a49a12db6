//! Programs on devices.
//!
//! tcx (Linux 6.6): one pinned link for each hook. The link keeps the program attached while no agent
//! runs; a new agent replaces the program inside it (BPF_LINK_UPDATE), so that every packet meets the
//! old program or the new one. Our link stands first on its hook: a program before it could let a
//! packet pass unjudged.
//!
//! clsact, for older kernels: a filter of fixed priority and handle, replaced in place.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType};

use super::DatapathError;
use super::config::AttachMode;
use super::pins::Pins;
use super::programs::Programs;
use super::sys;

/// A program with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    FromContainer,
    ToContainer,
    FromNetwork,
    ToNetwork,
    FromOverlay,
    FromLoopback,
}

impl Hook {
    pub const ALL: [Hook; 6] = [
        Hook::FromContainer,
        Hook::ToContainer,
        Hook::FromNetwork,
        Hook::ToNetwork,
        Hook::FromOverlay,
        Hook::FromLoopback,
    ];
    /// On the host side of a pod's veth.
    pub const POD: [Hook; 2] = [Hook::FromContainer, Hook::ToContainer];
    /// On the uplink and other devices of the node.
    pub const UPLINK: [Hook; 2] = [Hook::FromNetwork, Hook::ToNetwork];

    /// Name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Hook::FromContainer => "from_container",
            Hook::ToContainer => "to_container",
            Hook::FromNetwork => "from_network",
            Hook::ToNetwork => "to_network",
            Hook::FromOverlay => "from_overlay",
            Hook::FromLoopback => "from_loopback",
        }
    }

    fn side(self) -> TcAttachType {
        match self {
            Hook::FromContainer | Hook::FromNetwork | Hook::FromOverlay | Hook::FromLoopback => {
                TcAttachType::Ingress
            }
            Hook::ToContainer | Hook::ToNetwork => TcAttachType::Egress,
        }
    }

    fn pin_name(self, ifindex: u32) -> String {
        format!("{}_{ifindex}", self.program())
    }

    /// Hook and device of a pin.
    fn of_pin(path: &Path) -> Option<(Hook, u32)> {
        let (program, ifindex) = path.file_name()?.to_str()?.rsplit_once('_')?;
        let hook = Hook::ALL.into_iter().find(|hook| hook.program() == program)?;
        Some((hook, ifindex.parse().ok()?))
    }
}

/// How programs are attached on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Tcx,
    Clsact,
}

/// Since when a program is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It was there.
    Before,
    Now,
}

/// tc's own numbers, fixed so that a later agent finds its filter.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x51);

/// The kernel has tcx: asking for the programs of a hook works (every namespace has `lo`).
pub fn tcx_works() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Attaches the programs of one loaded object.
#[derive(Debug)]
pub struct Attacher {
    programs: Programs,
    pins: Pins,
    mechanism: Mechanism,
}

fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) => {
            error.raw_os_error()
        }
        ProgramError::TcError(TcError::IoError(error)) => error.raw_os_error(),
        _ => None,
    }
}

fn failed(operation: &'static str, hook: Hook, device: &str, error: impl std::error::Error) -> DatapathError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    DatapathError::Attach { operation, program: hook.program(), device: device.to_owned(), reason: text }
}

impl Attacher {
    pub fn new(programs: Programs, pins: Pins, mode: AttachMode) -> Attacher {
        let mechanism = match mode {
            AttachMode::Tcx => Mechanism::Tcx,
            AttachMode::Clsact => Mechanism::Clsact,
            AttachMode::Auto if tcx_works() => Mechanism::Tcx,
            AttachMode::Auto => Mechanism::Clsact,
        };
        Attacher { programs, pins, mechanism }
    }

    /// What it attaches.
    pub fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Puts the program of `hook` on a device, in place of the one that an earlier agent left there.
    pub fn attach(&mut self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        self.ensure(hook, ifindex).map(|_| ())
    }

    /// The same, and whether it was there.
    pub fn ensure(&mut self, hook: Hook, ifindex: u32) -> Result<Attached, DatapathError> {
        let device = device_name(ifindex)?;
        match self.mechanism {
            Mechanism::Tcx => self.attach_tcx(hook, ifindex, &device),
            Mechanism::Clsact => self.attach_clsact(hook, &device),
        }
    }

    fn attach_tcx(&mut self, hook: Hook, ifindex: u32, device: &str) -> Result<Attached, DatapathError> {
        let pin = self.pins.links().join(hook.pin_name(ifindex));
        if self.replace(hook, ifindex, &pin)? {
            return Ok(Attached::Before);
        }
        for version in self.pins.other_versions() {
            let old = version.join("links").join(hook.pin_name(ifindex));
            if self.replace(hook, ifindex, &old)? {
                // The same link gets its new name before it loses the old one.
                let link = PinnedLink::from_pin(&old).map_err(|e| failed("open link", hook, device, e))?;
                FdLink::from(link).pin(&pin).map_err(|e| failed("pin link", hook, device, e))?;
                return Pins::unpin(&old).map(|()| Attached::Before);
            }
        }
        let program = self.programs.classifier(hook)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = (program.attach_with_options(device, hook.side(), options))
            .map_err(|e| failed("attach (tcx)", hook, device, e))?;
        let link = program.take_link(id).map_err(|e| failed("take link", hook, device, e))?;
        let link = FdLink::try_from(link).map_err(|e| failed("take link", hook, device, e))?;
        link.pin(&pin).map_err(|e| failed("pin link", hook, device, e))?;
        Ok(Attached::Now)
    }

    /// A program of another ABI version is on this hook of the device, in a pinned link.
    pub fn judged_by_other_version(&self, hook: Hook, ifindex: u32) -> bool {
        self.pins.other_versions().iter().any(|version| {
            let pin = version.join("links").join(hook.pin_name(ifindex));
            let judges = |fd| sys::link_info(&fd).is_ok_and(|info| info.ifindex == ifindex);
            sys::open_pin(&pin).ok().flatten().is_some_and(judges)
        })
    }

    /// Replaces the program inside a pinned link. `false`: there is no link, or it is of a device that
    /// is gone (then the pin goes too).
    fn replace(&mut self, hook: Hook, ifindex: u32, pin: &Path) -> Result<bool, DatapathError> {
        let object = || pin.display().to_string();
        let fail = |operation| move |source| DatapathError::Syscall { operation, object: object(), source };
        let Some(fd) = sys::open_pin(pin).map_err(fail("BPF_OBJ_GET"))? else { return Ok(false) };
        let info = sys::link_info(&fd).map_err(fail("BPF_OBJ_GET_INFO_BY_FD"))?;
        if info.ifindex != ifindex {
            Pins::unpin(pin)?;
            return Ok(false);
        }
        if self.programs.id(hook) == Some(info.program_id) {
            return Ok(true);
        }
        let device = object();
        let link = PinnedLink::from_pin(pin).map_err(|e| failed("open link", hook, &device, e))?;
        let link = SchedClassifierLink::try_from(FdLink::from(link))
            .map_err(|e| failed("open link", hook, &device, e))?;
        let program = self.programs.classifier(hook)?;
        match program.attach_to_link(link) {
            // The pin keeps the link; this handle is not needed.
            Ok(id) => program.take_link(id).map(|_| true).map_err(|e| failed("take link", hook, &device, e)),
            Err(error) if os_error(&error) == Some(libc::ENOLINK) => {
                Pins::unpin(pin)?;
                Ok(false)
            }
            Err(error) => Err(failed("BPF_LINK_UPDATE", hook, &device, error)),
        }
    }

    fn attach_clsact(&mut self, hook: Hook, device: &str) -> Result<Attached, DatapathError> {
        match qdisc_add_clsact(device) {
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(failed("add clsact", hook, device, error)),
            Ok(()) => {}
        }
        let side = hook.side();
        let ours = SchedClassifierLink::attached(device, side, CLSACT_PRIORITY, CLSACT_HANDLE, None)
            .map_err(|e| failed("open link", hook, device, e))?;
        let program = self.programs.classifier(hook)?;
        let mut attached = Attached::Before;
        let id = match program.attach_to_link(ours) {
            Err(error) if os_error(&error) == Some(libc::ENOENT) => {
                attached = Attached::Now;
                let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
                program.attach_with_options(device, side, TcAttachOptions::Netlink(options))
            }
            other => other,
        };
        let id = id.map_err(|e| failed("attach (clsact)", hook, device, e))?;
        let link = program.take_link(id).map_err(|e| failed("take link", hook, device, e))?;
        // Dropping this handle would detach the program; it is to outlive the agent.
        std::mem::forget(link);
        Ok(attached)
    }

    /// Takes our programs off a device. A device that is gone took them along.
    pub fn detach(&mut self, hooks: &[Hook], ifindex: u32) -> Result<(), DatapathError> {
        let mut dirs = vec![self.pins.links()];
        dirs.extend(self.pins.other_versions().into_iter().map(|version| version.join("links")));
        for hook in hooks {
            for dir in &dirs {
                Pins::unpin_link(&dir.join(hook.pin_name(ifindex)))?;
            }
            if self.mechanism == Mechanism::Clsact
                && let Ok(device) = device_name(ifindex)
            {
                match qdisc_detach_program(&device, hook.side(), hook.program()) {
                    Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed("detach (clsact)", *hook, &device, error)),
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }

    /// Every pinned link of this version: hook, device, pin.
    fn pinned(&self) -> Vec<(Hook, u32, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(self.pins.links()) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter_map(|path| Hook::of_pin(&path).map(|(hook, ifindex)| (hook, ifindex, path))).collect()
    }

    /// Devices on which pinned links of this version hold `hook`.
    pub fn devices_with(&self, hook: Hook) -> BTreeSet<u32> {
        let pinned = self.pinned().into_iter();
        pinned.filter(|(found, ..)| *found == hook).map(|(_, ifindex, _)| ifindex).collect()
    }

    /// Puts this object's programs into every link that an earlier agent of the same ABI left. Pins of
    /// devices that are gone are removed. Returns the devices that are judged.
    pub fn replace_all(&mut self) -> Result<Vec<(Hook, u32)>, DatapathError> {
        let mut replaced = Vec::new();
        for (hook, ifindex, pin) in self.pinned() {
            if self.replace(hook, ifindex, &pin)? {
                replaced.push((hook, ifindex));
            }
        }
        Ok(replaced)
    }

    /// Removes pin directories of other ABI versions, once none of their links is on a device that
    /// this version does not judge.
    pub fn retire_other_versions(&mut self) -> Result<(), DatapathError> {
        for version in self.pins.other_versions() {
            let entries = std::fs::read_dir(version.join("links")).into_iter().flatten().flatten();
            let in_use = entries.map(|entry| entry.path()).any(|pin| {
                let alive = |fd| sys::link_info(&fd).is_ok_and(|info| info.ifindex != 0);
                sys::open_pin(&pin).ok().flatten().is_some_and(alive)
            });
            if !in_use {
                Pins::remove_version(&version)?;
            }
        }
        Ok(())
    }
}

/// This network namespace has the device, as far as the kernel can be asked: what is taken off a device for its absence
/// must not be taken off for want of a file descriptor.
pub fn device_exists(ifindex: u32) -> bool {
    let Ok(socket) = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None) else { return true };
    !matches!(index_to_name(&socket, ifindex), Err(Errno::NODEV | Errno::NXIO))
}

/// Name of a device of this network namespace.
pub fn device_name(ifindex: u32) -> Result<String, DatapathError> {
    let failed = |source| DatapathError::Syscall {
        operation: "if_indextoname",
        object: format!("device {ifindex}"),
        source,
    };
    let name = nix::net::if_::if_indextoname(ifindex).map_err(|errno| failed(errno.into()))?;
    match name.to_string_lossy().into_owned() {
        // What nix makes of the null pointer that stands for an error.
        name if name.is_empty() => Err(failed(io::Error::from_raw_os_error(libc::ENODEV))),
        name => Ok(name),
    }
}

/// Index of a device of this network namespace.
pub fn device_index(name: &str) -> Result<u32, DatapathError> {
    nix::net::if_::if_nametoindex(name).map_err(|errno| DatapathError::Syscall {
        operation: "if_nametoindex",
        object: format!("device {name}"),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_has_no_name() {
        assert!(device_name(u32::MAX >> 1).is_err());
        assert_eq!(device_name(device_index("lo").unwrap()).unwrap(), "lo");
    }
}
