//! What the agent shows in the web UI.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::core::{Core, CoreHandle};
use super::hub::Hub;
use crate::api::backend::{Answer, Backend as _, Refusal};
use crate::api::ui::source::{About, Governed, KnownPod, PolicyUse, Question, Scope, UiSource, Why};
use crate::flow::Flow;
use crate::model::{Kind, ObjectRef};

/// See the module.
#[derive(Debug)]
pub struct AgentUi {
    pub core: CoreHandle,
    pub hub: Arc<Hub>,
}

impl Core {
    /// Cheap: a page asks every few seconds.
    fn ui_about(&self) -> About {
        let source = self.source_trouble.iter().map(|trouble| format!("source: {trouble}"));
        let kernel = self.kernel_trouble.iter().map(|trouble| format!("datapath: {trouble}"));
        let trouble: Vec<String> = source.chain(kernel).collect();
        About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.config.cluster_name.clone(),
            nodes: vec![self.config.node_name.clone()],
            health: if trouble.is_empty() { "ok" } else { "degraded" }.to_owned(),
            trouble,
            flows_seen: self.hub.seen(),
            flows_lost: self.hub.lost(),
            scope: Scope::Node,
        }
    }

    /// Every pod of the cluster that has an address.
    fn known_pods(&self) -> Vec<KnownPod> {
        let owners = self
            .view
            .ipcache()
            .filter(|(prefix, _)| prefix.prefix_len() == prefix.max_prefix_len())
            .filter_map(|(prefix, _)| self.view.resolve(prefix.addr()).owner)
            .filter(|owner| owner.kind == Kind::Pod);
        let mut pods: Vec<KnownPod> = owners
            .map(|owner| KnownPod {
                workload: self.workload_of(&owner).name,
                namespace: owner.namespace,
                name: owner.name,
            })
            .collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods.dedup();
        pods
    }

    fn governed(&self) -> Vec<Governed> {
        let endpoints = self.endpoint_list().into_iter();
        endpoints
            .map(|endpoint| Governed {
                pod: endpoint.pod,
                identity: endpoint.identity,
                labels: endpoint.labels.iter().map(ToString::to_string).collect(),
                ingress: endpoint.ingress,
                egress: endpoint.egress,
            })
            .collect()
    }
}

impl AgentUi {
    async fn on_core<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.core.call(job).await?
    }
}

impl UiSource for AgentUi {
    fn about(&self) -> Answer<'_, About> {
        Box::pin(self.on_core(|core| Ok(core.ui_about())))
    }

    fn pods(&self) -> Answer<'_, Vec<KnownPod>> {
        Box::pin(self.on_core(|core| Ok(core.known_pods())))
    }

    fn recent(&self, limit: usize) -> Vec<Arc<Flow>> {
        self.hub.newest(limit)
    }

    fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        self.hub.follow()
    }

    fn why(&self, question: Question) -> Answer<'_, Why> {
        Box::pin(self.on_core(move |core| Ok(core.why(&question))))
    }

    fn policies(&self) -> Answer<'_, Vec<PolicyUse>> {
        Box::pin(self.on_core(|core| Ok(core.policy_uses())))
    }

    fn manifest(&self, object: ObjectRef) -> Answer<'_, String> {
        Box::pin(async move {
            let backend = super::backend::AgentBackend {
                core: self.core.clone(),
                hub: Arc::clone(&self.hub),
                history: None,
            };
            let stored = backend.objects(Some(object.kind), None).await?;
            let found = stored.into_iter().find(|stored| stored.object == object);
            match found {
                Some(found) if !found.manifest.is_empty() => Ok(found.manifest),
                // Nothing is wrong: the server keeps the text.
                Some(_) => Ok(format!("# The text of {object} is with the server that it was applied to.\n")),
                None => Err(Refusal::NotFound(format!("no {object}"))),
            }
        })
    }

    fn governed(&self) -> Answer<'_, Vec<Governed>> {
        Box::pin(self.on_core(|core| Ok(core.governed())))
    }
}
