//! Network namespaces.
//!
//! A namespace is a property of a thread. Code that needs another namespace runs on a fresh OS thread
//! that enters it and ends: no thread of the runtime is ever left in a wrong one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

use super::NetError;

/// An open network namespace; it exists at least as long as this does.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
    path: PathBuf,
}

impl Namespace {
    /// The namespace of a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Namespace, NetError> {
        let file = File::open(path).map_err(|source| NetError::Namespace {
            operation: "open",
            path: path.display().to_string(),
            source,
        })?;
        Ok(Namespace { file: Arc::new(file), path: path.to_owned() })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Namespace, NetError> {
        Namespace::open(Path::new("/proc/thread-self/ns/net"))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> NetError {
        NetError::Namespace { operation, path: self.path.display().to_string(), source }
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. A panic in `work`
    /// is this caller's panic.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
                setns(&*self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| self.failed("setns", errno.into()))?;
                Ok(work())
            });
            match thread.map_err(|source| self.failed("spawn a thread for", source))?.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Both are the same namespace.
    pub fn is(&self, other: &Namespace) -> Result<bool, NetError> {
        use std::os::unix::fs::MetadataExt;
        let id = |namespace: &Namespace| {
            let metadata = namespace.file.metadata().map_err(|source| namespace.failed("fstat", source))?;
            Ok((metadata.dev(), metadata.ino()))
        };
        Ok(id(self)? == id(other)?)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_is_named_in_the_error() {
        let error = Namespace::open(Path::new("/run/netns/no-such-namespace")).unwrap_err();
        assert!(error.to_string().contains("no-such-namespace"), "{error}");
    }

    #[test]
    fn the_current_namespace_is_itself() {
        let (a, b) = (Namespace::current().unwrap(), Namespace::current().unwrap());
        assert!(a.is(&b).unwrap());
    }
}
