//! Which devices beside the uplink are judged, because the node's own traffic runs over them.
//!
//! A device qualifies when others can reach an address of it ([`super::net::own`]), unless it is the uplink, which is
//! judged anyway, or a pod's: a program of the node in front of a pod's would let its packets past. Devices come and
//! go while the agent runs. One that is judged stays judged until it is gone, a pod's, or nobody asks for it any
//! more: an address that is away for a moment opens nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::config::HostTraffic;

/// See the module.
#[derive(Debug)]
pub struct HostDevices {
    traffic: HostTraffic,
    /// Those with addresses, as they were last listed.
    addressed: BTreeMap<u32, String>,
    /// Those with our programs.
    judged: BTreeMap<u32, String>,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub attach: Vec<u32>,
    pub detach: Vec<u32>,
}

impl HostDevices {
    /// `left` are the devices on which an earlier agent left its programs.
    pub fn new(traffic: HostTraffic, left: BTreeMap<u32, String>) -> HostDevices {
        HostDevices { traffic, addressed: BTreeMap::new(), judged: left }
    }

    /// The devices with addresses now.
    pub fn list(&mut self, addressed: BTreeMap<u32, String>) {
        self.addressed = addressed;
    }

    /// From what is judged to what should be. `never` are the uplink and the pods' devices; `exists` asks the kernel.
    pub fn work(&self, never: &BTreeSet<u32>, exists: impl Fn(u32) -> bool) -> Work {
        let wanted = |ifindex: &u32| match self.traffic {
            HostTraffic::Unjudged => false,
            HostTraffic::Judged => !never.contains(ifindex),
        };
        let missing = self.addressed.keys().filter(|ifindex| !self.judged.contains_key(ifindex));
        let surplus = self.judged.keys().filter(|ifindex| !wanted(ifindex) || !exists(**ifindex));
        Work { attach: missing.filter(|i| wanted(i)).copied().collect(), detach: surplus.copied().collect() }
    }

    /// Our programs are on it.
    pub fn attached(&mut self, ifindex: u32) {
        let name = self.addressed.get(&ifindex).cloned().unwrap_or_else(|| format!("device {ifindex}"));
        self.judged.insert(ifindex, name);
    }

    /// Our programs are off it, or it is gone.
    pub fn detached(&mut self, ifindex: u32) {
        self.judged.remove(&ifindex);
    }

    /// Those that are judged.
    pub fn judged(&self) -> impl Iterator<Item = (u32, &str)> {
        self.judged.iter().map(|(ifindex, name)| {
            // The newest name.
            (*ifindex, self.addressed.get(ifindex).unwrap_or(name).as_str())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(devices: &[u32]) -> BTreeMap<u32, String> {
        devices.iter().map(|ifindex| (*ifindex, format!("eth{ifindex}"))).collect()
    }

    /// Does what is to be done, and says what that was.
    fn settle(devices: &mut HostDevices, never: &[u32], present: &[u32]) -> Work {
        let work = devices.work(&never.iter().copied().collect(), |ifindex| present.contains(&ifindex));
        work.attach.iter().for_each(|ifindex| devices.attached(*ifindex));
        work.detach.iter().for_each(|ifindex| devices.detached(*ifindex));
        work
    }

    #[test]
    fn a_device_is_judged_from_its_first_address_until_it_is_gone() {
        let mut devices = HostDevices::new(HostTraffic::Judged, BTreeMap::new());
        assert_eq!(settle(&mut devices, &[1], &[1, 2]), Work::default());
        devices.list(names(&[1, 2]));
        assert_eq!(settle(&mut devices, &[1], &[1, 2]).attach, [2], "the uplink is not ours to attach");
        devices.list(names(&[1]));
        assert_eq!(
            settle(&mut devices, &[1], &[1, 2]),
            Work::default(),
            "without an address it stays judged"
        );
        assert_eq!(devices.judged().collect::<Vec<_>>(), [(2, "eth2")]);
        assert_eq!(settle(&mut devices, &[1], &[1]).detach, [2]);
    }

    #[test]
    fn a_pods_device_is_not_the_nodes_whatever_addresses_it_has() {
        let mut devices = HostDevices::new(HostTraffic::Judged, BTreeMap::new());
        devices.list(names(&[2]));
        settle(&mut devices, &[], &[2]);
        assert_eq!(settle(&mut devices, &[2], &[2]), Work { attach: vec![], detach: vec![2] });
        assert_eq!(settle(&mut devices, &[], &[2]).attach, [2], "and it is again when the pod is gone");
    }

    #[test]
    fn what_an_earlier_agent_judged_goes_with_the_host_firewall_only() {
        let mut devices = HostDevices::new(HostTraffic::Judged, names(&[2]));
        assert_eq!(settle(&mut devices, &[], &[2]), Work::default());
        let mut devices = HostDevices::new(HostTraffic::Unjudged, names(&[2]));
        devices.list(names(&[2, 3]));
        assert_eq!(settle(&mut devices, &[], &[2, 3]), Work { attach: vec![], detach: vec![2] });
    }
}
