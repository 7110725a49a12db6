//! Which devices, addresses and routes connect the namespaces, as `ip` commands. PURE.
//!
//! Everything is routed, nothing is bridged: each namespace hangs on its parent (a pod on its node,
//! nodes and externals on the fabric) by one veth pair, has its addresses as /32 and /128, and
//! reaches the rest through a gateway address that exists only as a permanent neighbour entry. So
//! any address can be anywhere, and nothing depends on ARP or neighbour discovery.
//!
//! No namespace has a link to the machine's own network: what the fabric does not know is
//! swallowed by its blackhole route.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::topology::Site;
use crate::model::Family;

/// Every child's device.
pub const CHILD_DEVICE: &str = "eth0";
/// Every child's gateway.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Where the control plane listens, in the fabric's namespace.
pub const CONTROL_PLANE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(172, 18, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 2))];
/// Routing table of the fabric that knows the pods; see [`PodRoutes`].
const POD_TABLE: u32 = 100;

/// Who can reach pods by plain routing through the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodRoutes {
    /// Externals only: traffic between nodes has to be carried by the agents (VXLAN), and what
    /// they leak is lost, not delivered.
    FromExternals,
    /// Everybody: a lab without agents.
    FromAnywhere,
}

impl PodRoutes {
    fn table(self) -> &'static str {
        match self {
            PodRoutes::FromExternals => "100",
            PodRoutes::FromAnywhere => "main",
        }
    }
}

/// One veth pair. `id` is unique in the lab and gives device name and MAC addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: u16,
}

impl Link {
    /// The parent's end.
    pub fn parent_device(self, child: &Site) -> String {
        let prefix = match child {
            Site::Pod { .. } => "pod",
            Site::Node(_) => "node",
            Site::External(_) => "ext",
            Site::Fabric => "fabric",
        };
        format!("{prefix}{}", self.id)
    }

    pub fn parent_mac(self) -> String {
        self.mac(1)
    }

    pub fn child_mac(self) -> String {
        self.mac(2)
    }

    /// Locally administered, unicast.
    fn mac(self, end: u8) -> String {
        let [high, low] = self.id.to_be_bytes();
        format!("02:53:4c:{end:02x}:{high:02x}:{low:02x}")
    }
}

/// Commands for `ip -batch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    commands: String,
    /// For `ip -6`: routing rules do not tell their family from an address.
    ipv6_commands: String,
}

impl Batch {
    /// A command that tells its family itself.
    pub fn add(&mut self, command: impl AsRef<str>) {
        self.commands.push_str(command.as_ref());
        self.commands.push('\n');
    }

    /// A command that is run once for each family.
    fn add_for_both_families(&mut self, command: impl AsRef<str>) {
        self.add(&command);
        self.ipv6_commands.push_str(command.as_ref());
        self.ipv6_commands.push('\n');
    }

    pub fn extend(&mut self, other: &Batch) {
        self.commands.push_str(&other.commands);
        self.ipv6_commands.push_str(&other.ipv6_commands);
    }

    /// The runs of `ip` that are needed: its arguments and its input.
    pub fn runs(&self) -> impl Iterator<Item = (&'static [&'static str], &str)> {
        let general: &[&str] = &["-batch", "-"];
        let ipv6: &[&str] = &["-6", "-batch", "-"];
        let runs = [(general, self.commands.as_str()), (ipv6, self.ipv6_commands.as_str())];
        runs.into_iter().filter(|(_, commands)| !commands.is_empty())
    }
}

/// The fabric on its own.
pub fn fabric() -> Batch {
    let mut batch = Batch::default();
    batch.add("link set lo up");
    for address in CONTROL_PLANE {
        batch.add(format!("addr add {} dev lo{}", host_prefix(address), nodad(address)));
    }
    batch.add("route add blackhole 0.0.0.0/0");
    batch.add("route add blackhole ::/0 metric 4096");
    batch
}

/// In the parent: the pair, and the way to the child. `source` is what the parent itself uses
/// as source towards the child (a node's own address).
pub fn parent_side(
    link: Link,
    child: &Site,
    child_netns: &Path,
    addresses: &[IpAddr],
    source: &[IpAddr],
) -> Batch {
    let device = link.parent_device(child);
    let mut batch = Batch::default();
    batch.add(format!(
        "link add {device} address {} type veth peer name {CHILD_DEVICE} address {} netns {}",
        link.parent_mac(),
        link.child_mac(),
        child_netns.display()
    ));
    batch.add(format!("link set {device} up"));
    if matches!(child, Site::External(_)) {
        batch.add_for_both_families(format!("rule add {}", external_rule(&device)));
    }
    batch.extend(&parent_addresses(link, child, addresses, source));
    batch
}

/// In the parent: routes and neighbours for the child's addresses.
pub fn parent_addresses(link: Link, child: &Site, addresses: &[IpAddr], source: &[IpAddr]) -> Batch {
    let device = link.parent_device(child);
    let mut batch = Batch::default();
    for address in addresses {
        let mut route = format!("route replace {} dev {device}", host_prefix(*address));
        if let Some(source) = source.iter().find(|source| Family::of(**source) == Family::of(*address)) {
            // Writing to a String cannot fail.
            let _ = write!(route, " src {source}");
        }
        batch.add(route);
        batch.add(format!("neigh replace {address} lladdr {} dev {device} nud permanent", link.child_mac()));
    }
    batch
}

