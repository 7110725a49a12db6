//! Scenario files: a cluster as ordinary Kubernetes objects, and what must happen in it.
//!
//! Contract: [`read`] turns a text into scenarios, notes and problems; a file with a problem is not
//! run. Every reference that the file alone can settle (externals, connection names) is settled
//! here. [`cluster`] fills in what a file may leave out, for the offline judge and for the real
//! lab alike; both read the same types.

pub mod cluster;
mod defaults;
mod document;
mod duration;
mod file;
mod fill;
mod steps;
pub mod target;
mod title;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

pub use file::{PreparedScenario, ScenarioFile, parse_options, read};
pub use target::{Destination, Endpoint, Place};

use super::topology::{Alias, ListenPort};
use crate::cluster::delta::DenyResponse;
use crate::k8s::{EmptyRuleLists, Origin, ParseOptions, Position};
use crate::model::{Direction, Family, ObjectRef};
use crate::policy::engine::{AllowLocalhost, CidrMatch, Enforcement};

/// One `Scenario` document.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub description: String,
    pub position: Position,
    pub nodes: Vec<NodeDeclaration>,
    pub externals: Vec<External>,
    pub options: Options,
    pub steps: Vec<Step>,
}

/// An entry of `nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDeclaration {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

/// A host outside of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Canonical (lower case, no trailing dot).
    pub names: Vec<String>,
    pub aliases: Vec<Alias>,
    pub ttl: Duration,
    pub ports: Vec<ListenPort>,
}

/// `options`.
#[derive(Clone, Debug)]
pub struct Options {
    pub enforcement: Enforcement,
    pub empty_rule_lists: EmptyRuleLists,
    pub host_firewall: HostFirewall,
    pub allow_localhost: AllowLocalhost,
    pub cidr_match: CidrMatch,
    pub deny_response: DenyResponse,
    /// In the order of the runs; never empty.
    pub families: Vec<Family>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            enforcement: Enforcement::default(),
            empty_rule_lists: EmptyRuleLists::default(),
            host_firewall: HostFirewall::default(),
            allow_localhost: AllowLocalhost::default(),
            cidr_match: CidrMatch::default(),
            deny_response: DenyResponse::default(),
            families: vec![Family::IPv4, Family::IPv6],
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostFirewall {
    #[default]
    Off,
    On,
}

/// One step with its place in the file.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: Option<String>,
    pub position: Position,
    pub action: Action,
}

impl Step {
    /// The node whose gateway sends in this step.
    pub fn gateway(&self) -> Option<String> {
        let from = match &self.action {
            Action::Connect(connect) | Action::Open { connect, .. } => &connect.from,
            Action::Lookup(lookup) => &lookup.from,
            _ => return None,
        };
        match from {
            Endpoint::Gateway(node) => Some(node.clone()),
            Endpoint::Pod { .. } | Endpoint::Node(_) | Endpoint::External(_) => None,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Action {
    /// A new connection, and what comes of it.
    Connect(Connect),
    /// A new connection that stays open under this name.
    Open {
        connection: String,
        connect: Connect,
    },
    /// One more request or packet on an open connection.
    Send {
        connection: String,
        http: Option<Http>,
        expected: Expected,
    },
    Lookup(Lookup),
    Apply(Apply),
    Delete(ObjectRef),
    External(ExternalChange),
    Restart {
        component: Component,
        /// `None`: on every node.
        node: Option<String>,
    },
    Wait(Duration),
}

/// What a step wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub expect: Expect,
    pub because: Option<Because>,
}

/// `expect` of a step that sends something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expect {
    Allowed,
    Denied,
    Rejected,
    Http400,
    Http403,
    Http307,
    DnsRefused,
    TlsReset,
}

impl Expect {
    pub const ALL: &'static [(&'static str, Expect)] = &[
        ("allowed", Expect::Allowed),
        ("denied", Expect::Denied),
        ("rejected", Expect::Rejected),
        ("http-400", Expect::Http400),
        ("http-403", Expect::Http403),
        ("http-307", Expect::Http307),
        ("dns-refused", Expect::DnsRefused),
        ("tls-reset", Expect::TlsReset),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }
}

/// `because`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Because {
    pub direction: Option<Direction>,
    pub by: Option<By>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    DefaultDeny,
    /// `NAME` or `NS/NAME` of an object.
    Object(String),
}

/// `from`, `to` and what is said.
#[derive(Clone, Debug)]
pub struct Connect {
    pub from: Endpoint,
    pub to: Destination,
    /// As written: the default `Host`.
    pub to_text: String,
    pub transport: StepProtocol,
    pub http: Option<Http>,
    pub server_name: Option<ServerName>,
    pub expected: Expected,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepProtocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
    /// An echo request of the run's family.
    Icmp,
}

/// `http`. The path is sent byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub method: String,
    pub path: String,
    /// `None`: the target as written.
    pub host: Option<String>,
    /// In the order of the file; a repeated header has several entries.
    pub headers: Vec<(String, String)>,
}

impl Default for Http {
    fn default() -> Http {
        Http { method: "GET".to_owned(), path: "/".to_owned(), host: None, headers: Vec::new() }
    }
}

/// `sni`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// `sni: ""`: a ClientHello without a name.
    Absent,
    Name(String),
}

/// `dns`.
#[derive(Clone, Debug)]
pub struct Lookup {
    pub from: Endpoint,
    pub name: String,
    /// `None`: A or AAAA, by the family of the run.
    pub record: Option<String>,
    pub transport: DnsTransport,
    /// `None`: the cluster DNS.
    pub server: Option<Destination>,
    pub expected: Expected,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsTransport {
    #[default]
    Udp,
    Tcp,
}

/// `apply`: one transaction.
#[derive(Clone, Debug)]
pub struct Apply {
    pub text: String,
    /// Where the text begins in the file.
    pub origin: Origin,
    pub expect: ApplyExpect,
    pub lint: Option<ExpectedTraps>,
}

/// `lint`: codes that the linter gives for the objects of an `apply`, and no others.
#[derive(Clone, Debug)]
pub struct ExpectedTraps {
    pub codes: Vec<String>,
    /// How the scenario has objects read and enforced: traps depend on that.
    pub parse: ParseOptions,
    pub enforcement: Enforcement,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyExpect {
    #[default]
    Applied,
    /// The objects are rejected, and nothing changes.
    Invalid,
}

/// `external`: members that are given replace those of the external.
#[derive(Clone, Debug)]
pub struct ExternalChange {
    pub name: String,
    pub addresses: Option<Vec<IpAddr>>,
    pub names: Option<Vec<String>>,
    pub aliases: Option<Vec<Alias>>,
    pub ttl: Option<Duration>,
    pub ports: Option<Vec<ListenPort>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Agent,
    HttpProxy,
    DnsProxy,
}
