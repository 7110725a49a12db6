//! What can go wrong with the state file, told apart by what an operator has to do about it.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

/// A failed operation on the state store. Whatever the variant, nothing of the failed transaction
/// was stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `SQLITE_FULL`, or `ENOSPC` and `EDQUOT` from the file system.
    #[error("state store {path}: {operation}: no space left; nothing was changed", path = path.display())]
    Full { path: PathBuf, operation: &'static str },
    /// Another program holds SQLite's lock for longer than the busy timeout.
    #[error(
        "state store {path}: {operation}: another program holds a lock on the file; nothing was changed",
        path = path.display()
    )]
    Locked { path: PathBuf, operation: &'static str },
    /// Another sluice process has this store open.
    #[error(
        "state store {path}: another sluice process uses it; give each one its own --state-dir",
        path = path.display()
    )]
    InUse { path: PathBuf },
    /// The file was found corrupt at start and was moved aside, or was so by an earlier start.
    #[error(
        "state store {path} is corrupt ({detail}); it is kept as {aside}. Restore a backup to {path}, \
         or start once with --reset-corrupt-state to begin with an empty store",
        path = path.display(),
        aside = aside.display()
    )]
    Corrupt { path: PathBuf, aside: PathBuf, detail: String },
    /// Corruption was met while running. The file stays where it is; the next start moves it aside.
    #[error("state store {path}: {operation}: the file is corrupt: {detail}", path = path.display())]
    CorruptWhileRunning { path: PathBuf, operation: &'static str, detail: String },
    /// The file was written by a newer release. Migrations only go forward.
    #[error(
        "state store {path} has schema version {found}, this release knows versions up to {known}: \
         start the newer release, or restore a backup from before the upgrade",
        path = path.display()
    )]
    NewerSchema { path: PathBuf, found: u32, known: u32 },
    /// A valid SQLite file of some other program.
    #[error("{path} is a database of another program (application id {found:#x})", path = path.display())]
    NotOurs { path: PathBuf, found: u32 },
    #[error("{operation} {path}: {source}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("state store {path}: {operation}: {source}", path = path.display())]
    Sqlite { path: PathBuf, operation: &'static str, source: rusqlite::Error },
    /// A stored value is not what its column holds by contract.
    #[error("state store: {what} is not valid: {detail}")]
    Invalid { what: &'static str, detail: String },
    /// The store's thread is gone: it ended after a panic, which is in the log.
    #[error("the state store has stopped")]
    Stopped,
}

impl StoreError {
    /// A short stable word for counters.
    pub fn class(&self) -> &'static str {
        match self {
            StoreError::Full { .. } => "full",
            StoreError::Locked { .. } => "locked",
            StoreError::InUse { .. } => "in-use",
            StoreError::Corrupt { .. } | StoreError::CorruptWhileRunning { .. } => "corrupt",
            StoreError::NewerSchema { .. } => "newer-schema",
            StoreError::NotOurs { .. } => "not-ours",
            StoreError::Io { .. } => "io",
            StoreError::Sqlite { .. } => "sqlite",
            StoreError::Invalid { .. } => "invalid",
            StoreError::Stopped => "stopped",
        }
    }

    /// The same operation may succeed later without anybody changing the request.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Full { .. } | StoreError::Locked { .. })
    }

    pub(super) fn invalid(what: &'static str, detail: impl std::fmt::Display) -> StoreError {
        StoreError::Invalid { what, detail: detail.to_string() }
    }
}

/// What a job inside the store's thread can fail with, before it knows its path and operation.
#[derive(Debug)]
pub(super) enum JobError {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for JobError {
    fn from(error: rusqlite::Error) -> JobError {
        JobError::Sqlite(error)
    }
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> JobError {
        JobError::Store(error)
    }
}

impl JobError {
    pub(super) fn at(self, path: &std::path::Path, operation: &'static str) -> StoreError {
        let source = match self {
            JobError::Store(error) => return error,
            JobError::Sqlite(source) => source,
        };
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full { path, operation },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Locked { path, operation }
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::CorruptWhileRunning { path, operation, detail: source.to_string() }
            }
            _ => StoreError::Sqlite { path, operation, source },
        }
    }
}
