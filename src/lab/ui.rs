//! The web UIs of a lab's agents, on loopback of the machine: each agent serves its page on loopback of its
//! node's namespace, to which no route leads. A relay here accepts a browser's connection, opens one inside the
//! namespace, and copies bytes. No packet crosses from one namespace into another.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;

use super::LabError;
use super::netns::Netns;

/// Where an agent serves unless it is told otherwise.
const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4246);
/// How long an agent has to accept.
const PATIENCE: Duration = Duration::from_secs(3);

/// Relays connections until it is dropped. What one connection meets ends that connection alone.
pub async fn relay(listener: TcpListener, node: Netns) -> io::Result<()> {
    loop {
        let (browser, _) = listener.accept().await?;
        let node = node.clone();
        tokio::spawn(async move {
            // A browser that goes away, or an agent that does, ends both.
            if let Ok(agent) = connect(node).await {
                let (mut browser, mut agent) = (browser, agent);
                copy_bidirectional(&mut browser, &mut agent).await.ok();
            }
        });
    }
}

/// A connection to the agent's page, opened inside its namespace; the socket stays there.
async fn connect(node: Netns) -> io::Result<TcpStream> {
    let other = |error: LabError| io::Error::other(error.to_string());
    let open = move || node.run(|| std::net::TcpStream::connect_timeout(&AGENT, PATIENCE)).map_err(other)?;
    let stream = spawn_blocking(open).await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Listens for the page of the `index`th node: on `first`, or the next ports.
pub async fn listen(first: SocketAddr, index: u16) -> io::Result<TcpListener> {
    let port = if first.port() == 0 { 0 } else { first.port().saturating_add(index) };
    TcpListener::bind(SocketAddr::new(first.ip(), port)).await
}
