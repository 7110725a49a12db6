//! What a view says about a change, as a problem of the text that holds the change.

use super::objects::{ManifestParser, Problem};
use crate::cluster::ViewError;

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
}
