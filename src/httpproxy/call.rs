//! One HTTP/2 request: what it asks for, read as strictly as one of HTTP/1, and answers that are ours.
//!
//! `h2` refuses what RFC 9113 calls malformed (section 8.2.1 and 8.3: pseudo-header fields that are unknown,
//! doubled or late, upper case, connection-specific fields, lengths that are not those of the body). Here is the
//! rest: what two readers behind us could read in two ways.

use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use super::Limits;
use super::head::{Fields, check_host};
use crate::policy::l7::edits::HeaderEdit;
use crate::policy::l7::message::{self, Fault};
use crate::policy::l7::target::{Target, normalize};

/// Bytes that a field counts for besides its name and value (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// A request as it is judged and forwarded.
#[derive(Debug)]
pub struct Call {
    pub(super) method: Method,
    pub(super) authority: String,
    pub path: String,
    headers: HeaderMap,
    /// As it was sent.
    uri: Uri,
    is_grpc: bool,
    pub(super) begun: Instant,
}

/// What a request is, before any rule is asked.
#[derive(Debug)]
pub enum Checked {
    Forward,
    Redirect(String),
    Malformed(Fault),
    /// More bytes than a head may have.
    TooLarge,
    /// More fields than a head may have.
    TooMany,
}

impl Call {
    /// The request, and its target as it was sent.
    pub fn new(parts: http::request::Parts, begun: Instant) -> (Call, String) {
        let http::request::Parts { method, uri, headers, .. } = parts;
        let target = uri.path_and_query().map_or("", |target| target.as_str()).to_owned();
        let authority = uri.authority().map_or_else(String::new, |authority| authority.as_str().to_owned());
        let kind = headers.get("content-type").map(HeaderValue::as_bytes);
        let is_grpc = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        (Call { method, authority, path: target.clone(), headers, uri, is_grpc, begun }, target)
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let host = (!self.headers.contains_key("host")).then_some(("host", self.authority.as_bytes()));
        host.into_iter().chain(own).collect()
    }

    /// What `h2` lets through and two readers could read in two ways (RFC 9113, section 8.3.1).
    pub fn check(&mut self, target: &str, limits: &Limits) -> Checked {
        if self.headers.len() > limits.header_count {
            return Checked::TooMany;
        }
        let bytes = |name: &str, value: &[u8]| name.len() + value.len() + FIELD_OVERHEAD;
        let own: usize =
            self.headers.iter().map(|(name, value)| bytes(name.as_str(), value.as_bytes())).sum();
        if own + target.len() + self.authority.len() > limits.header_bytes {
            return Checked::TooLarge;
        }
        if let Err(fault) = message::check_head(self.method.as_str(), &self.fields()) {
            return Checked::Malformed(fault);
        }
        if self.headers.contains_key("transfer-encoding") {
            return Checked::Malformed("Transfer-Encoding in HTTP/2");
        }
        if let Some(host) = self.headers.get("host") {
            let Ok(host) = host.to_str() else { return Checked::Malformed("Host is not a host") };
            if self.authority.is_empty() {
                self.authority = host.to_owned();
            } else if !self.authority.eq_ignore_ascii_case(host) {
                return Checked::Malformed(":authority is not the Host");
            }
        }
        if self.authority.is_empty() {
            return Checked::Malformed("neither :authority nor Host");
        }
        if let Err(fault) = check_host(self.authority.as_bytes()) {
            return Checked::Malformed(fault);
        }
        if self.method == Method::CONNECT {
            return Checked::Forward;
        }
        if target == "*" && self.method != Method::OPTIONS {
            return Checked::Malformed("* is no path");
        }
        match normalize(target) {
            Target::Forward(path) => {
                if *path != *self.path {
                    self.path = path.into_owned();
                }
                Checked::Forward
            }
            Target::Redirect(location) => Checked::Redirect(location),
            Target::Malformed(fault) => Checked::Malformed(fault),
        }
    }

    /// 403; a gRPC call gets its own status besides (PERMISSION_DENIED), so that clients say what it was.
    pub(super) fn deny(&self, respond: &mut SendResponse<Bytes>) {
        if self.is_grpc {
            answer(respond, StatusCode::FORBIDDEN, &grpc_status("7", "Access denied"), "");
        } else {
            let text = if self.method == Method::HEAD { "" } else { "Access denied\r\n" };
            answer(respond, StatusCode::FORBIDDEN, &[("content-type", "text/plain")], text);
        }
    }

