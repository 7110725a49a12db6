//! TCP: connect, ask over HTTP/1.1, keep the connection for more.
//!
//! The request is written by hand, because a test of an L7 policy has to send exactly the bytes
//! that it says: a path with dot segments, a header twice, no normalization on the way.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{Observed, ServerName, Source, patiently, tls};

/// Largest head of a response that is read.
const MAX_HEAD: usize = 64 * 1024;
/// Most headers of a response.
const MAX_HEADERS: usize = 64;

/// A request, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    pub method: String,
    pub path: String,
    /// The Host header.
    pub host: String,
    /// In order; a name may come again.
    pub headers: Vec<(String, String)>,
}

impl HttpRequest {
    /// `GET /`.
    pub fn get(host: &str) -> HttpRequest {
        HttpRequest {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: host.to_owned(),
            headers: Vec::new(),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text.push_str(&format!("Host: {}\r\n", self.host));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An open connection.
pub struct TcpFlow {
    stream: Box<dyn Stream>,
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow").finish_non_exhaustive()
    }
}

impl TcpFlow {
    /// Connects, with TLS when a server name is given, and asks once: a connection that opens but
    /// carries nothing proves nothing.
    pub async fn open(
        source: &Source,
        destination: SocketAddr,
        tls: Option<&ServerName>,
        request: &HttpRequest,
        patience: Duration,
    ) -> (Observed, Option<TcpFlow>) {
        let mut flow = None;
        let observed = patiently(patience, async {
            let stream = connect(source, destination).await?;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some(name) => match tls::handshake(stream, name, destination.ip()).await {
                    Ok(stream) => Box::new(stream),
                    Err(failed) => return failed.observed(),
                },
            };
            match exchange(&mut flow.insert(TcpFlow { stream }).stream, request).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Observed::Reset),
                answered => answered,
            }
        })
        .await;
        (observed, flow)
    }

    /// One more request on the connection.
    pub async fn send(&mut self, request: &HttpRequest, patience: Duration) -> Observed {
        patiently(patience, exchange(&mut self.stream, request)).await
    }
}

pub(super) async fn connect(source: &Source, destination: SocketAddr) -> io::Result<TcpStream> {
    let socket = source.socket(destination, Type::STREAM, Protocol::TCP)?;
    socket.set_tcp_nodelay(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(destination).await
}

async fn exchange(stream: &mut Box<dyn Stream>, request: &HttpRequest) -> io::Result<Observed> {
    stream.write_all(&request.to_bytes()).await?;
    let status = read_response(stream, request.method == "HEAD").await?;
    Ok(if status == 200 { Observed::Answered } else { Observed::HttpStatus(status) })
}

/// How the end of a body is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Reads one response with its body and returns its status.
async fn read_response(stream: &mut Box<dyn Stream>, head_only: bool) -> io::Result<u16> {
    let mut head = Vec::new();
    loop {
        // Byte by byte up to the empty line, so that nothing of the next response is lost; heads
        // are short and tests are not in a hurry.
        head.push(stream.read_u8().await?);
        if head.ends_with(b"\r\n\r\n") {
            let (status, framing) = parse_head(&head)?;
            if !head_only && status != 204 && status != 304 && status >= 200 {
                skip_body(stream, framing).await?;
            }
            if status >= 200 {
                return Ok(status);
            }
            head.clear();
        }
        if head.len() > MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the response's head does not end"));
        }
    }
}

pub(super) fn parse_head(head: &[u8]) -> io::Result<(u16, Framing)> {
    let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP response: {e}"));
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(head).map_err(|e| invalid(e.to_string()))?;
    let status = response.code.ok_or_else(|| invalid("no status".to_owned()))?;
    let mut framing = Framing::UntilClose;
    for header in response.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        if header.name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked;
        } else if header.name.eq_ignore_ascii_case("content-length") {
            framing =
                Framing::Length(value.trim().parse().map_err(|_| invalid("bad Content-Length".to_owned()))?);
        }
    }
    Ok((status, framing))
}

async fn skip_body(stream: &mut Box<dyn Stream>, framing: Framing) -> io::Result<()> {
    match framing {
        Framing::Length(length) => skip(stream, length).await,
        Framing::UntilClose => tokio::io::copy(stream, &mut tokio::io::sink()).await.map(drop),
        Framing::Chunked => loop {
            let line = read_line(stream).await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "bad chunk size"))?;
            if size == 0 {
                // Trailers, up to the empty line.
                while !read_line(stream).await?.is_empty() {}
                return Ok(());
            }
            skip(stream, size + 2).await?;
        },
    }
}

async fn skip(stream: &mut Box<dyn Stream>, length: u64) -> io::Result<()> {
    let copied = tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?;
    if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

async fn read_line(stream: &mut Box<dyn Stream>) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() > MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line does not end"));
        }
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_as_it_was_written() {
        let request = HttpRequest {
            method: "GET".into(),
            path: "/a/../b%2Fc?x=//1".into(),
            host: "backend".into(),
            headers: vec![("X-Two".into(), "1".into()), ("X-Two".into(), "2".into())],
        };
        assert_eq!(
            String::from_utf8(request.to_bytes()).unwrap(),
            "GET /a/../b%2Fc?x=//1 HTTP/1.1\r\nHost: backend\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn responses_of_every_framing_are_read_to_their_end_and_no_further() {
        let wire: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n\
            HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
            HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n\
            HTTP/1.1 307 Moved\r\nContent-Length: 0\r\n\r\n";
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(wire).await.unwrap();
        drop(near);
        let mut stream: Box<dyn Stream> = Box::new(far);
        for expected in [200, 403, 307] {
            assert_eq!(read_response(&mut stream, false).await.unwrap(), expected);
        }
        assert_eq!(read_response(&mut stream, false).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
