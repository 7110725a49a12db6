//! Heads of HTTP/1 messages, read strictly.
//!
//! Contract (RFC 9112, sections 2.2, 3, 5, 6, 7; policy semantics, section 6): lines end with CR LF and no CR
//! or LF is anywhere else; names touch their colons; a body has one length. Whatever two readers could
//! read in two ways is a [`Fault`]. Offsets into the bytes are kept, so that a head is forwarded as it
//! came, letter case and order included.

use std::mem::MaybeUninit;
use std::ops::Range;

use smallvec::SmallVec;

use crate::flow::HttpVersion;
use crate::policy::l7::edits::{HeaderEdit, edited};
use crate::policy::l7::message::{self, Fault};

/// Header fields that a limit may allow at most.
pub const MOST_HEADERS: usize = 1024;

/// Header fields, in the order they were sent.
pub type Fields<'a> = SmallVec<[(&'a str, &'a [u8]); 16]>;

/// How a body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Length {
    #[default]
    None,
    Bytes(u64),
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// So far so good.
    Partial,
    Complete(T),
    Fault(Fault),
    /// More header fields than the limit.
    TooMany,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    Http10,
    #[default]
    Http11,
}

impl Version {
    /// As records tell it.
    pub fn told(self) -> HttpVersion {
        match self {
            Version::Http10 => HttpVersion::Http10,
            Version::Http11 => HttpVersion::Http11,
        }
    }
}

/// A request head, as offsets into the bytes that it was parsed from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes of the head, with the empty line.
    pub len: usize,
    pub method: Range<usize>,
    pub target: Range<usize>,
    pub version: Version,
    /// Name and value of each field.
    pub headers: Vec<(Range<usize>, Range<usize>)>,
    pub length: Length,
    pub keep_alive: bool,
    pub expects_continue: bool,
    /// The client wants another protocol that may follow.
    pub upgrade: bool,
    /// The client offers a protocol whose messages would be judged by nobody: the offer is taken out.
    pub strip_upgrade: bool,
}

/// A response head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub len: usize,
    pub status: u16,
    pub length: Length,
    pub keep_alive: bool,
}

/// How far the bytes at the start of a buffer were searched for the end of a head, so that a head that comes
/// in many pieces is not searched from its start each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan(usize);

impl Scan {
    /// Finds the end of a head and checks its line ends.
    fn head_end(&mut self, bytes: &[u8]) -> Parsed<usize> {
        while let Some(found) = bytes[self.0..].iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            let place = self.0 + found;
            match (bytes[place], bytes.get(place + 1)) {
                (b'\r', Some(b'\n')) => {}
                (b'\r', None) => {
                    self.0 = place;
                    return Parsed::Partial;
                }
                _ => return Parsed::Fault("a line ends with a bare CR or LF"),
            }
            match (bytes.get(place + 2), bytes.get(place + 3)) {
                (Some(b'\r'), Some(b'\n')) => {
                    self.0 = 0;
                    return Parsed::Complete(place + 4);
                }
                (Some(b'\r'), Some(_)) => return Parsed::Fault("a line ends with a bare CR or LF"),
                // The line's end may be the head's: look again when there is more.
                (None | Some(b'\r'), None) => {
                    self.0 = place;
                    return Parsed::Partial;
                }
                _ => self.0 = place + 2,
            }
        }
        self.0 = bytes.len();
        Parsed::Partial
    }
}

/// Parses the head of a request at the start of `bytes` into `request`. One empty line before it is let
/// through by the caller. `most` fields are let through, [`MOST_HEADERS`] at most; `Partial` says nothing about
/// other limits.
pub fn request(bytes: &[u8], scan: &mut Scan, most: usize, request: &mut RequestHead) -> Parsed<()> {
    let len = match scan.head_end(bytes) {
        Parsed::Complete(len) => len,
        Parsed::Partial => return Parsed::Partial,
        Parsed::Fault(fault) => return Parsed::Fault(fault),
        Parsed::TooMany => return Parsed::TooMany,
    };
    let head = &bytes[..len];
    let mut fields = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut fields[..most.min(MOST_HEADERS)]) {
        Ok(httparse::Status::Complete(parsed)) if parsed == len => {}
        Ok(_) => return Parsed::Fault("head is not a request"),
        Err(httparse::Error::TooManyHeaders) => return Parsed::TooMany,
        Err(_) => return Parsed::Fault("head is not a request"),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Parsed::Fault("head is not a request");
    };
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let mut headers = std::mem::take(&mut request.headers);
    headers.clear();
    headers.extend(
        parsed.headers.iter().map(|field| (place(head, field.name.as_bytes()), place(head, field.value))),
    );
    *request = RequestHead {
        len,
        method: place(head, method.as_bytes()),
        target: place(head, target.as_bytes()),
        version,
        headers,
        length: Length::None,
        keep_alive: version == Version::Http11,
        expects_continue: false,
        upgrade: false,
        strip_upgrade: false,
    };
    // One space on either side of the target, and nothing before the method.
    if request.method.start != 0
        || request.target.start != request.method.end + 1
        || head.get(request.target.end..request.target.end + 6) != Some(b" HTTP/")
    {
        return Parsed::Fault("request line has more than its three parts");
    }
    match request.read_fields(head) {
        Ok(()) => Parsed::Complete(()),
        Err(fault) => Parsed::Fault(fault),
    }
}

