//! Pods of a node as the agent finds them: a namespace each, a veth pair, a route.

use std::net::IpAddr;

use sluice::datapath::config::ROUTER_MAC;
use sluice::datapath::net::pod::{PodNetwork, create};
use sluice::datapath::net::{Namespace, Netlink};
use sluice::datapath::{EndpointDevice, LinkLayer};

use super::place::{command, in_namespace, new_namespace};

/// MTU that leaves room for VXLAN on a fabric of 1500.
pub const MTU: u32 = 1450;

pub struct Pod {
    pub namespace: Namespace,
    pub address: IpAddr,
    pub device: EndpointDevice,
    host_device: String,
}

/// Makes a pod on a node. `id` numbers it there, from 1.
pub fn add(node: &Namespace, id: u16, address: IpAddr) -> anyhow::Result<Pod> {
    let namespace = new_namespace()?;
    let host_device = format!("bench-{id}");
    let made = in_namespace(node, async || {
        let network = PodNetwork {
            namespace: &namespace,
            host_device: &host_device,
            pod_device: "eth0",
            addresses: &[address],
            mtu: MTU,
            router_mac: ROUTER_MAC,
        };
        Ok(create(&Netlink::here()?, &network).await?)
    })?;
    let device =
        EndpointDevice { ifindex: made.host_ifindex, mac: made.pod_mac, id, link_layer: LinkLayer::Ethernet };
    Ok(Pod { namespace, address, device, host_device })
}

impl Pod {
    /// Lets the stack of the pod's node route for it: pods send to the router's address, which is no device's
    /// where our programs deliver.
    pub fn routed_by_stack(&self, node: &Namespace) -> anyhow::Result<()> {
        let mac = ROUTER_MAC.map(|byte| format!("{byte:02x}")).join(":");
        command(node, "ip", &["link", "set", &self.host_device, "address", &mac], "")
    }
}
