//! A set of HTTP rules, compiled to one matcher.
//!
//! Contract (policy semantics, section 6): `method`, `path` and `host` are regular expressions that
//! must match the whole value; members of a rule are ANDed, rules ORed. The path is the normalised
//! request target, query included ([`super::target`]); the host is the authority as sent. A header
//! that is sent several times is compared as its values joined by commas, as Envoy does, so that
//! a second value never hides behind a first. A header with a `mismatch` action other than `Deny`
//! does not decide whether its rule matches: it says what is forwarded.
//!
//! The cost of a request does not grow with the number of rules: literal expressions are found by
//! a hash, all others run as one automaton. A request whose parts would take too much work is told from one that
//! no rule admits, and is not admitted where a rule that is not known to match may change it.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::edits::HeaderEdit;
use super::expressions::{Expressions, ExpressionsBuilder, Found, Incomplete, SetError};
use super::{HeaderMatch, HeaderValue, HttpRule, Mismatch, fields};

/// The parts of a request that rules look at.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Normalised, query included.
    pub path: &'a str,
    /// `Host` or `:authority` as sent, port included.
    pub host: &'a str,
    /// In the order they were sent; names in any case.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// A rule that admits a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpMatch<'a, V> {
    /// What the caller stored beside the rule.
    pub rule: &'a V,
    pub edits: Vec<HeaderEdit>,
}

/// Where `headerMatches.secret` values come from: namespace, name and key (`None`: the only key).
pub type Secrets<'a> = dyn Fn(&str, &str, Option<&str>) -> Option<Vec<u8>> + 'a;

/// To know which rule admits the request would take too much work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// Compiled rules, each with a value of the caller (usually the `RuleRef` it came from).
#[derive(Debug)]
pub struct HttpRules<V> {
    rules: Vec<Compiled<V>>,
    methods: Expressions,
    hosts: Expressions,
    paths: Expressions,
    /// Rules by their path expression; rules without one.
    by_path: HashMap<usize, Vec<usize>>,
    any_path: Vec<usize>,
    /// Some rule changes or logs a header: then it matters which rule is the first.
    edits: bool,
}

#[derive(Debug)]
struct Compiled<V> {
    value: V,
    method: Option<usize>,
    host: Option<usize>,
    headers: Vec<CompiledHeader>,
}

struct CompiledHeader {
    name: Arc<str>,
    expected: Expected,
    mismatch: Mismatch,
}

impl std::fmt::Debug for CompiledHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", self.name, self.mismatch)
    }
}

enum Expected {
    Present,
    Exactly(Vec<u8>),
    /// A Secret that is not there, or whose value no field can hold: nothing is equal to it.
    Missing,
}

/// The rules, valid each by itself, fit into one set.
///
/// # Errors
/// Their regular expressions are too large together.
pub fn check_size<'r>(rules: impl IntoIterator<Item = &'r HttpRule>) -> Result<(), SetError> {
    let mut builders: [ExpressionsBuilder; 3] = Default::default();
    for rule in rules {
        for (builder, expression) in builders.iter_mut().zip([&rule.method, &rule.path, &rule.host]) {
            if let Some(expression) = expression {
                builder.add(expression);
            }
        }
    }
    builders.iter().try_for_each(ExpressionsBuilder::check_size)
}

impl<V> HttpRules<V> {
    /// Fails on the first expression that does not compile, and where they are too large together.
    pub fn compile<'r>(
        rules: impl IntoIterator<Item = (V, &'r HttpRule)>,
        secrets: &Secrets<'_>,
    ) -> Result<HttpRules<V>, SetError> {
        let mut methods = ExpressionsBuilder::default();
        let mut hosts = ExpressionsBuilder::default();
        let mut paths = ExpressionsBuilder::default();
        let mut by_path: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut any_path = Vec::new();
        let mut compiled = Vec::new();
        for (value, rule) in rules {
            let index = compiled.len();
            match &rule.path {
                Some(path) => by_path.entry(paths.add(path)).or_default().push(index),
                None => any_path.push(index),
            }
            compiled.push(Compiled {
                value,
                method: rule.method.as_deref().map(|text| methods.add(text)),
                host: rule.host.as_deref().map(|text| hosts.add(text)),
                headers: rule.headers.iter().map(|header| CompiledHeader::new(header, secrets)).collect(),
            });
        }
        let edits =
            compiled.iter().flat_map(|rule| &rule.headers).any(|header| header.mismatch != Mismatch::Deny);
        Ok(HttpRules {
            rules: compiled,
            edits,
            methods: methods.build()?,
            hosts: hosts.build()?,
            paths: paths.build()?,
            by_path,
            any_path,
        })
    }

