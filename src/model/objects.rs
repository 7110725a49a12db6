//! Pods, namespaces, nodes and Services in our own words: what is left of a Kubernetes object
//! once `k8s` has validated it. Policies have their own types in `policy::rule`.

use std::net::IpAddr;

use super::{Kind, KubeLabels, ObjectRef, Protocol, Workload};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    /// As in the API server: includes `kubernetes.io/metadata.name`.
    pub labels: KubeLabels,
}

impl Namespace {
    /// A namespace of which nothing is known but its name.
    pub fn undescribed(name: &str) -> Namespace {
        let labels = [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
        Namespace { name: name.to_owned(), labels }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: KubeLabels,
    /// Empty while unscheduled.
    pub node: Option<String>,
    /// Empty until an address is assigned.
    pub addresses: Vec<IpAddr>,
    pub host_network: bool,
    /// `default` when the object says nothing.
    pub service_account: String,
    /// The owner that manages it (`ownerReferences` with `controller: true`).
    pub controller: Option<Workload>,
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub labels: KubeLabels,
    /// InternalIP and ExternalIP addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    pub target: TargetPort,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub labels: KubeLabels,
    /// Empty for headless Services and for ones that wait for an address.
    pub cluster_ips: Vec<IpAddr>,
    pub headless: bool,
    /// `None`: endpoints are managed by hand.
    pub selector: Option<KubeLabels>,
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` timeout in seconds.
    pub affinity_secs: Option<u32>,
    pub internal_traffic: InternalTraffic,
}

/// `internalTrafficPolicy`: which backends clients inside of the cluster reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InternalTraffic {
    #[default]
    Cluster,
    /// Those on the client's own node.
    Local,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub node: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
}

/// An EndpointSlice; `v1` Endpoints are converted to this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub namespace: String,
    pub name: String,
    /// From the label `kubernetes.io/service-name` (Endpoints: the object's own name).
    pub service: String,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// The name of the slice for a subset of `v1` Endpoints, counted from 1. No object can have it: clusters export Endpoints
    /// and an EndpointSlice of one name.
    pub fn subset_name(endpoints: &str, subset: usize) -> String {
        format!("{endpoints}:{subset}")
    }

    /// The Endpoints, and which subset of them, that a slice of this name was made of.
    pub fn subset_of(name: &str) -> Option<(&str, usize)> {
        let (endpoints, subset) = name.split_once(':')?;
        Some((endpoints, subset.parse().ok()?))
    }

    /// The Endpoints that a slice was made of.
    pub fn made_of(slice: &ObjectRef) -> Option<ObjectRef> {
        let (name, _) =
            EndpointSlice::subset_of(&slice.name).filter(|_| slice.kind == Kind::EndpointSlice)?;
        Some(ObjectRef { kind: Kind::Endpoints, namespace: slice.namespace.clone(), name: name.into() })
    }
}

/// One address and port behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}

/// Any cluster object that is not a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Namespace(Namespace),
    Pod(Pod),
    Node(Node),
    Service(Service),
    EndpointSlice(EndpointSlice),
}

impl Object {
    pub fn reference(&self) -> ObjectRef {
        match self {
            Object::Namespace(o) => ObjectRef::new(Kind::Namespace, "", &o.name),
            Object::Pod(o) => ObjectRef::new(Kind::Pod, &o.namespace, &o.name),
            Object::Node(o) => ObjectRef::new(Kind::Node, "", &o.name),
            Object::Service(o) => ObjectRef::new(Kind::Service, &o.namespace, &o.name),
            Object::EndpointSlice(o) => ObjectRef::new(Kind::EndpointSlice, &o.namespace, &o.name),
        }
    }
}
