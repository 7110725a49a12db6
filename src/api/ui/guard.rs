//! Who may ask: the checks that every request passes before anything else looks at it, and the headers that
//! every answer carries.
//!
//! - *DNS rebinding*: a page of another site can make its own name lead to our address. Its requests then name
//!   that site in `Host`; only addresses, `localhost` and configured names are served.
//! - *Requests from other sites*: `Sec-Fetch-Site` (every browser since 2023 sends it) must say that the request
//!   comes from our own page or from nowhere (typed, bookmarked); `Origin`, where it is sent, must be ours. There is
//!   no CORS header in any answer. Following a link to the front page is allowed: it shows nothing to the linker.
//! - *Token*: where one is configured, `/api/` needs it, as `Authorization: Bearer` or as the cookie that `POST
//!   /login` sets. The cookie holds a digest, not the token.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use ring::digest;

/// Scripts and styles come from here alone, and nothing inline runs; nobody may frame the page.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
                   require-trusted-types-for 'script'; trusted-types 'none'";

/// On every answer.
const HEADERS: &[(&str, &str)] = &[
    ("content-security-policy", CSP),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];

/// Name of the cookie. Not `__Host-`: that needs HTTPS, and loopback has none.
const COOKIE: &str = "sluice-ui";

/// The secret that callers show. Debug shows nothing of it.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
    cookie: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// At least 16 characters.
    pub fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        if text.len() < 16 {
            return None;
        }
        let cookie =
            hex(digest::digest(&digest::SHA256, format!("sluice-ui cookie {text}").as_bytes()).as_ref());
        Some(Token { digest: sha256(text), cookie })
    }

    /// Compares digests: how long that takes says nothing about the token.
    pub fn is(&self, text: &str) -> bool {
        self.digest == sha256(text.trim())
    }

    fn is_cookie(&self, text: &str) -> bool {
        sha256(&self.cookie) == sha256(text)
    }

    /// The value of `Set-Cookie`.
    pub fn set_cookie(&self, transport: Transport) -> String {
        let secure = match transport {
            Transport::Tls => "; Secure",
            Transport::Plain => "",
        };
        format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200{secure}", self.cookie)
    }
}

fn sha256(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
}

impl Transport {
    pub fn scheme(self) -> &'static str {
        match self {
            Transport::Plain => "http",
            Transport::Tls => "https",
        }
    }
}

/// What is checked.
#[derive(Clone, Debug)]
pub struct Guard {
    pub transport: Transport,
    pub token: Option<Token>,
    /// Host names, besides addresses and `localhost`, under which we may be called.
    pub names: Vec<String>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("this server is not called that: use its address, localhost, or a name in ui-host-name")]
    Host,
    #[error("requests from other sites are not answered")]
    CrossSite,
    #[error("a token is needed")]
    Token,
    #[error("only GET is served here")]
    Method,
}

impl Refused {
    fn status(self) -> StatusCode {
        match self {
            Refused::Host => StatusCode::MISDIRECTED_REQUEST,
            Refused::CrossSite => StatusCode::FORBIDDEN,
            Refused::Token => StatusCode::UNAUTHORIZED,
            Refused::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

impl Guard {
    /// Judges a request by its head.
    pub fn check(
        &self,
        method: &Method,
        path: &str,
        authority: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<(), Refused> {
        let host = match (one(headers, header::HOST.as_str()), authority) {
            (Some(host), None) => host,
            (Some(host), Some(authority)) if host == authority => host,
            // HTTP/2 has no Host.
            (None, Some(authority)) => authority,
            _ => return Err(Refused::Host),
        };
        if !self.is_our_name(host) {
            return Err(Refused::Host);
        }
        self.check_site(method, path, host, headers)?;
        let may_post = path == "/login" || path == "/logout";
        if !(method == Method::GET || method == Method::HEAD || (method == Method::POST && may_post)) {
            return Err(Refused::Method);
        }
        match &self.token {
            Some(token) if path.starts_with("/api/") && !shows(token, headers) => Err(Refused::Token),
            _ => Ok(()),
        }
    }

    fn is_our_name(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
        if host.contains('@') {
            return false;
        }
        let name = authority.host().trim_end_matches('.');
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        name.eq_ignore_ascii_case("localhost")
            || bare.parse::<std::net::IpAddr>().is_ok()
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn check_site(
        &self,
        method: &Method,
        path: &str,
        host: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refused> {
        if headers.contains_key(header::ORIGIN) {
            let ours = format!("{}://{host}", self.transport.scheme());
            if one(headers, "origin") != Some(ours.as_str()) {
                return Err(Refused::CrossSite);
            }
        } else if method == Method::POST {
            return Err(Refused::CrossSite);
        }
        let follows_a_link = path == "/"
            && method == Method::GET
            && one(headers, "sec-fetch-mode") == Some("navigate")
            && one(headers, "sec-fetch-dest") == Some("document");
        match one(headers, "sec-fetch-site") {
            // Programs do not send it.
            None if !headers.contains_key("sec-fetch-site") => Ok(()),
            Some("same-origin" | "none") => Ok(()),
            _ if follows_a_link => Ok(()),
            _ => Err(Refused::CrossSite),
        }
    }
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

fn shows(token: &Token, headers: &HeaderMap) -> bool {
    if let Some(bearer) = one(headers, "authorization").and_then(|value| value.strip_prefix("Bearer ")) {
        return token.is(bearer);
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .any(|(name, value)| name == COOKIE && token.is_cookie(value))
}

/// The middleware: checks, then the handler, then the headers.
pub async fn guard(
    axum::extract::State(guard): axum::extract::State<Arc<Guard>>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let mut response = match guard.check(request.method(), request.uri().path(), authority, request.headers())
    {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            let failure = crate::api::types::Failure { error: refused.to_string(), problems: Vec::new() };
            (refused.status(), axum::Json(failure)).into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
