//! The state store: one SQLite file that survives restarts.
//!
//! Contract:
//!
//! - All SQL of sluice is in this room; callers see typed rows.
//! - One thread owns the only connection ([`Store`] hands it jobs), so that every call is a
//!   transaction that happens whole or not at all, in one order. Calls block: from asynchronous code
//!   they belong into `spawn_blocking`.
//! - A full disk and a locked file are [`StoreError`]s of their own, leave what was stored as it was,
//!   and are counted in [`Health`] for `status`.
//! - A corrupt file is never emptied: see [`OpenOptions`].
//! - Manifests are stored as the text that was applied. Nothing is re-serialised, so that an empty
//!   list never becomes an absent one on the way (CVE-2025-64715 in a peer).
//! - Time is an argument or an injected [`Clock`].

mod allocator;
mod clock;
mod connection;
mod endpoints;
mod error;
mod fqdn;
pub mod history;
mod identities;
mod migrate;
mod nodes;
pub mod objects;
mod open;
mod refusal;
mod rows;
mod settings;
#[cfg(test)]
pub mod testing;
mod tokens;

pub use allocator::StoreAllocator;
pub use clock::{Clock, system_clock};
pub use connection::{Health, Store};
pub use error::StoreError;
pub use fqdn::{LearnedName, NameChange};
pub use identities::{DEFAULT_GRACE, Holder, IdentityChange, IdentityRow, IdentityStore, IdentityStoreError};
pub use nodes::{NodeReport, NodeRow};
pub use open::{OnCorrupt, OpenOptions};
pub use rows::{DeletedObject, ObjectChanges, ObjectWrite, StoredObject};
