//! The request target before matching: what is matched is what is forwarded.
//!
//! Contract (policy semantics, section 6; Envoy's `normalize_path`, `merge_slashes` and
//! `UNESCAPE_AND_REDIRECT`, in that order): in the path part dot segments (also written `%2e`) are
//! resolved, then neighbouring slashes are merged; a raw backslash counts as a slash. The query,
//! letter case and all other escapes stay as they were sent. A path with `%2F` or `%5C` is answered
//! with a redirect to its unescaped form, so that client, proxy and server read the same path. A
//! path with `%00`, a fragment, or a byte that RFC 3986 does not know is malformed.

use std::borrow::Cow;

/// What to do with a request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Match and forward this.
    Forward(Cow<'a, str>),
    /// Answer 307 with this `Location`.
    Redirect(String),
    /// Answer 400 and close; the reason is for the flow record.
    Malformed(&'static str),
}

/// Normalises a request target of origin form (`/path?query`) or asterisk form (`*`). Absolute
/// and authority forms are the caller's to take apart first.
pub fn normalize(target: &str) -> Target<'_> {
    if target == "*" {
        return Target::Forward(Cow::Borrowed(target));
    }
    if !target.starts_with('/') {
        return Target::Malformed("request target does not start with a slash");
    }
    if let Some(byte) = target.bytes().find(|byte| !(0x21..=0x7e).contains(byte) || *byte == b'#') {
        return Target::Malformed(if byte == b'#' {
            "request target has a fragment"
        } else {
            "request target has a byte that must be escaped"
        });
    }
    let (path, query) = match target.find('?') {
        Some(index) => target.split_at(index),
        None => (target, ""),
    };
    let Some(unescaped) = unescape_slashes(path) else {
        return Target::Malformed("request path has an escaped null byte");
    };
    let redirect = matches!(unescaped, Cow::Owned(_));
    if !redirect && is_normal(path) {
        return Target::Forward(Cow::Borrowed(target));
    }
    let normal = merge_slashes(&resolve_dots(&unescaped)) + query;
    if redirect { Target::Redirect(normal) } else { Target::Forward(Cow::Owned(normal)) }
}

/// Nothing to do: the common case, without an allocation.
fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    !bytes.contains(&b'\\')
        && !bytes.windows(2).any(|pair| pair == b"//")
        && !path.split('/').any(|segment| dots(segment).is_some())
}

/// `%2F` and `%5C` (any case) become the slash and backslash they stand for; `None` for `%00`.
/// Borrowed when there was none.
fn unescape_slashes(path: &str) -> Option<Cow<'_, str>> {
    let mut out: Option<String> = None;
    let mut rest = path;
    let mut seen = 0;
    while let Some(index) = rest.find('%') {
        let escape = rest.get(index + 1..index + 3).unwrap_or("");
        let plain = match escape {
            "00" => return None,
            "2f" | "2F" => Some('/'),
            "5c" | "5C" => Some('\\'),
            _ => None,
        };
        let end = index + if plain.is_some() { 3 } else { 1 };
        match plain {
            Some(plain) => {
                let out = out.get_or_insert_with(|| path[..seen].to_owned());
                out.push_str(&rest[..index]);
                out.push(plain);
            }
            None => {
                if let Some(out) = &mut out {
                    out.push_str(&rest[..end]);
                }
            }
        }
        seen += end;
        rest = &rest[end..];
    }
    match out {
        None => Some(Cow::Borrowed(path)),
        Some(out) => Some(Cow::Owned(out + rest)),
    }
}

/// One or two dots, however they are escaped.
fn dots(segment: &str) -> Option<usize> {
    let mut rest = segment;
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest.as_bytes() {
            [b'.', ..] => &rest[1..],
            [b'%', b'2', b'e' | b'E', ..] => &rest[3..],
            _ => return None,
        };
        count += 1;
        if count > 2 {
            return None;
        }
    }
    (count > 0).then_some(count)
}

/// RFC 3986, section 5.2.4, on a path that starts with a slash. An empty segment is a segment: `..`
/// takes it away.
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split(['/', '\\']).skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            Some(count) => {
                if count == 2 {
                    kept.pop();
                }
                // `/a/..` and `/a/.` name a directory: its slash stays.
                if last {
                    kept.push("");
                }
            }
            None => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn forward(target: &str) -> String {
        match normalize(target) {
            Target::Forward(path) => path.into_owned(),
            other => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn dot_segments_are_resolved_however_they_are_escaped() {
        for (sent, read) in [
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/...", "/a/..."),
            ("/a/.b", "/a/.b"),
            ("/a/..;/b", "/a/..;/b"),
        ] {
            assert_eq!(forward(sent), read, "{sent}");
        }
    }

    #[test]
    fn slashes_are_merged_after_the_dots_as_upstream_does() {
        assert_eq!(forward("//a///b/"), "/a/b/");
        assert_eq!(forward("/a//../b"), "/a/b");
        assert_eq!(forward("/a\\b"), "/a/b");
    }

    #[test]
    fn the_query_case_and_other_escapes_are_untouched() {
        for target in ["/a?x=/../%2F//", "/A%41b", "/%zz", "/a%", "/", "*", "/a?", "/a??b"] {
            assert_eq!(forward(target), target);
        }
        assert_eq!(forward("/x/../a?y=//.."), "/a?y=//..");
    }

    #[test]
    fn escaped_slashes_redirect_to_the_unescaped_form() {
        for (sent, location) in [
            ("/a%2Fb", "/a/b"),
            ("/a%2f%2fb?q=%2F", "/a/b?q=%2F"),
            ("/a%5Cb", "/a/b"),
            ("/a%41%2fb%42", "/a%41/b%42"),
            ("/public%2f..%2fadmin", "/admin"),
        ] {
            assert_eq!(normalize(sent), Target::Redirect(location.to_owned()), "{sent}");
        }
    }

    #[test]
    fn malformed_targets_are_refused() {
        for target in ["", "a", "http://x/", "/a%00", "/a%2f%00", "/a b", "/a\n", "/a#b", "/é", "/a\u{7f}"] {
            assert!(matches!(normalize(target), Target::Malformed(_)), "{target:?}");
        }
        assert!(matches!(normalize("/a?b=%00"), Target::Forward(_)));
    }

    proptest! {
        #[test]
        fn a_normal_target_stays_as_it_is(target in "/[a./%2eEfF5c\\\\?]{0,24}") {
            if let Target::Forward(once) = normalize(&target) {
                prop_assert_eq!(normalize(&once), Target::Forward(once.clone()));
            }
        }

        #[test]
        fn nothing_panics(target in "\\PC{0,40}") {
            let _ = normalize(&target);
        }
    }
}
