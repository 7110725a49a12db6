//! Join tokens, known only by the SHA-256 of their secret. The secret has 256 random bits, so a
//! plain digest is as hard to invert as the secret is to guess.

use std::time::SystemTime;

use rusqlite::OptionalExtension;

use super::clock::to_millis;
use super::connection::Store;
use super::error::StoreError;

impl Store {
    /// The digest of a token's secret.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read.
    pub fn token_digest(&self, name: &str) -> Result<Option<[u8; 32]>, StoreError> {
        let name = name.to_owned();
        self.read("read a token", move |tx| {
            let digest = tx
                .prepare_cached("SELECT digest FROM token WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()?;
            Ok(digest)
        })
    }

    /// Sets or replaces a token.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn put_token_digest(&self, name: &str, digest: [u8; 32], now: SystemTime) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write("store a token", move |tx| {
            tx.prepare_cached(
                "INSERT INTO token (name, digest, created) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, created = excluded.created",
            )?
            .execute((name, digest, to_millis(now)))?;
            Ok(())
        })
    }
}
