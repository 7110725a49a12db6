//! Accepting connections, and ending in good order.
//!
//! A process that ends accepts for as long as it lives: what was on its way to its listener when another
//! process took over must not be refused. Connections that are there go on: each is told to close with its
//! next answer, and what has not ended within the limit is cut and counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::crew::Crew;
use super::io::Inbox;
use super::{Context, Ends, http1, tls};
use crate::admission::{Full, Limiter};

/// What a listener's connections carry; at that for TLS, HTTP too where the two sides want one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Tls,
}

/// How long a listener is still served at least after another one took its place: handshakes that were under way.
const LATE: Duration = Duration::from_secs(1);
/// How often a process that ends looks whether all connections have.
const LOOK: Duration = Duration::from_millis(50);
/// Pause after an accept that failed for want of descriptors or memory.
const BREATH: Duration = Duration::from_millis(20);

/// Accepts until the context drains and all connections have ended, or their time is over.
///
/// # Errors
/// The listener cannot be watched.
pub async fn run(
    listener: std::net::TcpListener,
    protocol: Protocol,
    cx: Arc<Context>,
    crew: Arc<Crew>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let room = Limiter::new(cx.limits.most_connections());
    let drained = drained(&cx, &room);
    tokio::pin!(drained);
    loop {
        tokio::select! {
            // Registered anew by the thread that serves it.
            accepted = listener.accept() => {
                let accepted = accepted.and_then(|(stream, client)| Ok((stream.into_std()?, client)));
                match accepted {
                    Ok((stream, client)) => admit(stream, client, &room, protocol, &cx, &crew),
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(BREATH).await;
                    }
                }
            },
            left = &mut drained => {
                if left > 0 {
                    tracing::warn!(connections = left, "not finished in time");
                    cx.counters.drained_late.add(left as u64);
                }
                return Ok(());
            }
        }
    }
}

/// Serves a connection if there is a place for it. A client that takes no notice of its limit is reset, not kept waiting.
fn admit(
    stream: std::net::TcpStream,
    client: SocketAddr,
    room: &Arc<Limiter>,
    protocol: Protocol,
    cx: &Arc<Context>,
    crew: &Crew,
) {
    match room.enter(client.ip().to_canonical()) {
        Ok(place) => {
            let cx = Arc::clone(cx);
            crew.spawn(move || {
                Box::pin(async move {
                    one(stream, protocol, cx).await;
                    drop(place);
                })
            });
        }
        Err(full) => {
            cx.counters.connections_refused.one();
            if full == Full::One {
                cx.counters.clients_at_limit.one();
            }
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).ok();
        }
    }
}

/// How many connections are left when there is nothing more to wait for.
async fn drained(cx: &Context, room: &Limiter) -> usize {
    let mut draining = cx.draining.clone();
    // The sender is gone: nobody will say it any more.
    draining.wait_for(|draining| *draining).await.ok();
    let end = Instant::now() + cx.limits.drain_timeout;
    tokio::time::sleep(LATE.min(cx.limits.drain_timeout)).await;
    loop {
        let left = room.open();
        if left == 0 || Instant::now() >= end {
            return left;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn one(stream: std::net::TcpStream, protocol: Protocol, cx: Arc<Context>) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "a connection is not served");
            return cx.counters.connections_refused.one();
        }
    };
    let ends: Ends = match cx.network.ends(&stream) {
        Ok(ends) => ends,
        Err(error) => {
            tracing::debug!(%error, "a connection that nobody redirected");
            cx.counters.connections_refused.one();
            super::io::reset(stream);
            return;
        }
    };
    cx.counters.connections.one();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "small segments may wait");
    }
    match protocol {
        Protocol::Http => http1::serve(stream, Inbox::default(), ends, cx).await,
        Protocol::Tls => tls::serve(stream, ends, cx).await,
    }
}
