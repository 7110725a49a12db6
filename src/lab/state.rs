//! The directory of a lab, the lock on it, and the removal of everything that it owns.
//!
//! ```text
//! /run/sluice-lab/<lab>/lock        held by whoever changes the lab
//!                      /state.json  what is built, see `fabric::State`
//!                      /ns/<site>   network namespaces
//!                      /node/<name>/{state,run,bpf,agent.log}
//!                      /relay/relay.sock  flows of all nodes, see `relay`
//! ```
//!
//! Removal trusts nothing but this directory: the namespaces mounted below it, the processes that
//! live in those namespaces (nobody else can), the mounts, the files. It never looks at names
//! elsewhere.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LabError;
use super::netns::Netns;
use super::topology::Site;

/// Parent of all labs.
const BASE: &str = "/run/sluice-lab";
/// Says that the lab is built, and how.
pub const STATE_FILE: &str = "state.json";
/// How long processes have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A lab's directory, with its lock held for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    name: String,
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory of a lab that is not there yet.
    pub fn claim_new(name: &str) -> Result<StateDir, LabError> {
        let path = path_of(name)?;
        if path.join(STATE_FILE).exists() {
            return Err(LabError::Exists(name.to_owned()));
        }
        for directory in [path.clone(), path.join("ns"), path.join("node")] {
            fs::create_dir_all(&directory).map_err(|e| LabError::io("create", &directory, e))?;
        }
        StateDir::lock(name, path)
    }

    /// Takes over the directory of a lab, however far it was built.
    pub fn claim(name: &str) -> Result<StateDir, LabError> {
        let path = path_of(name)?;
        if !path.exists() {
            return Err(LabError::Absent(name.to_owned()));
        }
        StateDir::lock(name, path)
    }

    fn lock(name: &str, path: PathBuf) -> Result<StateDir, LabError> {
        let lock_path = path.join("lock");
        let lock = File::options().create(true).append(true).open(&lock_path);
        let lock = lock.map_err(|e| LabError::io("open", &lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { name: name.to_owned(), path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(LabError::Busy(name.to_owned())),
            Err(TryLockError::Error(e)) => Err(LabError::io("lock", &lock_path, e)),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace of a site, existing or not.
    pub fn netns(&self, site: &Site) -> Netns {
        netns(&self.path, site)
    }

    pub fn state_file(&self) -> PathBuf {
        self.path.join(STATE_FILE)
    }

    /// Ends the lab's processes, unmounts everything below the directory and deletes it.
    pub fn remove(self) -> Result<(), LabError> {
        end_processes(&self.path)?;
        for mount in mounts_below(&self.path)? {
            match umount2(&mount, MntFlags::MNT_DETACH) {
                Ok(()) | Err(nix::Error::EINVAL) => {}
                Err(errno) => return Err(LabError::io("unmount", &mount, errno.into())),
            }
        }
        // Deleting through a mount would delete somebody else's files.
        if let Some(left) = mounts_below(&self.path)?.first() {
            return Err(LabError::io("unmount", left, io::ErrorKind::ResourceBusy.into()));
        }
        fs::remove_dir_all(&self.path).map_err(|e| LabError::io("delete", &self.path, e))
    }
}

/// The directory of a lab; the name is checked.
pub fn path_of(name: &str) -> Result<PathBuf, LabError> {
    let valid = (1..=20).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if valid { Ok(Path::new(BASE).join(name)) } else { Err(LabError::Name(name.to_owned())) }
}

/// The namespace of a site in the lab at `lab`.
pub fn netns(lab: &Path, site: &Site) -> Netns {
    Netns::at(&lab.join("ns").join(site.file_name()))
}

/// Every lab that has left a directory, running or not.
pub fn list() -> Result<Vec<String>, LabError> {
    let entries = match fs::read_dir(BASE) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LabError::io("read", BASE, e)),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| path_of(name).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Processes whose main thread lives in one of the lab's namespaces, this one excepted.
pub fn processes(lab: &Path) -> Result<Vec<Pid>, LabError> {
    let mut namespaces = BTreeSet::new();
    let directory = lab.join("ns");
    if let Ok(entries) = fs::read_dir(&directory) {
        for entry in entries.flatten() {
            if let Ok(metadata) = fs::metadata(entry.path()) {
                namespaces.insert((metadata.st_dev(), metadata.st_ino()));
            }
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|e| LabError::io("read", "/proc", e))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that ended meanwhile has no namespace.
        let Ok(metadata) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if namespaces.contains(&(metadata.st_dev(), metadata.st_ino())) && pid != std::process::id() as i32 {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn end_processes(lab: &Path) -> Result<(), LabError> {
    for pid in processes(lab)? {
        // Gone already is as good.
        kill(pid, Signal::SIGTERM).ok();
    }
    let deadline = Instant::now() + GRACE;
    while !processes(lab)?.is_empty() {
        if Instant::now() >= deadline {
            for pid in processes(lab)? {
                kill(pid, Signal::SIGKILL).ok();
            }
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Mount points below a directory, deepest first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, LabError> {
    let table = "/proc/self/mountinfo";
    let text = fs::read_to_string(table).map_err(|e| LabError::io("read", table, e))?;
    // Our own paths have nothing that the kernel would escape.
    let mut mounts: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(directory) && path != directory)
        .collect();
    mounts.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "A", "a b", "a.b", "abcdefghijklmnopqrstu"] {
            assert!(path_of(name).is_err(), "{name}");
        }
        assert_eq!(path_of("lab-2").unwrap(), Path::new("/run/sluice-lab/lab-2"));
    }

    #[test]
    fn mounts_are_listed_deepest_first() {
        let mounts = mounts_below(Path::new("/")).unwrap();
        let depths: Vec<usize> = mounts.iter().map(|path| path.components().count()).collect();
        assert!(depths.windows(2).all(|pair| pair[0] >= pair[1]));
    }
}
