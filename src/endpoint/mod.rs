//! Local pods: which device belongs to which pod, under which number.
//!
//! The registry is bookkeeping only: the agent stores it, the datapath attaches programs to what it
//! names. A registration survives a restart; a device that has vanished meanwhile keeps its number
//! and is reported, and its traffic stays closed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How the pod's device was named, so that it can be found again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceName {
    /// The node's side of a veth, in the agent's network namespace.
    Host { interface: String },
    /// A device inside the pod's network namespace; the other end of the veth is on the node.
    Netns { netns: String, interface: String },
    /// The same, of a pair that we made and that goes with the endpoint.
    Made { netns: String, interface: String, host_interface: String },
}

impl DeviceName {
    /// The node's side of the pair that we make for endpoint `id`. A number belongs to one pod of a node.
    pub fn made(id: u16, netns: String, interface: String) -> DeviceName {
        DeviceName::Made { netns, interface, host_interface: format!("slc{id}") }
    }
}

/// What the operator said about a pod that may have no object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
}

/// One local pod as it was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Number of the endpoint on this node: 1..=4095. 0 is the node itself.
    pub id: u16,
    pub device: DeviceName,
    /// What `endpoint add` said, if it said something. It counts while no Pod object describes the pod.
    pub described: Option<Described>,
}

/// The device behind a registration, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    Found {
        interface: String,
        ifindex: u32,
        mac: [u8; 6],
    },
    /// With the reason.
    Missing(String),
}

/// A pod's registration and device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub registration: Registration,
    pub device: Device,
    /// Of a pod that [`Registration::described`] describes: an object does, too, and stands above that.
    pub has_object: bool,
}

/// Numbers have run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node has {MAX_ENDPOINTS} endpoints already")]
pub struct Full;

/// Most endpoints of a node (the size of the kernel's tables, less the node itself).
pub const MAX_ENDPOINTS: u16 = 4095;

/// All local pods by `namespace/name`.
#[derive(Debug, Default)]
pub struct Registry {
    members: BTreeMap<String, Member>,
}

impl Registry {
    /// The number for a pod: its own if it is registered, else the lowest free one.
    pub fn number_for(&self, pod: &str) -> Result<u16, Full> {
        if let Some(member) = self.members.get(pod) {
            return Ok(member.registration.id);
        }
        let taken: std::collections::BTreeSet<u16> =
            self.members.values().map(|member| member.registration.id).collect();
        (1..=MAX_ENDPOINTS).find(|number| !taken.contains(number)).ok_or(Full)
    }

    pub fn insert(&mut self, pod: &str, member: Member) -> Option<Member> {
        self.members.insert(pod.to_owned(), member)
    }

    pub fn remove(&mut self, pod: &str) -> Option<Member> {
        self.members.remove(pod)
    }

    pub fn get(&self, pod: &str) -> Option<&Member> {
        self.members.get(pod)
    }

    pub fn get_mut(&mut self, pod: &str) -> Option<&mut Member> {
        self.members.get_mut(pod)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members.iter().map(|(pod, member)| (pod.as_str(), member))
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The pod that has this number.
    pub fn by_number(&self, number: u16) -> Option<&str> {
        self.members.iter().find(|(_, member)| member.registration.id == number).map(|(pod, _)| pod.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u16) -> Member {
        let device = DeviceName::Host { interface: format!("veth{id}") };
        Member {
            registration: Registration { id, device, described: None },
            device: Device::Missing("not looked for".into()),
            has_object: false,
        }
    }

    #[test]
    fn the_lowest_free_number_is_taken_and_a_pod_keeps_its_own() {
        let mut registry = Registry::default();
        registry.insert("a/one", member(registry.number_for("a/one").unwrap()));
        registry.insert("a/two", member(registry.number_for("a/two").unwrap()));
        registry.remove("a/one");
        assert_eq!(registry.number_for("a/two"), Ok(2));
        assert_eq!(registry.number_for("a/three"), Ok(1));
    }

    #[test]
    fn a_full_node_refuses() {
        let mut registry = Registry::default();
        for number in 1..=MAX_ENDPOINTS {
            registry.insert(&format!("a/{number}"), member(number));
        }
        assert_eq!(registry.number_for("b/one"), Err(Full));
    }

    #[test]
    fn a_registration_survives_the_store() {
        let device = DeviceName::Netns { netns: "/run/netns/web".into(), interface: "eth0".into() };
        let described = Described { labels: [("app".into(), "web".into())].into(), addresses: vec![] };
        let registration = Registration { id: 7, device, described: Some(described) };
        let text = serde_json::to_string(&registration).unwrap();
        assert_eq!(serde_json::from_str::<Registration>(&text).unwrap(), registration);
    }
}
