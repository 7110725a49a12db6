//! Devices, network namespaces, routes and sysctls, as far as pods and nodes need them.
//!
//! - [`netns`]: a namespace by path; running code inside it on a thread of its own.
//! - [`link`]: devices, addresses, routes and neighbours over rtnetlink.
//! - [`own`]: the node's own addresses.
//! - [`pod`]: a pod's veth pair with everything that belongs to it.
//! - [`tunnel`]: the VXLAN device.
//! - [`divert`]: local delivery for proxies.
//! - [`sysctl`]: what is set below `/proc/sys/net`.
//! - [`watch`]: devices that come and go.

pub mod divert;
pub mod link;
pub mod netns;
pub mod own;
pub mod pod;
pub mod sysctl;
pub mod tunnel;
pub mod watch;

pub use link::{Device, Netlink};
pub use netns::Namespace;

/// A failed operation, with its object.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{operation} {object}: {source}")]
    Netlink { operation: &'static str, object: String, source: std::io::Error },
    #[error("network namespace {path}: {operation}: {source}")]
    Namespace { operation: &'static str, path: String, source: std::io::Error },
    #[error("sysctl {key} = {value}: {source}")]
    Sysctl { key: String, value: String, source: std::io::Error },
    #[error("there is no device {0}")]
    NoDevice(String),
    #[error("device {device} exists, and is not {expected}")]
    WrongDevice { device: String, expected: &'static str },
}
