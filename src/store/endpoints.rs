//! Local endpoint registrations: what `endpoint add` and CNI told this node, so that a restarted
//! agent knows its pods. The endpoint room owns the type; here it is one JSON document for each pod.
//!
//! The type must write every field, empty or not: no `skip_serializing_if`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::Store;
use super::error::StoreError;

impl Store {
    /// Adds or replaces the registration of a pod (`namespace/name`).
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write; `Invalid` when the value cannot be written as JSON.
    pub fn put_endpoint<T: Serialize>(&self, pod: &str, value: &T) -> Result<(), StoreError> {
        let document =
            serde_json::to_string(value).map_err(|error| StoreError::invalid("an endpoint", error))?;
        let pod = pod.to_owned();
        self.write("store an endpoint", move |tx| {
            tx.prepare_cached(
                "INSERT INTO endpoint (pod, document) VALUES (?1, ?2)
                 ON CONFLICT (pod) DO UPDATE SET document = excluded.document",
            )?
            .execute([pod, document])?;
            Ok(())
        })
    }

    /// Forgets a pod; false when it was not registered.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn delete_endpoint(&self, pod: &str) -> Result<bool, StoreError> {
        let pod = pod.to_owned();
        self.write("delete an endpoint", move |tx| {
            Ok(tx.prepare_cached("DELETE FROM endpoint WHERE pod = ?1")?.execute([pod])? > 0)
        })
    }

    /// Every registration, by pod.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the read; `Invalid` for a document that is not a `T`.
    pub fn endpoints<T: DeserializeOwned>(&self) -> Result<Vec<(String, T)>, StoreError> {
        let rows: Vec<(String, String)> = self.read("read endpoints", |tx| {
            let mut select = tx.prepare_cached("SELECT pod, document FROM endpoint ORDER BY pod")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        rows.into_iter()
            .map(|(pod, document)| match serde_json::from_str(&document) {
                Ok(value) => Ok((pod, value)),
                Err(error) => Err(StoreError::invalid("a stored endpoint", format!("{pod}: {error}"))),
            })
            .collect()
    }
}
