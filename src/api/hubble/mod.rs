//! The flow API that Hubble's clients speak (gRPC): observer, peers, health and reflection.
//!
//! | file | what |
//! | --- | --- |
//! | `pb`, `convert`, `read`, `reasons`, `filter`, `mask` | wire forms, and back |
//! | `cel` | expressions in filters |
//! | [`source`] | what an agent has to offer to be observed |
//! | `observer`, `stream`, `events`, `peers` | the services of an agent |
//! | [`explain`] | what an agent tells relays beside the flow API: why, and by which policies |
//! | [`relay`] | the same services over many agents |
//! | [`serve`], `late`, [`tls`] | sockets, credentials and limits |
//! | [`client`] | the other side |
//!
//! A reader pulls: nothing is buffered for it beyond one chunk, so a slow or stuck one holds no memory. What
//! the ring has overwritten meanwhile is reported as lost.

mod cel;
pub mod client;
pub mod convert;
mod events;
pub mod explain;
pub mod filter;
pub mod json;
mod late;
mod mask;
mod observer;
#[allow(unreachable_pub, reason = "generated")]
pub mod pb;
mod peers;
pub mod read;
mod reasons;
pub mod relay;
pub mod serve;
pub mod source;
mod stream;
#[cfg(test)]
mod tests;
pub mod tls;

pub use self::observer::observer_services;

/// The port of observers and relays.
pub const PORT: u16 = 4245;
/// The name of an agent's socket in its run directory.
pub const SOCKET: &str = "hubble.sock";
/// The name of a relay's socket.
pub const RELAY_SOCKET: &str = "relay.sock";
