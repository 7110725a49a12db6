//! The smallest policy that allows one connection, as a manifest.
//!
//! One document for each side that denies. It selects the subject by all of its own labels, the peer likewise, one
//! port, one request: whoever finds that too narrow widens it by hand, knowing what it opens. A NetworkPolicy where
//! that kind can say it, else a Cilium policy. `policyTypes` names the direction that is default-deny already, so
//! that nothing else becomes isolated.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::model::{Direction, Protocol};

/// A label of a pod as its object has it.
pub type PodLabel = (String, String);

/// Who needs the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Pod {
        namespace: String,
        name: String,
        labels: Vec<PodLabel>,
    },
    /// A node's own traffic (host firewall).
    Node {
        name: String,
    },
}

/// The other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Pod {
        namespace: String,
        name: String,
        labels: Vec<PodLabel>,
    },
    /// `host`, `remote-node`, `kube-apiserver` ...
    Entity(String),
    /// A DNS name that the subject looked up.
    Name(String),
    Address(IpAddr),
}

/// What a proxy refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Http { method: String, path: String },
    Dns { name: String },
    ServerName(String),
}

/// One side of a connection that is to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub direction: Direction,
    pub subject: Subject,
    pub peer: Peer,
    pub protocol: Protocol,
    /// Port, or type for ICMP.
    pub port: u16,
    pub refused: Option<Refused>,
}

impl Need {
    /// What the object is called; `serial` tells it from one that is there already.
    pub fn name(&self, serial: u32) -> String {
        let subject = match &self.subject {
            Subject::Pod { name, .. } | Subject::Node { name } => name.clone(),
        };
        let peer = match &self.peer {
            Peer::Pod { name, .. } => name.clone(),
            Peer::Entity(name) | Peer::Name(name) => name.clone(),
            Peer::Address(address) => address.to_string(),
        };
        let between = match self.direction {
            Direction::Egress => "to",
            Direction::Ingress => "from",
        };
        let mut text = format!("allow-{subject}-{between}-{peer}");
        if self.protocol.has_ports() {
            write!(text, "-{}", self.port).ok();
        }
        let mut name: String = text
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(56)
            .collect();
        if serial > 0 {
            write!(name, "-{serial}").ok();
        }
        name.trim_end_matches('-').to_owned()
    }

    fn is_plain(&self) -> bool {
        matches!(self.subject, Subject::Pod { .. })
            && matches!(self.peer, Peer::Pod { .. } | Peer::Address(_))
            && self.protocol.has_ports()
            && self.refused.is_none()
    }

    /// One document.
    pub fn manifest(&self, name: &str) -> String {
        if self.is_plain() { self.network_policy(name) } else { self.cilium_policy(name) }
    }

