//! Steps in one line, for reports.

use super::{
    Action, Apply, ApplyExpect, Component, Connect, DnsTransport, Http, ServerName, Step, StepProtocol,
};

impl Step {
    /// The step's own name, and what it does.
    pub fn title(&self) -> String {
        let action = self.action.to_string();
        match &self.name {
            Some(name) => format!("{name}: {action}"),
            None => action,
        }
    }
}

impl std::fmt::Display for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl std::fmt::Display for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let transport = match self.transport {
            StepProtocol::Tcp => "TCP",
            StepProtocol::Udp => "UDP",
            StepProtocol::Sctp => "SCTP",
            StepProtocol::Icmp => "ICMP",
        };
        write!(f, "{} -> {} {transport}", self.from, self.to)?;
        if let Some(http) = &self.http {
            write!(f, " {http}")?;
        }
        match &self.server_name {
            Some(ServerName::Absent) => f.write_str(" TLS without a name"),
            Some(ServerName::Name(name)) => write!(f, " TLS {name}"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Action::Connect(connect) => write!(f, "{connect}"),
            Action::Open { connection, connect } => write!(f, "open {connection}: {connect}"),
            Action::Send { connection, http: None, .. } => write!(f, "send on {connection}"),
            Action::Send { connection, http: Some(http), .. } => write!(f, "send on {connection} {http}"),
            Action::Lookup(lookup) => {
                let transport = match lookup.transport {
                    DnsTransport::Udp => "UDP",
                    DnsTransport::Tcp => "TCP",
                };
                let record = lookup.record.as_deref().unwrap_or("address");
                write!(f, "{} asks for {} {record} over {transport}", lookup.from, lookup.name)
            }
            Action::Apply(Apply { expect: ApplyExpect::Applied, .. }) => f.write_str("apply"),
            Action::Apply(Apply { expect: ApplyExpect::Invalid, .. }) => f.write_str("apply what is invalid"),
            Action::Delete(reference) => write!(f, "delete {reference}"),
            Action::External(change) => write!(f, "change external {}", change.name),
            Action::Restart { component, node } => {
                let component = match component {
                    Component::Agent => "agent",
                    Component::HttpProxy => "http-proxy",
                    Component::DnsProxy => "dns-proxy",
                };
                match node {
                    Some(node) => write!(f, "restart {component} on {node}"),
                    None => write!(f, "restart {component} everywhere"),
                }
            }
            Action::Wait(time) => write!(f, "wait {time:?}"),
        }
    }
}
