//! The admin API's backend: each request is a job on the core's thread.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::core::{Core, CoreHandle};
use super::history::Recorder;
use super::hub::Hub;
use super::observer::Notes;
use crate::api::backend::{Answer, ApplyMode, Backend, ExplainQuery, KernelTable, Refusal};
use crate::api::hubble::convert::Naming;
use crate::api::past::PastFlows;
use crate::api::types::{
    Applied, Endpoint, EndpointRequest, ExplainAnswer, IdentityInfo, IpcacheInfo, NameInfo, ObjectResult,
    ServiceInfo, Status, StoredObject,
};
use crate::cluster::Change;
use crate::endpoint::{Described, DeviceName};
use crate::flow::Flow;
use crate::flow::ring::Batch;
use crate::model::{Kind, ObjectRef};
use crate::store::objects::{self, Action, ApplyError, ObjectStore, Problem, Reader};

/// See the module.
#[derive(Debug)]
pub struct AgentBackend {
    pub core: CoreHandle,
    pub hub: Arc<Hub>,
    pub history: Option<Arc<Recorder>>,
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn refuse(error: ApplyError) -> Refusal {
    match error {
        ApplyError::Rejected(problems) => Refusal::Invalid {
            message: "the manifest is invalid; nothing was changed".into(),
            problems: problems.iter().map(Problem::to_string).collect(),
        },
        ApplyError::Store(error) => failed(error),
    }
}

fn keeps_objects(core: &Core) -> Result<ObjectStore, Refusal> {
    core.objects.clone().ok_or_else(|| {
        Refusal::Conflict(
            "this agent takes its objects from elsewhere (see `sluice status`); apply them there".into(),
        )
    })
}

/// What was there before a change.
enum Replaced {
    Object(crate::store::StoredObject),
    Nothing(ObjectRef),
}

impl Core {
    /// What these changes replace, as it is stored.
    fn replaced(objects: &ObjectStore, changes: &[Change]) -> Result<Vec<Replaced>, Refusal> {
        changes
            .iter()
            .map(|change| {
                let reference = match change {
                    Change::Upsert(resource) => resource.reference(),
                    Change::Delete(reference) => reference.clone(),
                };
                let stored = objects.store().object(&reference).map_err(failed)?;
                Ok(stored.map_or(Replaced::Nothing(reference), Replaced::Object))
            })
            .collect()
    }

    /// What undoes the changes that replaced these. To read them costs as much as to read what replaces them.
    fn inverse(objects: &ObjectStore, replaced: &[Replaced]) -> Result<Vec<Change>, Refusal> {
        let mut reader = Reader::new(objects.parser());
        let back = |replaced: &Replaced| match replaced {
            Replaced::Object(stored) => reader.read(stored).map(Change::Upsert).map_err(failed),
            Replaced::Nothing(reference) => Ok(Change::Delete(reference.clone())),
        };
        replaced.iter().map(back).collect()
    }

    /// Applies a manifest: parsed and judged whole, stored, then enforced.
    fn apply_manifest(&mut self, text: &str, mode: ApplyMode) -> Result<Applied, Refusal> {
        let objects = keeps_objects(self)?;
        let store_mode = match mode {
            ApplyMode::Commit => objects::ApplyMode::Commit,
            ApplyMode::DryRun => objects::ApplyMode::DryRun,
        };
        let (mut admitted, mut warnings) = (None, Vec::new());
        let mut applied = objects.apply(text, store_mode, |changes| {
            let problem = |message: String| Problem { message, ..Problem::default() };
            let refuse = |refusal: Refusal| vec![problem(refusal.to_string())];
            let replaced = Core::replaced(&objects, changes).map_err(refuse)?;
            // What is not to stay in any case must be known to go.
            let inverse = match mode {
                ApplyMode::DryRun => Some(Core::inverse(&objects, &replaced).map_err(refuse)?),
                ApplyMode::Commit => None,
            };
            let refused = |error: &_| Problem::of_view(error, objects.parser(), text);
            let delta = self
                .view
                .apply(changes.to_vec())
                .map_err(|errors| errors.iter().map(refused).collect::<Vec<_>>())?;
            admitted = Some((delta, replaced, inverse));
            warnings = Problem::of_crowds(&mut self.view, changes, objects.parser(), text);
            Ok(())
        });
        if let Ok(applied) = &mut applied {
            applied.warnings.append(&mut warnings);
        }
        let Some((delta, replaced, inverse)) = admitted else {
            self.telemetry.changes_refused += 1;
            return Err(refuse_unadmitted(applied));
        };
        match applied {
            Ok(applied) if mode == ApplyMode::Commit => {
                self.desired = applied.revision;
                self.telemetry.changes += 1;
                self.note_owners(super::directory::touched(&applied.changes));
                self.tell(Notes::of(&applied.changes, applied.revision));
                self.note_objects(&applied.changes);
                self.realize(delta, applied.revision);
                Ok(answer(applied))
            }
            // Judged, but not to stay (a dry run), or judged and not stored: the view goes back.
            other => {
                match inverse.map_or_else(|| Core::inverse(&objects, &replaced), Ok) {
                    Ok(inverse) => self.take_back(inverse, &delta),
                    Err(error) => tracing::error!(%error, "a change that was not stored was not taken back"),
                }
                other.map(answer).map_err(refuse)
            }
        }
    }

