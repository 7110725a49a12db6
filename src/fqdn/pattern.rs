//! `matchName` and `matchPattern`: text -> canonical form. Matching is `policy::l7::names`.
//!
//! What the policy semantics leave open: three and more stars at the front are one star, the
//! narrower reading; a pattern without a star is a name.

use crate::policy::l7::DnsPattern;

/// Longest name in text form (RFC 1035, section 2.3.4), without a trailing dot.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Why a text is no name or pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsPatternError {
    #[error("it is empty")]
    Empty,
    #[error("it has more than {MAX_NAME} characters")]
    TooLong,
    #[error(
        "{0:?} is not allowed: names hold a-z, A-Z, 0-9, '-', '_' and '.' (other scripts in their xn-- form)"
    )]
    Character(char),
    #[error("a name holds no '*': use matchPattern")]
    Star,
    #[error("two dots follow each other, or one begins it: a label is empty")]
    EmptyLabel,
    #[error("a label has more than {MAX_LABEL} characters")]
    LongLabel,
}

impl DnsPattern {
    /// `matchName`: an exact name.
    pub fn parse_name(text: &str) -> Result<DnsPattern, DnsPatternError> {
        if text.contains('*') {
            return Err(DnsPatternError::Star);
        }
        canonical(text).map(|name| DnsPattern::Name(name.into()))
    }

    /// `matchPattern`: a name with stars.
    pub fn parse_pattern(text: &str) -> Result<DnsPattern, DnsPatternError> {
        let text = canonical(text)?;
        if !text.contains('*') {
            return Ok(DnsPattern::Name(text.into()));
        }
        let pattern = match text.strip_prefix("**.") {
            Some(rest) if !rest.is_empty() => format!("**.{}", collapse_stars(rest)),
            _ => collapse_stars(&text),
        };
        Ok(DnsPattern::Pattern(pattern.into()))
    }
}

/// Lower case without the trailing dot, every character and length checked.
fn canonical(text: &str) -> Result<String, DnsPatternError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() {
        return Err(DnsPatternError::Empty);
    }
    if let Some(other) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.*".contains(*c)) {
        return Err(DnsPatternError::Character(other));
    }
    if text.len() > MAX_NAME {
        return Err(DnsPatternError::TooLong);
    }
    if text.split('.').any(str::is_empty) {
        return Err(DnsPatternError::EmptyLabel);
    }
    if text.split('.').any(|label| label.len() > MAX_LABEL) {
        return Err(DnsPatternError::LongLabel);
    }
    Ok(text.to_ascii_lowercase())
}

