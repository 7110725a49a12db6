//! What a view says about a change, as a problem of the text that holds the change.

use std::collections::BTreeSet;

use super::objects::{ManifestParser, Problem};
use crate::cluster::{Change, Resource, View, ViewError};
use crate::model::ObjectRef;

impl Problem {
    /// The refusal with its object and field path, and the place of that field if `text` holds the object.
    pub fn of_view(error: &ViewError, parser: &dyn ManifestParser, text: &str) -> Problem {
        let culprit = match error {
            ViewError::Capacity(error) => error.culprit(),
            // These say themselves which object they are about.
            _ => None,
        };
        let path = culprit.map(|culprit| culprit.path.to_string());
        let place =
            error.object().and_then(|object| parser.place(text, object, path.as_deref().unwrap_or("")));
        Problem {
            object: culprit.map(|culprit| culprit.object.to_string()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            path,
            message: error.to_string(),
        }
    }
    /// Warnings about changes that a view has taken in: policies whose L7 rules are too large for the proxies together with
    /// what was there, each at the first of its rules, and at the place of that if `text` holds it.
    pub fn of_crowds(
        view: &mut View,
        changes: &[Change],
        parser: &dyn ManifestParser,
        text: &str,
    ) -> Vec<Problem> {
        let changed: Vec<ObjectRef> = changes.iter().filter_map(policy).collect();
        let mut found: Vec<Problem> = Vec::new();
        for misfit in view.l7_misfits(&changed) {
            let Some((object, path)) = misfit.rules.iter().find(|(object, _)| changed.contains(object))
            else {
                continue;
            };
            let others: BTreeSet<String> = (misfit.rules.iter())
                .filter(|(other, _)| other != object)
                .map(|(other, _)| other.to_string())
                .collect();
            let with = match others.is_empty() {
                true => "its other rules".to_owned(),
                false => others.into_iter().collect::<Vec<_>>().join(", "),
            };
            let message = format!(
                "{}, port {}: nothing passes at pods that it selects, because {}: together with {with}",
                misfit.direction, misfit.port.first, misfit.problem
            );
            let is_same = |known: &Problem| {
                known.message == message
                    && known.path.as_deref() == Some(&**path)
                    && known.object == Some(object.to_string())
            };
            if found.iter().any(is_same) {
                continue;
            }
            let place = parser.place(text, object, path);
            found.push(Problem {
                object: Some(object.to_string()),
                line: place.map(|place| place.line),
                column: place.map(|place| place.column),
                path: Some(path.to_string()),
                message,
            });
        }
        found
    }
}

/// The policy that comes or changes.
fn policy(change: &Change) -> Option<ObjectRef> {
    match change {
        Change::Upsert(resource @ Resource::Policy(_)) => Some(resource.reference()),
        Change::Upsert(_) | Change::Delete(_) => None,
    }
}
