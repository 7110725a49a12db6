//! Where the proxies admit nothing, in words for operators: rules of several policies that are too large together
//! ([`fit`]). Reads a document for the proxies; changes nothing.

use std::collections::BTreeSet;

use crate::model::ObjectRef;
use crate::policy::l7::fit;
use crate::policy::l7::snapshot::Snapshot;

/// Rules of several objects that are too large together: the proxies admit nothing where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedMisfit {
    pub objects: BTreeSet<ObjectRef>,
    /// Where, why, and by which objects.
    pub text: String,
}

/// Of everything that the document holds.
pub(super) fn misfits(snapshot: &Snapshot) -> Vec<FeedMisfit> {
    let found = fit::misfits(&snapshot.sides).into_iter().map(|misfit| {
        let pods = snapshot.endpoints.values().filter(|endpoint| endpoint.identity == misfit.subject);
        let pods: BTreeSet<&str> = pods.map(|endpoint| &*endpoint.pod).collect();
        let objects: Vec<String> = misfit.objects.iter().map(ObjectRef::to_string).collect();
        let text = format!(
            "{} of {}, port {}: nothing passes, because {} ({})",
            misfit.direction,
            pods.into_iter().next().unwrap_or("a pod"),
            misfit.port.first,
            misfit.problem,
            objects.join(", ")
        );
        FeedMisfit { objects: misfit.objects, text }
    });
    found.collect()
}
