//! What is wrong with a configuration, gathered while values are looked up: people get all of it at once.

use std::str::FromStr;

/// Collects problems while values are looked up.
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn choice<T: Copy>(&mut self, key: &str, value: Option<&str>, choices: &[(&str, T)]) -> T {
        let Some(text) = value else { return choices[0].1 };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, chosen)) => *chosen,
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                self.0.push(format!("{key}: {text:?}: expected one of {}", names.join(", ")));
                choices[0].1
            }
        }
    }

    pub(super) fn list<T: FromStr>(
        &mut self,
        key: &str,
        values: Option<&[String]>,
        expected: &str,
    ) -> Vec<T> {
        let mut parsed = Vec::new();
        for text in values.unwrap_or_default() {
            match text.trim().parse() {
                Ok(value) => parsed.push(value),
                Err(_) => self.0.push(format!("{key}: {text:?}: expected {expected}")),
            }
        }
        parsed
    }
}
