//! Many observers as one: the same API, flows joined in time order.
//!
//! [`pool`] knows the peers and whether they answer, [`merge`] joins their streams, `service` is the API, [`page`]
//! what the web UI shows of them, and `explain` asks them why.
//! A node that is gone, late or has another clock never stops the others: the stream says so in a
//! `NodeStatusEvent`, and goes on.

mod explain;
pub mod merge;
pub mod page;
pub mod pool;
mod service;

pub use self::service::relay_services;
