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

/// Many patterns, each with a value; a lookup costs a hash and the patterns with wildcards.
#[derive(Clone, Debug)]
pub struct NameSet<V> {
    names: HashMap<Arc<str>, Vec<V>>,
    patterns: Vec<(Arc<str>, V)>,
}

impl<V> FromIterator<(DnsPattern, V)> for NameSet<V> {
    fn from_iter<I: IntoIterator<Item = (DnsPattern, V)>>(entries: I) -> NameSet<V> {
        let mut set = NameSet { names: HashMap::new(), patterns: Vec::new() };
        for (pattern, value) in entries {
            match pattern {
                DnsPattern::Name(name) => set.names.entry(name).or_default().push(value),
                DnsPattern::Pattern(pattern) => set.patterns.push((pattern, value)),
            }
        }
        set
    }
}

impl<V> NameSet<V> {
    /// The values of everything that matches `name`, which is canonical.
    pub fn lookup<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a V> {
        let exact = self.names.get(name).into_iter().flatten();
        let wild = self.patterns.iter().filter(move |(pattern, _)| pattern_matches(pattern, name));
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

    proptest! {
        #[test]
        fn globs_agree_with_a_regular_expression(pattern in "[a*.]{1,6}", name in "[ab.]{0,8}") {
            let expression = format!("^{}$", pattern.replace('.', "\\.").replace('*', "[^.]*"));
            let expected = regex::Regex::new(&expression).unwrap().is_match(&name);
            prop_assert_eq!(glob(&pattern, &name), expected);
        }
    }
}
