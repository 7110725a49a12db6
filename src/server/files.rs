//! Small secret files: readable by their owner alone, and replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A failed operation on a file, with the file.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}", path = path.display())]
pub struct FileError {
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { operation, path, source }
}

/// Creates a directory that only its owner can enter; one that exists is left as it is.
pub(super) fn private_directory(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("create", path))
}

/// Writes a file of mode 0600: to a temporary name, synced, then renamed over the old one.
pub(super) fn write_private(path: &Path, content: &str) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".new.{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = (|| {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    })();
    result.map_err(|error| {
        // The error that matters is the first one.
        fs::remove_file(&temporary).ok();
        at("write", path)(error)
    })
}

/// Reads a secret; `None` when there is no such file. A file that others may read is refused: it is
/// not a secret any more.
pub(super) fn read_private(path: &Path) -> Result<Option<String>, FileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open", path)(error)),
    };
    let mode = file.metadata().map_err(at("inspect", path))?.mode();
    if mode & 0o077 != 0 {
        let message = format!(
            "its mode is {:04o}: others may read it; replace the secret, or chmod 600",
            mode & 0o7777
        );
        return Err(at("refuse", path)(io::Error::new(io::ErrorKind::PermissionDenied, message)));
    }
    let mut content = String::new();
    file.read_to_string(&mut content).map_err(at("read", path))?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_private_and_is_refused_once_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/secret");
        private_directory(path.parent().unwrap()).unwrap();
        assert_eq!(read_private(&path).unwrap(), None);
        write_private(&path, "one").unwrap();
        write_private(&path, "two").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_private(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_private(&path).is_err());
    }
}
