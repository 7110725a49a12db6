//! Traffic from a namespace, and what came of it.
//!
//! A probe never concludes more than it saw: an answer, a refusal, or silence until its patience
//! ended. Whether silence was a policy's doing is for the caller to find out from the agents.

mod datagram;
mod dns;
mod http;
mod sctp;
mod tls;

pub use datagram::{UdpFlow, ping};
pub use dns::{DnsQuestion, lookup};
pub use http::{HttpRequest, TcpFlow};
pub use sctp::sctp;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::netns::Netns;

/// Where a probe starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub netns: Netns,
    /// The source address; `None` leaves the choice to the kernel.
    pub address: Option<IpAddr>,
}

/// What TLS says before the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// The ClientHello has no name.
    None,
    Name(String),
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The destination answered.
    Answered,
    /// HTTP with another status than 200.
    HttpStatus(u16),
    /// DNS code REFUSED.
    DnsRefused,
    /// The connection ended inside the TLS handshake.
    TlsReset,
    /// The connection was there, and was reset instead of the first answer on it.
    Reset,
    /// A reset or an ICMP error, in the kernel's words.
    Rejected(String),
    /// Nothing, until patience ended.
    Silence,
    /// An answer that no expectation has a word for.
    Strange(String),
    /// This machine cannot send it.
    Unsupported(String),
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Observed::Answered => f.write_str("allowed"),
            Observed::HttpStatus(status) => write!(f, "http-{status}"),
            Observed::DnsRefused => f.write_str("dns-refused"),
            Observed::TlsReset => f.write_str("tls-reset"),
            Observed::Reset => f.write_str("reset"),
            Observed::Rejected(error) => write!(f, "rejected ({error})"),
            Observed::Silence => f.write_str("denied"),
            Observed::Strange(what) => f.write_str(what),
            Observed::Unsupported(what) => write!(f, "unsupported: {what}"),
        }
    }
}

impl Observed {
    /// An error of the kernel, as an observation.
    fn from_error(error: &io::Error) -> Observed {
        use nix::errno::Errno;
        let errno = error.raw_os_error().map(Errno::from_raw);
        match errno {
            Some(
                Errno::ECONNREFUSED
                | Errno::ECONNRESET
                | Errno::EPIPE
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ENOPROTOOPT
                | Errno::EPROTO,
            ) => Observed::Rejected(error.to_string()),
            Some(Errno::ETIMEDOUT) => Observed::Silence,
            Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ESOCKTNOSUPPORT) => {
                Observed::Unsupported(error.to_string())
            }
            _ if error.kind() == io::ErrorKind::UnexpectedEof => {
                Observed::Rejected("the connection was closed".to_owned())
            }
            _ => Observed::Strange(error.to_string()),
        }
    }
}

/// Runs a probe until its patience ends.
async fn patiently(patience: Duration, probe: impl Future<Output = io::Result<Observed>>) -> Observed {
    match tokio::time::timeout(patience, probe).await {
        Ok(Ok(observed)) => observed,
        Ok(Err(error)) => Observed::from_error(&error),
        Err(_) => Observed::Silence,
    }
}

impl Source {
    /// A non-blocking socket of the namespace, bound to the source address.
    fn socket(&self, destination: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let make = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(destination), kind, Some(protocol))?;
            if let Some(address) = self.address.filter(|a| a.is_ipv4() == destination.is_ipv4()) {
                socket.bind(&SocketAddr::new(address, 0).into())?;
            }
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        self.netns.run(make).map_err(io::Error::other)?
    }
}
