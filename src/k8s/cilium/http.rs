//! One HTTP rule: regular expressions and headers.

use std::sync::Arc;

use crate::k8s::cursor::{Cursor, Fields};
use crate::k8s::meta::{checked, dns_label, subdomain};
use crate::k8s::tree::quoted;
use crate::policy::l7::expressions::check_expression;
use crate::policy::l7::fields::{frames_messages, is_field_value};
use crate::policy::l7::re2::translate;
use crate::policy::l7::{HeaderMatch, HeaderValue, HttpRule, Mismatch};

/// Longest regular expression in bytes.
const MAX_EXPRESSION: usize = 8192;
/// Largest compiled form of one expression in bytes.
const MAX_COMPILED: usize = 1 << 20;

/// `namespace` is the policy's own; empty for a CCNP.
pub(super) fn rule(fields: &Fields<'_>, namespace: &str) -> Option<HttpRule> {
    let expression = |name| fields.get(name).and_then(|cursor| expression(&cursor));
    let (method, path, host) = (expression("method"), expression("path"), expression("host"));
    let mut headers: Vec<HeaderMatch> = fields.list("headers").iter().filter_map(header).collect();
    headers.extend(
        fields
            .list("headerMatches")
            .iter()
            .filter_map(|item| item.object(|fields| header_match(fields, namespace)).flatten()),
    );
    headers.sort_unstable();
    headers.dedup();
    Some(HttpRule { method, path, host, headers })
}

/// A regular expression; an empty one is absent (upstream).
fn expression(cursor: &Cursor<'_>) -> Option<Arc<str>> {
    let text = cursor.string().filter(|text| !text.is_empty())?;
    if text.len() > MAX_EXPRESSION {
        cursor.error(format!("the expression has {} bytes, at most {MAX_EXPRESSION} are read", text.len()));
        return None;
    }
    let Err(problem) = check(text) else { return Some(text.into()) };
    cursor.error(format!("found {}, expected a regular expression: {problem}", quoted(text)));
    None
}

/// Whether the expression is one of RE2 and of bearable size.
fn check(text: &str) -> Result<(), String> {
    match regex::RegexBuilder::new(&translate(text)?).size_limit(MAX_COMPILED).build() {
        Ok(_) => check_expression(text).map_err(|error| error.problem),
        Err(regex::Error::CompiledTooBig(_)) => {
            Err(format!("compiled it takes more than {MAX_COMPILED} bytes"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// `"X-My-Header: true"` or `"X-My-Header"`.
fn header(cursor: &Cursor<'_>) -> Option<HeaderMatch> {
    let text = cursor.string()?;
    let (name, value) = match text.split_once(':') {
        None => (text, HeaderValue::Present),
        Some((name, rest)) => match rest.strip_prefix(' ') {
            Some(value) => (name, HeaderValue::Exact(header_value(cursor, value)?)),
            None => {
                cursor.error(format!("found {}, expected a space after the colon", quoted(text)));
                return None;
            }
        },
    };
    Some(HeaderMatch { name: header_name(cursor, name)?, value, mismatch: Mismatch::Deny })
}

const MISMATCHES: &[(&str, Mismatch)] = &[
    ("LOG", Mismatch::Log),
    ("ADD", Mismatch::Add),
    ("DELETE", Mismatch::Delete),
    ("REPLACE", Mismatch::Replace),
];

fn header_match(fields: &Fields<'_>, namespace: &str) -> Option<HeaderMatch> {
    let name = fields.require("name").and_then(|cursor| header_name(&cursor, cursor.string()?));
    let exact = fields.get("value").filter(|cursor| cursor.node.as_str() != Some(""));
    let exact = exact.map(|cursor| cursor.string().and_then(|text| header_value(&cursor, text)));
    let secret = fields.get("secret").map(|cursor| {
        if exact.is_some() {
            cursor.warning("the value beside a Secret is not used");
        }
        cursor.object(|fields| secret(fields, namespace)).flatten()
    });
    let mismatch = match fields.get("mismatch").filter(|cursor| cursor.node.as_str() != Some("")) {
        Some(cursor) => cursor.one_of(MISMATCHES),
        None => Some(Mismatch::Deny),
    };
    if let (Some(name), Some(Mismatch::Add | Mismatch::Delete | Mismatch::Replace)) = (&name, mismatch)
        && frames_messages(name)
    {
        let told = fields.get("mismatch").unwrap_or(*fields.cursor());
        told.error(format!(
            "the header {name} says how a message is read: it may be matched, but not changed"
        ));
        return None;
    }
    let value = match (secret, exact) {
        (Some(secret), _) => secret,
        (None, Some(exact)) => exact.map(HeaderValue::Exact),
        (None, None) => Some(HeaderValue::Present),
    };
    Some(HeaderMatch { name: name?, value: value?, mismatch: mismatch? })
}

fn secret(fields: &Fields<'_>, own: &str) -> Option<HeaderValue> {
    let name = fields.require("name").and_then(|cursor| checked(&cursor, "the name of a Secret", subdomain));
    let given = fields.get("namespace").filter(|cursor| cursor.node.as_str() != Some(""));
    let namespace = match given {
        Some(cursor) => {
            let namespace = checked(&cursor, "a namespace name", dns_label)?;
            if !own.is_empty() && namespace != own {
                cursor.error(format!(
                    "found {}, expected {own}: a namespaced policy reads Secrets of its own namespace only",
                    quoted(namespace)
                ));
                return None;
            }
            namespace
        }
        None if own.is_empty() => {
            fields.cursor().error("the field namespace is missing: a clusterwide policy has none of its own");
            return None;
        }
        None => own,
    };
    Some(HeaderValue::Secret { namespace: namespace.into(), name: name?.into(), key: None })
}

/// A header name (RFC 9110, section 5.1), in lower case.
fn header_name(cursor: &Cursor<'_>, text: &str) -> Option<Arc<str>> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_token) {
        cursor.error(format!("found {}, expected a header name", quoted(text)));
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

/// A header value (RFC 9110, section 5.5): no control characters but the tab.
fn header_value(cursor: &Cursor<'_>, text: &str) -> Option<Arc<str>> {
    if text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        cursor.error("a header value holds no control characters");
        return None;
    }
    if !is_field_value(text.as_bytes()) {
        cursor.warning("a header value has no space around it: nothing that is sent is equal to this one");
    }
    Some(text.into())
}