    /// The server failed; gRPC's word for it is UNAVAILABLE.
    pub(super) fn fail(&self, respond: &mut SendResponse<Bytes>, status: StatusCode) {
        if self.is_grpc {
            answer(respond, status, &grpc_status("14", "no answer of the server"), "");
        } else {
            answer(respond, status, &[], "");
        }
    }

    /// The target as it is forwarded: over cleartext, to the host that was judged, with the path that was.
    fn forwarded_uri(&self) -> Option<Uri> {
        let parts = (self.uri.scheme_str(), self.uri.authority(), self.uri.path_and_query());
        if let (Some("http"), Some(authority), Some(path)) = parts
            && authority.as_str() == self.authority
            && path.as_str() == self.path
        {
            return Some(self.uri.clone());
        }
        let uri = Uri::builder().scheme("http").authority(self.authority.as_str());
        uri.path_and_query(self.path.as_str()).build().ok()
    }

    /// The request as it is forwarded; takes the fields out. `None`: the parts make no request.
    pub fn request(&mut self, edits: &[HeaderEdit]) -> Option<http::Request<()>> {
        let mut request = http::Request::new(());
        *request.uri_mut() = self.forwarded_uri()?;
        *request.method_mut() = self.method.clone();
        *request.version_mut() = http::Version::HTTP_2;
        let mut headers = std::mem::take(&mut self.headers);
        if headers.contains_key("host") {
            headers = without(headers, "host");
        }
        for edit in edits {
            let name = |name: &str| http::HeaderName::try_from(name).ok();
            match edit {
                HeaderEdit::Log { .. } => {}
                HeaderEdit::Delete { name: edited } => {
                    headers = without(headers, edited);
                }
                HeaderEdit::Add { name: edited, value } => {
                    headers.append(name(edited)?, HeaderValue::from_bytes(value).ok()?);
                }
                HeaderEdit::Replace { name: edited, value } => {
                    headers.insert(name(edited)?, HeaderValue::from_bytes(value).ok()?);
                }
            }
        }
        *request.headers_mut() = headers;
        Some(request)
    }
}

/// All other fields, in their order: [`HeaderMap::remove`] puts the last one into the place of the one that goes.
fn without(headers: HeaderMap, name: &str) -> HeaderMap {
    if !headers.contains_key(name) {
        return headers;
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    let mut last = None;
    for (next, value) in headers {
        // A further value of the same field has no name of its own.
        last = next.or(last);
        if let Some(field) = last.as_ref().filter(|field| !field.as_str().eq_ignore_ascii_case(name)) {
            kept.append(field.clone(), value);
        }
    }
    kept
}

fn grpc_status<'a>(status: &'a str, message: &'a str) -> [(&'static str, &'a str); 3] {
    [("content-type", "application/grpc"), ("grpc-status", status), ("grpc-message", message)]
}

/// Answers instead of the server.
pub(super) fn answer(
    respond: &mut SendResponse<Bytes>,
    status: StatusCode,
    fields: &[(&'static str, &str)],
    text: &str,
) {
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(value) {
            head.headers_mut().insert(*name, value);
        }
    }
    // A stream or connection that is gone needs no answer.
    let Ok(mut send) = respond.send_response(head, text.is_empty()) else { return };
    if !text.is_empty() {
        send.send_data(Bytes::copy_from_slice(text.as_bytes()), true).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_fields_stays_when_one_is_taken_out() {
        let mut request = http::Request::get("http://a/").body(()).unwrap();
        for (name, value) in [("host", "a"), ("x-one", "1"), ("x-gone", "2"), ("x-one", "3"), ("x-two", "4")]
        {
            let name = http::HeaderName::from_static(name);
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        request.headers_mut().append("x-three", HeaderValue::from_static("5"));
        let (mut call, _) = Call::new(request.into_parts().0, Instant::now());
        let request = call.request(&[HeaderEdit::Delete { name: "X-Gone".into() }]).unwrap();
        let fields: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("x-one", "1"), ("x-one", "3"), ("x-two", "4"), ("x-three", "5")]);
    }
}