    /// The first rule, in the order of compilation, that admits the request.
    ///
    /// # Errors
    /// There may be one, but which would take too much work.
    pub fn decide(&self, request: &Request<'_>) -> Result<Option<HttpMatch<'_, V>>, TooMuch> {
        let mut complete = Ok(());
        let mut matches = |expressions: &Expressions, text: &str| {
            expressions.matches(text).unwrap_or_else(|Incomplete(found)| {
                complete = Err(TooMuch);
                found
            })
        };
        let mut candidates: SmallVec<[usize; 16]> = self.any_path.iter().copied().collect();
        for path in matches(&self.paths, request.path) {
            candidates.extend(self.by_path.get(&path).into_iter().flatten().copied());
        }
        let (mut methods, mut hosts) = (Found::new(), Found::new());
        if !candidates.is_empty() {
            candidates.sort_unstable();
            methods = matches(&self.methods, request.method);
            hosts = matches(&self.hosts, request.host);
        }
        let first = candidates.into_iter().find_map(|index| {
            let rule = &self.rules[index];
            if rule.method.is_some_and(|method| !methods.contains(&method))
                || rule.host.is_some_and(|host| !hosts.contains(&host))
            {
                return None;
            }
            let mut edits = Vec::new();
            for header in &rule.headers {
                edits.extend(header.judge(request.headers)?);
            }
            Some(HttpMatch { rule: &rule.value, edits })
        });
        // A rule that admits the request does so whatever others say, unless one before it would change it.
        match first {
            Some(found) if !self.edits => Ok(Some(found)),
            first => complete.map(|()| first),
        }
    }
}

impl CompiledHeader {
    fn new(header: &HeaderMatch, secrets: &Secrets<'_>) -> CompiledHeader {
        let expected = match &header.value {
            HeaderValue::Present => Expected::Present,
            HeaderValue::Exact(value) => Expected::Exactly(value.as_bytes().to_vec()),
            HeaderValue::Secret { namespace, name, key } => {
                let secret = secrets(namespace, name, key.as_deref());
                let value = secret.as_deref().and_then(fields::of_secret);
                value.map_or(Expected::Missing, |value| Expected::Exactly(value.to_vec()))
            }
        };
        let mismatch = match header.mismatch {
            // No policy is read that asks for it; a document that another version wrote is no exception.
            Mismatch::Add | Mismatch::Delete | Mismatch::Replace if fields::frames_messages(&header.name) => {
                Mismatch::Deny
            }
            mismatch => mismatch,
        };
        CompiledHeader { name: header.name.clone(), expected, mismatch }
    }

