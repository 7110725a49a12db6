//! The cluster as it is now: objects, one compiled view for each node, the evaluator's state, and
//! what the nodes' DNS proxies have learned.
//!
//! A change is a transaction: all views take it, or none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use super::ThirdJudge;
use crate::cluster::{Resource, View, ViewError, ViewOptions};
use crate::fqdn::{Learned, Snapshot};
use crate::identity::MemoryAllocator;
use crate::lab::dns::Zone;
use crate::lab::scenario::cluster::{Cluster, pod_ranges};
use crate::lab::scenario::{HostFirewall, Options};
use crate::lab::topology::Topology;
use crate::model::{Identity, Object};
use crate::policy::engine::{AllowLocalhost, CidrMatch, Enforcement, EngineOptions};
use crate::policy::oracle;

/// How long a released identity keeps its number.
const GRACE: Duration = Duration::from_secs(900);
const CLUSTER_NAME: &str = "default";

/// Why a cluster cannot be.
pub(super) type Impossible = Vec<String>;

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    options: Options,
    pub(super) cluster: Cluster,
    pub(super) topology: Topology,
    pub(super) zone: Zone,
    views: BTreeMap<String, View>,
    pub(super) oracle: oracle::State,
    pub(super) now: Duration,
    pub(super) third: Option<Rc<dyn ThirdJudge>>,
}

impl World {
    pub(super) fn new(options: &Options, cluster: Cluster) -> Result<World, Impossible> {
        let mut world = World {
            options: options.clone(),
            topology: Topology::default(),
            zone: Zone::default(),
            views: BTreeMap::new(),
            oracle: oracle::State { switches: switches(options), ..oracle::State::default() },
            now: Duration::ZERO,
            third: None,
            cluster,
        };
        world.views = world.new_views(&world.cluster, &BTreeMap::new())?;
        world.refresh();
        Ok(world)
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn view(&self, node: &str) -> Option<&View> {
        self.views.get(node)
    }

    /// Makes `next` the cluster, or changes nothing and says why not.
    pub(super) fn change(&mut self, next: Cluster) -> Result<(), Impossible> {
        if next.nodes() != self.cluster.nodes() {
            // Another set of nodes: the views are made anew, with what their nodes have learned.
            self.views = self.new_views(&next, &self.snapshots())?;
            self.cluster = next;
            self.refresh();
            return Ok(());
        }
        let forward = next.changes_from(self.cluster.resources());
        let mut done: Vec<String> = Vec::new();
        let mut problems = Vec::new();
        for (node, view) in &mut self.views {
            match view.apply(forward.clone()) {
                Ok(_) => done.push(node.clone()),
                Err(errors) => {
                    problems = texts(&errors);
                    break;
                }
            }
        }
        if problems.is_empty() {
            self.cluster = next;
            self.refresh();
            return Ok(());
        }
        let back = self.cluster.changes_from(next.resources());
        for node in done {
            let view = self.views.get_mut(&node).expect("the node has just been changed");
            view.apply(back.clone()).expect("the state before the transaction was accepted");
        }
        Err(problems)
    }

    /// Externals are no objects: only names and listeners change.
    pub(super) fn replace_externals(&mut self, next: Cluster) {
        self.cluster = next;
        self.refresh();
    }

    /// Starts the agents of these nodes again, from the objects and from what they had saved.
    pub(super) fn restart(&mut self, nodes: &[String]) -> Result<(), Impossible> {
        for node in nodes {
            let snapshot = self.views.get(node).map(|view| view.names_snapshot(self.now));
            let view = self.new_view(node, &self.cluster, snapshot.as_ref())?;
            self.views.insert(node.clone(), view);
        }
        Ok(())
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.oracle.now = self.now;
        for view in self.views.values_mut() {
            view.expire(self.now);
        }
    }

    /// The DNS proxy of `node` releases an answer.
    pub(super) fn learn(&mut self, node: &str, learned: &Learned, answers: Vec<oracle::Answer>) {
        if let Some(view) = self.views.get_mut(node) {
            view.learn(self.now, learned);
        }
        // A new answer for a name and address replaces the one before only if it lasts longer:
        // the addresses of both were released.
        self.oracle.answers.extend(answers);
    }

    /// A view of `node` in which also `names` own `address`: how the datapath sees an established
    /// connection that began while they did.
    pub(super) fn view_with_names<'n>(
        &self,
        node: &str,
        names: impl IntoIterator<Item = &'n String>,
        address: IpAddr,
    ) -> Result<View, Impossible> {
        let snapshot = self.views.get(node).map(|view| view.names_snapshot(self.now));
        let mut view = self.new_view(node, &self.cluster, snapshot.as_ref())?;
        for name in names {
            let mut addresses: BTreeMap<IpAddr, Duration> = view
                .names()
                .addresses(name)
                .into_iter()
                .filter_map(|(address, end)| Some((address, end.checked_sub(self.now)?)))
                .collect();
            addresses.entry(address).or_insert(Duration::from_secs(1));
            let learned = Learned { name: name.as_str().into(), addresses: addresses.into_iter().collect() };
            view.learn(self.now, &learned);
        }
        Ok(view)
    }

