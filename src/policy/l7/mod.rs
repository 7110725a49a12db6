//! Layer 7 rules, as types, and the matchers that the proxies and the offline judge share.
//!
//! All regular expressions are already compiled once by `k8s` for validation; in the types they
//! are text, so that rules can be compared and hashed.
//!
//! - [`target`]: what a request target means before it is matched (dot segments, escapes);
//! - [`expressions`]: regular expressions that match whole texts, many at once;
//! - [`re2`]: the dialect of those expressions;
//! - [`edits`]: what rules do to the header fields of a request;
//! - [`fields`]: header fields that an edit may touch, and what they may hold;
//! - [`fit`]: rules of several objects that are too large for one set;
//! - [`http`]: a set of HTTP rules compiled to one matcher;
//! - [`message`]: what makes a request head ambiguous;
//! - [`names`]: DNS names, patterns and sets of them, for DNS rules, `toFQDNs` and `serverNames`;
//! - [`snapshot`]: what the proxies need of the engine, as one document.

pub mod edits;
pub mod expressions;
pub mod fields;
pub mod fit;
pub mod http;
mod lazy;
pub mod message;
pub mod names;
pub mod re2;
pub mod snapshot;
pub mod target;

use std::sync::Arc;

/// The L7 part of one `toPorts` element: one protocol each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum L7Rules {
    /// ORed; never empty.
    Http(Vec<HttpRule>),
    /// ORed; never empty.
    Dns(Vec<DnsPattern>),
    /// `serverNames`; ORed; never empty.
    Tls(Vec<DnsPattern>),
}

/// Members are ANDed; an absent member matches everything.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct HttpRule {
    /// Regular expressions that must match the whole value.
    pub method: Option<Arc<str>>,
    pub path: Option<Arc<str>>,
    pub host: Option<Arc<str>>,
    pub headers: Vec<HeaderMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: Arc<str>,
    pub value: HeaderValue,
    pub mismatch: Mismatch,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum HeaderValue {
    Present,
    Exact(Arc<str>),
    /// Value from a Secret (`headerMatches.secret`): namespace, name, key.
    Secret {
        namespace: Arc<str>,
        name: Arc<str>,
        key: Option<Arc<str>>,
    },
}

/// What happens when the header does not match (`headerMatches.mismatch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Mismatch {
    /// The rule does not match.
    Deny,
    Log,
    Add,
    Delete,
    Replace,
}

/// `matchName` or `matchPattern` of DNS, FQDN and SNI rules, canonical: lower case, ASCII, no
/// trailing dot, neighbouring stars collapsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum DnsPattern {
    Name(Arc<str>),
    Pattern(Arc<str>),
}

impl DnsPattern {
    /// The canonical text, by which learned names are filed.
    pub fn text(&self) -> &Arc<str> {
        match self {
            DnsPattern::Name(text) | DnsPattern::Pattern(text) => text,
        }
    }
}
