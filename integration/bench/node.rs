//! Nodes that differ in one thing: what stands between their pods.

use std::net::IpAddr;
use std::time::Duration;

use sluice::cluster::{MissingNamespaces, View, ViewOptions};
use sluice::datapath::config::ROUTER_MAC;
use sluice::datapath::net::link::VethPair;
use sluice::datapath::net::{Namespace, Netlink, tunnel};
use sluice::datapath::{Datapath as _, DatapathConfig, KernelDatapath, Mode};
use sluice::identity::MemoryAllocator;

use super::load::{PORT, Pair};
use super::place::{self, Place, command, in_namespace};
use super::pods::{self, MTU, Pod};
use super::{cluster, report};

/// Between the pods of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Routes alone.
    Routing,
    /// Our programs, one policy.
    Sluice,
    /// Our programs, 10,000 policies and 60,000 identities.
    SluiceFull,
    /// 1,000 nftables rules, established connections first.
    Nftables,
    /// The same by iptables.
    Iptables,
}

impl Between {
    pub const ALL: [Between; 5] =
        [Between::Routing, Between::Sluice, Between::SluiceFull, Between::Nftables, Between::Iptables];

    pub fn name(self) -> &'static str {
        match self {
            Between::Routing => "plain routing",
            Between::Sluice => "one policy",
            Between::SluiceFull => "10,000 policies, 60,000 identities",
            Between::Nftables => "1,000 nftables rules",
            Between::Iptables => "1,000 iptables rules",
        }
    }
}

const POLICIES: usize = 10_000;
const IDENTITIES: usize = 60_000;
const RULES: usize = 1_000;

/// A node with a client and a server.
pub struct Node {
    pub space: Namespace,
    pub client: Pod,
    pub server: Pod,
}

fn client_address(node: u8) -> IpAddr {
    IpAddr::from([10, 100, node, 10])
}

fn server_address(node: u8) -> IpAddr {
    IpAddr::from([10, 100, node, 20])
}

fn fabric_address(node: u8) -> IpAddr {
    IpAddr::from([172, 30, 0, node])
}

fn pod_object(name: &str, node: u8, address: IpAddr) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: {name}-{node}, labels: {{app: {name}}}}}\nspec: {{nodeName: n{node}, containers: [{{name: main}}]}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
    )
}

fn node_object(node: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{node}}}\nstatus: {{addresses: [{{type: InternalIP, address: {}}}]}}\n",
        fabric_address(node)
    )
}

fn objects(node: u8) -> String {
    node_object(node)
        + &pod_object("client", node, client_address(node))
        + &pod_object("server", node, server_address(node))
}