    /// `None`: the rule does not match. Otherwise the edit that the header asks for.
    fn judge(&self, headers: &[(&str, &[u8])]) -> Option<Option<HeaderEdit>> {
        let sent = joined(headers, &self.name);
        let matches = match (&self.expected, &sent) {
            (Expected::Present, sent) => sent.is_some(),
            (Expected::Exactly(value), Some(sent)) => value == sent,
            (Expected::Exactly(_), None) | (Expected::Missing, _) => false,
        };
        if matches {
            return Some(None);
        }
        let name = self.name.clone();
        let value = match &self.expected {
            Expected::Exactly(value) => Some(value.clone()),
            Expected::Present | Expected::Missing => None,
        };
        match self.mismatch {
            Mismatch::Deny => None,
            Mismatch::Log => Some(Some(HeaderEdit::Log { name })),
            Mismatch::Delete => Some(Some(HeaderEdit::Delete { name })),
            // Without a value there is nothing to add; what did not match must still not pass.
            Mismatch::Add => Some(value.map(|value| HeaderEdit::Add { name, value })),
            Mismatch::Replace => Some(Some(match value {
                Some(value) => HeaderEdit::Replace { name, value },
                None => HeaderEdit::Delete { name },
            })),
        }
    }
}

/// All values of a header, joined by commas.
fn joined(headers: &[(&str, &[u8])], name: &str) -> Option<Vec<u8>> {
    let mut values = headers.iter().filter(|(sent, _)| sent.eq_ignore_ascii_case(name));
    let mut out = values.next()?.1.to_vec();
    for (_, value) in values {
        out.push(b',');
        out.extend_from_slice(value);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::expressions::check_expression;
    use super::*;

    fn no_secrets(_: &str, _: &str, _: Option<&str>) -> Option<Vec<u8>> {
        None
    }

    fn rule(method: &str, path: &str) -> HttpRule {
        HttpRule { method: Some(method.into()), path: Some(path.into()), ..HttpRule::default() }
    }

    fn header(name: &str, value: HeaderValue, mismatch: Mismatch) -> HeaderMatch {
        HeaderMatch { name: name.into(), value, mismatch }
    }

    fn decide(rules: &[HttpRule], method: &str, path: &str, headers: &[(&str, &str)]) -> Option<usize> {
        decide_with_edits(rules, method, path, headers).map(|(rule, _)| rule)
    }

    fn decide_with_edits(
        rules: &[HttpRule],
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Option<(usize, Vec<HeaderEdit>)> {
        let compiled = HttpRules::compile(rules.iter().enumerate(), &no_secrets).unwrap();
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let request = Request { method, path, host: "backend:8080", headers: &headers };
        compiled.decide(&request).unwrap().map(|found| (*found.rule, found.edits))
    }

    #[test]
    fn the_whole_value_must_match() {
        let rules = [rule("GET", "/api"), rule("POST|PUT", "/items/.*"), rule("GET", "/v[0-9]+")];
        assert_eq!(decide(&rules, "GET", "/api", &[]), Some(0));
        assert_eq!(decide(&rules, "GET", "/api/x", &[]), None);
        assert_eq!(decide(&rules, "GET", "/api?x=1", &[]), None);
        assert_eq!(decide(&rules, "get", "/api", &[]), None);
        assert_eq!(decide(&rules, "PUT", "/items/7", &[]), Some(1));
        assert_eq!(decide(&rules, "PUTS", "/items/7", &[]), None);
        assert_eq!(decide(&rules, "GET", "/v12", &[]), Some(2));
        assert_eq!(decide(&rules, "GET", "/v12x", &[]), None);
        assert_eq!(decide(&[HttpRule::default()], "BREW", "/anything", &[]), Some(0));
    }

    #[test]
    fn an_alternative_that_is_shorter_does_not_hide_a_longer_one() {
        assert_eq!(decide(&[rule("GET", "/a|/ab")], "GET", "/ab", &[]), Some(0));
    }

    #[test]
    fn a_dot_matches_any_character_and_no_newline_slips_through() {
        assert_eq!(decide(&[rule("GET", "/a.c")], "GET", "/abc", &[]), Some(0));
        assert_eq!(decide(&[rule("GET", "/a")], "GET", "/a\n", &[]), None);
        assert_eq!(decide(&[rule("GET", "/a.*")], "GET", "/a\nb", &[]), None);
    }

    #[test]
    fn the_host_is_matched_with_its_port() {
        let host = |text: &str| HttpRule { host: Some(text.into()), ..HttpRule::default() };
        assert_eq!(decide(&[host("backend:8080")], "GET", "/", &[]), Some(0));
        assert_eq!(decide(&[host("backend")], "GET", "/", &[]), None);
        assert_eq!(decide(&[host("back.*")], "GET", "/", &[]), Some(0));
    }

    #[test]
    fn a_repeated_header_is_compared_as_one_value() {
        let approved = HttpRule {
            headers: vec![header("x-approved", HeaderValue::Exact("yes".into()), Mismatch::Deny)],
            ..HttpRule::default()
        };
        let rules = [approved];
        assert_eq!(decide(&rules, "GET", "/", &[("X-Approved", "yes")]), Some(0));
        assert_eq!(decide(&rules, "GET", "/", &[("X-Approved", "YES")]), None);
        assert_eq!(decide(&rules, "GET", "/", &[]), None);
        assert_eq!(decide(&rules, "GET", "/", &[("X-Approved", "no"), ("x-approved", "yes")]), None);
    }

    #[test]
    fn a_mismatch_action_edits_and_does_not_refuse() {
        let with = |value, mismatch| {
            [HttpRule { headers: vec![header("x-tenant", value, mismatch)], ..HttpRule::default() }]
        };
        let exact = || HeaderValue::Exact("blue".into());
        let sent = [("X-Tenant", "red")];
        let edits = |rules: &[HttpRule]| decide_with_edits(rules, "GET", "/", &sent).unwrap().1;
        let name: Arc<str> = "x-tenant".into();
        assert_eq!(edits(&with(exact(), Mismatch::Log)), [HeaderEdit::Log { name: name.clone() }]);
        assert_eq!(edits(&with(exact(), Mismatch::Delete)), [HeaderEdit::Delete { name: name.clone() }]);
        let value = b"blue".to_vec();
        assert_eq!(
            edits(&with(exact(), Mismatch::Add)),
            [HeaderEdit::Add { name: name.clone(), value: value.clone() }]
        );
        assert_eq!(edits(&with(exact(), Mismatch::Replace)), [HeaderEdit::Replace { name, value }]);
        assert_eq!(decide(&with(exact(), Mismatch::Deny), "GET", "/", &sent), None);
    }

    #[test]
    fn a_secret_that_is_missing_equals_nothing() {
        let secret = HeaderValue::Secret { namespace: "n".into(), name: "s".into(), key: None };
        let rules =
            [HttpRule { headers: vec![header("x-key", secret, Mismatch::Deny)], ..HttpRule::default() }];
        assert_eq!(decide(&rules, "GET", "/", &[("x-key", "")]), None);
        let compiled = HttpRules::compile([((), &rules[0])], &|_, _, _| Some(b"k".to_vec())).unwrap();
        let request = Request { method: "GET", path: "/", host: "", headers: &[("x-key", b"k")] };
        assert!(compiled.decide(&request).unwrap().is_some());
    }

    #[test]
    fn a_secret_cannot_bring_a_header_of_its_own_and_its_last_line_break_is_no_part_of_it() {
        let rules = |name: &str| {
            let secret = HeaderValue::Secret { namespace: "n".into(), name: "s".into(), key: None };
            HttpRule { headers: vec![header(name, secret, Mismatch::Replace)], ..HttpRule::default() }
        };
        let edits = |name: &str, value: &'static [u8]| {
            let rule = rules(name);
            let compiled = HttpRules::compile([((), &rule)], &|_, _, _| Some(value.to_vec())).unwrap();
            let request =
                Request { method: "GET", path: "/", host: "", headers: &[("x-key", b"k"), ("te", b"k")] };
            compiled.decide(&request).unwrap().map(|found| found.edits)
        };
        let name: Arc<str> = "x-key".into();
        let deleted = [HeaderEdit::Delete { name: name.clone() }];
        assert_eq!(edits("x-key", b"v\r\nX-Admin: yes").unwrap(), deleted);
        assert_eq!(edits("x-key", b"v\n").unwrap(), [HeaderEdit::Replace { name, value: b"v".to_vec() }]);
        assert_eq!(edits("x-key", b"k\n").unwrap(), []);
        assert_eq!(edits("te", b"v"), None);
    }

    #[test]
    fn expressions_that_break_out_or_explode_are_errors() {
        for expression in
            ["a)|(?:b", "(", "a{1000}{1000}{1000}", r"\p{Lu}{900}{900}", r"[\pL]{999}", "(?=x)", "(?x)a #"]
        {
            assert!(check_expression(expression).is_err(), "{expression}");
            assert!(
                HttpRules::compile([((), &rule("GET", expression))], &no_secrets).is_err(),
                "{expression}"
            );
        }
    }

    #[test]
    fn what_would_take_too_much_work_hides_no_edit_behind_another_rule() {
        let heavy = (0..100).map(|n| rule("GET", &format!("/.*a[a-z]{{1000}}N{n}")));
        let mut rules: Vec<HttpRule> = heavy.collect();
        rules.push(HttpRule { method: Some("GET".into()), ..HttpRule::default() });
        let long = format!("/{}", "a".repeat(10_000));
        let asked = |rules: &[HttpRule], method: &str| {
            let compiled = HttpRules::compile(rules.iter().enumerate(), &no_secrets).unwrap();
            let request = Request { method, path: &long, host: "", headers: &[] };
            compiled.decide(&request).map(|found| found.map(|found| *found.rule))
        };
        assert_eq!(asked(&rules, "GET"), Ok(Some(100)));
        assert_eq!(asked(&rules, "PUT"), Err(TooMuch));
        rules[0].headers = vec![header("x-tenant", HeaderValue::Exact("blue".into()), Mismatch::Replace)];
        assert_eq!(asked(&rules, "GET"), Err(TooMuch));
    }

    #[test]
    fn rules_keep_their_order_whatever_finds_them() {
        let rules = [rule("GET", "/a.*"), rule("GET", "/ab"), HttpRule::default()];
        assert_eq!(decide(&rules, "GET", "/ab", &[]), Some(0));
        assert_eq!(decide(&rules[1..], "GET", "/ab", &[]), Some(0));
        assert_eq!(decide(&rules, "PUT", "/ab", &[]), Some(2));
    }
}
