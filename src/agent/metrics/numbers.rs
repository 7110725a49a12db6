//! The agent's numbers at one moment, asked of the core in one job.

use std::collections::BTreeMap;

use crate::agent::core::Core;
use crate::agent::telemetry::Telemetry;
use crate::datapath::inspect::MetricRow;
use crate::model::{Direction, IdentityKind, ObjectRef};
use crate::policy::engine::Enforcement;
use crate::policy::map_state::RuleSetId;

/// How often rules of a policy decided.
#[derive(Debug)]
pub(super) struct PolicyHits {
    pub(super) object: ObjectRef,
    pub(super) count: u64,
}

/// The core's numbers at one moment.
#[derive(Debug)]
pub struct Numbers {
    pub(super) telemetry: Telemetry,
    pub(super) traffic: Vec<MetricRow>,
    /// Map name, entries, most.
    pub(super) pressure: Vec<(String, u64, u64)>,
    pub(super) endpoints: BTreeMap<&'static str, usize>,
    /// Endpoints by the directions in which policy is enforced.
    pub(super) enforcement: BTreeMap<&'static str, usize>,
    pub(super) identities: BTreeMap<&'static str, usize>,
    pub(super) addresses: BTreeMap<&'static str, usize>,
    pub(super) policies: usize,
    pub(super) services: usize,
    pub(super) names: usize,
    pub(super) refused_answers: u64,
    pub(super) desired: u64,
    pub(super) realized: u64,
    pub(super) waiting: usize,
    /// Failed operations by where.
    pub(super) failures: [(&'static str, u64); 4],
    /// What others took away from the node and was put back.
    pub(super) restored: u64,
    pub(super) flows: u64,
    pub(super) flows_lost: u64,
    pub(super) redirects: BTreeMap<&'static str, usize>,
    pub(super) hits: Vec<PolicyHits>,
    pub(super) resident: u64,
}

impl Core {
    /// See [`Numbers`].
    pub fn numbers(&mut self) -> Numbers {
        let lost = self.kernel.lost_events();
        self.hub.set_lost(lost);
        let mut endpoints =
            BTreeMap::from([("ready", 0), ("waiting-for-identity", 0), ("waiting-for-device", 0)]);
        for (pod, _) in self.endpoints.iter() {
            *endpoints.entry(self.endpoint_state(pod)).or_default() += 1;
        }
        let engine = self.view.engine();
        let mut enforcement = BTreeMap::from([("none", 0), ("egress", 0), ("ingress", 0), ("both", 0)]);
        for endpoint in self.view.endpoints() {
            let is_on = |direction| {
                self.config.enforcement == Enforcement::Always
                    || !engine.default_deny_objects(endpoint.identity, direction).is_empty()
            };
            let key = match (is_on(Direction::Egress), is_on(Direction::Ingress)) {
                (true, true) => "both",
                (true, false) => "egress",
                (false, true) => "ingress",
                (false, false) => "none",
            };
            *enforcement.entry(key).or_default() += 1;
        }
        let mut identities = BTreeMap::new();
        for record in self.view.identities() {
            let kind = match &record.kind {
                _ if record.id.is_cluster_scope() => "cluster_local",
                IdentityKind::Cidr(_) => "node_local",
                IdentityKind::AddressClass(_) => "address_class",
                IdentityKind::Node { .. } => "remote_node",
                IdentityKind::Labels => "reserved",
            };
            *identities.entry(kind).or_default() += 1;
        }
        let mut addresses = BTreeMap::from([("ipv4", 0), ("ipv6", 0)]);
        for (prefix, _) in self.view.ipcache() {
            *addresses.entry(if prefix.addr().is_ipv4() { "ipv4" } else { "ipv6" }).or_default() += 1;
        }
        let (hits, redirects) = self.rule_hits();
        Numbers {
            traffic: self.kernel.inspect().and_then(|inspector| inspector.metrics()).unwrap_or_default(),
            pressure: self.kernel.pressure(),
            telemetry: self.telemetry.clone(),
            endpoints,
            enforcement,
            identities,
            addresses,
            policies: self.view.engine().policies().count(),
            services: self.view.services().count(),
            names: self.view.names().names().count(),
            refused_answers: self.view.refused_answers(),
            desired: self.desired,
            realized: self.realized,
            waiting: self.waiting(),
            failures: [
                ("kernel", self.kernel_failures),
                ("store", self.store.health().errors.values().sum()),
                ("source", self.source_failures),
                ("devices", self.devices_failures),
            ],
            restored: self.attachments.restored,
            flows: self.hub.seen(),
            flows_lost: lost,
            redirects,
            hits,
            resident: crate::agent::tables::resident_bytes(),
        }
    }

    /// Packets that each policy decided, and redirects by protocol.
    fn rule_hits(&self) -> (Vec<PolicyHits>, BTreeMap<&'static str, usize>) {
        use crate::policy::map_state::{Proxy, SlotAction};
        let engine = self.view.engine();
        let mut sets: BTreeMap<RuleSetId, ()> = BTreeMap::new();
        let mut redirects = BTreeMap::from([("http", 0), ("dns", 0), ("tls", 0)]);
        for subject in engine.subjects() {
            for entry in engine.entries(subject) {
                for slot in [entry.entry.admin, entry.entry.normal].into_iter().flatten() {
                    sets.insert(slot.rules, ());
                    if let SlotAction::Redirect(proxy) = slot.action {
                        let protocol = match proxy {
                            Proxy::Http => "http",
                            Proxy::Dns => "dns",
                            Proxy::Tls => "tls",
                        };
                        *redirects.entry(protocol).or_default() += 1;
                    }
                }
            }
        }
        let sets: Vec<RuleSetId> = sets.into_keys().collect();
        let counted =
            self.kernel.inspect().and_then(|inspector| inspector.rule_hits(&sets)).unwrap_or_default();
        // Objects without a hit are there with 0: an unused rule is what people look for.
        let mut hits: BTreeMap<_, u64> = engine.policies().map(|policy| (&policy.object, 0)).collect();
        for (set, count) in counted {
            let objects: std::collections::BTreeSet<_> =
                engine.rules_of(set).iter().map(|rule| &rule.object).collect();
            for object in objects {
                *hits.entry(object).or_default() += count;
            }
        }
        let rows = hits.into_iter().map(|(object, count)| PolicyHits { object: object.clone(), count });
        (rows.collect(), redirects)
    }
}
