//! Network namespaces that outlive the process that made them: a bind mount on a file.
//!
//! A thread that enters a namespace stays there, so work inside one runs on a thread of its own.
//! Sockets and child processes keep the namespace of the thread that made them: a socket made by
//! [`Netns::run`] is used from anywhere.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::LabError;

/// A namespace, by the file that it is mounted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// Makes a new, empty namespace (its loopback is down) and mounts it on `path`.
    pub fn create(path: &Path) -> Result<Netns, LabError> {
        let failed = |source| LabError::io("create the network namespace", path, source);
        File::options().write(true).create_new(true).open(path).map_err(failed)?;
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            // `/proc/self` would be the main thread's namespace.
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(io::Error::from)
        })
        .and_then(|result| result)
        .map_err(failed)?;
        Ok(Netns { path: path.to_owned() })
    }

    /// Refers to a namespace made earlier; nothing is checked before it is used.
    pub fn at(path: &Path) -> Netns {
        Netns { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into the namespace for the rest of its life.
    pub fn enter(&self) -> Result<(), LabError> {
        let failed = |source| LabError::io("enter the network namespace", &self.path, source);
        let file = File::open(&self.path).map_err(failed)?;
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        on_a_thread(|| self.enter().map(|()| work()))
            .map_err(|source| LabError::io("start a thread in", &self.path, source))
            .and_then(|result| result)
    }

    /// Unmounts and removes the namespace. The kernel frees it when its last user is gone.
    pub fn delete(self) -> Result<(), LabError> {
        remove_mount_file(&self.path)
            .map_err(|source| LabError::io("remove the network namespace", &self.path, source))
    }
}

/// Takes away a namespace's file, mounted or not. Absent is fine.
pub fn remove_mount_file(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount point: the creation was interrupted.
        Ok(()) | Err(nix::Error::EINVAL) | Err(nix::Error::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
