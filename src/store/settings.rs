//! Small named facts about this state: the cluster's name, what the store belongs to.

use rusqlite::OptionalExtension;

use super::connection::Store;
use super::error::StoreError;

impl Store {
    /// # Errors
    ///
    /// [`StoreError`] of the read.
    pub fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = name.to_owned();
        self.read("read a setting", move |tx| {
            let value = tx
                .prepare_cached("SELECT value FROM setting WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()?;
            Ok(value)
        })
    }

    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn set_setting(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.write("write a setting", move |tx| {
            tx.prepare_cached(
                "INSERT INTO setting (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?
            .execute([name, value])?;
            Ok(())
        })
    }
}
