//! The in-memory twin: the same writer, into maps of this process, and the kernel side's lookups in
//! Rust. For tests of everything above the datapath, and of the writer itself.

use std::net::IpAddr;

use super::abi::convert::{action_from_number, direction_number};
use super::abi::*;
use super::config::Capacity;
use super::endpoints::EndpointDevice;
use super::reconcile::Reconciled;
use super::tables::Tables;
use super::writer::Writer;
use super::{Datapath, DatapathError};
use crate::cluster::delta::Delta;
use crate::model::{Backend, Direction, DropReason, Family, Identity, IdentityGroup, Protocol};
use crate::policy::map_state::{Proxy, RuleSetId, SlotAction};

/// What one side's policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideVerdict {
    Allow(RuleSetId),
    Redirect(Proxy, RuleSetId),
    Drop(DropReason, RuleSetId),
}

/// A datapath without a kernel.
#[derive(Debug)]
pub struct MemoryDatapath {
    writer: Writer,
}

impl Default for MemoryDatapath {
    fn default() -> Self {
        Self::with_capacity(&Capacity::default())
    }
}

impl MemoryDatapath {
    /// An empty one with these limits.
    ///
    /// # Panics
    /// When the limits leave no room for the defaults of both families.
    pub fn with_capacity(capacity: &Capacity) -> MemoryDatapath {
        Self::from_tables(Tables::in_memory(capacity)).expect("empty tables have room for the defaults")
    }

    fn from_tables(tables: Tables) -> Result<MemoryDatapath, DatapathError> {
        Ok(MemoryDatapath { writer: Writer::take_over(tables, NodeConfig::default())? })
    }

    /// What a new agent finds: the same maps, and no memory of how they came to be.
    pub fn restarted(&self) -> Result<MemoryDatapath, DatapathError> {
        Self::from_tables(self.writer.tables.clone())
    }

    /// Says where a pod is attached.
    pub fn attach_endpoint(&mut self, pod: &str, device: EndpointDevice) -> Result<(), DatapathError> {
        self.writer.set_device(pod, device)
    }

    /// The maps.
    pub fn tables(&self) -> &Tables {
        &self.writer.tables
    }

    /// The label identity of an address, as the kernel side finds it.
    pub fn identity(&self, address: IpAddr) -> Result<Identity, DatapathError> {
        self.writer.tables.identity(address)
    }

    /// Judges as `bpf/lib/policy.h` does: `peer` by the policy of `subject`. `port` is the responder's
    /// port, or an ICMP type; `None` where there is none (a fragment without its header never gets
    /// here).
    pub fn judge(
        &self,
        subject: Identity,
        direction: Direction,
        peer: IpAddr,
        protocol: Protocol,
        port: Option<u16>,
    ) -> Result<SideVerdict, DatapathError> {
        let Some(id) = self.writer.policies.id(subject) else {
            return Ok(SideVerdict::Drop(DropReason::EndpointNotReady, RuleSetId(0)));
        };
        self.writer.tables.judge(id, direction, peer, protocol, port)
    }

    /// Epoch of a subject's policy; `None` before it is loaded.
    pub fn epoch(&self, subject: Identity) -> Option<u32> {
        let state = self.writer.policies.state(self.writer.policies.id(subject)?)?;
        state.is_live().then_some(state.info.epoch)
    }

    /// Backends of a Service frontend in slot order; `None` when there is no such frontend.
    pub fn backends(
        &self,
        frontend: &crate::cluster::delta::ServiceFrontend,
    ) -> Result<Option<Vec<Backend>>, DatapathError> {
        let tables = &self.writer.tables;
        let Some(entry) = tables.services.get(&frontend.into())? else { return Ok(None) };
        let mut backends = Vec::new();
        for slot in 0..entry.backends {
            let found = tables.backends.get(&BackendKey { svc_id: entry.id, slot })?;
            backends.extend(found.map(|b| Backend { address: b.addr.to_ip_or_unspecified(), port: b.port }));
        }
        Ok(Some(backends))
    }
}

/// The kernel side's lookups.
impl Tables {
    fn identity(&self, address: IpAddr) -> Result<Identity, DatapathError> {
        let (tables, addr) = (self, Addr::from(address));
        if let Some(endpoint) = tables.endpoints.get(&addr)? {
            return Ok(Identity(endpoint.identity));
        }
        let entry = match tables.ipcache_exact.get(&addr)? {
            Some(entry) => Some(entry),
            None => tables.ipcache_lpm.get(&LpmKey { prefix_len: 128, addr })?,
        };
        Ok(entry.map_or(Identity::UNKNOWN, |entry| Identity(entry.identity)))
    }