    fn network_policy(&self, name: &str) -> String {
        let Subject::Pod { namespace, labels, .. } = &self.subject else { return String::new() };
        let (kind, list, end) = match self.direction {
            Direction::Egress => ("Egress", "egress", "to"),
            Direction::Ingress => ("Ingress", "ingress", "from"),
        };
        let mut text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: {}\nspec:\n",
            scalar(namespace)
        );
        text.push_str(&selector("  podSelector:", labels, "    "));
        write!(text, "  policyTypes: [{kind}]\n  {list}:\n  - {end}:\n").ok();
        match &self.peer {
            Peer::Pod { namespace, labels, .. } => {
                write!(
                    text,
                    "    - namespaceSelector:\n        matchLabels:\n          kubernetes.io/metadata.name: {}\n",
                    scalar(namespace)
                )
                .ok();
                text.push_str(&selector("      podSelector:", labels, "        "));
            }
            Peer::Address(address) => {
                writeln!(text, "    - ipBlock: {{cidr: {}}}", quoted(&host_prefix(*address))).ok();
            }
            Peer::Entity(_) | Peer::Name(_) => {}
        }
        write!(text, "    ports:\n    - port: {}\n      protocol: {}\n", self.port, self.protocol).ok();
        text
    }

    fn cilium_policy(&self, name: &str) -> String {
        let list = match self.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        };
        let mut text = match &self.subject {
            Subject::Pod { namespace, labels, .. } => {
                let mut head = format!(
                    "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: {name}\n  namespace: {}\nspec:\n",
                    scalar(namespace)
                );
                head.push_str(&selector("  endpointSelector:", labels, "    "));
                head
            }
            Subject::Node { name: node } => format!(
                "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata:\n  name: {name}\nspec:\n  \
                 nodeSelector:\n    matchLabels:\n      kubernetes.io/hostname: {}\n",
                scalar(node)
            ),
        };
        writeln!(text, "  {list}:").ok();
        let (endpoints, entities, cidr) = match self.direction {
            Direction::Egress => ("toEndpoints", "toEntities", "toCIDR"),
            Direction::Ingress => ("fromEndpoints", "fromEntities", "fromCIDR"),
        };
        match &self.peer {
            Peer::Pod { namespace, labels, .. } => {
                let mut all = vec![("k8s:io.kubernetes.pod.namespace".to_owned(), namespace.clone())];
                all.extend(labels.iter().cloned());
                writeln!(text, "  - {endpoints}:").ok();
                text.push_str(&selector("    -", &all, "      "));
            }
            Peer::Entity(entity) => {
                writeln!(text, "  - {entities}: [{}]", scalar(entity)).ok();
            }
            Peer::Name(name) => {
                writeln!(text, "  - toFQDNs:\n    - matchName: {}", scalar(name)).ok();
            }
            Peer::Address(address) => {
                writeln!(text, "  - {cidr}: [{}]", quoted(&host_prefix(*address))).ok();
            }
        }
        text.push_str(&self.ports());
        if let Peer::Name(name) = &self.peer {
            text.push_str(&lookup(name));
        }
        text
    }

    fn ports(&self) -> String {
        let family = match self.protocol {
            Protocol::Icmp => Some("IPv4"),
            Protocol::Icmpv6 => Some("IPv6"),
            _ => None,
        };
        if let Some(family) = family {
            return format!("    icmps:\n    - fields:\n      - {{family: {family}, type: {}}}\n", self.port);
        }
        let port = if self.protocol.has_ports() { self.port } else { 0 };
        let mut text = format!(
            "    toPorts:\n    - ports:\n      - port: \"{port}\"\n        protocol: {}\n",
            self.protocol
        );
        match &self.refused {
            None => {}
            Some(Refused::Http { method, path }) => {
                write!(
                    text,
                    "      rules:\n        http:\n        - method: {}\n          path: {}\n",
                    quoted(&regex::escape(method)),
                    quoted(&path_expression(path))
                )
                .ok();
            }
            Some(Refused::Dns { name }) => {
                write!(text, "      rules:\n        dns:\n        - matchName: {}\n", scalar(name)).ok();
            }
            Some(Refused::ServerName(name)) => {
                writeln!(text, "      serverNames: [{}]", scalar(name)).ok();
            }
        }
        text
    }
}

/// `toFQDNs` learns from answers that pass the proxy: the lookup is allowed beside it.
fn lookup(name: &str) -> String {
    format!(
        "  - toEndpoints:\n    - matchLabels:\n        k8s:io.kubernetes.pod.namespace: kube-system\n        k8s-app: kube-dns\n    \
         toPorts:\n    - ports:\n      - port: \"53\"\n        protocol: ANY\n      rules:\n        dns:\n        - matchName: {}\n",
        scalar(name)
    )
}

/// Exactly this path; the query may be another one where there was one.
fn path_expression(path: &str) -> String {
    match path.split_once('?') {
        Some((path, _)) => format!("{}(\\?.*)?", regex::escape(path)),
        None => regex::escape(path),
    }
}

fn host_prefix(address: IpAddr) -> String {
    ipnet::IpNet::from(address).to_string()
}

