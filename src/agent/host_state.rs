//! What the node needs beside our programs: forwarding, the rule that brings packets to proxies, the tunnel's device.
//!
//! Made when the agent starts, and looked after (`attachments`): `sysctl --system`, a systemd-networkd that starts or
//! another network plugin that cleans up take such things away.

use super::linux::{TUNNEL_PORT, failed};
use crate::config::{AgentConfig, Routing, Switch};
use crate::datapath::DatapathError;
use crate::datapath::config::ROUTER_MAC;
use crate::datapath::net::{Netlink, divert, sysctl, tunnel};
use crate::model::Family;

/// See the module.
#[derive(Debug)]
pub(super) struct HostState {
    proxies: Switch,
    tunnel: Option<Tunnel>,
}

#[derive(Debug)]
struct Tunnel {
    uplink: String,
    /// Of the node's own address.
    family: Family,
}

impl HostState {
    /// What this configuration needs; `family` is that of the node's address.
    pub(super) fn new(config: &AgentConfig, family: Family) -> HostState {
        let tunnel = match (config.routing, &config.uplink) {
            (Routing::Tunnel, Some(uplink)) => Some(Tunnel { uplink: uplink.clone(), family }),
            _ => None,
        };
        HostState { proxies: config.proxies, tunnel }
    }

    /// Makes what is not there in the namespace of `node`, and says what that was.
    pub(super) async fn ensure(&self, node: &Netlink) -> Result<Vec<String>, DatapathError> {
        let mut missing = sysctl::prepare_node().map_err(failed)?;
        if self.proxies.is_on() && divert::prepare(node).await.map_err(failed)? {
            missing.push("the rule that brings packets to proxies".to_owned());
        }
        if let Some(mtu) = self.tunnel_mtu(node).await? {
            let device = node.find(tunnel::DEVICE).await.map_err(failed)?;
            if !device.is_some_and(|device| device.up && device.mtu == mtu && device.mac == ROUTER_MAC) {
                tunnel::ensure(node, TUNNEL_PORT, mtu, ROUTER_MAC).await.map_err(failed)?;
                missing.push(format!("the device {}", tunnel::DEVICE));
            }
        }
        Ok(missing)
    }

    /// Bytes of the packets that fit into the tunnel, if there is one.
    pub(super) async fn tunnel_mtu(&self, node: &Netlink) -> Result<Option<u32>, DatapathError> {
        let Some(Tunnel { uplink, family }) = &self.tunnel else { return Ok(None) };
        let below = node.get(uplink).await.map_err(failed)?;
        Ok(Some(below.mtu.saturating_sub(tunnel::overhead(*family))))
    }
}
