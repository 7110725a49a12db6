//! The `k8s` parser as the `store` and the `server` want it: the two rooms do not know each other.

use std::sync::Arc;

use crate::k8s::{self, ParseOptions};
use crate::model::ObjectRef;
use crate::store::objects::{ManifestParser, Parsed, ParsedObject, Place, Problem};

/// Parses with fixed options.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    pub options: ParseOptions,
}

fn problem(problem: &k8s::Problem) -> Problem {
    Problem {
        object: problem.object.clone(),
        line: (problem.position.line > 0).then_some(problem.position.line),
        column: (problem.position.column > 0).then_some(problem.position.column),
        path: (!problem.field_path.is_empty()).then(|| problem.field_path.clone()),
        message: problem.message.clone(),
    }
}

impl ManifestParser for Manifests {
    fn parse(&self, text: &str) -> Result<Parsed, Vec<Problem>> {
        let manifest = k8s::parse("", text, &self.options);
        if !manifest.is_valid() {
            return Err(manifest.problems.iter().map(problem).collect());
        }
        let texts = documents(text);
        let mut warnings: Vec<Problem> = manifest.warnings().map(problem).collect();
        warnings.extend(manifest.skipped.iter().map(|note| Problem {
            line: (note.position.line > 0).then_some(note.position.line),
            message: note.message.clone(),
            ..Problem::default()
        }));
        let objects = manifest
            .documents
            .into_iter()
            .map(|document| {
                let line = document.position.line as usize;
                let manifest =
                    texts.iter().rev().find(|(first, _)| *first <= line).map(|(_, text)| Arc::clone(text));
                ParsedObject {
                    manifest: manifest.unwrap_or_else(|| text.into()),
                    resource: document.resource,
                }
            })
            .collect();
        Ok(Parsed { objects, warnings })
    }

    fn place(&self, text: &str, object: &ObjectRef, path: &str) -> Option<Place> {
        let manifest = k8s::parse("", text, &self.options);
        let document = manifest.documents.iter().find(|document| document.resource.reference() == *object)?;
        let position = document.locate(path);
        Some(Place { line: position.line, column: position.column })
    }
}

/// The documents of a stream with the line (from 1) on which each begins. A line that starts with
/// `---` at column 1 always begins a document (YAML 1.2, section 9.1.2), also inside a block scalar.
fn documents(text: &str) -> Vec<(usize, Arc<str>)> {
    let mut found: Vec<(usize, Arc<str>)> = Vec::new();
    let (mut first, mut begin, mut offset) = (1, 0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker {
            found.push((first, Arc::from(&text[begin..offset])));
            (first, begin) = (index + 1, offset);
        }
        offset += line.len();
    }
    found.push((first, Arc::from(&text[begin..])));
    found.retain(|(_, text)| !text.trim().is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# first\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";

    #[test]
    fn each_object_keeps_the_text_that_was_written() {
        let parsed = Manifests::default().parse(TWO).unwrap();
        let texts: Vec<_> = parsed.objects.iter().map(|object| object.manifest.trim_end()).collect();
        assert!(texts[0].starts_with("# first") && texts[0].ends_with("{name: a}"), "{texts:?}");
        assert!(texts[1].starts_with("---") && texts[1].ends_with("{name: b}"), "{texts:?}");
        for (object, text) in parsed.objects.iter().zip(texts) {
            let again = Manifests::default().parse(text).unwrap();
            assert_eq!(again.objects[0].resource, object.resource);
        }
    }

    #[test]
    fn a_field_of_an_object_is_found_in_the_text() {
        let object = ObjectRef::new(crate::model::Kind::Namespace, "", "b");
        let place = |path| Manifests::default().place(TWO, &object, path);
        assert_eq!(place("metadata.name"), Some(Place { line: 8, column: 12 }));
        assert_eq!(place("spec.nothing"), Some(Place { line: 6, column: 1 }));
        let absent = ObjectRef::new(crate::model::Kind::Namespace, "", "c");
        assert_eq!(Manifests::default().place(TWO, &absent, ""), None);
    }

    #[test]
    fn a_problem_has_its_place() {
        let problems =
            Manifests::default().parse("apiVersion: v1\nkind: Namespace\nmetadata: {nam: a}\n").unwrap_err();
        assert!(problems.iter().any(|problem| problem.line == Some(3)), "{problems:?}");
    }
}
