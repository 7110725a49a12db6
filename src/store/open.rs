//! Opening the state file: permissions, one user at a time, integrity, schema.

use std::fs::{self, File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::{JobError, StoreError};
use super::migrate;

/// `SLUC`, at a fixed place of the file header (SQLite file format, section 1.3.15).
pub(super) const APPLICATION_ID: u32 = 0x534c_5543;

/// What to do when the file is corrupt. Either way it is moved aside as
/// `<name>.corrupt-<UTC time>` and kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCorrupt {
    /// Refuse to start, now and at every later start, until an operator restores a backup or asks
    /// for a fresh store. Enforcement that is already in the kernel goes on.
    #[default]
    Refuse,
    /// Begin with an empty store. Only ever by an explicit wish of the operator.
    StartFresh,
}

/// Where the store is and how it is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub path: PathBuf,
    pub on_corrupt: OnCorrupt,
    /// How long an operation waits for another program's lock on the file.
    pub busy_timeout: Duration,
    /// Upper bound of the file's size in pages of 4096 bytes; `None`: what SQLite allows.
    pub max_pages: Option<u32>,
}

impl OpenOptions {
    /// The defaults: refuse a corrupt file, wait up to two seconds for a lock.
    pub fn new(path: impl Into<PathBuf>) -> OpenOptions {
        OpenOptions {
            path: path.into(),
            on_corrupt: OnCorrupt::Refuse,
            busy_timeout: Duration::from_secs(2),
            max_pages: None,
        }
    }
}

/// Keeps other sluice processes off the file. SQLite's own locks are held only during transactions.
pub(super) type FileLock = Flock<File>;

pub(super) fn open(options: &OpenOptions) -> Result<(Connection, FileLock), StoreError> {
    let path = &options.path;
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        private_directory(directory)?;
    }
    let lock = lock(path)?;
    if !path.exists()
        && options.on_corrupt == OnCorrupt::Refuse
        && let Some(aside) = moved_aside(path)?
    {
        let detail = "found by an earlier start".to_owned();
        return Err(StoreError::Corrupt { path: path.clone(), aside, detail });
    }
    create_private(path)?;
    match connect(options) {
        Ok(connection) => Ok((connection, lock)),
        Err(StoreError::CorruptWhileRunning { detail, .. }) => {
            let aside = move_aside(path)?;
            let error = StoreError::Corrupt { path: path.clone(), aside, detail };
            tracing::error!(%error, "corrupt state store moved aside");
            if options.on_corrupt == OnCorrupt::Refuse {
                return Err(error);
            }
            create_private(path)?;
            Ok((connect(options)?, lock))
        }
        Err(error) => Err(error),
    }
}

/// Makes the directory, for root alone, if it is not there.
pub(super) fn private_directory(directory: &Path) -> Result<(), StoreError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(io_error("create", directory))
}

pub(super) fn lock(path: &Path) -> Result<FileLock, StoreError> {
    let path_of_lock = with_suffix(path, ".lock");
    let file = FileOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path_of_lock)
        .map_err(io_error("open", &path_of_lock))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => StoreError::InUse { path: path.to_owned() },
        errno => io_error("lock", &path_of_lock)(errno.into()),
    })
}

/// The file holds labels and token hashes: nobody else may read it. SQLite gives its `-wal` and
/// `-shm` files the permissions of the main one.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    let file = FileOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("open", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io_error("set the permissions of", path))
}

fn connect(options: &OpenOptions) -> Result<Connection, StoreError> {
    let at = |error: rusqlite::Error| JobError::from(error).at(&options.path, "open");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(&options.path, flags).map_err(at)?;
    connection.busy_timeout(options.busy_timeout).map_err(at)?;
    check(&connection, &options.path)?;
    // NORMAL with WAL: a power cut may lose the last transactions, never the file's consistency.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(at)?;
    connection.pragma_update(None, "synchronous", "NORMAL").map_err(at)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(at)?;
    connection.pragma_update(None, "journal_size_limit", 16 * 1024 * 1024).map_err(at)?;
    if let Some(pages) = options.max_pages {
        connection.pragma_update(None, "max_page_count", pages).map_err(at)?;
    }
    connection.set_prepared_statement_cache_capacity(64);
    migrate::migrate(&mut connection, &options.path)?;
    Ok(connection)
}

/// `quick_check` reads every page and checks the structure of tables and of unique constraints; it
/// leaves out only the comparison of indexes with tables, which `integrity_check` pays for.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let at = |error: rusqlite::Error| JobError::from(error).at(path, "check");
    let corrupt = |detail: String| StoreError::CorruptWhileRunning {
        path: path.to_owned(),
        operation: "check",
        detail,
    };
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    let verdict = match verdict {
        Ok(verdict) => verdict,
        // A header of one kind with content of another makes SQLite give up with a read error.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) && is_torn(path) => {
            return Err(corrupt(error.to_string()));
        }
        Err(error) => return Err(at(error)),
    };
    if verdict != "ok" {
        return Err(corrupt(verdict));
    }
    let application: u32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(at)?;
    let objects: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(at)?;
    if application != APPLICATION_ID && (application != 0 || objects != 0) {
        return Err(StoreError::NotOurs { path: path.to_owned(), found: application });
    }
    Ok(())
}

/// The file is shorter than its header, which a healthy disk reads without an error.
pub(super) fn is_torn(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() % 512 != 0)
}

pub(super) fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ").to_string();
    let aside = with_suffix(path, &format!(".corrupt-{stamp}"));
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => {}
            Err(error) => return Err(io_error("move aside", &from)(error)),
        }
    }
    Ok(aside)
}

/// The newest file that an earlier start moved aside.
pub(super) fn moved_aside(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let prefix = with_suffix(Path::new(path.file_name().unwrap_or_default()), ".corrupt-");
    let prefix = prefix.to_string_lossy().into_owned();
    let entries = fs::read_dir(directory).map_err(io_error("list", directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("list", directory))?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm") {
            found.push(directory.join(name));
        }
    }
    Ok(found.into_iter().max())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// `ENOSPC` and `EDQUOT` are a full disk here too.
fn io_error(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full { path: path.clone(), operation }
        }
        _ => StoreError::Io { operation, path: path.clone(), source },
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
