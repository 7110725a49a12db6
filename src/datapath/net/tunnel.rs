//! The VXLAN device: one for all nodes, tunnel keys with each packet (`external`).

use netlink_packet_route::link::InfoKind;
use rtnetlink::{LinkMessageBuilder, LinkVxlan};

use super::link::VxlanInfo;
use super::{Device, NetError, Netlink, sysctl};
use crate::model::Family;

/// Our device.
pub const DEVICE: &str = "sluice_vxlan";
/// IANA port of VXLAN (RFC 7348).
pub const PORT: u16 = 4789;

/// Bytes that VXLAN adds to a packet: outer IP, UDP, VXLAN, inner Ethernet.
pub fn overhead(outer: Family) -> u32 {
    match outer {
        Family::IPv4 => 20 + 8 + 8 + 14,
        Family::IPv6 => 40 + 8 + 8 + 14,
    }
}

/// Makes the device, or makes the one that is there fit. `mac` is the router's: nodes send to it.
/// `mtu` is that of the pods.
pub async fn ensure(node: &Netlink, port: u16, mtu: u32, mac: [u8; 6]) -> Result<Device, NetError> {
    if let Some(device) = node.find(DEVICE).await? {
        match device.vxlan {
            Some(VxlanInfo { port: found, external: true }) if found == port => {}
            // Ours, of another configuration: programs on it come back with the new one.
            Some(_) => node.delete(device.ifindex).await?,
            None => return Err(NetError::WrongDevice { device: device.name, expected: "a VXLAN device" }),
        }
    }
    if node.find(DEVICE).await?.is_none() {
        let message = LinkMessageBuilder::<LinkVxlan>::new_with_info_kind(InfoKind::Vxlan)
            .name(DEVICE)
            .address(mac.to_vec())
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .udp_zero_csum6_rx(true)
            .build();
        node.add(DEVICE, message).await?;
    }
    let device = node.get(DEVICE).await?;
    if device.mac != mac {
        node.set_mac(device.ifindex, mac).await?;
    }
    node.set_mtu(device.ifindex, mtu).await?;
    node.set_up(device.ifindex).await?;
    sysctl::prepare_host_side(DEVICE)?;
    node.get(DEVICE).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_that_of_the_headers() {
        assert_eq!((overhead(Family::IPv4), overhead(Family::IPv6)), (50, 70));
    }
}
