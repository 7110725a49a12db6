//! What a lab consists of: nodes, pods, externals, and the names that its DNS knows. PURE.
//!
//! A [`Topology`] is complete: every address is assigned and every reference resolved. Making it
//! real is the job of [`super::fabric`]; two topologies are compared site by site, so that a
//! change touches nothing but what changed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::Family;

/// A network namespace of the lab, and how people write it: `shop/frontend`, `node:node1`,
/// `external:stripe`, `fabric`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// The router between nodes and externals; the control plane listens here.
    Fabric,
    Node(String),
    Pod {
        namespace: String,
        name: String,
    },
    External(String),
}

impl Site {
    pub fn pod(namespace: &str, name: &str) -> Site {
        Site::Pod { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Reads the form that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Site> {
        if text == "fabric" {
            return Some(Site::Fabric);
        }
        if let Some((kind, name)) = text.split_once(':') {
            return match kind {
                _ if name.is_empty() || name.contains('/') => None,
                "node" => Some(Site::Node(name.to_owned())),
                "external" => Some(Site::External(name.to_owned())),
                _ => None,
            };
        }
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then(|| Site::pod(namespace, name))
    }

    /// A file name that is unique in the lab. Namespaces hold no dot, so this is reversible.
    pub fn file_name(&self) -> String {
        match self {
            Site::Fabric => "fabric".to_owned(),
            Site::Node(name) => format!("node.{name}"),
            Site::Pod { namespace, name } => format!("pod.{namespace}.{name}"),
            Site::External(name) => format!("external.{name}"),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Fabric => f.write_str("fabric"),
            Site::Node(name) => write!(f, "node:{name}"),
            Site::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Site::External(name) => write!(f, "external:{name}"),
        }
    }
}

/// Protocols that a workload can listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        })
    }
}

/// A port that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ListenPort {
    pub port: u16,
    pub transport: Transport,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

/// What a pod does with its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// HTTP and TLS on TCP, echo on UDP and SCTP.
    Workload,
    /// The same, but port 53 speaks DNS.
    ClusterDns,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub node: String,
    /// Of a host-network pod: its node's.
    pub addresses: Vec<IpAddr>,
    pub host_network: bool,
    pub ports: Vec<ListenPort>,
    pub role: Role,
}

impl PodSpec {
    /// The namespace that the pod's sockets live in.
    pub fn site(&self) -> Site {
        if self.host_network { Site::Node(self.node.clone()) } else { Site::pod(&self.namespace, &self.name) }
    }

    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// `name` is an alias of `target`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    pub name: String,
    pub target: String,
}

/// A host outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalSpec {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ListenPort>,
    pub names: Vec<String>,
    pub aliases: Vec<Alias>,
    /// Of the DNS records, in seconds.
    pub ttl: u32,
}

/// What the cluster DNS says about a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceAnswer {
    /// ClusterIPs, or the pods of a headless Service.
    Addresses(Vec<IpAddr>),
    /// A Service of type ExternalName.
    Alias(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub namespace: String,
    pub name: String,
    pub answer: ServiceAnswer,
}

/// The whole lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub nodes: Vec<NodeSpec>,
    pub pods: Vec<PodSpec>,
    pub externals: Vec<ExternalSpec>,
    pub services: Vec<ServiceSpec>,
}

/// How one namespace hangs on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The namespace that holds the other end of the link.
    pub parent: Site,
    pub addresses: Vec<IpAddr>,
}

impl Topology {
    pub fn node(&self, name: &str) -> Option<&NodeSpec> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodSpec> {
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
    }

    pub fn external(&self, name: &str) -> Option<&ExternalSpec> {
        self.externals.iter().find(|external| external.name == name)
    }

    /// Every namespace with a link, in an order in which parents come before children.
    pub fn attachments(&self) -> BTreeMap<Site, Attachment> {
        let mut attachments = BTreeMap::new();
        for node in &self.nodes {
            let attachment = Attachment { parent: Site::Fabric, addresses: node.addresses.clone() };
            attachments.insert(Site::Node(node.name.clone()), attachment);
        }
        for external in &self.externals {
            let attachment = Attachment { parent: Site::Fabric, addresses: external.addresses.clone() };
            attachments.insert(Site::External(external.name.clone()), attachment);
        }
        for pod in self.pods.iter().filter(|pod| !pod.host_network) {
            let parent = Site::Node(pod.node.clone());
            attachments.insert(pod.site(), Attachment { parent, addresses: pod.addresses.clone() });
        }
        attachments
    }

    /// The addresses of a site; the fabric has none of its own here.
    pub fn addresses(&self, site: &Site) -> &[IpAddr] {
        match site {
            Site::Fabric => &[],
            Site::Node(name) => self.node(name).map_or(&[], |node| &node.addresses),
            Site::External(name) => self.external(name).map_or(&[], |external| &external.addresses),
            Site::Pod { namespace, name } => self.pod(namespace, name).map_or(&[], |pod| &pod.addresses),
        }
    }

    /// The first address of a family.
    pub fn address(&self, site: &Site, family: Family) -> Option<IpAddr> {
        self.addresses(site).iter().copied().find(|address| Family::of(*address) == family)
    }

    /// The pod that serves the cluster's DNS.
    pub fn cluster_dns(&self) -> Option<&PodSpec> {
        self.pods.iter().find(|pod| pod.role == Role::ClusterDns)
    }

    /// Every problem that would make the lab wrong: unknown nodes, addresses used twice.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for pod in &self.pods {
            if self.node(&pod.node).is_none() {
                problems.push(format!("pod {} runs on node {}, which does not exist", pod.path(), pod.node));
            }
        }
        let mut owners: BTreeMap<IpAddr, Site> = BTreeMap::new();
        for (site, attachment) in self.attachments() {
            for address in attachment.addresses {
                if let Some(other) = owners.insert(address, site.clone()) {
                    problems.push(format!("{other} and {site} have the same address {address}"));
                }
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_read_as_they_are_written() {
        for text in ["fabric", "node:node1", "external:stripe", "shop/frontend", "shop/a.b"] {
            assert_eq!(Site::parse(text).map(|site| site.to_string()).as_deref(), Some(text));
        }
        for text in ["", "shop", "shop/", "/a", "a/b/c", "node:", "host:x", "node:a/b"] {
            assert_eq!(Site::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_used_twice_and_an_unknown_node_are_problems() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let pod = |name: &str| PodSpec {
            namespace: "a".into(),
            name: name.into(),
            node: "n9".into(),
            addresses: vec![address],
            host_network: false,
            ports: vec![],
            role: Role::Workload,
        };
        let topology = Topology { pods: vec![pod("x"), pod("y")], ..Topology::default() };
        assert_eq!(
            topology.problems(),
            [
                "pod a/x runs on node n9, which does not exist",
                "pod a/y runs on node n9, which does not exist",
                "a/x and a/y have the same address 10.0.0.1",
            ]
        );
    }
}