fn place(of: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - of.as_ptr() as usize;
    start..start + part.len()
}

/// Members of a comma separated list, without the space around them.
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl RequestHead {
    pub fn method<'a>(&self, head: &'a [u8]) -> &'a str {
        text(&head[self.method.clone()])
    }

    pub fn target<'a>(&self, head: &'a [u8]) -> &'a str {
        text(&head[self.target.clone()])
    }

    /// Fields in the order they were sent.
    pub fn fields<'a>(&self, head: &'a [u8]) -> Fields<'a> {
        self.headers.iter().map(|(name, value)| (text(&head[name.clone()]), &head[value.clone()])).collect()
    }

    fn read_fields(&mut self, head: &[u8]) -> Result<(), Fault> {
        let fields = self.fields(head);
        message::check_head(self.method(head), &fields)?;
        let (mut length, mut has_host, mut upgrade_named) = (Length::None, false, false);
        let mut offered: SmallVec<[&[u8]; 2]> = SmallVec::new();
        for (name, value) in &fields {
            if name.eq_ignore_ascii_case("content-length") {
                length = Length::Bytes(number(value).ok_or("Content-Length is not a number")?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if self.version == Version::Http10 {
                    return Err("Transfer-Encoding in HTTP/1.0");
                }
                length = Length::Chunked;
            } else if name.eq_ignore_ascii_case("host") {
                has_host = true;
                check_host(value)?;
            } else if name.eq_ignore_ascii_case("connection") {
                for member in members(value) {
                    if member.eq_ignore_ascii_case(b"close") {
                        self.keep_alive = false;
                    } else if member.eq_ignore_ascii_case(b"keep-alive") && self.version == Version::Http10 {
                        self.keep_alive = true;
                    } else if member.eq_ignore_ascii_case(b"upgrade") {
                        upgrade_named = true;
                    } else if [&b"host"[..], b"content-length", b"transfer-encoding"]
                        .iter()
                        .any(|framing| member.eq_ignore_ascii_case(framing))
                    {
                        return Err("Connection names a field that frames the message");
                    }
                }
            } else if name.eq_ignore_ascii_case("expect") {
                self.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
            } else if name.eq_ignore_ascii_case("upgrade") {
                offered.extend(members(value));
            }
        }
        if !has_host && self.version == Version::Http11 {
            return Err("no Host");
        }
        // HTTP/2 and TLS after an upgrade would hide requests from us.
        let hides = |protocol: &&[u8]| {
            let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
            [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
        };
        self.strip_upgrade = offered.iter().any(hides);
        self.upgrade = upgrade_named && !offered.is_empty() && !self.strip_upgrade;
        self.length = length;
        Ok(())
    }
}

/// Nothing in a Host that could be taken for a second host or for user information (RFC 3986, section 3.2). A
/// slash is let through, because rules match a Host as it was sent.
pub(super) fn check_host(value: &[u8]) -> Result<(), Fault> {
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=/".contains(byte);
    if value.iter().all(is_host) { Ok(()) } else { Err("Host is not a host") }
}

/// `httparse` and [`message::check_head`] take ASCII only for what this is used on.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Parses the head of a response to a request; `to_head`: its method is HEAD.
pub fn response(bytes: &[u8], scan: &mut Scan, most: usize, to_head: bool) -> Parsed<ResponseHead> {
    let len = match scan.head_end(bytes) {
        Parsed::Complete(len) => len,
        Parsed::Partial => return Parsed::Partial,
        Parsed::Fault(fault) => return Parsed::Fault(fault),
        Parsed::TooMany => return Parsed::TooMany,
    };
    let mut fields = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let fields = &mut fields[..most.min(MOST_HEADERS)];
    match config.parse_response_with_uninit_headers(&mut parsed, &bytes[..len], fields) {
        Ok(httparse::Status::Complete(parsed)) if parsed == len => {}
        Err(httparse::Error::TooManyHeaders) => return Parsed::TooMany,
        _ => return Parsed::Fault("the server's head is not a response"),
    }
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Parsed::Fault("the server's head is not a response");
    };
    let mut keep_alive = version == 1;
    let (mut content_length, mut encoding) = (None, None);
    for field in parsed.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let length = number(field.value).filter(|_| field.value.iter().all(u8::is_ascii_digit));
            match (length, content_length) {
                (None, _) => return Parsed::Fault("the server's Content-Length is not a number"),
                (length, Some(_)) if length != content_length => {
                    return Parsed::Fault("the server's lengths differ");
                }
                (length, _) => content_length = length,
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if encoding.replace(field.value).is_some() {
                return Parsed::Fault("the server sent more than one Transfer-Encoding");
            }
        } else if field.name.eq_ignore_ascii_case("connection") {
            for member in members(field.value) {
                if member.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if member.eq_ignore_ascii_case(b"keep-alive") && version == 0 {
                    keep_alive = true;
                }
            }
        }
    }
    let bodyless = to_head || status / 100 == 1 || status == 204 || status == 304;
    let length = match (encoding, content_length) {
        (Some(_), Some(_)) => {
            return Parsed::Fault("the server sent both Content-Length and Transfer-Encoding");
        }
        _ if bodyless => Length::None,
        (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") && version == 1 => {
            Length::Chunked
        }
        (Some(_), None) => return Parsed::Fault("the server's Transfer-Encoding is not chunked"),
        (None, Some(length)) => Length::Bytes(length),
        (None, None) => Length::UntilClose,
    };
    Parsed::Complete(ResponseHead { len, status, length, keep_alive })
}