    fn snapshots(&self) -> BTreeMap<String, Snapshot> {
        self.views.iter().map(|(node, view)| (node.clone(), view.names_snapshot(self.now))).collect()
    }

    fn new_views(
        &self,
        cluster: &Cluster,
        snapshots: &BTreeMap<String, Snapshot>,
    ) -> Result<BTreeMap<String, View>, Impossible> {
        let nodes = cluster.nodes().iter();
        nodes.map(|node| Ok((node.clone(), self.new_view(node, cluster, snapshots.get(node))?))).collect()
    }

    fn new_view(
        &self,
        node: &str,
        cluster: &Cluster,
        snapshot: Option<&Snapshot>,
    ) -> Result<View, Impossible> {
        let gateways = cluster.gateways().values().flatten();
        let options = ViewOptions {
            node: node.to_owned(),
            cluster_name: CLUSTER_NAME.to_owned(),
            engine: EngineOptions {
                enforcement: self.options.enforcement,
                cidr_match: self.options.cidr_match,
                allow_localhost: self.options.allow_localhost,
                ..EngineOptions::default()
            },
            host_firewall: self.options.host_firewall == HostFirewall::On,
            deny_response: self.options.deny_response,
            pod_cidrs: pod_ranges(),
            fixed_addresses: gateways.map(|address| (*address, Identity::INGRESS)).collect(),
            ..ViewOptions::default()
        };
        let mut view = View::new(options, Box::new(MemoryAllocator::new(GRACE)));
        view.apply(cluster.changes_from(&BTreeMap::new())).map_err(|errors| texts(&errors))?;
        if let Some(snapshot) = snapshot {
            view.restore_names(self.now, Duration::ZERO, snapshot);
        }
        Ok(view)
    }

    /// Everything that is computed from the cluster.
    fn refresh(&mut self) {
        self.topology = self.cluster.topology();
        self.zone = Zone::of(&self.topology);
        let mut state = oracle::State {
            switches: self.oracle.switches.clone(),
            answers: std::mem::take(&mut self.oracle.answers),
            now: self.now,
            ..oracle::State::default()
        };
        for (reference, resource) in self.cluster.resources() {
            let key = (reference.namespace.to_string(), reference.name.to_string());
            match resource.clone() {
                Resource::Object(Object::Namespace(namespace)) => {
                    state.namespaces.insert(key.1, namespace);
                }
                Resource::Object(Object::Node(node)) => {
                    state.nodes.insert(key.1, node);
                }
                Resource::Object(Object::Pod(pod)) => {
                    state.pods.insert(key, pod);
                }
                Resource::Object(Object::Service(service)) => {
                    state.services.insert(key, service);
                }
                Resource::Object(Object::EndpointSlice(slice)) => {
                    state.slices.insert(key, slice);
                }
                Resource::CidrGroup(group) => {
                    state.groups.insert(key.1, group);
                }
                Resource::Policy(policy) => {
                    state.policies.insert(reference.clone(), policy);
                }
                Resource::Secret(_) => {}
            }
        }
        for (node, addresses) in self.cluster.gateways() {
            state.gateways.extend(addresses.iter().map(|address| (*address, node.clone())));
        }
        self.oracle = state;
    }
}

fn texts(errors: &[ViewError]) -> Impossible {
    errors.iter().map(ToString::to_string).collect()
}

fn switches(options: &Options) -> oracle::Switches {
    oracle::Switches {
        mode: match options.enforcement {
            Enforcement::Default => oracle::Mode::Default,
            Enforcement::Always => oracle::Mode::Always,
            Enforcement::Never => oracle::Mode::Never,
        },
        localhost: match options.allow_localhost {
            AllowLocalhost::Always => oracle::LocalhostMode::Always,
            AllowLocalhost::Policy => oracle::LocalhostMode::Policy,
        },
        nodes: match options.cidr_match {
            CidrMatch::World => oracle::NodeMode::NeverByCidr,
            CidrMatch::WorldAndNodes => oracle::NodeMode::ByCidr,
        },
        host_firewall: match options.host_firewall {
            HostFirewall::Off => oracle::HostFirewall::Off,
            HostFirewall::On => oracle::HostFirewall::On,
        },
        cluster: CLUSTER_NAME.to_owned(),
        pod_ranges: pod_ranges(),
    }
}
