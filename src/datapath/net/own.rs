//! Which addresses of this network namespace are the node's own, and on which devices its traffic runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{NetError, Netlink, tunnel};

/// A device with addresses that others can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnDevice {
    pub name: String,
    pub ifindex: u32,
    pub addresses: Vec<IpAddr>,
}

/// Addresses of devices of this kind carry no traffic of the node: IPVS and node-local DNS caches keep frontends of
/// Services on them.
const PARKING: &str = "dummy";

fn others_can_reach(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified()),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified()),
    }
}

/// Devices of this namespace with such addresses, loopback (for addresses beside 127.0.0.0/8) included.
pub async fn devices(netlink: &Netlink) -> Result<Vec<OwnDevice>, NetError> {
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let all = nix::ifaddrs::getifaddrs().map_err(|errno| NetError::Netlink {
        operation: "getifaddrs",
        object: "this namespace".to_owned(),
        source: errno.into(),
    })?;
    for interface in all {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let address = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
        if let Some(address) = address.filter(|address| others_can_reach(*address)) {
            addresses.entry(interface.interface_name).or_default().push(address);
        }
    }
    let mut own = Vec::new();
    for device in netlink.devices().await? {
        if !device.up || device.kind.as_deref() == Some(PARKING) || device.name == tunnel::DEVICE {
            continue;
        }
        if let Some(addresses) = addresses.remove(&device.name) {
            own.push(OwnDevice { name: device.name, ifindex: device.ifindex, addresses });
        }
    }
    Ok(own)
}