    fn delete_object(&mut self, object: &ObjectRef) -> Result<Applied, Refusal> {
        let objects = keeps_objects(self)?;
        let deleted = objects.delete(object, |_| Ok(())).map_err(refuse)?;
        let applied = deleted.ok_or_else(|| Refusal::NotFound(format!("no {object}")))?;
        self.transact_objects(applied.changes.clone(), applied.revision)
            .map_err(|problems| Refusal::Invalid { message: "deleting was refused".into(), problems })?;
        Ok(answer(applied))
    }

    fn object_list(&self, kind: Option<Kind>, namespace: Option<&str>) -> Result<Vec<StoredObject>, Refusal> {
        let Some(objects) = &self.objects else {
            return Ok(self.known_policies(kind, namespace));
        };
        let stored = objects.store().objects().map_err(failed)?;
        Ok(stored
            .upserts
            .into_iter()
            .filter(|stored| kind.is_none_or(|kind| kind == stored.reference.kind))
            .filter(|stored| namespace.is_none_or(|namespace| namespace == &*stored.reference.namespace))
            .map(|stored| StoredObject {
                selects: self.selected_here(&stored.reference),
                manifest: stored.manifest.to_string(),
                object: stored.reference,
            })
            .collect())
    }

    /// Policies that came from elsewhere: their text is there.
    fn known_policies(&self, kind: Option<Kind>, namespace: Option<&str>) -> Vec<StoredObject> {
        self.view
            .engine()
            .policies()
            .map(|policy| policy.object.clone())
            .filter(|object| kind.is_none_or(|kind| kind == object.kind))
            .filter(|object| namespace.is_none_or(|namespace| namespace == &*object.namespace))
            .map(|object| StoredObject {
                selects: self.selected_here(&object),
                manifest: String::new(),
                object,
            })
            .collect()
    }

    /// `ns/pod`, a node, `svc:ns/name`, or an address.
    fn address_of(&self, name: &str, like: Option<IpAddr>) -> Result<IpAddr, Refusal> {
        if let Ok(address) = name.parse() {
            return Ok(address);
        }
        let fits = |address: &IpAddr| like.is_none_or(|like| like.is_ipv4() == address.is_ipv4());
        if let Some(service) = name.strip_prefix("svc:") {
            return self
                .view
                .services()
                .find(|(frontend, entry)| entry.service == service && fits(&frontend.address))
                .map(|(frontend, _)| frontend.address)
                .ok_or_else(|| Refusal::NotFound(format!("no Service {service}")));
        }
        self.view
            .ipcache()
            .filter(|(prefix, _)| prefix.prefix_len() == prefix.max_prefix_len())
            .map(|(prefix, _)| prefix.addr())
            .filter(fits)
            .find(|address| self.view.resolve(*address).owner.is_some_and(|owner| owner.path() == name))
            .ok_or_else(|| {
                Refusal::NotFound(format!("{name}: neither an address nor a pod or node that is known"))
            })
    }
}

/// The parser or an earlier step refused before the view was asked.
fn refuse_unadmitted(applied: Result<objects::Applied, ApplyError>) -> Refusal {
    match applied {
        Err(error) => refuse(error),
        Ok(_) => failed("a change was stored without having been judged"),
    }
}

fn answer(applied: objects::Applied) -> Applied {
    let action = |action| match action {
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    };
    Applied {
        revision: applied.revision,
        results: applied
            .results
            .into_iter()
            .map(|(object, done)| ObjectResult { object, action: action(done).to_owned() })
            .collect(),
        warnings: applied.warnings.iter().map(Problem::to_string).collect(),
    }
}

impl AgentBackend {
    async fn on_core<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.core.call(job).await?
    }
}

