//! Objects of an API server as a stream of changes.
//!
//! One watcher for each kind lists, watches, and lists again after a gap; errors are retried with
//! backoff and reported, never taken for "there is nothing". What a list no longer holds is
//! deleted, objects known from before a restart included. An object that is not valid changes
//! nothing: what it said before stays in force, and its problems are reported.

use std::collections::BTreeSet;

use futures::stream::{self, Stream, StreamExt};
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use super::problem::Problem;
use super::{ParseOptions, UnknownFields, parse_object};
use crate::cluster::Change;
use crate::model::{Kind, ObjectRef};

/// Kinds that an agent needs. Secrets are not among them: they are for header rules only, and
/// reading them all is a right that not every agent should have.
pub const AGENT_KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::CiliumNetworkPolicy,
    Kind::CiliumClusterwideNetworkPolicy,
    Kind::CiliumCIDRGroup,
    Kind::ClusterNetworkPolicy,
];

/// What the API server told.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// All objects of a kind as one transaction: the first time, and after each gap. Holds the
    /// valid ones, and deletes of those that are gone.
    Synced { kind: Kind, changes: Vec<Change> },
    /// One object came, changed or went.
    Changed(Change),
    /// An object is not valid; what was in force before stays.
    Rejected { object: ObjectRef, problems: Vec<Problem> },
    /// An accepted object says something that is probably not meant.
    Warned { object: ObjectRef, warnings: Vec<Problem> },
    /// The cluster does not have this kind (its CRD is not installed). Nothing is deleted; it is
    /// asked again.
    Absent { kind: Kind },
    /// The API server could not be asked; it is asked again.
    Failed { kind: Kind, error: String },
}

/// Watches `kinds`. `known` are the objects that are in force already, such as from a state store:
/// what the first list does not hold of them is deleted.
///
/// Unknown fields are skipped, whatever `options` say: the API server has pruned them.
pub fn watch(
    client: &Client,
    kinds: &[Kind],
    options: &ParseOptions,
    known: &BTreeSet<ObjectRef>,
) -> impl Stream<Item = WatchEvent> + Send + use<> {
    let options = ParseOptions { unknown_fields: UnknownFields::Ignore, ..options.clone() };
    stream::select_all(kinds.iter().map(|kind| {
        let own = known.iter().filter(|object| object.kind == *kind).cloned().collect();
        watch_kind(client.clone(), *kind, options.clone(), own).boxed()
    }))
}

fn watch_kind(
    client: Client,
    kind: Kind,
    options: ParseOptions,
    known: BTreeSet<ObjectRef>,
) -> impl Stream<Item = WatchEvent> + Send {
    let resource = api_resource(kind);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let events = watcher(api, watcher::Config::default())
        .modify(|object| object.metadata.managed_fields = None)
        .default_backoff();
    let mut state = State { kind, resource, options, known, listing: None };
    events.flat_map(move |event| stream::iter(state.event(event)))
}

/// Where the API server has a kind.
pub(super) fn api_resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::Namespace => ("", "v1", "namespaces"),
        Kind::Pod => ("", "v1", "pods"),
        Kind::Node => ("", "v1", "nodes"),
        Kind::Service => ("", "v1", "services"),
        Kind::Endpoints => ("", "v1", "endpoints"),
        Kind::Secret => ("", "v1", "secrets"),
        Kind::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices"),
        Kind::NetworkPolicy => ("networking.k8s.io", "v1", "networkpolicies"),
        Kind::CiliumNetworkPolicy => ("cilium.io", "v2", "ciliumnetworkpolicies"),
        Kind::CiliumClusterwideNetworkPolicy => ("cilium.io", "v2", "ciliumclusterwidenetworkpolicies"),
        Kind::CiliumCIDRGroup => ("cilium.io", "v2", "ciliumcidrgroups"),
        Kind::ClusterNetworkPolicy => ("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies"),
    };
    let gvk = kube::api::GroupVersionKind::gvk(group, version, &kind.to_string());
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

