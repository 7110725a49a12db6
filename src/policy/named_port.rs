//! Port names as identity labels.
//!
//! A port name that some loaded rule uses becomes part of the identity of the pods that have it:
//! the label `k8s:io.sluice.named-port.<name>` with the value `<port>.<protocol>` (protocol `tcp`,
//! `udp` or `sctp`), several values of one name joined by `_` in ascending order, such as
//! `53.tcp_53.udp`. `cluster` writes these labels, the engine reads them.

use std::sync::Arc;

use crate::model::{ContainerPort, Label, LabelSource, Labels, PortRange, Protocol};

/// What the keys of these labels begin with.
pub const LABEL_PREFIX: &str = "io.sluice.named-port.";

/// The protocols that a container port can have, with their text in the label.
const PROTOCOLS: [(Protocol, &str); 3] =
    [(Protocol::Sctp, "sctp"), (Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")];

/// One number that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// Never 0.
    pub port: u16,
}

/// The label key of a name.
pub fn label_key(name: &str) -> String {
    format!("{LABEL_PREFIX}{name}")
}

/// The label for `name` among a pod's container ports; `None` when none has the name.
pub fn label(name: &str, ports: &[ContainerPort]) -> Option<Label> {
    let mut values: Vec<(u16, &str)> = ports
        .iter()
        .filter(|port| port.name.as_deref() == Some(name) && port.port != 0)
        .filter_map(|port| {
            let (_, text) = PROTOCOLS.iter().find(|(protocol, _)| *protocol == port.protocol)?;
            Some((port.port, *text))
        })
        .collect();
    values.sort_unstable();
    values.dedup();
    if values.is_empty() {
        return None;
    }
    let value: Vec<String> = values.iter().map(|(port, protocol)| format!("{port}.{protocol}")).collect();
    Some(Label::k8s(&label_key(name), &value.join("_")))
}

/// Every named port that the labels carry, sorted. Values that are not ours are left out: a pod's
/// own label cannot make a rule match more than its container ports do, because `cluster` sets
/// the label after the pod's own.
pub fn decode(labels: &Labels) -> Vec<NamedPort> {
    let mut ports: Vec<NamedPort> = labels
        .iter()
        .filter(|label| label.source == LabelSource::K8s)
        .filter_map(|label| Some((label.key.strip_prefix(LABEL_PREFIX)?, &label.value)))
        .flat_map(|(name, value)| {
            let name: Arc<str> = name.into();
            value.split('_').filter_map(decode_value).map(move |(port, protocol)| NamedPort {
                name: name.clone(),
                protocol,
                port,
            })
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn decode_value(text: &str) -> Option<(u16, Protocol)> {
    let (port, protocol) = text.split_once('.')?;
    let (protocol, _) = PROTOCOLS.iter().find(|(_, name)| *name == protocol)?;
    let port = PortRange::single(port.parse().ok()?)?.first();
    Some((port, *protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, port: u16, protocol: Protocol) -> ContainerPort {
        ContainerPort { name: Some(name.to_owned()), port, protocol }
    }

    #[test]
    fn one_name_with_several_numbers_survives_the_round_trip() {
        let ports =
            [port("dns", 53, Protocol::Udp), port("dns", 53, Protocol::Tcp), port("http", 80, Protocol::Tcp)];
        let label = label("dns", &ports).unwrap();
        assert_eq!(label.to_string(), "k8s:io.sluice.named-port.dns=53.tcp_53.udp");
        let labels: Labels = [label].into_iter().collect();
        let decoded: Vec<(u16, Protocol)> =
            decode(&labels).iter().map(|port| (port.port, port.protocol)).collect();
        assert_eq!(decoded, [(53, Protocol::Tcp), (53, Protocol::Udp)]);
    }

    #[test]
    fn a_name_that_no_port_has_gives_no_label() {
        assert_eq!(label("http", &[port("dns", 53, Protocol::Udp)]), None);
    }

    #[test]
    fn malformed_values_are_left_out() {
        for value in ["", "80", "80.", "0.tcp", "65536.tcp", "80.icmp", "-1.tcp", "http.tcp"] {
            let labels: Labels = [Label::k8s(&label_key("x"), value)].into_iter().collect();
            assert_eq!(decode(&labels), [], "{value:?}");
        }
    }
}