impl Backend for AgentBackend {
    fn naming(&self) -> Naming {
        self.hub.naming().clone()
    }

    fn status(&self) -> Answer<'_, Status> {
        let core = self.on_core(|core| Ok((core.status(), core.config.run_dir.clone())));
        Box::pin(async move {
            let (mut status, run_dir) = core.await?;
            status.proxies = super::proxies::ask(&run_dir).await;
            Ok(status)
        })
    }

    fn apply(&self, manifest: String, mode: ApplyMode) -> Answer<'_, Applied> {
        Box::pin(self.on_core(move |core| core.apply_manifest(&manifest, mode)))
    }

    fn delete(&self, object: ObjectRef) -> Answer<'_, Applied> {
        Box::pin(self.on_core(move |core| core.delete_object(&object)))
    }

    fn objects(&self, kind: Option<Kind>, namespace: Option<String>) -> Answer<'_, Vec<StoredObject>> {
        Box::pin(self.on_core(move |core| core.object_list(kind, namespace.as_deref())))
    }

    fn endpoints(&self) -> Answer<'_, Vec<Endpoint>> {
        Box::pin(self.on_core(|core| Ok(core.endpoint_list())))
    }

    fn add_endpoint(&self, request: EndpointRequest) -> Answer<'_, Endpoint> {
        Box::pin(self.on_core(move |core| {
            let invalid =
                |message: &str| Refusal::Invalid { message: message.to_owned(), problems: Vec::new() };
            match request.pod.split_once('/') {
                Some((namespace, name))
                    if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {}
                _ => return Err(invalid("pod: expected NAMESPACE/POD")),
            }
            let device = match (request.netns, request.host_interface) {
                (Some(netns), None) => DeviceName::Netns {
                    netns,
                    interface: request.interface.unwrap_or_else(|| "eth0".to_owned()),
                },
                (None, Some(interface)) => DeviceName::Host { interface },
                _ => return Err(invalid("exactly one of netns and hostInterface is needed")),
            };
            let described = (!request.labels.is_empty() || !request.addresses.is_empty())
                .then_some(Described { labels: request.labels, addresses: request.addresses });
            core.add_endpoint(&request.pod, device, request.device, described)?;
            core.endpoint(&request.pod).ok_or_else(|| failed("the endpoint is gone"))
        }))
    }

    fn remove_endpoint(&self, pod: String) -> Answer<'_, ()> {
        Box::pin(self.on_core(move |core| core.remove_endpoint(&pod)))
    }

    fn identities(&self) -> Answer<'_, Vec<IdentityInfo>> {
        Box::pin(self.on_core(|core| Ok(core.identity_list())))
    }

    fn ipcache(&self) -> Answer<'_, Vec<IpcacheInfo>> {
        Box::pin(self.on_core(|core| Ok(core.ipcache_list())))
    }

    fn names(&self) -> Answer<'_, Vec<NameInfo>> {
        Box::pin(self.on_core(|core| Ok(core.name_list())))
    }

    fn services(&self) -> Answer<'_, Vec<ServiceInfo>> {
        Box::pin(self.on_core(|core| Ok(core.service_list())))
    }

    fn kernel(
        &self,
        table: KernelTable,
        endpoint: Option<String>,
    ) -> Answer<'_, Vec<serde_json::Map<String, serde_json::Value>>> {
        Box::pin(self.on_core(move |core| core.kernel_rows(table, endpoint.as_deref())))
    }

    fn explain(&self, query: ExplainQuery) -> Answer<'_, ExplainAnswer> {
        Box::pin(self.on_core(move |core| {
            let literal = query.to.parse().ok().or_else(|| query.from.parse().ok());
            let from = core.address_of(&query.from, literal)?;
            let to = core.address_of(&query.to, Some(from))?;
            Ok(core.explain(from, to, query.port, query.protocol))
        }))
    }

    fn flows(&self, cursor: u64, limit: usize) -> Batch {
        self.hub.read(cursor, limit)
    }

    fn history(&self) -> Option<Arc<dyn PastFlows>> {
        self.history.clone().map(|history| history as Arc<dyn PastFlows>)
    }

    fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        self.hub.follow()
    }
}
