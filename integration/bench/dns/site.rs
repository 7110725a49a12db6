//! One node with a client, a DNS server and the world outside.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sluice::datapath::net::link::VethPair;
use sluice::datapath::net::{Namespace, Netlink};

use super::server::{Rotation, Server};
use super::{SUFFIX, ZONES};
use crate::agent::{Agent, Home};
use crate::cluster::NODE;
use crate::place::{self, Place, command, in_namespace, path_of};
use crate::pods::{self, Pod};

/// 20.0.0.0/8: where the addresses of the answers are. All of them are one machine.
pub const WORLD: u32 = 20 << 24;
/// The server's way when nothing else was said.
pub const FIXED: Rotation = Rotation::Fixed { ttl: 60 };

/// What the agent of a site learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// A DNS rule alone.
    Nothing,
    /// Addresses of every name, by a selector for each zone.
    EveryZone,
}

pub struct Site {
    pub node: Namespace,
    pub client: Pod,
    pub server: Server,
    pub server_pod: Pod,
    /// Whom the client asks.
    pub resolver: SocketAddr,
    pub home: Option<Home>,
    _world: Namespace,
    agent: Option<Agent>,
}

fn address(number: u8, last: u8) -> IpAddr {
    IpAddr::from([10, 100, number, last])
}

impl Site {
    /// With an agent that learns, or without any.
    pub fn new(place: &Place, number: u8, learning: Option<Learning>) -> anyhow::Result<Site> {
        let node = place::new_node()?;
        let client = pods::add(&node, 1, address(number, 10))?;
        let server_pod = pods::add(&node, 2, address(number, 20))?;
        let world = outside(&node, number)?;
        let asked = SocketAddr::new(server_pod.address, 53);
        let server = Server::start(&server_pod.namespace, asked)?;
        let mut site = Site {
            node,
            client,
            server,
            server_pod,
            resolver: asked,
            home: None,
            _world: world,
            agent: None,
        };
        match learning {
            Some(learning) => site.govern(place, number, learning)?,
            // Where a peer listens.
            None => {
                site.client.routed_by_stack(&site.node)?;
                site.server_pod.routed_by_stack(&site.node)?;
                let address = address(number, 1);
                command(&site.node, "ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"], "")?;
                site.resolver = SocketAddr::new(address, 53);
            }
        }
        Ok(site)
    }

    /// Where datagrams can have been lost: at full sockets, by name of the place, and what the proxy counted.
    pub fn losses(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let places = [
            ("client", &self.client.namespace),
            ("server", &self.server_pod.namespace),
            ("node", &self.node),
        ];
        for (name, space) in places {
            let snmp = space.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
            let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
            let (titles, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            let counted = titles.split(' ').zip(values.split(' '));
            for (title, value) in counted.filter(|(title, value)| title.contains("Err") && *value != "0") {
                write!(text, " {name} {title} {value}").expect("a string grows");
            }
        }
        if let Some(agent) = &self.agent {
            for (name, count) in agent.status()?.proxies.into_iter().flat_map(|proxy| proxy.counters) {
                if count > 0 && !["queries", "released"].contains(&name.as_str()) {
                    write!(text, " proxy {name} {count}").expect("a string grows");
                }
            }
        }
        Ok(text)
    }

    fn govern(&mut self, place: &Place, number: u8, learning: Learning) -> anyhow::Result<()> {
        let home =
            Home::new(&place.dir().join(format!("dns{number}")), place.bpffs(&format!("dns{number}")))?;
        let options = ["--uplink", "up0", "--routing", "routes", "--masquerade", "off"];
        let (agent, _) = Agent::start_on_last_cpu(&self.node, &home, &options)?;
        agent.apply(&self.objects(learning))?;
        for (name, pod) in [("client", &self.client), ("server", &self.server_pod)] {
            agent.add_endpoint(&sluice::api::types::EndpointRequest {
                pod: format!("bench/{name}"),
                netns: Some(path_of(&pod.namespace).display().to_string()),
                interface: Some("eth0".to_owned()),
                host_interface: None,
                device: Default::default(),
                labels: Default::default(),
                addresses: Vec::new(),
            })?;
        }
        agent.await_proxy("dns-proxy")?;
        self.home = Some(home);
        self.agent = Some(agent);
        Ok(())
    }

    fn objects(&self, learning: Learning) -> String {
        let pod = |name: &str, address: IpAddr| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: {name}, labels: {{app: {name}}}}}\nspec: {{nodeName: {NODE}, containers: [{{name: main}}]}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
            )
        };
        let names = match learning {
            Learning::Nothing => String::new(),
            Learning::EveryZone => {
                let zones: Vec<String> =
                    (0..ZONES).map(|zone| format!("{{matchPattern: '*.z{zone}.{SUFFIX}'}}")).collect();
                format!(
                    "  - toFQDNs: [{}]\n    toPorts: [{{ports: [{{port: \"443\", protocol: TCP}}]}}]\n",
                    zones.join(", ")
                )
            }
        };
        pod("client", self.client.address)
            + &pod("server", self.server_pod.address)
            + &format!(
                "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{namespace: bench, name: names}}\nspec:\n  endpointSelector: {{matchLabels: {{app: client}}}}\n  egress:\n  - toEndpoints: [{{matchLabels: {{app: server}}}}]\n    toPorts:\n    - ports: [{{port: \"53\", protocol: ANY}}]\n      rules: {{dns: [{{matchPattern: '**.{SUFFIX}'}}]}}\n{names}"
            )
    }
}

/// Everything that is not the node: one machine that has all the addresses of the answers, and no service.
fn outside(node: &Namespace, number: u8) -> anyhow::Result<Namespace> {
    let world = place::new_namespace()?;
    in_namespace(node, async || {
        let pair = VethPair { host_name: "up0", peer_name: "up0", peer_namespace: &world, mtu: 1500 };
        Ok(Netlink::here()?.add_veth(&pair).await?)
    })?;
    let all = format!("{}/8", Ipv4Addr::from(WORLD));
    let (near, far) = (format!("172.31.{number}.1"), format!("172.31.{number}.2"));
    let pods = format!("10.100.{number}.0/24");
    for (space, own) in [(node, &near), (&world, &far)] {
        command(space, "ip", &["addr", "add", &format!("{own}/24"), "dev", "up0"], "")?;
        command(space, "ip", &["link", "set", "up0", "up"], "")?;
    }
    command(node, "ip", &["route", "add", &all, "via", &far], "")?;
    command(&world, "ip", &["route", "add", &pods, "via", &near], "")?;
    command(&world, "ip", &["route", "add", "local", &all, "dev", "lo"], "")?;
    Ok(world)
}
