//! Addresses that were learned from DNS answers, so that they survive a restart of the agent.

use std::net::IpAddr;
use std::time::SystemTime;

use super::clock::{from_millis, to_millis};
use super::connection::Store;
use super::error::StoreError;

/// An address that a released answer gave for a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LearnedName {
    /// The queried name: lower case, without the trailing dot.
    pub name: String,
    pub address: IpAddr,
    /// When the answer's TTL (with the configured floor) ends.
    pub expires: SystemTime,
}

/// A step in the life of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    /// An address that is known for the name already keeps the later of the two ends.
    Learned(LearnedName),
    /// It was dropped before its time.
    Lost { name: String, address: IpAddr },
}

impl Store {
    /// Takes changes in, in their order.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn change_names(&self, changes: Vec<NameChange>) -> Result<(), StoreError> {
        self.write("store DNS answers", move |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO fqdn (name, address, expires) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name, address) DO UPDATE SET expires = max(expires, excluded.expires)",
            )?;
            let mut delete = tx.prepare_cached("DELETE FROM fqdn WHERE name = ?1 AND address = ?2")?;
            for change in changes {
                match change {
                    NameChange::Learned(LearnedName { name, address, expires }) => {
                        insert.execute((name, address.to_string(), to_millis(expires)))?
                    }
                    NameChange::Lost { name, address } => delete.execute((name, address.to_string()))?,
                };
            }
            Ok(())
        })
    }

    /// Has nothing end later than `latest`; returns how many did.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn shorten_names(&self, latest: SystemTime) -> Result<usize, StoreError> {
        self.write("bound DNS answers", move |tx| {
            let mut update = tx.prepare_cached("UPDATE fqdn SET expires = ?1 WHERE expires > ?1")?;
            Ok(update.execute([to_millis(latest)])?)
        })
    }

    /// What has not ended at `now`, by name and address.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read; `Invalid` for a row that holds no address.
    pub fn learned_names(&self, now: SystemTime) -> Result<Vec<LearnedName>, StoreError> {
        self.read("read DNS answers", move |tx| {
            let mut select = tx.prepare_cached(
                "SELECT name, address, expires FROM fqdn WHERE expires > ?1 ORDER BY name, address",
            )?;
            let rows = select.query_map([to_millis(now)], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?))
            })?;
            let mut learned = Vec::new();
            for row in rows {
                let (name, address, expires) = row?;
                let address = address
                    .parse()
                    .map_err(|error| StoreError::invalid("an address of the DNS cache", error))?;
                learned.push(LearnedName { name, address, expires: from_millis(expires) });
            }
            Ok(learned)
        })
    }

    /// Forgets what ended at or before `now`; returns how many.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn expire_names(&self, now: SystemTime) -> Result<usize, StoreError> {
        self.write("expire DNS answers", move |tx| {
            Ok(tx.prepare_cached("DELETE FROM fqdn WHERE expires <= ?1")?.execute([to_millis(now)])?)
        })
    }
}
