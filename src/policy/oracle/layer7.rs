//! Section 6 of the semantics: what the L7 rules of one side say about a request, a query or a
//! ClientHello that reached the proxy.

use super::peers::name_matches;
use super::tiers::Side;
use crate::policy::l7::re2::translate;
use crate::policy::l7::{HeaderMatch, HeaderValue, HttpRule, L7Rules, Mismatch};
use crate::policy::rule::RuleRef;

/// The value of a Secret: namespace, name, key (`None`: the only key).
pub type Secrets<'a> = dyn Fn(&str, &str, Option<&str>) -> Option<Vec<u8>> + 'a;

/// A request as it arrived, with its path normalised.
#[derive(Clone)]
pub struct HttpRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a [(String, String)],
    pub secret: &'a Secrets<'a>,
}

impl std::fmt::Debug for HttpRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} on {}", self.method, self.path, self.host)
    }
}

/// What L7 says, and the rules that governed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer7 {
    Allow(Vec<RuleRef>),
    Refuse(Vec<RuleRef>),
}

impl Side {
    fn lifted(&self) -> bool {
        self.allows.iter().any(|(_, l7)| l7.is_none())
    }

    /// HTTP and DNS: rules ORed; a rule without L7 for the same peer and port lifts them; without
    /// default deny they refuse nothing.
    fn requests(&self, listed: impl Fn(&L7Rules) -> Option<bool>) -> Layer7 {
        let governing: Vec<(&RuleRef, bool)> =
            self.allows.iter().filter_map(|(rule, l7)| Some((rule, listed(l7.as_deref()?)?))).collect();
        let matched: Vec<RuleRef> =
            governing.iter().filter(|(_, matched)| *matched).map(|(rule, _)| (*rule).clone()).collect();
        let all = || self.allows.iter().map(|(rule, _)| rule.clone()).collect();
        if !matched.is_empty() {
            Layer7::Allow(matched)
        } else if governing.is_empty() || self.lifted() || !self.enforced {
            Layer7::Allow(all())
        } else {
            Layer7::Refuse(governing.into_iter().map(|(rule, _)| rule.clone()).collect())
        }
    }

    pub fn http(&self, request: &HttpRequest<'_>) -> Layer7 {
        self.requests(|l7| match l7 {
            L7Rules::Http(rules) => Some(rules.iter().any(|rule| http_matches(rule, request))),
            L7Rules::Dns(_) | L7Rules::Tls(_) => None,
        })
    }

    /// The headers of an allowed request as this side sends them on: the first rule that matches changes those that
    /// are not as it wants them.
    pub fn forwarded(&self, request: &HttpRequest<'_>) -> Vec<(String, String)> {
        let mut by_rule: Vec<_> = self.allows.iter().collect();
        by_rule.sort_by_key(|(rule, _)| rule);
        let all = by_rule.into_iter().filter_map(|(_, l7)| match l7.as_deref() {
            Some(L7Rules::Http(rules)) => Some(rules),
            _ => None,
        });
        let mut headers = request.headers.to_vec();
        let Some(rule) = all.flatten().find(|rule| http_matches(rule, request)) else { return headers };
        for header in rule.headers.iter().filter(|header| !header_is_there(header, request)) {
            let wanted = wanted(&header.value, request)
                .map(|value| (header.name.to_string(), String::from_utf8_lossy(&value).into_owned()));
            let removes = matches!(header.mismatch, Mismatch::Delete | Mismatch::Replace);
            headers.retain(|(name, _)| !removes || name.to_ascii_lowercase() != *header.name);
            if matches!(header.mismatch, Mismatch::Add | Mismatch::Replace) {
                headers.extend(wanted);
            }
        }
        headers
    }

    /// `name` is canonical.
    pub fn dns(&self, name: &str) -> Layer7 {
        self.requests(|l7| match l7 {
            L7Rules::Dns(patterns) => Some(patterns.iter().any(|pattern| name_matches(pattern, name))),
            L7Rules::Http(_) | L7Rules::Tls(_) => None,
        })
    }

    /// `name`: the canonical server name; `None` without one and for what is not TLS. A plain
    /// allow does not lift `serverNames`.
    pub fn server_name(&self, name: Option<&str>) -> Layer7 {
        let governing: Vec<(&RuleRef, bool)> = self
            .allows
            .iter()
            .filter_map(|(rule, l7)| match l7.as_deref()? {
                L7Rules::Tls(patterns) => {
                    let listed =
                        name.is_some_and(|name| patterns.iter().any(|pattern| name_matches(pattern, name)));
                    Some((rule, listed))
                }
                L7Rules::Http(_) | L7Rules::Dns(_) => None,
            })
            .collect();
        let matched: Vec<RuleRef> =
            governing.iter().filter(|(_, matched)| *matched).map(|(rule, _)| (*rule).clone()).collect();
        if !matched.is_empty() {
            Layer7::Allow(matched)
        } else if governing.is_empty() || !self.enforced {
            Layer7::Allow(self.allows.iter().map(|(rule, _)| rule.clone()).collect())
        } else {
            Layer7::Refuse(governing.into_iter().map(|(rule, _)| rule.clone()).collect())
        }
    }
}

fn http_matches(rule: &HttpRule, request: &HttpRequest<'_>) -> bool {
    let whole = |expression: &Option<std::sync::Arc<str>>, value: &str| match expression {
        None => true,
        // A regular expression that does not compile admits nothing.
        Some(expression) => translate(expression).is_ok_and(|expression| {
            regex::bytes::RegexBuilder::new(&format!("^(?:{expression})$"))
                .unicode(false)
                .build()
                .is_ok_and(|regex| regex.is_match(value.as_bytes()))
        }),
    };
    whole(&rule.method, request.method)
        && whole(&rule.path, request.path)
        && whole(&rule.host, request.host)
        && rule.headers.iter().all(|header| header_admits(header, request))
}

fn header_admits(header: &HeaderMatch, request: &HttpRequest<'_>) -> bool {
    header.mismatch != Mismatch::Deny || header_is_there(header, request)
}

/// With the value that the rule wants, if it wants one.
fn header_is_there(header: &HeaderMatch, request: &HttpRequest<'_>) -> bool {
    let values: Vec<&str> = request
        .headers
        .iter()
        .filter(|(name, _)| name.to_ascii_lowercase() == *header.name)
        .map(|(_, value)| value.as_str())
        .collect();
    if header.value == HeaderValue::Present {
        return !values.is_empty();
    }
    !values.is_empty()
        && wanted(&header.value, request).is_some_and(|wanted| values.join(",").into_bytes() == wanted)
}

/// The value that a rule wants; `None`: any, or that of a Secret that is not there.
fn wanted(value: &HeaderValue, request: &HttpRequest<'_>) -> Option<Vec<u8>> {
    match value {
        HeaderValue::Present => None,
        HeaderValue::Exact(value) => Some(value.as_bytes().to_vec()),
        HeaderValue::Secret { namespace, name, key } => {
            (request.secret)(namespace, name, key.as_deref()).and_then(secret_value)
        }
    }
}

/// A Secret without the line break at its end; one that is no header value equals nothing.
fn secret_value(secret: Vec<u8>) -> Option<Vec<u8>> {
    let text = secret.strip_suffix(b"\r\n").or_else(|| secret.strip_suffix(b"\n")).unwrap_or(&secret);
    let has_control = text.iter().any(|byte| (*byte < 32 && *byte != 9) || *byte == 127);
    let has_space_around = text.trim_ascii().len() != text.len();
    (!has_control && !has_space_around).then(|| text.to_vec())
}