/// `head matchLabels: ...`, or `head {}` where there are no labels. After a list's dash the map begins on its line.
fn selector(head: &str, labels: &[PodLabel], indent: &str) -> String {
    if labels.is_empty() {
        return format!("{head} {{}}\n");
    }
    let mut text = if head.ends_with('-') {
        format!("{head} matchLabels:\n")
    } else {
        format!("{head}\n{indent}matchLabels:\n")
    };
    for (key, value) in labels {
        writeln!(text, "{indent}  {}: {}", scalar(key), scalar(value)).ok();
    }
    text
}

/// A string that YAML reads as this string: plain where nothing can mistake it, else in double quotes.
fn scalar(text: &str) -> String {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.ends_with(':')
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(text));
    if plain { text.to_owned() } else { quoted(text) }
}

/// Double quotes: JSON strings are YAML strings.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{ParseOptions, parse};

    fn pod(name: &str, labels: &[(&str, &str)]) -> (String, String, Vec<PodLabel>) {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ("shop".to_owned(), name.to_owned(), labels)
    }

    fn need(peer: Peer, refused: Option<Refused>) -> Need {
        let (namespace, name, labels) = pod("web-1", &[("app", "web"), ("on", "true"), ("v", "1.0")]);
        Need {
            direction: Direction::Egress,
            subject: Subject::Pod { namespace, name, labels },
            peer,
            protocol: Protocol::Tcp,
            port: 443,
            refused,
        }
    }

    #[test]
    fn every_form_is_a_manifest_that_loads_without_a_warning() {
        let (namespace, name, labels) = pod("db", &[]);
        let peers = [
            Peer::Pod { namespace, name, labels },
            Peer::Entity("kube-apiserver".into()),
            Peer::Name("api.example.com".into()),
            Peer::Address("2001:db8::7".parse().unwrap()),
            Peer::Address("203.0.113.7".parse().unwrap()),
        ];
        let refusals = [
            None,
            Some(Refused::Http { method: "GET".into(), path: "/a.b?x=\"1\"".into() }),
            Some(Refused::ServerName("a.example".into())),
        ];
        for peer in &peers {
            for refused in &refusals {
                for direction in Direction::BOTH {
                    // toFQDNs is for egress only.
                    if direction == Direction::Ingress && matches!(peer, Peer::Name(_)) {
                        continue;
                    }
                    let need = Need { direction, ..need(peer.clone(), refused.clone()) };
                    let text = need.manifest(&need.name(0));
                    let manifest = parse("suggested", &text, &ParseOptions::default());
                    assert!(manifest.is_valid(), "{:?}\n{text}", manifest.problems);
                    assert_eq!(manifest.warnings().count(), 0, "{text}");
                    assert_eq!(manifest.documents.len(), 1, "{text}");
                }
            }
        }
    }

    #[test]
    fn icmp_dns_and_nodes_load_too() {
        let peer = Peer::Address("203.0.113.7".parse().unwrap());
        let ping = Need { protocol: Protocol::Icmp, port: 8, ..need(peer.clone(), None) };
        let dns = Need {
            protocol: Protocol::Udp,
            port: 53,
            ..need(peer.clone(), Some(Refused::Dns { name: "a.example".into() }))
        };
        let node = Need { subject: Subject::Node { name: "node1".into() }, ..need(peer, None) };
        for need in [ping, dns, node] {
            let text = need.manifest(&need.name(2));
            let manifest = parse("suggested", &text, &ParseOptions::default());
            assert!(manifest.is_valid(), "{:?}\n{text}", manifest.problems);
        }
    }

    #[test]
    fn names_are_names_of_objects_whatever_comes_in() {
        let odd = need(Peer::Name("*.x_\u{202e}EXAMPLE.com".into()), None);
        let name = odd.name(3);
        assert!(
            name.len() <= 63
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        );
    }

    #[test]
    fn text_of_traffic_cannot_leave_its_scalar() {
        let path = "/x\n- {}\n\"]: &a *a # \u{2028}";
        let text = need(
            Peer::Name("api.example.com".into()),
            Some(Refused::Http { method: "GET\nkind: Secret".into(), path: path.into() }),
        )
        .manifest("n");
        assert_eq!(text.matches("\nkind: ").count(), 1, "{text}");
    }
}