    fn judge(
        &self,
        id: u32,
        direction: Direction,
        peer: IpAddr,
        protocol: Protocol,
        port: Option<u16>,
    ) -> Result<SideVerdict, DatapathError> {
        let tables = self;
        let none = RuleSetId(0);
        let info = tables.policy_info.get(&id)?.unwrap_or_default();
        if info.epoch == 0 {
            return Ok(SideVerdict::Drop(DropReason::EndpointNotReady, none));
        }
        let dir = direction_number(direction);
        let flags = info.flags[usize::from(dir)];
        let identity = self.identity(peer)?;
        if flags & PF_ENFORCED != 0 && identity == Identity::UNKNOWN {
            return Ok(SideVerdict::Drop(DropReason::UnknownIdentity, none));
        }
        let mut ids = vec![identity];
        if flags & PF_ADDR_CLASS != 0
            && let key = (LpmKey { prefix_len: 128, addr: peer.into() })
            && let Some(class) = tables.address_classes.get(&key)?.filter(|class| *class != 0)
        {
            ids.push(Identity(class));
        }
        let mut peers = Vec::new();
        for id in ids {
            let group = IdentityGroup::of(id, Family::of(peer));
            peers.push((id.0, [PF_ID_EXACT, PF_ID_PROTO, PF_ID_ANY]));
            peers.extend(group.map(|group| (group.key().0, [PF_GROUP_EXACT, PF_GROUP_PROTO, PF_GROUP_ANY])));
        }
        peers.push((0, [PF_ANY_EXACT, PF_ANY_PROTO, PF_ANY_ANY]));

        let port_class = match port {
            Some(port) if flags & PF_RANGES != 0 => {
                let key = PortClassKey::new(id, direction, protocol, port, 16);
                tables.port_classes.get(&key)?.map_or(PORT_EXACT | u32::from(port), |c| PORT_CLASS | c)
            }
            Some(port) => PORT_EXACT | u32::from(port),
            None => PORT_ANY,
        };
        let (mut admin, mut normal) = (PolicySlot::default(), PolicySlot::default());
        for (identity, [exact, any_port, any]) in peers {
            let cells = [
                (port.is_some() && flags & exact != 0, protocol.number(), port_class),
                (flags & any_port != 0, protocol.number(), PORT_ANY),
                (flags & any != 0, 0, PORT_ANY),
            ];
            for (_, protocol, port_class) in cells.into_iter().filter(|(present, ..)| *present) {
                let key =
                    PolicyMapKey { policy_id: id, identity, port_class, protocol, direction: dir, pad: 0 };
                let entry = tables.policy.get(&key)?.unwrap_or_default();
                if entry.admin.precedence > admin.precedence {
                    admin = entry.admin;
                }
                if entry.normal.precedence > normal.precedence {
                    normal = entry.normal;
                }
            }
        }
        let slot = if admin.precedence != 0 && admin.action != ACTION_PASS { admin } else { normal };
        let rules = RuleSetId(slot.rule_set);
        Ok(match action_from_number(slot.action) {
            Some(SlotAction::Allow) => SideVerdict::Allow(rules),
            Some(SlotAction::Redirect(proxy)) => SideVerdict::Redirect(proxy, rules),
            _ if slot.precedence != 0 => SideVerdict::Drop(DropReason::PolicyDeny, rules),
            _ if flags & PF_DEFAULT_DENY != 0 => SideVerdict::Drop(DropReason::PolicyDenied, none),
            _ => SideVerdict::Allow(none),
        })
    }
}

impl Datapath for MemoryDatapath {
    fn apply(&mut self, delta: &Delta) -> Result<(), DatapathError> {
        self.writer.apply(delta)
    }

    fn reconcile(&mut self, full: &Delta) -> Result<Reconciled, DatapathError> {
        self.writer.reconcile(full)
    }
}

