//! The server's registry of nodes: which key a node name belongs to, and what the node last said.

use std::net::IpAddr;
use std::time::SystemTime;

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use super::clock::{from_millis, to_millis};
use super::connection::Store;
use super::error::StoreError;

/// What an agent says about itself. Every field is always written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// Addresses that other nodes reach this one at.
    pub addresses: Vec<IpAddr>,
    /// The newest object revision that the node's kernel enforces; `None` before the first.
    pub realized_revision: Option<u64>,
    /// The agent's version.
    pub version: String,
}

/// A node that has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub name: String,
    /// SHA-256 of the public key that the name is bound to.
    pub key: [u8; 32],
    pub joined: SystemTime,
    pub last_seen: SystemTime,
    pub report: Option<NodeReport>,
}

impl Store {
    /// Every node, by name.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read; `Invalid` for a report that cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.read("read nodes", |tx| {
            let mut select =
                tx.prepare_cached("SELECT name, key, joined, last_seen, report FROM node ORDER BY name")?;
            let rows = select.query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get::<_, Option<String>>(4)?))
            })?;
            let mut nodes = Vec::new();
            for row in rows {
                let (name, key, joined, last_seen, report) = row?;
                let report = report
                    .map(|text| serde_json::from_str(&text))
                    .transpose()
                    .map_err(|error| StoreError::invalid("a node's report", error))?;
                nodes.push(NodeRow {
                    name,
                    key,
                    joined: from_millis(joined),
                    last_seen: from_millis(last_seen),
                    report,
                });
            }
            Ok(nodes)
        })
    }

    /// Binds a free name to a key, or confirms that it is bound to this key already. Returns the key
    /// that the name is bound to, which is another one when the name is taken.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn bind_node(&self, name: &str, key: [u8; 32], now: SystemTime) -> Result<[u8; 32], StoreError> {
        let name = name.to_owned();
        self.write("register a node", move |tx| {
            let bound: Option<[u8; 32]> = tx
                .prepare_cached("SELECT key FROM node WHERE name = ?1")?
                .query_row([&name], |row| row.get(0))
                .optional()?;
            if let Some(bound) = bound {
                return Ok(bound);
            }
            tx.prepare_cached(
                "INSERT INTO node (name, key, joined, last_seen, report) VALUES (?1, ?2, ?3, ?3, NULL)",
            )?
            .execute((name, key, to_millis(now)))?;
            Ok(key)
        })
    }

    /// Stores what a node said; false when the node is not registered (any more).
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn report_node(&self, name: &str, report: &NodeReport, now: SystemTime) -> Result<bool, StoreError> {
        let report =
            serde_json::to_string(report).map_err(|error| StoreError::invalid("a node's report", error))?;
        let name = name.to_owned();
        self.write("store a node's report", move |tx| {
            let changed = tx
                .prepare_cached("UPDATE node SET report = ?2, last_seen = ?3 WHERE name = ?1")?
                .execute((name, report, to_millis(now)))?;
            Ok(changed > 0)
        })
    }

    /// Releases a node's name; false when there was none.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn remove_node(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write("remove a node", move |tx| {
            Ok(tx.prepare_cached("DELETE FROM node WHERE name = ?1")?.execute([name])? > 0)
        })
    }
}