/// In the child: addresses, and everything else behind the gateway.
pub fn child_side(link: Link, addresses: &[IpAddr]) -> Batch {
    let mut batch = Batch::default();
    batch.add("link set lo up");
    batch.add(format!("link set {CHILD_DEVICE} up"));
    batch.extend(&child_addresses(link, addresses));
    batch
}

/// In the child: its addresses, and the gateway, which the kernel forgets with a family's last
/// address.
pub fn child_addresses(link: Link, addresses: &[IpAddr]) -> Batch {
    let mut batch = Batch::default();
    for address in addresses {
        batch.add(format!("addr replace {} dev {CHILD_DEVICE}{}", host_prefix(*address), nodad(*address)));
    }
    for gateway in [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)] {
        let mac = link.parent_mac();
        batch.add(format!("neigh replace {gateway} lladdr {mac} dev {CHILD_DEVICE} nud permanent"));
        batch.add(format!("route replace default via {gateway} dev {CHILD_DEVICE} onlink"));
    }
    batch
}

/// In the child: the opposite of [`child_addresses`].
pub fn remove_child_addresses(addresses: &[IpAddr]) -> Batch {
    let mut batch = Batch::default();
    for address in addresses {
        batch.add(format!("addr del {} dev {CHILD_DEVICE}", host_prefix(*address)));
    }
    batch
}

/// In the parent: the opposite of [`parent_addresses`].
pub fn remove_parent_addresses(link: Link, child: &Site, addresses: &[IpAddr]) -> Batch {
    let device = link.parent_device(child);
    let mut batch = Batch::default();
    for address in addresses {
        batch.add(format!("route del {} dev {device}", host_prefix(*address)));
        batch.add(format!("neigh del {address} dev {device}"));
    }
    batch
}

/// In the fabric: an external's way to the pods goes.
pub fn remove_external_rules(link: Link, external: &Site) -> Batch {
    let mut batch = Batch::default();
    batch.add_for_both_families(format!("rule del {}", external_rule(&link.parent_device(external))));
    batch
}

/// What comes from an external may use the table that knows the pods.
fn external_rule(device: &str) -> String {
    format!("iif {device} lookup {POD_TABLE} pref {POD_TABLE}")
}

/// In the fabric: the way to a pod, over its node's link.
pub fn pod_routes(node_link: Link, node: &Site, addresses: &[IpAddr], routes: PodRoutes) -> Batch {
    let device = node_link.parent_device(node);
    let mut batch = Batch::default();
    for address in addresses {
        batch.add(format!("route replace {} dev {device} table {}", host_prefix(*address), routes.table()));
        batch.add(format!(
            "neigh replace {address} lladdr {} dev {device} nud permanent",
            node_link.child_mac()
        ));
    }
    batch
}

/// Takes back [`pod_routes`].
pub fn remove_pod_routes(addresses: &[IpAddr], routes: PodRoutes) -> Batch {
    let mut batch = Batch::default();
    for address in addresses {
        batch.add(format!("route del {} table {}", host_prefix(*address), routes.table()));
    }
    batch
}

fn host_prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    }
}

/// The lab gives every address once: detection of duplicates would only cost a second.
fn nodad(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "",
        IpAddr::V6(_) => " nodad",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_host_addresses_and_a_gateway_without_arp() {
        let batch =
            child_side(Link { id: 258 }, &["10.244.0.5".parse().unwrap(), "fd00:244::5".parse().unwrap()]);
        assert_eq!(
            batch.commands,
            "link set lo up\n\
             link set eth0 up\n\
             addr replace 10.244.0.5/32 dev eth0\n\
             addr replace fd00:244::5/128 dev eth0 nodad\n\
             neigh replace 169.254.1.1 lladdr 02:53:4c:01:01:02 dev eth0 nud permanent\n\
             route replace default via 169.254.1.1 dev eth0 onlink\n\
             neigh replace fe80::1 lladdr 02:53:4c:01:01:02 dev eth0 nud permanent\n\
             route replace default via fe80::1 dev eth0 onlink\n"
        );
    }

    #[test]
    fn device_names_fit_the_kernel() {
        for child in [Site::pod("a", "b"), Site::Node("n".into()), Site::External("e".into())] {
            assert!(Link { id: u16::MAX }.parent_device(&child).len() < 16);
        }
    }

    #[test]
    fn only_externals_are_routed_to_pods_when_agents_carry_the_rest() {
        let netns = Path::new("/x");
        let external = parent_side(Link { id: 3 }, &Site::External("e".into()), netns, &[], &[]);
        assert!(external.ipv6_commands.contains("rule add iif ext3 lookup 100"));
        let node = parent_side(Link { id: 3 }, &Site::Node("n".into()), netns, &[], &[]);
        assert!(!node.commands.contains("rule"));
    }
}
