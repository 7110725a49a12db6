//! A pod's network: a veth pair, its addresses as /32 and /128, one gateway that is not a real host.
//!
//! ```text
//! pod:   eth0  10.244.1.7/32 fd00:1::7/128
//!              default via 169.254.1.1, default via fe80::1
//!              169.254.1.1 and fe80::1 are permanent neighbours with the router's MAC
//! node:  <host device>  10.244.1.7/32 dev <host device>, permanent neighbour 10.244.1.7 -> pod's MAC
//! ```
//!
//! Every packet of the pod goes to the host side of its veth, where it is judged; no two pods share a
//! link layer. The router's MAC is no device's: where no program judges, the node's stack takes the
//! frames for somebody else's, and the pod is cut off rather than open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::link::VethPair;
use super::{Namespace, NetError, Netlink, sysctl};

/// Gateway of every pod.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Gateway of every pod.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A pod's network to be made.
#[derive(Clone, Debug)]
pub struct PodNetwork<'a> {
    pub namespace: &'a Namespace,
    /// Name of the host side, at most 15 bytes.
    pub host_device: &'a str,
    /// Name of the pod's side, mostly `eth0`.
    pub pod_device: &'a str,
    pub addresses: &'a [IpAddr],
    pub mtu: u32,
    /// MAC address of the gateway.
    pub router_mac: [u8; 6],
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodDevices {
    /// Host side, in the node's namespace.
    pub host_ifindex: u32,
    pub host_mac: [u8; 6],
    /// Pod's side, in the pod's namespace.
    pub pod_ifindex: u32,
    pub pod_mac: [u8; 6],
}

fn ethernet(device: &super::Device) -> Result<[u8; 6], NetError> {
    <[u8; 6]>::try_from(device.mac.as_slice())
        .map_err(|_| NetError::WrongDevice { device: device.name.clone(), expected: "Ethernet" })
}

/// The prefix of one address.
pub fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn everything(address: IpAddr) -> (IpNet, IpAddr) {
    match address {
        IpAddr::V4(_) => (IpNet::V4(Ipv4Net::default()), IpAddr::V4(GATEWAY_V4)),
        IpAddr::V6(_) => (IpNet::V6(Ipv6Net::default()), IpAddr::V6(GATEWAY_V6)),
    }
}

/// Makes a pod's network. `node` is a socket in the node's namespace, which the calling thread is in.
/// When it fails, what was made is deleted.
pub async fn create(node: &Netlink, network: &PodNetwork<'_>) -> Result<PodDevices, NetError> {
    let pair = VethPair {
        host_name: network.host_device,
        peer_name: network.pod_device,
        peer_namespace: network.namespace,
        mtu: network.mtu,
    };
    node.add_veth(&pair).await?;
    let made = connect(node, network).await;
    if made.is_err() {
        let device = node.get(network.host_device).await?;
        node.delete(device.ifindex).await?;
    }
    made
}

/// Configures both ends of a pair that exists, both in their places. Calling it again is harmless.
pub async fn connect(node: &Netlink, network: &PodNetwork<'_>) -> Result<PodDevices, NetError> {
    let pod = Netlink::inside(network.namespace)?;
    let inner = pod.get(network.pod_device).await?;
    let outer = node.get(network.host_device).await?;
    let pod_device = network.pod_device;
    network.namespace.run(|| sysctl::prepare_pod_side(pod_device))??;
    sysctl::prepare_host_side(network.host_device)?;

    if let Some(lo) = pod.find("lo").await? {
        pod.set_up(lo.ifindex).await?;
    }
    pod.set_up(inner.ifindex).await?;
    node.set_up(outer.ifindex).await?;
    for address in network.addresses {
        pod.add_address(inner.ifindex, single(*address)).await?;
        let (default, gateway) = everything(*address);
        pod.add_neighbour(inner.ifindex, gateway, network.router_mac).await?;
        pod.add_route(default, Some(gateway), inner.ifindex).await?;

        node.add_neighbour(outer.ifindex, *address, ethernet(&inner)?).await?;
        node.add_route(single(*address), None, outer.ifindex).await?;
    }
    Ok(PodDevices {
        host_ifindex: outer.ifindex,
        host_mac: ethernet(&outer)?,
        pod_ifindex: inner.ifindex,
        pod_mac: ethernet(&inner)?,
    })
}

/// Deletes the pair; routes and neighbours go with it. One that is gone is fine.
pub async fn delete(node: &Netlink, host_device: &str) -> Result<(), NetError> {
    match node.find(host_device).await? {
        Some(device) => node.delete(device.ifindex).await,
        None => Ok(()),
    }
}
