//! Strictness about HTTP/1 requests: what two readers could read in two ways is refused.
//!
//! Contract (policy semantics, section 6; RFC 9112, sections 3.2, 5.1, 6.3; RFC 9110, section 5.5):
//! an ambiguous message is answered 400 and the connection closed. Here is what can be seen in the
//! parsed head; chunk framing is the reader's own.

/// Why a request head is refused.
pub type Fault = &'static str;

/// Checks the method and the header fields, in the order they were sent. Hosts are `Host` fields;
/// HTTP/1.1 wants exactly one.
pub fn check_head(method: &str, headers: &[(&str, &[u8])]) -> Result<(), Fault> {
    if !is_token(method.as_bytes()) {
        return Err("method is not a token");
    }
    if headers.iter().any(|(name, _)| !is_token(name.as_bytes())) {
        return Err("header name is not a token");
    }
    if headers.iter().any(|(_, value)| value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))) {
        return Err("header value has a line break or a null byte");
    }
    let named = |name: &'static str| headers.iter().filter(move |(sent, _)| sent.eq_ignore_ascii_case(name));
    if named("host").count() > 1 {
        return Err("more than one Host");
    }
    let mut lengths = named("content-length");
    if let Some((_, length)) = lengths.next() {
        if lengths.next().is_some() {
            return Err("more than one Content-Length");
        }
        if named("transfer-encoding").next().is_some() {
            return Err("both Content-Length and Transfer-Encoding");
        }
        if length.is_empty() || length.len() > 18 || !length.iter().all(u8::is_ascii_digit) {
            return Err("Content-Length is not a number");
        }
    }
    let mut encodings = named("transfer-encoding");
    if let Some((_, encoding)) = encodings.next()
        && (encodings.next().is_some() || !encoding.eq_ignore_ascii_case(b"chunked"))
    {
        return Err("Transfer-Encoding is not chunked");
    }
    Ok(())
}

/// RFC 9110, section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&str, &str)]) -> Result<(), Fault> {
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        check_head("GET", &headers)
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for headers in [
            &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")][..],
            &[("Content-Length", "5"), ("content-length", "5")],
            &[("Content-Length", "+5")],
            &[("Content-Length", "5, 5")],
            &[("Content-Length", "")],
            &[("Transfer-Encoding", "gzip, chunked")],
            &[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")],
            &[("Host", "a"), ("Host", "b")],
            &[("X Y", "a")],
            &[("X-A", "a\r\n b")],
            &[("X-A", "a\0")],
        ] {
            assert!(check(headers).is_err(), "{headers:?}");
        }
        assert!(check_head("GE T", &[]).is_err() && check_head("", &[]).is_err());
    }

    #[test]
    fn ordinary_heads_pass() {
        assert_eq!(check(&[("Host", "a"), ("Content-Length", "5")]), Ok(()));
        assert_eq!(check(&[("Transfer-Encoding", "Chunked"), ("X-A", "1"), ("X-A", "2")]), Ok(()));
    }
}
