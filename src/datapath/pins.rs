//! Where pinned objects live: `<bpffs>/v<ABI>/maps/<name>`, `<bpffs>/v<ABI>/links/<hook>_<ifindex>` and
//! `<bpffs>/v<ABI>/programs/<name>_<object>`.
//!
//! What is pinned outlives the agent: programs go on judging packets with the maps that they were
//! loaded with. A map is taken over only when its shape is exactly what this version creates; nothing
//! in the kernel checks that. Two ABI versions have two directories and never share a map; what goes over
//! from one to the other, or from a map to one of another size, is [`super::carry`]'s.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DatapathError;
use super::abi::ABI_VERSION;
use super::sys::{self, MapInfo};
use super::tables::MapSpec;

/// The pin directories of one agent.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> DatapathError {
    DatapathError::Syscall { operation, object: path.display().to_string(), source }
}

impl Pins {
    /// Directories below `root`, which need not exist.
    pub fn at(root: &Path) -> Pins {
        Pins { root: root.to_owned() }
    }

    fn version(&self, version: u32) -> PathBuf {
        self.root.join(format!("v{version}"))
    }

    /// Pin of a map of this ABI version.
    pub fn map(&self, name: &str) -> PathBuf {
        self.version(ABI_VERSION).join("maps").join(name)
    }

    /// Directory of links of this ABI version.
    pub fn links(&self) -> PathBuf {
        self.version(ABI_VERSION).join("links")
    }

    /// Directory of programs of this ABI version.
    pub fn programs(&self) -> PathBuf {
        self.version(ABI_VERSION).join("programs")
    }

    /// Removes the pins of programs. They stay in the kernel where they are attached.
    pub fn remove_programs(&self) -> Result<(), DatapathError> {
        let dir = self.programs();
        let entries = std::fs::read_dir(&dir).map_err(|e| failed("readdir", &dir, e))?;
        entries.flatten().try_for_each(|entry| Pins::unpin(&entry.path()))
    }

    /// Makes the directories of this version.
    ///
    /// # Errors
    /// When `root` is not on a BPF file system.
    pub fn create(&self) -> Result<(), DatapathError> {
        let (maps, links) = (self.version(ABI_VERSION).join("maps"), self.links());
        let programs = self.programs();
        for dir in [&maps, &links, &programs] {
            std::fs::create_dir_all(dir).map_err(|e| failed("mkdir", dir, e))?;
        }
        let found = statfs(&maps).map_err(|e| failed("statfs", &maps, e.into()))?;
        if found.filesystem_type() != BPF_FS_MAGIC {
            // Leave nothing on a file system that is not ours.
            for dir in [&maps, &links, &programs, &self.version(ABI_VERSION)] {
                std::fs::remove_dir(dir).map_err(|e| failed("rmdir", dir, e))?;
            }
            return Err(DatapathError::Other(format!(
                "{} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf, or run `sluice preflight`",
                self.root.display()
            )));
        }
        Ok(())
    }

    /// Link directories of other ABI versions.
    pub fn other_versions(&self) -> Vec<PathBuf> {
        let current = self.version(ABI_VERSION);
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        let is_version = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok()) && *path != current
        };
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_version).collect()
    }

    /// Opens a pinned map.
    pub fn open_map(&self, name: &str) -> Result<OwnedFd, DatapathError> {
        let path = self.map(name);
        sys::open_pin(&path)
            .and_then(|fd| fd.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(|e| failed("BPF_OBJ_GET", &path, e))
    }

    /// Where a map of this version is kept while another of another size takes its place.
    pub fn before(&self, name: &str) -> PathBuf {
        self.map(&format!("{name}_before"))
    }

    /// Checks every pinned map against what this version would create. Absent pins are fine.
    pub fn check(&self, specs: &[MapSpec]) -> Result<(), DatapathError> {
        match self.differing(specs)?.first() {
            Some((spec, found)) => Err(self.misfit(spec, found)),
            None => Ok(()),
        }
    }

    /// The refusal of a pinned map that cannot be used.
    pub fn misfit(&self, spec: &MapSpec, found: &MapSpec) -> DatapathError {
        DatapathError::MapShape {
            map: spec.name,
            expected: spec.to_string(),
            found: format!(
                "{found} in {}; stop the agent, remove that directory and start again \
                 (enforcement stops between the two)",
                self.version(ABI_VERSION).display()
            ),
        }
    }

    /// Pinned maps that are not as this version would create them: wanted, and found.
    pub fn differing<'a>(&self, specs: &'a [MapSpec]) -> Result<Vec<(&'a MapSpec, MapSpec)>, DatapathError> {
        let mut differing = Vec::new();
        for spec in specs {
            let path = self.map(spec.name);
            let Some(fd) = sys::open_pin(&path).map_err(|e| failed("BPF_OBJ_GET", &path, e))? else {
                continue;
            };
            let info = sys::map_info(&fd).map_err(|e| failed("BPF_OBJ_GET_INFO_BY_FD", &path, e))?;
            let found = MapSpec {
                name: spec.name,
                kind: info.kind,
                key_size: info.key_size,
                value_size: info.value_size,
                max_entries: info.max_entries,
            };
            if found != *spec {
                differing.push((spec, found));
            }
        }
        Ok(differing)
    }

    /// Shape of a pinned map; `None` when there is no such pin.
    pub fn map_info(&self, name: &str) -> Result<Option<MapInfo>, DatapathError> {
        let path = self.map(name);
        let Some(fd) = sys::open_pin(&path).map_err(|e| failed("BPF_OBJ_GET", &path, e))? else {
            return Ok(None);
        };
        sys::map_info(&fd).map(Some).map_err(|e| failed("BPF_OBJ_GET_INFO_BY_FD", &path, e))
    }

    /// Removes a pin; none there is fine.
    pub fn unpin(path: &Path) -> Result<(), DatapathError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("unlink", path, error)),
            _ => Ok(()),
        }
    }

    /// Takes a pinned link's program off its device at once, and removes the pin; none there is fine.
    pub fn unpin_link(path: &Path) -> Result<(), DatapathError> {
        let Some(fd) = sys::open_pin(path).map_err(|e| failed("BPF_OBJ_GET", path, e))? else {
            return Ok(());
        };
        match sys::detach_link(&fd) {
            // The device is gone, and took the program along.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => {}
            Err(error) => return Err(failed("BPF_LINK_DETACH", path, error)),
            Ok(()) => {}
        }
        Pins::unpin(path)
    }

    /// Removes a version's directory with everything in it: its programs stop judging.
    pub fn remove_version(path: &Path) -> Result<(), DatapathError> {
        for name in ["links", "maps", "programs"] {
            let dir = path.join(name);
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                if name == "links" { Pins::unpin_link(&path)? } else { Pins::unpin(&path)? }
            }
            std::fs::remove_dir(&dir).map_err(|e| failed("rmdir", &dir, e))?;
        }
        std::fs::remove_dir(path).map_err(|e| failed("rmdir", path, e))
    }

    /// Removes everything, all versions: nothing is enforced any more.
    pub fn remove_all(&self) -> Result<(), DatapathError> {
        let mut versions = self.other_versions();
        versions.push(self.version(ABI_VERSION));
        versions.iter().filter(|path| path.exists()).try_for_each(|path| Pins::remove_version(path))?;
        match std::fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("rmdir", &self.root, error)),
            _ => Ok(()),
        }
    }
}
