//! Text patterns of filters, each bounded when it is parsed: whoever may ask for flows may not make the
//! agent slow or large.

use std::fmt;

/// Longest pattern in bytes.
pub const LONGEST: usize = 1024;
/// What one compiled regular expression may take.
const REGEX_BYTES: usize = 512 * 1024;

/// A pattern that is not understood, or costs too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern is empty")]
    Empty,
    #[error("the pattern is longer than {LONGEST} bytes")]
    TooLong,
    #[error("{0}")]
    Syntax(String),
}

fn bounded(text: &str) -> Result<&str, PatternError> {
    if text.len() > LONGEST { Err(PatternError::TooLong) } else { Ok(text) }
}

/// A regular expression that is searched for (it has to be anchored to match the whole).
#[derive(Clone)]
pub struct Regex(regex::Regex);

impl Regex {
    /// Linear time by construction of the engine; the compiled size is limited.
    pub fn parse(text: &str) -> Result<Regex, PatternError> {
        regex::RegexBuilder::new(bounded(text)?)
            .size_limit(REGEX_BYTES)
            .dfa_size_limit(REGEX_BYTES)
            .nest_limit(32)
            .build()
            .map(Regex)
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => {
                    PatternError::Syntax("the regular expression is too large".into())
                }
                other => PatternError::Syntax(
                    other.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" "),
                ),
            })
    }

    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0.as_str())
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Regex) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Regex {}

/// A name in which `*` stands for any characters, lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    pub fn parse(text: &str) -> Result<Glob, PatternError> {
        let text = bounded(text)?.trim();
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.*".contains(*c))) {
            _ if text.is_empty() => Err(PatternError::Empty),
            Some(odd) => Err(PatternError::Syntax(format!("{odd:?} is in no name"))),
            None if text.ends_with('.') => Err(PatternError::Syntax("more than one dot at the end".into())),
            None => Ok(Glob(text)),
        }
    }

    /// The name itself, if the pattern has no `*`.
    pub fn literal(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }

    /// Compares without regard to case and a trailing dot.
    pub fn is_match(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        let pattern = self.0.as_bytes();
        // The last star that was passed, and how much of the name it has taken.
        let (mut p, mut n, mut star) = (0, 0, None);
        while n < name.len() {
            if pattern.get(p) == Some(&b'*') {
                star = Some((p, n));
                p += 1;
            } else if pattern.get(p) == Some(&name[n].to_ascii_lowercase()) {
                (p, n) = (p + 1, n + 1);
            } else if let Some((at, taken)) = star {
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            } else {
                return false;
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

/// `ns/` (a namespace), `ns/prefix`, or a prefix in any namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    pub namespace: Option<String>,
    pub prefix: String,
}

impl NamePattern {
    /// A name without a namespace is one of any namespace; so is `/prefix`.
    pub fn parse(text: &str) -> NamePattern {
        match text.split_once('/') {
            Some(("", prefix)) => NamePattern { namespace: None, prefix: prefix.to_owned() },
            Some((namespace, prefix)) => {
                NamePattern { namespace: Some(namespace.to_owned()), prefix: prefix.to_owned() }
            }
            None => NamePattern { namespace: None, prefix: text.to_owned() },
        }
    }

    pub fn is_match(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace) && name.starts_with(&self.prefix)
    }
}

/// An HTTP status: one code, or the codes that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusMatch {
    Code(u16),
    /// `5+`, `40+`.
    Prefix(String),
}

impl StatusMatch {
    pub fn parse(text: &str) -> Result<StatusMatch, PatternError> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let first = |text: &str| text.starts_with(['1', '2', '3', '4', '5']);
        match text.strip_suffix('+') {
            Some(prefix) if (1..=2).contains(&prefix.len()) && digits(prefix) && first(prefix) => {
                Ok(StatusMatch::Prefix(prefix.to_owned()))
            }
            None if text.len() == 3 && digits(text) && first(text) => {
                text.parse().map(StatusMatch::Code).map_err(|_| PatternError::Empty)
            }
            _ => Err(PatternError::Syntax("expected a status such as 404, or a prefix such as 5+".into())),
        }
    }

    pub fn is_match(&self, status: u16) -> bool {
        match self {
            StatusMatch::Code(code) => *code == status,
            StatusMatch::Prefix(prefix) => format!("{status:03}").starts_with(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, matches) in [
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcdef", false),
            ("Node*", "node17.", true),
            ("*", "", true),
            ("a", "ab", false),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().is_match(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_stay_cheap() {
        let glob = Glob::parse(&"*a".repeat(500)).unwrap();
        assert!(!glob.is_match(&"a".repeat(499)));
        assert!(!glob.is_match(&format!("{}b", "a".repeat(5_000))));
    }

    #[test]
    fn what_costs_too_much_is_refused() {
        for text in
            ["(a{1000}){1000}", "((((((((((((((((((((((((((((((((((a))))))))))))))))))))))))))))))))))", "("]
        {
            assert!(matches!(Regex::parse(text), Err(PatternError::Syntax(_))), "{text}");
        }
        assert_eq!(Regex::parse(&"a".repeat(LONGEST + 1)), Err(PatternError::TooLong));
        assert!(Regex::parse(r"^/api/v\d+").unwrap().is_match("/api/v2/x"));
    }

    #[test]
    fn statuses_are_codes_or_prefixes() {
        assert!(StatusMatch::parse("5+").unwrap().is_match(503));
        assert!(StatusMatch::parse("40+").unwrap().is_match(404));
        assert!(!StatusMatch::parse("404").unwrap().is_match(405));
        for bad in ["", "6+", "40", "4040", "x", "+", "600"] {
            assert!(StatusMatch::parse(bad).is_err(), "{bad}");
        }
    }
}
