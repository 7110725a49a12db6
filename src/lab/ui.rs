//! The web UIs of a lab, on loopback of the machine: each agent serves its page on loopback of its node's
//! namespace, the lab's relay on that of the fabric, and no route leads there. Here a browser's connection is
//! accepted, another one opened inside the namespace, and bytes are copied. No packet crosses from one namespace
//! into another.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;

use super::LabError;
use super::netns::Netns;

/// How long a page's server has to accept.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who serves a page; each where it does unless it is told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Agent,
    Relay,
}

impl Page {
    fn address(self) -> SocketAddr {
        let port = match self {
            Page::Agent => 4246,
            Page::Relay => 4247,
        };
        SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), port)
    }
}

/// Carries connections to a page until it is dropped. What one connection meets ends that connection alone.
pub async fn carry(listener: TcpListener, page: Page, place: Netns) -> io::Result<()> {
    loop {
        let (browser, _) = listener.accept().await?;
        let place = place.clone();
        tokio::spawn(async move {
            // A browser that goes away, or a server that does, ends both.
            if let Ok(server) = connect(page, place).await {
                let (mut browser, mut server) = (browser, server);
                copy_bidirectional(&mut browser, &mut server).await.ok();
            }
        });
    }
}

/// A connection to a page, opened inside its namespace; the socket stays there.
async fn connect(page: Page, place: Netns) -> io::Result<TcpStream> {
    let other = |error: LabError| io::Error::other(error.to_string());
    let address = page.address();
    let open =
        move || place.run(|| std::net::TcpStream::connect_timeout(&address, PATIENCE)).map_err(other)?;
    let stream = spawn_blocking(open).await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Listens for the `index`th page: on `first`, or the next ports.
pub async fn listen(first: SocketAddr, index: u16) -> io::Result<TcpListener> {
    let port = if first.port() == 0 { 0 } else { first.port().saturating_add(index) };
    TcpListener::bind(SocketAddr::new(first.ip(), port)).await
}
