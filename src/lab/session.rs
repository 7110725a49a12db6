//! A running lab that follows a [`Cluster`]: namespaces, workloads, and the control plane.
//!
//! [`Session::follow`] makes a change of the cluster real in an order in which nothing is missing
//! when it is needed (devices before their objects, objects before the wait), and returns when every
//! agent enforces it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::LabError;
use super::control::{AgentOptions, ControlError, ControlPlane};
use super::fabric::Lab;
use super::links::PodRoutes;
use super::listener::Workloads;
use super::render;
use super::scenario::cluster::Cluster;
use super::scenario::{HostFirewall, Options};
use super::topology::{PodSpec, Topology};
use crate::cluster::delta::DenyResponse;
use crate::cluster::{Change, Resource};
use crate::k8s::tree::Node as Tree;
use crate::k8s::{Document, EmptyRuleLists};
use crate::model::ObjectRef;
use crate::policy::engine::{AllowLocalhost, CidrMatch, Enforcement};

/// Who decides what passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nobody: plain routing, everything passes. For tests of the lab itself.
    Open,
    /// The server and the agents of this `sluice` executable.
    Enforced { program: PathBuf },
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    lab: Lab,
    workloads: Workloads,
    control: Option<ControlPlane>,
    /// What was built last.
    built: BTreeMap<ObjectRef, Resource>,
    /// Policies, groups and secrets as they were written.
    written: BTreeMap<ObjectRef, Arc<Tree>>,
}

impl Session {
    /// Builds the cluster and waits until it is enforced. When that fails, nothing is left behind.
    pub async fn start(
        name: &str,
        mode: &Mode,
        options: &Options,
        cluster: &Cluster,
        documents: &[Document],
    ) -> Result<Session, ControlError> {
        let routes = match mode {
            Mode::Open => PodRoutes::FromAnywhere,
            Mode::Enforced { .. } => PodRoutes::FromExternals,
        };
        let mut session = Session {
            workloads: Workloads::new()?,
            lab: Lab::create(name, routes)?,
            control: None,
            built: BTreeMap::new(),
            written: BTreeMap::new(),
        };
        match session.build(mode, options, cluster, documents).await {
            Ok(()) => Ok(session),
            Err(error) => {
                // The first error says more than a failed removal, which `lab down` can repeat.
                session.stop().ok();
                Err(error)
            }
        }
    }

    async fn build(
        &mut self,
        mode: &Mode,
        options: &Options,
        cluster: &Cluster,
        documents: &[Document],
    ) -> Result<(), ControlError> {
        self.lab.converge(cluster.topology())?;
        self.control = match mode {
            Mode::Open => None,
            Mode::Enforced { program } => {
                Some(ControlPlane::start(&self.lab, program, agent_options(options, cluster)).await?)
            }
        };
        self.follow(cluster, documents).await
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    pub fn control(&self) -> Option<&ControlPlane> {
        self.control.as_ref()
    }

    pub fn control_mut(&mut self) -> Option<(&mut ControlPlane, &Lab)> {
        self.control.as_mut().map(|control| (control, &self.lab))
    }

    /// Makes the change from what is built to `cluster`; `documents` are what was applied to get
    /// there.
    pub async fn follow(&mut self, cluster: &Cluster, documents: &[Document]) -> Result<(), ControlError> {
        for document in documents {
            self.written.insert(document.resource.reference(), document.node.clone());
        }
        let gone = self.gone(&cluster.topology());
        self.lab.converge(cluster.topology())?;
        let lab = &self.lab;
        self.workloads.converge(lab.topology(), |site| lab.netns(site))?;
        let changes = cluster.changes_from(&self.built);
        if let Some(control) = &mut self.control {
            let mut manifests = Vec::new();
            for change in &changes {
                match change {
                    Change::Delete(object) => drop(control.delete(&render::reference(object)).await?),
                    Change::Upsert(resource) => manifests.extend(manifest(resource, &self.written)),
                }
            }
            if !manifests.is_empty() {
                control.apply(render::documents(manifests)).await?;
            }
            for pod in &gone {
                control.unregister(pod).await?;
            }
            control.register(lab).await?;
            control.settle(lab).await?;
        }
        self.built = cluster.resources().clone();
        Ok(())
    }

    /// Pods whose device goes, or comes back as another one.
    fn gone(&self, wanted: &Topology) -> Vec<PodSpec> {
        let before = self.lab.topology().pods.iter().filter(|pod| !pod.host_network);
        before
            .filter(|pod| wanted.pod(&pod.namespace, &pod.name).is_none_or(|now| now.node != pod.node))
            .cloned()
            .collect()
    }

    /// Ends everything and removes the lab.
    pub fn stop(self) -> Result<(), LabError> {
        drop(self.workloads);
        if let Some(control) = self.control {
            control.stop();
        }
        self.lab.remove()
    }

    /// Leaves the lab running: the workloads move into a process of their own, and where there are agents a relay
    /// joins their flows.
    pub async fn leave_running(self, program: &Path) -> Result<(), LabError> {
        drop(self.workloads);
        super::workload::spawn(&self.lab, program)?;
        match self.control {
            Some(_) => super::relay::spawn(&self.lab, program).await,
            None => Ok(()),
        }
    }
}

/// What the server is told about a resource.
fn manifest(resource: &Resource, written: &BTreeMap<ObjectRef, Arc<Tree>>) -> Option<Json> {
    match resource {
        Resource::Object(object) => Some(render::object(object)),
        Resource::Policy(_) | Resource::CidrGroup(_) | Resource::Secret(_) => {
            written.get(&resource.reference()).map(|tree| render::as_written(tree))
        }
    }
}

/// The options of a scenario as options of `sluice agent`.
fn agent_options(options: &Options, cluster: &Cluster) -> AgentOptions {
    let mut flags = AgentOptions::new();
    let mut set = |name: &str, value: &str| flags.push((name.to_owned(), value.to_owned()));
    set(
        "policy-enforcement",
        match options.enforcement {
            Enforcement::Default => "default",
            Enforcement::Always => "always",
            Enforcement::Never => "never",
        },
    );
    set(
        "allow-localhost",
        match options.allow_localhost {
            AllowLocalhost::Always => "always",
            AllowLocalhost::Policy => "policy",
        },
    );
    set(
        "deny-response",
        match options.deny_response {
            DenyResponse::Drop => "drop",
            DenyResponse::Reject => "reject",
        },
    );
    set(
        "empty-rule-lists",
        match options.empty_rule_lists {
            EmptyRuleLists::Deny => "deny",
            EmptyRuleLists::Ignore => "ignore",
        },
    );
    set(
        "host-firewall",
        match options.host_firewall {
            HostFirewall::Off => "off",
            HostFirewall::On => "on",
        },
    );
    if options.cidr_match == CidrMatch::WorldAndNodes {
        set("cidr-match-mode", "nodes");
    }
    for range in super::scenario::cluster::pod_ranges() {
        set("pod-cidr", &range.to_string());
    }
    for address in cluster.gateways().values().flatten() {
        set("ingress-address", &address.to_string());
    }
    flags
}
