//! DNS names and the patterns that match them: DNS rules, `toFQDNs` and `serverNames`.
//!
//! Contract (policy semantics, section 6): `*` stands for zero or more characters other than a
//! dot; a leading `**.` for one or more whole labels; `*` or `**` alone for every name. Case and one
//! trailing dot do not matter. Patterns are canonical already ([`DnsPattern`]).

use std::collections::HashMap;
use std::sync::Arc;

use super::DnsPattern;

/// A name as it is compared: lower case, without its trailing dot.
pub fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The same of a shared name, which stays the same where it is canonical already.
pub fn canonical_shared(name: &Arc<str>) -> Arc<str> {
    match name.ends_with('.') || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => canonical(name).into(),
        false => Arc::clone(name),
    }
}

impl DnsPattern {
    /// `name` is canonical ([`canonical`]).
    pub fn matches(&self, name: &str) -> bool {
        match self {
            DnsPattern::Name(wanted) => **wanted == *name,
            DnsPattern::Pattern(pattern) => pattern_matches(pattern, name),
        }
    }
}

fn pattern_matches(pattern: &str, name: &str) -> bool {
    if matches!(pattern, "*" | "**") {
        return true;
    }
    match pattern.strip_prefix("**.") {
        // One or more labels: every tail of the name that starts behind a dot is a candidate.
        Some(rest) => name
            .match_indices('.')
            .any(|(dot, _)| !has_empty_label(&name[..dot]) && glob(rest, &name[dot + 1..])),
        None => !has_empty_label(name) && glob(pattern, name),
    }
}

fn has_empty_label(name: &str) -> bool {
    name.split('.').any(str::is_empty)
}

/// `*` is zero or more characters other than a dot. Linear in practice: one point to go back to
/// is enough, because a later star makes earlier ones irrelevant.
fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p + 1, n));
            p += 1;
        } else if n < name.len() && p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if n == name.len() && p == pattern.len() {
            return true;
        } else {
            match retry {
                Some((after, from)) if from < name.len() && name[from] != b'.' => {
                    retry = Some((after, from + 1));
                    p = after;
                    n = from + 1;
                }
                _ => return false,
            }
        }
    }
}

/// The last whole labels of a pattern that have no star: all names that it matches end with them. Empty where a star is in
/// the last label.
fn fixed_tail(pattern: &str) -> &str {
    let behind_stars = pattern.rsplit('*').next().unwrap_or(pattern);
    behind_stars.split_once('.').map_or("", |(_, labels)| labels)
}

/// Many patterns, each with a value; a lookup costs a hash for each label of the name, and the patterns that end as it does.
#[derive(Clone, Debug)]
pub struct NameSet<V> {
    names: HashMap<Arc<str>, Vec<V>>,
    /// By [`fixed_tail`].
    patterns: HashMap<Arc<str>, Vec<(Arc<str>, V)>>,
}

impl<V> Default for NameSet<V> {
    fn default() -> NameSet<V> {
        NameSet { names: HashMap::new(), patterns: HashMap::new() }
    }
}

impl<V> FromIterator<(DnsPattern, V)> for NameSet<V> {
    fn from_iter<I: IntoIterator<Item = (DnsPattern, V)>>(entries: I) -> NameSet<V> {
        let mut set = NameSet::default();
        entries.into_iter().for_each(|(pattern, value)| set.insert(pattern, value));
        set
    }
}

impl<V> NameSet<V> {
    pub fn insert(&mut self, pattern: DnsPattern, value: V) {
        match pattern {
            DnsPattern::Name(name) => self.names.entry(name).or_default().push(value),
            DnsPattern::Pattern(pattern) => {
                let tail = fixed_tail(&pattern);
                match self.patterns.get_mut(tail) {
                    Some(known) => known.push((pattern, value)),
                    None => {
                        self.patterns.insert(tail.into(), vec![(pattern, value)]);
                    }
                }
            }
        }
    }

    /// Takes out a pattern with all of its values.
    pub fn remove(&mut self, pattern: &DnsPattern) {
        match pattern {
            DnsPattern::Name(name) => {
                self.names.remove(name);
            }
            DnsPattern::Pattern(pattern) => {
                let tail = fixed_tail(pattern);
                if let Some(known) = self.patterns.get_mut(tail) {
                    known.retain(|(other, _)| other != pattern);
                    if known.is_empty() {
                        self.patterns.remove(tail);
                    }
                }
            }
        }
    }

