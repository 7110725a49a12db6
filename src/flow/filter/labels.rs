//! Label selectors as people type them: `app=web,tier!=db,env in (prod, test),!canary`.
//!
//! A key may have a source before a colon (`k8s:app`); without one, or with `any`, every source fits. As in
//! Kubernetes, `!=` and `notin` also select what does not have the key.

use super::text::{LONGEST, PatternError};
use crate::model::Labels;

/// Values of one `in` list and requirements of one selector.
const MOST: usize = 64;

/// All requirements have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    source: Option<String>,
    key: String,
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

fn syntax(message: impl Into<String>) -> PatternError {
    PatternError::Syntax(message.into())
}

impl LabelSelector {
    pub fn parse(text: &str) -> Result<LabelSelector, PatternError> {
        if text.len() > LONGEST {
            return Err(PatternError::TooLong);
        }
        let requirements: Vec<_> =
            split(text)?.into_iter().map(Requirement::parse).collect::<Result<_, _>>()?;
        match requirements.len() {
            0 => Err(PatternError::Empty),
            1..=MOST => Ok(LabelSelector(requirements)),
            _ => Err(syntax(format!("more than {MOST} requirements"))),
        }
    }

    pub fn is_match(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels))
    }
}

/// At commas that are not in parentheses.
fn split(text: &str) -> Result<Vec<&str>, PatternError> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or_else(|| syntax("a parenthesis too many"))?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(syntax("a parenthesis is not closed"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

impl Requirement {
    fn parse(text: &str) -> Result<Requirement, PatternError> {
        let text = text.trim();
        if let Some(key) = text.strip_prefix('!') {
            return Requirement::new(key, Wanted::Absent);
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Requirement::new(key, Wanted::NotIn(vec![value.trim().to_owned()]));
        }
        if let Some((key, value)) = text.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value).trim();
            return Requirement::new(key, Wanted::In(vec![value.to_owned()]));
        }
        let Some((head, list)) = text.split_once('(') else {
            return Requirement::new(text, Wanted::Exists);
        };
        let list = list.trim().strip_suffix(')').ok_or_else(|| syntax("text after a list"))?;
        let values: Vec<String> = list.split(',').map(|value| value.trim().to_owned()).collect();
        if values.len() > MOST {
            return Err(syntax(format!("more than {MOST} values")));
        }
        match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => Requirement::new(key, Wanted::In(values)),
            Some((key, "notin")) => Requirement::new(key, Wanted::NotIn(values)),
            _ => Err(syntax("expected KEY in (...) or KEY notin (...)")),
        }
    }

    fn new(key: &str, wanted: Wanted) -> Result<Requirement, PatternError> {
        let key = key.trim();
        let (source, key) = match key.split_once(':') {
            Some(("any", key)) => (None, key),
            Some((source, key)) => (Some(source.to_owned()), key),
            None => (None, key),
        };
        if key.is_empty() {
            return Err(syntax("a key is missing"));
        }
        if key.contains(|c: char| c.is_whitespace() || "()!=".contains(c)) {
            return Err(syntax(format!("{key:?} is no label key")));
        }
        Ok(Requirement { source, key: key.to_owned(), wanted })
    }

    fn is_met(&self, labels: &Labels) -> bool {
        let mut values = labels.iter().filter(|label| {
            *label.key == *self.key
                && self.source.as_ref().is_none_or(|source| label.source.to_string() == *source)
        });
        match &self.wanted {
            Wanted::Exists => values.next().is_some(),
            Wanted::Absent => values.next().is_none(),
            Wanted::In(wanted) => values.any(|label| wanted.iter().any(|value| **value == *label.value)),
            Wanted::NotIn(wanted) => !values.any(|label| wanted.iter().any(|value| **value == *label.value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Label;

    #[test]
    fn selectors_mean_what_kubernetes_means() {
        let labels: Labels = [Label::k8s("app", "web"), Label::k8s("tier", "front")].into_iter().collect();
        for (text, matches) in [
            ("app=web", true),
            ("app==web", true),
            ("k8s:app=web", true),
            ("any:app=web", true),
            ("reserved:app", false),
            ("app", true),
            ("!app", false),
            ("!canary", true),
            ("app!=db", true),
            ("canary!=yes", true),
            ("app in (web, db),tier", true),
            ("app notin (web,db)", false),
            ("canary in (a)", false),
            ("app=web,tier=back", false),
            ("reserved:world", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().is_match(&labels), matches, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["", ",", "app in (a", "app)", "app in (a) b", "app of (a)", "=x", "a b=c", "!"] {
            assert!(LabelSelector::parse(text).is_err(), "{text:?}");
        }
    }
}
