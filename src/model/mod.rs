//! Our words, as types. PURE: no clock, no IO, no runtime, no configuration.
//!
//! Everything here is host byte order and valid by construction: past the `k8s` room no string
//! and no `Option` means "maybe invalid".

mod drop_reason;
mod identity;
mod identity_group;
mod intern;
mod l4;
mod labels;
mod object;
mod object_labels;
mod objects;
mod workload;

pub use drop_reason::DropReason;
pub use identity::{CidrScope, Identity, IdentityKind, IdentityRecord};
pub use identity_group::{GroupSet, IdentityGroup};
pub use intern::Interner;
pub use l4::{Direction, Family, PortRange, Protocol};
pub use labels::{Label, LabelParseError, LabelSource, Labels, LabelsBuilder};
pub use object::{Kind, ObjectRef};
pub use object_labels::KubeLabels;
pub use objects::{
    Backend, ContainerPort, EndpointSlice, InternalTraffic, Namespace, Node, Object, Pod, Service,
    ServicePort, SliceEndpoint, SlicePort, TargetPort,
};
pub use workload::Workload;
