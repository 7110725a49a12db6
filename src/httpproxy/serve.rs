//! Accepting connections, and ending in good order.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Context, Ends, http1, tls};

/// What a listener's connections carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Tls,
}

/// How long connections that are on their way to a listener that was replaced are still accepted.
const LATE: Duration = Duration::from_millis(250);
/// Pause after an accept that failed for want of descriptors or memory.
const BREATH: Duration = Duration::from_millis(20);

/// Accepts until the context drains; returns when all connections have ended, or their time is over.
pub async fn run(listener: TcpListener, protocol: Protocol, cx: Arc<Context>) {
    let mut draining = cx.draining.clone();
    let room = Arc::new(Semaphore::new(cx.limits.connections));
    let mut running = JoinSet::new();
    let late = async {
        // The sender is gone: nobody will say it any more.
        draining.wait_for(|draining| *draining).await.ok();
        tokio::time::sleep(LATE).await;
    };
    tokio::pin!(late);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match Arc::clone(&room).try_acquire_owned() {
                    Ok(place) => {
                        let cx = Arc::clone(&cx);
                        running.spawn(async move {
                            one(stream, protocol, cx).await;
                            drop(place);
                        });
                    }
                    Err(_) => {
                        cx.counters.connections_refused.one();
                        super::io::reset(stream);
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = running.join_next() => {}
            () = &mut late => break,
        }
    }
    drop(listener);
    let finished = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(cx.limits.drain_timeout, finished).await.is_err() {
        tracing::warn!(connections = running.len(), "not finished in time");
        running.shutdown().await;
    }
}

async fn one(stream: TcpStream, protocol: Protocol, cx: Arc<Context>) {
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
        Protocol::Http => http1::serve(stream, ends, cx).await,
        Protocol::Tls => tls::serve(stream, ends, cx).await,
    }
}
