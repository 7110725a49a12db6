//! Where the proxies admit nothing, in words for operators: rules of several policies that are too large together
//! ([`fit`]). Reads a document for the proxies; changes nothing.

use std::collections::BTreeSet;

use crate::policy::l7::fit;
use crate::policy::l7::snapshot::Snapshot;

/// Where, why, and by which rules; of everything that the document holds.
pub(super) fn misfits(snapshot: &Snapshot) -> Vec<String> {
    let found = fit::misfits(&snapshot.sides).into_iter().map(|misfit| {
        let pods = snapshot.endpoints.values().filter(|endpoint| endpoint.identity == misfit.subject);
        let pods: BTreeSet<&str> = pods.map(|endpoint| &*endpoint.pod).collect();
        let rules: Vec<String> =
            misfit.rules.iter().map(|(object, path)| format!("{object} {path}")).collect();
        format!(
            "{} of {}, port {}: nothing passes, because {} ({})",
            misfit.direction,
            pods.into_iter().next().unwrap_or("a pod"),
            misfit.port.first,
            misfit.problem,
            rules.join(", ")
        )
    });
    found.collect()
}
