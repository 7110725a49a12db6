//! What other programs do to the store's file; for tests of those who use the store.

use std::path::Path;

use rusqlite::Connection;

/// Another program's write lock, until this is dropped.
#[derive(Debug)]
pub struct ForeignLock(Connection);

impl ForeignLock {
    /// # Panics
    ///
    /// When the file cannot be locked.
    pub fn take(path: &Path) -> ForeignLock {
        let connection = Connection::open(path).expect("the store's file");
        connection.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        ForeignLock(connection)
    }
}

impl Drop for ForeignLock {
    fn drop(&mut self) {
        // Closing the file lets go of the lock, too.
        self.0.execute_batch("ROLLBACK").ok();
    }
}