/// Neighbouring stars become one.
fn collapse_stars(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '*' || !collapsed.ends_with('*') {
            collapsed.push(c);
        }
    }
    collapsed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> DnsPattern {
        DnsPattern::parse_pattern(text).unwrap()
    }

    fn text_of(pattern: &DnsPattern) -> String {
        crate::fqdn::pattern_text(pattern).to_string()
    }

    fn matches(pattern: &DnsPattern, name: &str) -> bool {
        pattern.matches(&crate::policy::l7::names::canonical(name))
    }

    fn check(text: &str, hits: &[&str], misses: &[&str]) {
        for name in hits {
            assert!(matches(&pattern(text), name), "{text} should match {name}");
        }
        for name in misses {
            assert!(!matches(&pattern(text), name), "{text} should not match {name}");
        }
    }

    #[test]
    fn a_star_stays_inside_one_label() {
        check(
            "*.example.com",
            &["a.example.com", "A.Example.COM.", "xn--bcher-kva.example.com"],
            &["example.com", "a.b.example.com", ".example.com", "aexample.com", "a.example.com.evil.org"],
        );
        check(
            "part*ial.example.com",
            &["partial.example.com", "part-x-ial.example.com"],
            &["part.ial.example.com"],
        );
        check("a*b*c.x", &["abc.x", "a1b2c.x", "abcbc.x"], &["ac.x", "ab.x"]);
    }

    #[test]
    fn leading_double_star_is_one_or_more_labels() {
        check("**.example.com", &["a.example.com", "a.b.c.example.com"], &["example.com", "a.example.org"]);
        check("**.s3*.example.com", &["a.s3.example.com", "a.b.s3-eu.example.com"], &["s3.example.com"]);
    }

    #[test]
    fn a_lone_star_is_every_name() {
        for text in ["*", "**", "*."] {
            check(text, &["a", "a.b.c", "."], &[]);
        }
    }

    #[test]
    fn neighbouring_stars_collapse() {
        assert_eq!(&*text_of(&pattern("a**b.example.com")), "a*b.example.com");
        assert_eq!(&*text_of(&pattern("***.example.com")), "*.example.com");
        assert_eq!(&*text_of(&pattern("**.a**.example.com")), "**.a*.example.com");
        assert_eq!(text_of(&pattern("**")), text_of(&pattern("*")));
    }

    #[test]
    fn names_are_exact_lower_case_and_without_trailing_dot() {
        let name = DnsPattern::parse_name("API.Example.com.").unwrap();
        assert_eq!(name, DnsPattern::Name("api.example.com".into()));
        assert_eq!(pattern("api.example.com"), name);
        assert!(matches(&name, "api.EXAMPLE.com."));
        assert!(!matches(&name, "x.api.example.com"));
    }

    #[test]
    fn other_characters_are_errors() {
        assert_eq!(DnsPattern::parse_name("*.example.com"), Err(DnsPatternError::Star));
        assert_eq!(DnsPattern::parse_name(""), Err(DnsPatternError::Empty));
        assert_eq!(DnsPattern::parse_pattern("."), Err(DnsPatternError::Empty));
        assert_eq!(DnsPattern::parse_pattern("bücher.example"), Err(DnsPatternError::Character('ü')));
        assert_eq!(DnsPattern::parse_pattern("a b"), Err(DnsPatternError::Character(' ')));
        assert_eq!(DnsPattern::parse_pattern("a..b"), Err(DnsPatternError::EmptyLabel));
        assert_eq!(DnsPattern::parse_name(&"a".repeat(64)), Err(DnsPatternError::LongLabel));
        assert_eq!(
            DnsPattern::parse_name(&"a.".repeat(127)),
            Ok(DnsPattern::Name("a.".repeat(127)[..253].into()))
        );
        assert_eq!(DnsPattern::parse_name(&"a.".repeat(128)), Err(DnsPatternError::TooLong));
    }

    proptest! {
        /// The matcher says what a regular expression written from the semantics says.
        #[test]
        fn agrees_with_a_regular_expression(
            text in r"(\*\*\.)?[ab*]{1,4}(\.[ab*]{1,3}){0,2}",
            name in r"[abAB]{1,3}(\.[ab]{1,3}){0,3}\.?",
        ) {
            let parsed = pattern(&text);
            let expression = match &*text_of(&parsed) {
                "*" => ".*".to_owned(),
                other => {
                    let (front, rest) = match other.strip_prefix("**.") {
                        Some(rest) => (r"([^.]+\.)+", rest),
                        None => ("", other),
                    };
                    format!("{front}{}", rest.replace('.', r"\.").replace('*', "[^.]*"))
                }
            };
            let oracle = regex::Regex::new(&format!(r"(?i)^{expression}$")).unwrap();
            let plain = name.strip_suffix('.').unwrap_or(&name);
            prop_assert_eq!(matches(&parsed, &name), oracle.is_match(plain), "{} {}", text, name);
        }

        #[test]
        fn parsing_never_panics_and_is_idempotent(text in ".{0,40}") {
            if let Ok(parsed) = DnsPattern::parse_pattern(&text) {
                prop_assert_eq!(DnsPattern::parse_pattern(&text_of(&parsed)), Ok(parsed.clone()));
            }
        }
    }
}