#[cfg(test)]
mod transition_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::delta::{AddressKind, Cause, EndpointChange, IpcacheEntry};
    use crate::datapath::LinkLayer;
    use crate::policy::map_state::{
        Basis, CellKinds, DirectionInfo, PolicyEntry, PolicyInfo, PolicyKey, PortClass, Precedence, Slot,
        SubjectDelta,
    };

    const SUBJECT: Identity = Identity(300);
    const CLIENT: Identity = Identity(301);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn pod(last: u8, identity: Identity) -> (ipnet::IpNet, Option<IpcacheEntry>) {
        let entry = IpcacheEntry { identity, tunnel_endpoint: None, class: AddressKind::Pod };
        (ip(last).into(), Some(entry))
    }

    fn cell(peer: Identity, port: u16, action: SlotAction) -> (PolicyKey, PolicyEntry) {
        let key = PolicyKey {
            direction: Direction::Ingress,
            identity: peer,
            protocol: Some(Protocol::Tcp),
            port: PortClass::Exact(port),
        };
        let slot = Slot { precedence: Precedence(10), action, rules: RuleSetId(3), basis: Basis::Peer };
        (key, PolicyEntry { admin: None, normal: Some(slot) })
    }

    fn default_deny() -> PolicyInfo {
        let cells = CellKinds { id_exact: true, ..Default::default() };
        let ingress = DirectionInfo { default_deny: true, cells, ..Default::default() };
        PolicyInfo { ingress, ..Default::default() }
    }

    fn policy(upserts: Vec<(PolicyKey, PolicyEntry)>, deletes: Vec<PolicyKey>) -> SubjectDelta {
        SubjectDelta {
            subject: SUBJECT,
            info: default_deny(),
            upserts,
            deletes,
            class_upserts: Vec::new(),
            class_deletes: Vec::new(),
            removed: false,
        }
    }

    fn full() -> Delta {
        let place =
            EndpointChange::Upsert { pod: "shop/a".into(), addresses: vec![ip(1)], identity: SUBJECT };
        Delta {
            ipcache: vec![pod(1, SUBJECT), pod(2, CLIENT)],
            policies: vec![policy(vec![cell(CLIENT, 80, SlotAction::Allow)], Vec::new())],
            endpoints: vec![place],
            ..Default::default()
        }
    }

    fn device() -> EndpointDevice {
        EndpointDevice { ifindex: 7, mac: [2; 6], id: 1, link_layer: LinkLayer::Ethernet }
    }

    fn ingress(datapath: &MemoryDatapath, port: u16) -> SideVerdict {
        datapath.judge(SUBJECT, Direction::Ingress, ip(2), Protocol::Tcp, Some(port)).unwrap()
    }

    #[test]
    fn packets_are_judged_as_the_delta_says() {
        let mut datapath = MemoryDatapath::default();
        assert_eq!(ingress(&datapath, 80), SideVerdict::Drop(DropReason::EndpointNotReady, RuleSetId(0)));
        datapath.apply(&full()).unwrap();
        assert_eq!(ingress(&datapath, 80), SideVerdict::Allow(RuleSetId(3)));
        assert_eq!(ingress(&datapath, 81), SideVerdict::Drop(DropReason::PolicyDenied, RuleSetId(0)));
    }

    #[test]
    fn a_change_has_flows_judged_again_and_a_restart_does_not() {
        let mut datapath = MemoryDatapath::default();
        datapath.apply(&full()).unwrap();
        let epoch = datapath.epoch(SUBJECT).unwrap();

        let mut restarted = datapath.restarted().unwrap();
        let result = restarted.reconcile(&full()).unwrap();
        assert_eq!((result.policies_changed, result.policies_removed, result.addresses), (0, 0, 0));
        assert_eq!(restarted.epoch(SUBJECT), Some(epoch));

        let (key, _) = cell(CLIENT, 80, SlotAction::Allow);
        let delta = Delta { policies: vec![policy(Vec::new(), vec![key])], ..Default::default() };
        restarted.apply(&delta).unwrap();
        assert!(restarted.epoch(SUBJECT).unwrap() > epoch);
        assert_eq!(ingress(&restarted, 80), SideVerdict::Drop(DropReason::PolicyDenied, RuleSetId(0)));
    }

    #[test]
    fn names_that_come_and_go_leave_established_flows_alone() {
        let mut datapath = MemoryDatapath::default();
        datapath.apply(&full()).unwrap();
        let epoch = datapath.epoch(SUBJECT);
        let named = Identity(1 << 24);
        let (key, entry) = cell(named, 80, SlotAction::Allow);
        let names =
            |ipcache, policies| Delta { cause: Cause::Names, ipcache, policies, ..Default::default() };
        datapath.apply(&names(vec![pod(9, named)], vec![policy(vec![(key, entry)], Vec::new())])).unwrap();
        let judge = |datapath: &MemoryDatapath| {
            datapath.judge(SUBJECT, Direction::Ingress, ip(9), Protocol::Tcp, Some(80)).unwrap()
        };
        assert_eq!(judge(&datapath), SideVerdict::Allow(RuleSetId(3)), "new flows pass");
        let gone = (pod(9, named).0, None);
        datapath.apply(&names(vec![gone], vec![policy(Vec::new(), vec![key])])).unwrap();
        assert!(matches!(judge(&datapath), SideVerdict::Drop(..)), "and need a fresh answer afterwards");
        assert_eq!(datapath.epoch(SUBJECT), epoch, "nobody is judged again");
    }

    #[test]
    fn what_changed_while_the_agent_was_down_is_made_good() {
        let mut datapath = MemoryDatapath::default();
        datapath.apply(&full()).unwrap();
        let epoch = datapath.epoch(SUBJECT).unwrap();
        let mut now = full();
        now.policies = vec![policy(vec![cell(CLIENT, 81, SlotAction::Allow)], Vec::new())];
        now.ipcache.push(pod(3, CLIENT));

        let mut restarted = datapath.restarted().unwrap();
        let result = restarted.reconcile(&now).unwrap();
        assert_eq!((result.policies_changed, result.addresses), (1, 1));
        assert!(restarted.epoch(SUBJECT).unwrap() > epoch);
        assert_eq!(ingress(&restarted, 80), SideVerdict::Drop(DropReason::PolicyDenied, RuleSetId(0)));
        assert_eq!(ingress(&restarted, 81), SideVerdict::Allow(RuleSetId(3)));
    }

    #[test]
    fn a_subject_that_is_gone_leaves_nothing() {
        let mut datapath = MemoryDatapath::default();
        datapath.attach_endpoint("shop/a", device()).unwrap();
        datapath.apply(&full()).unwrap();
        assert_eq!(datapath.tables().endpoints.count().unwrap(), 1);
        let mut gone = policy(Vec::new(), Vec::new());
        gone.removed = true;
        let remove = EndpointChange::Remove { pod: "shop/a".into() };
        let delta = Delta { policies: vec![gone], endpoints: vec![remove], ..Default::default() };
        datapath.apply(&delta).unwrap();
        assert_eq!(datapath.tables().policy.count().unwrap(), 0);
        assert_eq!(datapath.tables().endpoints.count().unwrap(), 0);
        assert_eq!(datapath.epoch(SUBJECT), None);
    }

    #[test]
    fn a_change_that_cannot_fit_changes_nothing() {
        let capacity = Capacity { policy_entries: 2, ..Default::default() };
        let mut datapath = MemoryDatapath::with_capacity(&capacity);
        datapath.apply(&full()).unwrap();
        let cells = (81..84).map(|port| cell(CLIENT, port, SlotAction::Allow)).collect();
        let delta = Delta {
            ipcache: vec![pod(2, Identity(400))],
            policies: vec![policy(cells, Vec::new())],
            ..Default::default()
        };
        let error = datapath.apply(&delta).unwrap_err();
        assert!(matches!(error, DatapathError::MapFull { map: "sl_policy", entries: 2, .. }), "{error}");
        assert_eq!(datapath.identity(ip(2)).unwrap(), CLIENT);
        assert_eq!(ingress(&datapath, 81), SideVerdict::Drop(DropReason::PolicyDenied, RuleSetId(0)));
    }

    #[test]
    fn an_endpoint_is_written_when_both_halves_are_known() {
        let mut datapath = MemoryDatapath::default();
        datapath.apply(&full()).unwrap();
        assert_eq!(datapath.tables().endpoints.count().unwrap(), 0);
        datapath.attach_endpoint("shop/a", device()).unwrap();
        let info = datapath.tables().endpoints.get(&ip(1).into()).unwrap().unwrap();
        assert_eq!((info.ifindex, info.identity, info.id), (7, SUBJECT.0, 1));
    }

    #[test]
    fn the_host_firewall_waits_for_the_hosts_policy() {
        let mut datapath = MemoryDatapath::default();
        let settings = crate::cluster::delta::NodeSettings {
            addresses: vec![ip(9)],
            host_firewall: true,
            ..Default::default()
        };
        datapath.apply(&Delta { node: Some(settings), ..Default::default() }).unwrap();
        let on = |datapath: &MemoryDatapath| {
            datapath.tables().config.get(&0).unwrap().unwrap().flags & CFG_HOST_FIREWALL != 0
        };
        assert!(!on(&datapath));
        let host = SubjectDelta { subject: Identity::HOST, ..policy(Vec::new(), Vec::new()) };
        datapath.apply(&Delta { policies: vec![host], ..Default::default() }).unwrap();
        assert!(on(&datapath));
    }
}
