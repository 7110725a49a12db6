//! The schema, as the steps that lead to it. Steps are only ever appended: a released step is never
//! edited, and there is no way back.
//!
//! The version is SQLite's `user_version`: the number of steps that have run.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::{JobError, StoreError};
use super::open::APPLICATION_ID;

/// Step N leads from version N to version N+1.
pub(super) const STEPS: &[&str] = &[
    // Objects. A manifest is a document as it was applied; a `List` holds many objects, which then
    // share one row of `manifest`. `deletion` lets a watcher resume from an older revision.
    "CREATE TABLE setting (
        name TEXT PRIMARY KEY, value TEXT NOT NULL
     ) STRICT, WITHOUT ROWID;
     INSERT INTO setting VALUES ('epoch', lower(hex(randomblob(16))));
     CREATE TABLE counter (
        name TEXT PRIMARY KEY, value INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE manifest (
        id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL
     ) STRICT;
     CREATE TABLE object (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        manifest INTEGER NOT NULL REFERENCES manifest(id),
        revision INTEGER NOT NULL, generation INTEGER NOT NULL,
        PRIMARY KEY (kind, namespace, name)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX object_by_revision ON object(revision);
     CREATE INDEX object_by_manifest ON object(manifest);
     CREATE TABLE deletion (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (kind, namespace, name)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX deletion_by_revision ON deletion(revision);",
    // Identities. `released` is NULL while somebody holds the identity.
    "CREATE TABLE identity (
        id INTEGER PRIMARY KEY CHECK (id BETWEEN 256 AND 65535),
        labels TEXT NOT NULL UNIQUE,
        created INTEGER NOT NULL, last_used INTEGER NOT NULL, released INTEGER
     ) STRICT;
     CREATE TABLE identity_holder (
        id INTEGER NOT NULL REFERENCES identity(id) ON DELETE CASCADE, holder TEXT NOT NULL,
        PRIMARY KEY (id, holder)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX identity_holder_by_holder ON identity_holder(holder);",
    // What this node learned and registered. An address is its text.
    "CREATE TABLE fqdn (
        name TEXT NOT NULL, address TEXT NOT NULL, expires INTEGER NOT NULL,
        PRIMARY KEY (name, address)
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX fqdn_by_expiry ON fqdn(expires);
     CREATE TABLE endpoint (
        pod TEXT PRIMARY KEY, document TEXT NOT NULL
     ) STRICT, WITHOUT ROWID;",
    // The server's registry. `key` is the SHA-256 of the node's public key; a token is only known by
    // the SHA-256 of its secret. `report` is NULL until the node has reported.
    "CREATE TABLE node (
        name TEXT PRIMARY KEY, key BLOB NOT NULL CHECK (length(key) = 32),
        joined INTEGER NOT NULL, last_seen INTEGER NOT NULL, report TEXT
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE token (
        name TEXT PRIMARY KEY, digest BLOB NOT NULL CHECK (length(digest) = 32),
        created INTEGER NOT NULL
     ) STRICT, WITHOUT ROWID;",
];

/// Brings the file to the newest version, each step in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let at = |error: rusqlite::Error| JobError::from(error).at(path, "migrate");
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(at)?;
    let known = u32::try_from(STEPS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found, known });
    }
    for (version, step) in (1u32..).zip(STEPS).skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(at)?;
        transaction.execute_batch(step).map_err(at)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(at)?;
        transaction.pragma_update(None, "user_version", version).map_err(at)?;
        transaction.commit().map_err(at)?;
        if found > 0 {
            tracing::info!(version, path = %path.display(), "migrated the state store");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(connection: &Connection) -> Vec<(String, String)> {
        connection
            .prepare("SELECT name, coalesce(sql, '') FROM sqlite_schema ORDER BY name")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// One row of every table that exists at a version.
    const ROWS: &[&str] = &[
        "INSERT INTO setting VALUES ('cluster', 'one');
         INSERT INTO manifest VALUES (7, x'00', 'kind: Namespace');
         INSERT INTO object VALUES ('Namespace', '', 'shop', 7, 3, 1);
         INSERT INTO deletion VALUES ('Namespace', '', 'gone', 2);
         INSERT INTO counter VALUES ('revision', 3);",
        "INSERT INTO identity VALUES (300, '[\"k8s:app=web\"]', 1, 2, NULL);
         INSERT INTO identity_holder VALUES (300, 'node:a');",
        "INSERT INTO fqdn VALUES ('example.com', '203.0.113.1', 5);
         INSERT INTO endpoint VALUES ('shop/web', '{}');",
        "INSERT INTO node VALUES ('a', zeroblob(32), 1, 1, NULL);
         INSERT INTO token VALUES ('join', zeroblob(32), 1);",
    ];

    #[test]
    fn every_older_version_migrates_and_keeps_its_rows() {
        assert_eq!(ROWS.len(), STEPS.len(), "a new step needs its sample rows here");
        let mut fresh = Connection::open_in_memory().unwrap();
        migrate(&mut fresh, Path::new("fresh")).unwrap();
        for version in 0..=STEPS.len() {
            let mut old = Connection::open_in_memory().unwrap();
            for step in 0..version {
                old.execute_batch(STEPS[step]).unwrap();
                old.execute_batch(ROWS[step]).unwrap();
            }
            old.pragma_update(None, "user_version", version).unwrap();
            migrate(&mut old, Path::new("old")).unwrap();
            assert_eq!(schema(&old), schema(&fresh), "from version {version}");
            for (table, step) in [("object", 1), ("deletion", 1), ("identity", 2), ("fqdn", 3), ("node", 4)] {
                let rows: usize =
                    old.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
                assert_eq!(rows, usize::from(version >= step), "{table} from version {version}");
            }
        }
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", STEPS.len() + 1).unwrap();
        let error = migrate(&mut connection, Path::new("x")).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { .. }), "{error}");
    }

    #[test]
    fn a_failing_step_leaves_the_old_version() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(STEPS[0]).unwrap();
        // The second step's table is already there, so it fails in the middle.
        connection.execute_batch("CREATE TABLE identity_holder (x)").unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        assert!(migrate(&mut connection, Path::new("x")).is_err());
        let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 1);
        assert!(!schema(&connection).iter().any(|(name, _)| name == "identity"));
    }
}