/// Clients may reach the servers' port, and nobody anything else; clients may send to servers only.
fn one_policy() -> String {
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: server}}\nspec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    toPorts: [{{ports: [{{port: \"{PORT}\", protocol: TCP}}]}}]\n---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: client}}\nspec:\n  endpointSelector: {{matchLabels: {{app: client}}}}\n  egress:\n  - toEndpoints: [{{matchLabels: {{app: server}}}}]\n"
    )
}

/// Many pods elsewhere, each with an identity, and as many policies for the server that name them.
fn crowd() -> String {
    let pods = (0..IDENTITIES).map(|index| {
        let address = IpAddr::from((0x0b00_0100 + index as u32).to_be_bytes());
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: c{index}, labels: {{team: t{}, instance: i{index}}}}}\nspec: {{nodeName: n200, containers: [{{name: main}}]}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n",
            index % POLICIES
        )
    });
    let policies = (1..POLICIES).map(|index| {
        format!(
            "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: c{index}}}\nspec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{team: t{index}}}}}]\n    toPorts: [{{ports: [{{port: \"{}\", protocol: TCP}}]}}]\n",
            1000 + index % 100
        )
    });
    pods.chain(policies).collect()
}

impl Node {
    /// The node with this number and its two pods.
    fn new(number: u8) -> anyhow::Result<Node> {
        let space = place::new_node()?;
        let client = pods::add(&space, 1, client_address(number))?;
        let server = pods::add(&space, 2, server_address(number))?;
        Ok(Node { space, client, server })
    }

    pub fn with(place: &Place, number: u8, between: Between) -> anyhow::Result<Node> {
        let node = Node::new(number)?;
        match between {
            Between::Routing => node.by_stack()?,
            Between::Sluice => {
                node.enforce(place, number, &(objects(number) + &one_policy()), Mode::Routes)?
            }
            Between::SluiceFull => {
                let text = objects(number) + &one_policy() + &crowd();
                node.enforce(place, number, &text, Mode::Routes)?;
            }
            Between::Nftables => node.nftables()?,
            Between::Iptables => node.iptables()?,
        }
        Ok(node)
    }

    /// Two nodes with VXLAN between them: the client of the first, the server of the second.
    pub fn across(place: &Place, first: u8, between: Between) -> anyhow::Result<[Node; 2]> {
        let numbers = [first, first + 1];
        let nodes = [Node::new(numbers[0])?, Node::new(numbers[1])?];
        in_namespace(&nodes[0].space, async || {
            let pair =
                VethPair { host_name: "up0", peer_name: "up0", peer_namespace: &nodes[1].space, mtu: 1500 };
            Ok(Netlink::here()?.add_veth(&pair).await?)
        })?;
        for (node, number) in nodes.iter().zip(numbers) {
            let address = format!("{}/24", fabric_address(number));
            ip(&node.space, &["addr", "add", &address, "dev", "up0"])?;
            ip(&node.space, &["link", "set", "up0", "up"])?;
        }
        for (node, [own, other]) in nodes.iter().zip([numbers, [numbers[1], numbers[0]]]) {
            if between == Between::Routing {
                node.plain_vxlan(own, other)?;
                continue;
            }
            in_namespace(&node.space, async || {
                Ok(tunnel::ensure(&Netlink::here()?, tunnel::PORT, MTU, ROUTER_MAC).await?)
            })?;
            let mode = Mode::Tunnel { device: tunnel::DEVICE.to_owned(), port: tunnel::PORT };
            node.enforce(place, own, &(objects(own) + &objects(other) + &one_policy()), mode)?;
        }
        Ok(nodes)
    }

    /// As other overlays do it: a device, a neighbour and a route for each node.
    fn plain_vxlan(&self, own: u8, other: u8) -> anyhow::Result<()> {
        self.by_stack()?;
        let (local, remote) = (fabric_address(own).to_string(), fabric_address(other).to_string());
        let mac = |node: u8| format!("02:5c:00:00:01:{node:02x}");
        let gateway = format!("10.100.{other}.0");
        let pods = format!("{gateway}/24");
        #[rustfmt::skip]
        let commands: [&[&str]; 5] = [
            &["link", "add", "vx0", "address", &mac(own), "mtu", "1450", "type", "vxlan", "id", "1", "local", &local, "dstport", "4789", "nolearning", "dev", "up0"],
            &["link", "set", "vx0", "up"],
            &["addr", "add", &format!("10.100.{own}.0/32"), "dev", "vx0"],
            &["neigh", "replace", &gateway, "lladdr", &mac(other), "dev", "vx0"],
            &["route", "add", &pods, "via", &gateway, "dev", "vx0", "onlink"],
        ];
        commands.iter().try_for_each(|args| ip(&self.space, args))?;
        command(
            &self.space,
            "bridge",
            &["fdb", "append", &mac(other), "dev", "vx0", "dst", &remote, "self", "permanent"],
            "",
        )
    }

    fn enforce(&self, place: &Place, number: u8, text: &str, mode: Mode) -> anyhow::Result<()> {
        let options = ViewOptions {
            node: format!("n{number}"),
            missing_namespaces: MissingNamespaces::Exist,
            ..ViewOptions::default()
        };
        let allocator = MemoryAllocator::new(Duration::from_secs(900));
        let mut view = View::new(options, Box::new(allocator));
        view.apply(cluster::changes(text)?).map_err(report::refused)?;
        let full = view.full();
        let mut config = DatapathConfig::new(place.bpffs(&format!("node{number}")));
        config.uplink = matches!(mode, Mode::Tunnel { .. }).then(|| "up0".to_owned());
        config.mode = mode;
        self.space.run(|| -> anyhow::Result<()> {
            let mut datapath = KernelDatapath::open(config)?;
            for (name, pod) in [("client", &self.client), ("server", &self.server)] {
                datapath.attach_endpoint(&format!("bench/{name}-{number}"), pod.device)?;
            }
            datapath.reconcile(&full)?;
            Ok(datapath.attach_node()?)
        })?
    }

    /// Rules that do what the policy does; the one that matters is the last.
    fn rules(&self) -> impl Iterator<Item = (IpAddr, IpAddr, u16)> {
        let others = (1..RULES).map(|index| IpAddr::from((0x0b00_0100 + index as u32).to_be_bytes()));
        let (client, server) = (self.client.address, self.server.address);
        others.map(move |other| (other, server, PORT)).chain([(client, server, PORT)])
    }

    /// No programs of ours: the stack routes between the pods.
    fn by_stack(&self) -> anyhow::Result<()> {
        [&self.client, &self.server].into_iter().try_for_each(|pod| pod.routed_by_stack(&self.space))
    }

    fn nftables(&self) -> anyhow::Result<()> {
        self.by_stack()?;
        let mut text = String::from(
            "table ip bench {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n  ct state established,related accept\n",
        );
        for (from, to, port) in self.rules() {
            text += &format!("  ip saddr {from} ip daddr {to} tcp dport {port} accept\n");
        }
        command(&self.space, "nft", &["-f", "-"], &(text + " }\n}\n"))
    }

    fn iptables(&self) -> anyhow::Result<()> {
        self.by_stack()?;
        let mut text = String::from(
            "*filter\n:FORWARD DROP\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n",
        );
        for (from, to, port) in self.rules() {
            text += &format!("-A FORWARD -s {from} -d {to} -p tcp --dport {port} -j ACCEPT\n");
        }
        command(&self.space, "iptables-restore", &[], &(text + "COMMIT\n"))
    }

    /// Client and server of this node.
    pub fn pair(&self) -> Pair<'_> {
        between(self, self)
    }
}

/// The client of one node and the server of another.
pub fn between<'a>(from: &'a Node, to: &'a Node) -> Pair<'a> {
    Pair { client: &from.client.namespace, server: &to.server.namespace, address: to.server.address }
}

fn ip(space: &Namespace, args: &[&str]) -> anyhow::Result<()> {
    command(space, "ip", args, "")
}
