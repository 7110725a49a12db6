//! Heads of HTTP/1 messages, read strictly.
//!
//! Contract (RFC 9112, sections 2.2, 3, 5, 6, 7; policy semantics, section 6): lines end with CR LF and no CR
//! or LF is anywhere else; names touch their colons; a body has one length. Whatever two readers could
//! read in two ways is a [`Fault`]. Offsets into the bytes are kept, so that a head is forwarded as it
//! came, letter case and order included.

use std::ops::Range;

use crate::policy::l7::http::HeaderEdit;
use crate::policy::l7::message::{self, Fault};

/// Most header fields of one message.
pub const MOST_HEADERS: usize = 128;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// A request head, as offsets into the bytes that it was parsed from.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Finds the end of a head and checks its line ends.
fn head_end(bytes: &[u8]) -> Parsed<usize> {
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let place = at + found;
        match (bytes[place], bytes.get(place + 1)) {
            (b'\r', Some(b'\n')) => {}
            (b'\r', None) => return Parsed::Partial,
            _ => return Parsed::Fault("a line ends with a bare CR or LF"),
        }
        match (bytes.get(place + 2), bytes.get(place + 3)) {
            (Some(b'\r'), Some(b'\n')) => return Parsed::Complete(place + 4),
            (Some(b'\r'), Some(_)) => return Parsed::Fault("a line ends with a bare CR or LF"),
            _ => {}
        }
        at = place + 2;
    }
    Parsed::Partial
}

/// Parses the head of a request at the start of `bytes`. One empty line before it is let through by the
/// caller. `Partial` says nothing about limits.
pub fn request(bytes: &[u8]) -> Parsed<RequestHead> {
    let len = match head_end(bytes) {
        Parsed::Complete(len) => len,
        Parsed::Partial => return Parsed::Partial,
        Parsed::Fault(fault) => return Parsed::Fault(fault),
    };
    let head = &bytes[..len];
    let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(parsed)) if parsed == len => {}
        Ok(_) => return Parsed::Fault("head is not a request"),
        Err(httparse::Error::TooManyHeaders) => return Parsed::Fault("too many header fields"),
        Err(_) => return Parsed::Fault("head is not a request"),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Parsed::Fault("head is not a request");
    };
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let mut request = RequestHead {
        len,
        method: place(head, method.as_bytes()),
        target: place(head, target.as_bytes()),
        version,
        headers: parsed
            .headers
            .iter()
            .map(|field| (place(head, field.name.as_bytes()), place(head, field.value)))
            .collect(),
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
        Ok(()) => Parsed::Complete(request),
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
    pub fn fields<'a>(&self, head: &'a [u8]) -> Vec<(&'a str, &'a [u8])> {
        self.headers.iter().map(|(name, value)| (text(&head[name.clone()]), &head[value.clone()])).collect()
    }

    fn read_fields(&mut self, head: &[u8]) -> Result<(), Fault> {
        let fields = self.fields(head);
        message::check_head(self.method(head), &fields)?;
        let (mut length, mut has_host, mut upgrade_named) = (Length::None, false, false);
        let mut offered: Vec<&[u8]> = Vec::new();
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
fn check_host(value: &[u8]) -> Result<(), Fault> {
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=/".contains(byte);
    if value.iter().all(is_host) { Ok(()) } else { Err("Host is not a host") }
}

/// `httparse` and [`message::check_head`] take ASCII only for what this is used on.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Parses the head of a response to a request with this method.
pub fn response(bytes: &[u8], to_head: bool) -> Parsed<ResponseHead> {
    let len = match head_end(bytes) {
        Parsed::Complete(len) => len,
        Parsed::Partial => return Parsed::Partial,
        Parsed::Fault(fault) => return Parsed::Fault(fault),
    };
    let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut fields);
    match parsed.parse(&bytes[..len]) {
        Ok(httparse::Status::Complete(parsed)) if parsed == len => {}
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
    for (name, value) in request.fields(head) {
        let gone = edits.iter().any(|edit| match edit {
            HeaderEdit::Delete { name: edited } | HeaderEdit::Replace { name: edited, .. } => {
                edited.eq_ignore_ascii_case(name)
            }
            HeaderEdit::Log { .. } | HeaderEdit::Add { .. } => false,
        });
        if gone {
            continue;
        }
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
    for edit in edits {
        if let HeaderEdit::Add { name, value } | HeaderEdit::Replace { name, value } = edit {
            field(name.as_bytes(), value);
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}
