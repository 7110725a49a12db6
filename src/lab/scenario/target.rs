//! Who sends and where to, as a scenario writes it.
//!
//! ```text
//! from:  ns/pod | node:NAME | external:NAME | ingress:NODE
//! to:    ns/pod:PORT | svc:ns/name:PORT | node:NAME:PORT | external:NAME:PORT
//!        | IP:PORT | [IPv6]:PORT | NAME:PORT (a DNS name that the sender resolves first)
//! ```
//!
//! Without a protocol that has ports, `to` has none.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A sender.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Pod {
        namespace: String,
        name: String,
    },
    Node(String),
    External(String),
    /// The gateway entity on a node.
    Gateway(String),
}

/// A receiver without its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Pod {
        namespace: String,
        name: String,
    },
    Service {
        namespace: String,
        name: String,
    },
    Node(String),
    External(String),
    Address(IpAddr),
    /// Canonical: lower case, no trailing dot.
    Name(String),
}

/// A receiver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub place: Place,
    /// `None` for protocols without ports.
    pub port: Option<u16>,
}

/// Whether a destination has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRule {
    Required,
    Forbidden,
    /// This one when there is none.
    Default(u16),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Endpoint::Node(name) => write!(f, "node:{name}"),
            Endpoint::External(name) => write!(f, "external:{name}"),
            Endpoint::Gateway(node) => write!(f, "ingress:{node}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Place::Service { namespace, name } => write!(f, "svc:{namespace}/{name}"),
            Place::Node(name) => write!(f, "node:{name}"),
            Place::External(name) => write!(f, "external:{name}"),
            Place::Address(address) => write!(f, "{address}"),
            Place::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, self.port) {
            (Place::Address(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (place, Some(port)) => write!(f, "{place}:{port}"),
            (place, None) => write!(f, "{place}"),
        }
    }
}

fn is_object_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

/// Names of externals and nodes are free of the characters that have a meaning here.
fn is_plain_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ':', '[', ']', ' '])
}

fn path(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    (is_object_name(namespace) && is_object_name(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

/// Reads `from`.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    let wrong =
        || format!("found {text:?}, expected namespace/pod, node:NAME, external:NAME or ingress:NODE");
    match text.split_once(':') {
        Some((kind, name)) if is_plain_name(name) => match kind {
            "node" => Ok(Endpoint::Node(name.to_owned())),
            "external" => Ok(Endpoint::External(name.to_owned())),
            "ingress" => Ok(Endpoint::Gateway(name.to_owned())),
            _ => Err(wrong()),
        },
        Some(_) => Err(wrong()),
        None => {
            let (namespace, name) = path(text).ok_or_else(wrong)?;
            Ok(Endpoint::Pod { namespace, name })
        }
    }
}

/// Reads `to`.
pub fn destination(text: &str, rule: PortRule) -> Result<Destination, String> {
    let wrong = || {
        format!(
            "found {text:?}, expected namespace/pod, svc:namespace/name, node:NAME, external:NAME, an address or a \
             DNS name, followed by {}",
            match rule {
                PortRule::Required => ":PORT",
                PortRule::Forbidden => "no port",
                PortRule::Default(_) => ":PORT or nothing",
            }
        )
    };
    // An IPv6 address in its own notation has no port.
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return with_port(Place::Address(IpAddr::V6(address)), None, rule).ok_or_else(wrong);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
        let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
        let port = match port.strip_prefix(':') {
            Some(port) => Some(port),
            None if port.is_empty() => None,
            None => return Err(wrong()),
        };
        return with_port(Place::Address(IpAddr::V6(address)), port, rule).ok_or_else(wrong);
    }
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let (place, port) = match (first, rest.as_slice()) {
        ("svc", [name, port @ ..]) => {
            let (namespace, name) = path(name).ok_or_else(wrong)?;
            (Place::Service { namespace, name }, port)
        }
        ("node", [name, port @ ..]) if is_plain_name(name) => (Place::Node((*name).to_owned()), port),
        ("external", [name, port @ ..]) if is_plain_name(name) => (Place::External((*name).to_owned()), port),
        (_, port) => {
            if let Some((namespace, name)) = path(first) {
                (Place::Pod { namespace, name }, port)
            } else if let Ok(address) = first.parse::<IpAddr>() {
                (Place::Address(address), port)
            } else if let Some(name) = dns_name(first) {
                (Place::Name(name), port)
            } else {
                return Err(wrong());
            }
        }
    };
    let port = match port {
        [] => None,
        [port] => Some(*port),
        _ => return Err(wrong()),
    };
    with_port(place, port, rule).ok_or_else(wrong)
}

fn with_port(place: Place, port: Option<&str>, rule: PortRule) -> Option<Destination> {
    let port = match (port, rule) {
        (Some(text), PortRule::Required | PortRule::Default(_)) => Some(port_number(text)?),
        (None, PortRule::Default(port)) => Some(port),
        (None, PortRule::Forbidden) => None,
        (Some(_), PortRule::Forbidden) | (None, PortRule::Required) => return None,
    };
    Some(Destination { place, port })
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A canonical DNS name; what only digits and dots make is a mistyped address.
pub fn dns_name(text: &str) -> Option<String> {
    let name = crate::policy::l7::names::canonical(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    (name.len() <= 253 && name.split('.').all(label) && !numeric).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_read_as_they_are_written() {
        for text in ["shop/frontend", "node:node1", "external:stripe", "ingress:node1"] {
            assert_eq!(endpoint(text).unwrap().to_string(), text);
        }
        for text in ["", "shop", "svc:a/b", "node:", "a/b/c", "a/b:80", "10.0.0.1", "external:a/b"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn receivers_are_read_as_they_are_written() {
        for text in [
            "shop/backend:8080",
            "svc:shop/backend:80",
            "node:node1:22",
            "external:stripe:443",
            "203.0.113.77:443",
            "[2001:db8::1]:443",
            "api.stripe.com:443",
            "localhost:80",
        ] {
            assert_eq!(destination(text, PortRule::Required).unwrap().to_string(), text);
        }
        for text in [
            "shop/backend",
            "shop/backend:http",
            "shop/backend:0",
            "shop/backend:70000",
            "svc:backend:80",
            "10.0.0.300:80",
            "[::1]80",
            "a b:80",
            ":80",
            "",
        ] {
            assert!(destination(text, PortRule::Required).is_err(), "{text}");
        }
    }

    #[test]
    fn without_ports_there_are_none() {
        for text in ["p/l3", "node:node1", "external:example", "10.0.0.1", "2001:db8::1"] {
            assert_eq!(destination(text, PortRule::Forbidden).unwrap().to_string(), text);
        }
        assert!(destination("p/l3:80", PortRule::Forbidden).is_err());
        assert_eq!(destination("10.0.0.1", PortRule::Default(53)).unwrap().port, Some(53));
    }
}
