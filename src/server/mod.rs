//! `sluice server`: the state of a small cluster, handed to its agents over mutually authenticated
//! gRPC (`proto/sluice/v1/cluster.proto`), and the agents' side of it.
//!
//! Contract:
//!
//! - The server has its own CA. A node joins with a token ([`JoinToken`]) that authenticates both
//!   sides, and gets a client certificate for its name. From then on every call is mutual TLS, and who
//!   calls is what the certificate says, never what a message says.
//! - A node name belongs to the first key that joined with it until an operator removes the node.
//!   Removing it ends its streams and refuses its certificate at once.
//! - Every agent gets every transaction whole, in one order, exactly once ([`Update`]); one that is too
//!   slow is disconnected and resumes. The server's memory for an agent is bounded.
//! - One label set has one number in the whole cluster, no matter who asks first.
//!
//! Kubernetes' types are not known here: the parser of manifests is injected.

pub mod admin;
mod blocking;
pub mod client;
mod credentials;
mod event;
mod files;
mod join_secret;
mod limiter;
mod pki;
mod remote;
mod run;
mod service;
mod state;
mod token;

pub use credentials::JoinError;
pub use event::{ManifestObject, Peer, ProtocolError, Update, UpdateKind};
pub use files::FileError;
pub use join_secret::SecretError;
pub use pki::{PkiError, SERVER_NAME};
pub use remote::RemoteAllocator;
pub use run::{Server, ServerConfig, ServerError};
pub use state::StateError;
pub use token::{JoinToken, TokenError};

/// Generated from `proto/sluice/v1/cluster.proto`.
mod proto {
    #![allow(missing_debug_implementations, clippy::all, reason = "generated")]
    tonic::include_proto!("sluice.v1");
}

#[cfg(test)]
mod tests;
