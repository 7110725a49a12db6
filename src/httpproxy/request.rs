//! What a request asks for: the host, and the path as it is matched and forwarded.

use crate::policy::l7::message::Fault;
use crate::policy::l7::target::{Target, normalize};

/// The `Host` as it was sent; empty without one.
pub(super) fn host<'a>(fields: &[(&'a str, &'a [u8])]) -> &'a str {
    let found = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    found.and_then(|(_, value)| std::str::from_utf8(value).ok()).unwrap_or_default()
}

/// The target as it is matched and forwarded. `host`: the Host as it was sent.
pub(super) fn path<'a>(method: &str, target: &'a str, host: &str) -> Result<Target<'a>, Fault> {
    if method == "CONNECT" {
        return Ok(Target::Forward(target.into()));
    }
    if target == "*" {
        return if method == "OPTIONS" { Ok(Target::Forward(target.into())) } else { Err("* is no path") };
    }
    // Absolute form: its authority is the one that counts, and must not differ from Host.
    let is_absolute = target.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    if !is_absolute {
        return Ok(normalize(target));
    }
    let rest = &target[7..];
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !authority.eq_ignore_ascii_case(host) {
        return Err("the target's authority is not the Host");
    }
    match path {
        "" => Ok(Target::Forward("/".into())),
        path if path.starts_with('/') => Ok(normalize(path)),
        _ => Err("the target has no path"),
    }
}

/// The first bytes of a connection cannot become an HTTP/1 request.
pub(super) fn looks_foreign(data: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    match data.iter().position(|byte| *byte == b' ') {
        None => data.len() > 32 || !data.iter().all(is_token),
        Some(0) => true,
        Some(space) => {
            let line = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let is_whole = line.len() < data.len();
            let last = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
            !data[..space].iter().all(is_token) || (is_whole && !last.starts_with(b"HTTP/"))
        }
    }
}
