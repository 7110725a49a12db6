//! sluice: zero-trust pod networking in one binary.
//!
//! `ARCHITECTURE.md` says which room a line of code lives in and who may call whom.

#![deny(unsafe_code)]
#![warn(missing_debug_implementations)]

pub mod admission;
pub mod agent;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod datapath;
pub mod dnsproxy;
pub mod endpoint;
pub mod flow;
pub mod fqdn;
pub mod httpproxy;
pub mod identity;
pub mod ipcache;
pub mod k8s;
pub mod lab;
pub mod model;
pub mod policy;
pub mod server;
pub mod service;
pub mod store;

#[cfg(test)]
mod rooms;