/// A list that is not complete yet.
#[derive(Default)]
struct Listing {
    found: BTreeSet<ObjectRef>,
    changes: Vec<Change>,
}

/// What one kind's watcher remembers.
struct State {
    kind: Kind,
    resource: ApiResource,
    options: ParseOptions,
    /// Objects in force.
    known: BTreeSet<ObjectRef>,
    listing: Option<Listing>,
}

impl State {
    fn event(&mut self, event: watcher::Result<watcher::Event<DynamicObject>>) -> Vec<WatchEvent> {
        match event {
            Ok(watcher::Event::Init) => {
                self.listing = Some(Listing::default());
                Vec::new()
            }
            Ok(watcher::Event::InitApply(object)) => self.listed(&object),
            Ok(watcher::Event::InitDone) => self.list_done(),
            Ok(watcher::Event::Apply(object)) => {
                let (object, change, mut events) = self.read(&object);
                if let Some(change) = change {
                    self.known.insert(object);
                    events.push(WatchEvent::Changed(change));
                }
                events
            }
            Ok(watcher::Event::Delete(object)) => {
                let object = self.reference(&object);
                self.known.remove(&object);
                vec![WatchEvent::Changed(Change::Delete(object))]
            }
            Err(error) => vec![self.failed(&error)],
        }
    }

    fn listed(&mut self, object: &DynamicObject) -> Vec<WatchEvent> {
        let (object, change, events) = self.read(object);
        let listing = self.listing.get_or_insert_default();
        // Valid or not, it is there: what was in force under its name stays.
        listing.found.insert(object);
        listing.changes.extend(change);
        events
    }

    fn list_done(&mut self) -> Vec<WatchEvent> {
        let Listing { found, mut changes } = self.listing.take().unwrap_or_default();
        let gone = self.known.iter().filter(|object| !found.contains(object)).cloned();
        changes.extend(gone.map(Change::Delete));
        self.known.retain(|object| found.contains(object));
        for change in &changes {
            if let Change::Upsert(resource) = change {
                self.known.insert(resource.reference());
            }
        }
        vec![WatchEvent::Synced { kind: self.kind, changes }]
    }

    /// The object's name, the change that it makes if it is valid, and what there is to say.
    fn read(&self, object: &DynamicObject) -> (ObjectRef, Option<Change>, Vec<WatchEvent>) {
        let reference = self.reference(object);
        // Neither a map of labels nor a JSON value can fail to become JSON; were it to, the object
        // would be null and rejected.
        let mut json = serde_json::to_value(object).unwrap_or_default();
        if let Some(fields) = json.as_object_mut() {
            // Items of a list come without these two.
            fields.insert("apiVersion".to_owned(), self.resource.api_version.clone().into());
            fields.insert("kind".to_owned(), self.resource.kind.clone().into());
        }
        let manifest = parse_object("kubernetes", &json, &self.options);
        let mut events = Vec::new();
        if !manifest.is_valid() {
            events.push(WatchEvent::Rejected { object: reference.clone(), problems: manifest.problems });
            return (reference, None, events);
        }
        let document = manifest.documents.into_iter().next();
        let change = document.map(|document| {
            if !document.warnings.is_empty() {
                events.push(WatchEvent::Warned { object: reference.clone(), warnings: document.warnings });
            }
            Change::Upsert(document.resource)
        });
        (reference, change, events)
    }

    fn reference(&self, object: &DynamicObject) -> ObjectRef {
        let metadata = &object.metadata;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ObjectRef::new(self.kind, &text(&metadata.namespace), &text(&metadata.name))
    }

    fn failed(&self, error: &watcher::Error) -> WatchEvent {
        const NOT_FOUND: u16 = 404;
        match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == NOT_FOUND => {
                WatchEvent::Absent { kind: self.kind }
            }
            error => WatchEvent::Failed { kind: self.kind, error: error.to_string() },
        }
    }
}

#[cfg(test)]
mod tests;
