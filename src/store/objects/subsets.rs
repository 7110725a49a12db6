//! `v1` Endpoints, which are kept as EndpointSlices: one for each subset.
//!
//! Contract: after Endpoints were applied, the slices of that name are those of the new text, however many there were
//! before; deleting Endpoints deletes all of them. Slices that an earlier release named otherwise count, too, as long as
//! the text that they are stored with shows that they were made of Endpoints.

use std::collections::{BTreeMap, BTreeSet};

use super::{ObjectStore, ParsedObject, Reader};
use crate::cluster::Resource;
use crate::model::{EndpointSlice, Kind, Object, ObjectRef};
use crate::store::error::StoreError;
use crate::store::rows::StoredObject;

impl ObjectStore {
    /// The stored object that is this one under the name that an earlier release gave it.
    pub(super) fn former(
        &self,
        new: &ObjectRef,
        reader: &Reader<'_>,
    ) -> Result<Option<ObjectRef>, StoreError> {
        match former_name(new) {
            Some(former) => self.if_renamed(former, reader),
            None => Ok(None),
        }
    }

    fn if_renamed(&self, object: ObjectRef, reader: &Reader<'_>) -> Result<Option<ObjectRef>, StoreError> {
        let stored = self.store.object(&object)?;
        Ok(stored.filter(|stored| reader.has_renamed(stored)).map(|_| object))
    }

    /// The stored objects that a reference means.
    pub(super) fn kept_as(
        &self,
        reference: &ObjectRef,
        reader: &Reader<'_>,
    ) -> Result<Vec<ObjectRef>, StoreError> {
        if reference.kind != Kind::Endpoints {
            return Ok(self.store.object(reference)?.into_iter().map(|stored| stored.reference).collect());
        }
        let named = |suffix: &str| {
            let prefix = format!("{}{suffix}", reference.name);
            self.store.objects_named(Kind::EndpointSlice, &reference.namespace, &prefix)
        };
        let mut kept = named(":")?;
        kept.sort_by_key(|slice| EndpointSlice::subset_of(&slice.name).map(|(_, subset)| subset));
        let first = ObjectRef { kind: Kind::EndpointSlice, ..reference.clone() };
        for old in std::iter::once(first).chain(named(".")?) {
            kept.extend(self.if_renamed(old, reader)?);
        }
        Ok(kept)
    }

    /// Stored slices of the Endpoints among these objects that none of the objects is, nor replaces.
    pub(super) fn surplus(
        &self,
        objects: &[ParsedObject],
        reader: &Reader<'_>,
    ) -> Result<Vec<ObjectRef>, StoreError> {
        let given: BTreeSet<ObjectRef> = objects.iter().map(|object| object.resource.reference()).collect();
        let replaced: BTreeSet<ObjectRef> = given.iter().filter_map(former_name).collect();
        let endpoints: BTreeSet<ObjectRef> = given.iter().filter_map(EndpointSlice::made_of).collect();
        let mut surplus = Vec::new();
        for endpoints in endpoints {
            let kept = self.kept_as(&endpoints, reader)?;
            surplus
                .extend(kept.into_iter().filter(|slice| !given.contains(slice) && !replaced.contains(slice)));
        }
        Ok(surplus)
    }
}

/// The name that an earlier release gave to a slice of `v1` Endpoints. Another slice could have it, too.
fn former_name(slice: &ObjectRef) -> Option<ObjectRef> {
    let (endpoints, subset) = EndpointSlice::subset_of(&slice.name)?;
    let name = if subset == 1 { endpoints.to_owned() } else { format!("{endpoints}.{subset}") };
    (slice.kind == Kind::EndpointSlice).then(|| ObjectRef { name: name.into(), ..slice.clone() })
}

impl Reader<'_> {
    /// Whether the object's text holds it under another name than it is stored by.
    fn has_renamed(&self, object: &StoredObject) -> bool {
        self.parser.parse(&object.manifest).is_ok_and(|parsed| {
            let mut names = parsed.objects.iter().map(|parsed| parsed.resource.reference());
            names.clone().all(|name| name != object.reference)
                && names.any(|name| former_name(&name).as_ref() == Some(&object.reference))
        })
    }
}

/// The object that an earlier release stored by this name, which it keeps until it is applied again.
pub(super) fn renamed(resources: &BTreeMap<ObjectRef, Resource>, reference: &ObjectRef) -> Option<Resource> {
    let new = resources.keys().find(|new| former_name(new).as_ref() == Some(reference))?;
    let Some(Resource::Object(Object::EndpointSlice(slice))) = resources.get(new) else { return None };
    let slice = EndpointSlice { name: reference.name.to_string(), ..slice.clone() };
    Some(Resource::Object(Object::EndpointSlice(slice)))
}