/// The head as it is forwarded, when something in it changes.
pub fn rewritten(head: &[u8], request: &RequestHead, target: &str, edits: &[HeaderEdit]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + 64);
    out.extend_from_slice(&head[..request.target.start]);
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(
        &head[request.target.end..request.headers.first().map_or(head.len() - 2, |h| h.0.start)],
    );
    let mut field = |name: &[u8], value: &[u8]| {
        for part in [name, b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    for (name, value) in edited(request.fields(head), edits) {
        if request.strip_upgrade {
            if name.eq_ignore_ascii_case("upgrade") || name.eq_ignore_ascii_case("http2-settings") {
                continue;
            }
            if name.eq_ignore_ascii_case("connection") {
                let kept: Vec<&[u8]> = members(value)
                    .filter(|member| {
                        ![&b"upgrade"[..], b"http2-settings"]
                            .iter()
                            .any(|gone| member.eq_ignore_ascii_case(gone))
                    })
                    .collect();
                if !kept.is_empty() {
                    field(name.as_bytes(), &kept.join(&b", "[..]));
                }
                continue;
            }
        }
        field(name.as_bytes(), value);
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A response head that tells the client to open another connection for its next request.
pub fn with_close(head: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + 24);
    for line in head[..head.len() - 2].split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let is_hop = [&b"connection"[..], b"keep-alive"].iter().any(|hop| name.eq_ignore_ascii_case(hop));
        if !is_hop {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(b"Connection: close\r\n\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_comes_in_pieces_is_found_where_it_ends() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\nrest";
        let end = text.len() - 4;
        let mut scan = Scan::default();
        let mut head = RequestHead::default();
        for count in 0..end {
            assert_eq!(request(&text[..count], &mut scan, 8, &mut head), Parsed::Partial, "{count}");
        }
        assert_eq!(request(text, &mut scan, 8, &mut head), Parsed::Complete(()));
        assert_eq!(head.len, end);
        let mut scan = Scan::default();
        assert_eq!(scan.head_end(b"a\r\n\r"), Parsed::Partial);
        assert!(matches!(scan.head_end(b"a\r\n\rb"), Parsed::Fault(_)));
    }

    #[test]
    fn fields_are_counted() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n";
        let mut head = RequestHead::default();
        assert_eq!(request(text, &mut Scan::default(), 1, &mut head), Parsed::TooMany);
        let text = b"HTTP/1.1 200 OK\r\nA: a\r\nX: 1\r\n\r\n";
        assert_eq!(response(text, &mut Scan::default(), 1, false), Parsed::TooMany);
    }

    #[test]
    fn an_answer_of_a_process_that_ends_says_close() {
        let head =
            b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX: Connection: a\r\n\r\n";
        let expected = "HTTP/1.1 200 OK\r\nX: Connection: a\r\nConnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(with_close(head)).unwrap(), expected);
    }
}
