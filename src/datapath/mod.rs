//! The kernel side: the only room that knows aya, byte order and `unsafe`.
//!
//! - [`kernel`]: [`KernelDatapath`], what the agent holds. [`memory`]: its twin without a kernel.
//! - [`writer`], [`transition`], [`reconcile`]: in which order a change reaches the maps.
//! - `policies`, `addresses`, `services`, `endpoints`: what each kind of change means in maps.
//! - [`table`], [`tables`], `sys`: typed maps over bpf(2). [`abi`]: what they hold. [`connections`]: the table that is no map
//!   of the kernel's.
//! - `loader`, `pins`, [`attach`], [`carry`], `sockets`: programs and what outlives the agent. `host_devices`: which
//!   devices of the node are judged.
//! - [`events`], [`inspect`]: what the kernel tells. [`proxy`]: what proxies need of it.
//! - [`testrun`]: the programs on hand-made packets, for tests and benchmarks.
//! - [`net`]: devices, namespaces, routes. [`preflight`]: is this machine fit.

pub mod abi;
mod addresses;
pub mod attach;
pub mod carry;
mod clock;
pub mod config;
pub mod connections;
mod endpoints;
pub mod events;
pub mod expedite;
mod host_devices;
mod identities;
pub mod inspect;
pub mod kernel;
pub mod learned;
mod loader;
pub mod memory;
pub mod net;
mod pins;
mod policies;
pub mod preflight;
mod programs;
pub mod proxy;
pub mod reconcile;
mod services;
mod sockets;
mod sys;
pub mod table;
pub mod tables;
#[doc(hidden)]
pub mod testrun;
pub mod transition;
pub mod writer;

pub use config::{AttachMode, DatapathConfig, LocalDelivery, Mode, Trace};
pub use endpoints::{EndpointDevice, LinkLayer};
pub use events::{EventReader, FlowEvent, FlowEventKind, ObservationPoint, Untold};
pub use inspect::Inspector;
pub use kernel::{KernelDatapath, ProxyState, Restored};
pub use memory::MemoryDatapath;
pub use reconcile::Reconciled;
pub use sys::{give_back_memory, share_heaps};

use crate::cluster::delta::Delta;

/// Where deltas go: the kernel, or an in-memory twin for tests.
pub trait Datapath: Send {
    /// Applies every change or reports which failed; what failed is retried by the caller with the
    /// same delta (all changes are keyed), and is closed meanwhile.
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError>;

    /// Makes the datapath hold exactly `full` (a delta from nothing): after a restart, or to repair.
    /// What is equal is not touched, and flows under it are not disturbed.
    fn reconcile(&mut self, full: &Delta) -> Result<Reconciled, DatapathError>;
}

/// A failed kernel operation, with the operation and the object.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("map {map} is full ({entries} entries): {what}")]
    MapFull { map: &'static str, entries: u32, what: String },
    #[error("map {map} has another shape than this version expects: {expected} expected, {found} found")]
    MapShape { map: &'static str, expected: String, found: String },
    #[error("{operation} on {object}: {source}")]
    Syscall { operation: &'static str, object: String, source: std::io::Error },
    #[error("program {program} was refused by the kernel: {reason}")]
    Load { program: String, reason: String },
    #[error("{operation}: program {program} on {device}: {reason}")]
    Attach { operation: &'static str, program: &'static str, device: String, reason: String },
    #[error("{0}")]
    Other(String),
}
