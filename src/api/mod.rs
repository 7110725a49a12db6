//! The agent's interfaces to the outside: the admin API (HTTP/JSON on a unix socket) and its client.
//!
//! This room alone knows HTTP and the JSON forms; what the API serves is behind
//! [`backend::Backend`], which the agent implements.

pub mod admin;
pub mod backend;
pub mod client;
pub mod export;
pub mod flow_json;
pub mod flow_query;
pub mod hubble;
pub mod metrics;
pub mod otlp;
pub mod past;
pub mod types;
pub mod ui;
pub mod unix;