    /// The values of everything that matches `name`, which is canonical.
    pub fn lookup<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a V> {
        let exact = self.names.get(name).into_iter().flatten();
        // A star stands for something before a dot, or is in the last label: the whole name is nobody's tail.
        let tails =
            name.match_indices('.').map(move |(dot, _)| &name[dot + 1..]).filter(|tail| !tail.is_empty());
        let wild = tails
            .chain([""])
            .filter_map(|tail| self.patterns.get(tail))
            .flatten()
            .filter(move |(pattern, _)| pattern_matches(pattern, name));
        exact.chain(wild.map(|(_, value)| value))
    }

    /// Something matches `name`, which is canonical.
    pub fn contains(&self, name: &str) -> bool {
        self.lookup(name).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        DnsPattern::Pattern(pattern.into()).matches(name)
    }

    #[test]
    fn a_star_stays_inside_its_label() {
        for (pattern, name, expected) in [
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "a.example.com.evil", false),
            ("part*ial.example.com", "partial.example.com", true),
            ("part*ial.example.com", "part-x-ial.example.com", true),
            ("part*ial.example.com", "part.ial.example.com", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*a*", "bab", true),
            ("*.*.com", "a.b.com", true),
            ("*.*.com", "a.com", false),
            ("x.*", "x.com", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn two_leading_stars_are_one_or_more_labels() {
        assert!(matches("**.corp.example", "a.corp.example"));
        assert!(matches("**.corp.example", "a.b.corp.example"));
        assert!(!matches("**.corp.example", "corp.example"));
        assert!(!matches("**.corp.example", "notcorp.example"));
        assert!(!matches("**.corp.example", ".corp.example"));
        assert!(matches("**.a*.example", "x.y.ab.example"));
    }

    #[test]
    fn a_lone_star_is_every_name() {
        for pattern in ["*", "**"] {
            assert!(matches(pattern, "a.b.c") && matches(pattern, "localhost"));
        }
    }

    #[test]
    fn a_set_finds_what_its_patterns_match() {
        let set: NameSet<u8> = [
            (DnsPattern::Name("a.example".into()), 1),
            (DnsPattern::Pattern("*.example".into()), 2),
            (DnsPattern::Name("a.example".into()), 3),
        ]
        .into_iter()
        .collect();
        assert_eq!(set.lookup("a.example").copied().collect::<Vec<_>>(), [1, 3, 2]);
        assert!(set.contains("b.example") && !set.contains("b.c.example"));
        assert!(set.contains(&canonical("B.Example.")));
    }

    #[test]
    fn a_pattern_that_was_taken_out_is_not_found() {
        let [name, wild] = [DnsPattern::Name("a.example".into()), DnsPattern::Pattern("*.example".into())];
        let mut set: NameSet<u8> = [(name.clone(), 1), (wild.clone(), 2)].into_iter().collect();
        set.remove(&name);
        assert_eq!(set.lookup("a.example").copied().collect::<Vec<_>>(), [2]);
        set.remove(&wild);
        assert!(!set.contains("a.example") && set.patterns.is_empty() && set.names.is_empty());
    }

    proptest! {
        #[test]
        fn a_set_finds_what_each_pattern_says(
            patterns in proptest::collection::vec("(\\*\\*\\.)?[ab*.]{1,6}", 0..6),
            name in "[ab.]{0,8}",
        ) {
            let set: NameSet<usize> =
                patterns.iter().map(|text| DnsPattern::Pattern(text.as_str().into())).zip(0..).collect();
            let mut found: Vec<usize> = set.lookup(&name).copied().collect();
            found.sort_unstable();
            let expected: Vec<usize> =
                (0..patterns.len()).filter(|at| pattern_matches(&patterns[*at], &name)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn globs_agree_with_a_regular_expression(pattern in "[a*.]{1,6}", name in "[ab.]{0,8}") {
            let expression = format!("^{}$", pattern.replace('.', "\\.").replace('*', "[^.]*"));
            let expected = regex::Regex::new(&expression).unwrap().is_match(&name);
            prop_assert_eq!(glob(&pattern, &name), expected);
        }
    }
}
