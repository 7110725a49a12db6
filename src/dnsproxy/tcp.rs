//! Queries over connections: several at once on each, answered as their replies come (RFC 7766).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::message::Query;
use super::outside::Ruling;
use super::proxy::{Proxy, Received, Sorted};
use super::upstream::frames;
use crate::admission::Permit;
use crate::model::Protocol;

/// Answers that wait for a slow client; behind them, its queries wait.
const QUEUE: usize = 16;
/// A pause after `accept` failed for want of memory or descriptors.
const BREATH: Duration = Duration::from_millis(50);

pub(super) async fn serve(proxy: Arc<Proxy>, listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        // Over the limit: closing is the answer that a client understands.
        let Ok(permit) = proxy.connections.enter(client.ip()) else {
            proxy.counters.over_limit.add();
            continue;
        };
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move {
            if let Err(error) = connection(&proxy, stream).await {
                tracing::debug!(%error, %client, "a connection ended");
            }
            drop(permit);
        });
    }
}

async fn connection(proxy: &Arc<Proxy>, stream: TcpStream) -> io::Result<()> {
    let client = stream.peer_addr()?;
    // Transparent: our end has the address that the client called.
    let server = stream.local_addr()?;
    let mut frames = frames(stream);
    let (answers, mut ready) = mpsc::channel::<Vec<u8>>(QUEUE);
    let mut tasks = JoinSet::new();
    let idle = proxy.options.idle_timeout;
    let mut deadline = tokio::time::Instant::now() + idle;
    loop {
        tokio::select! {
            Some(answer) = ready.recv() => {
                timeout(idle, frames.send(Bytes::from(answer))).await??;
                deadline = tokio::time::Instant::now() + idle;
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            frame = frames.next(), if tasks.len() < QUEUE => {
                let Some(frame) = frame else { break };
                deadline = tokio::time::Instant::now() + idle;
                let received = Received {
                    message: frame?.to_vec(), client, server, protocol: Protocol::Tcp, since: Instant::now(),
                };
                match proxy.sort(&received) {
                    Sorted::Done(None) => {}
                    Sorted::Done(Some(answer)) => timeout(idle, frames.send(Bytes::from(answer))).await??,
                    Sorted::Released(query, ruling) => match proxy.queries.enter(client.ip()) {
                        Err(_) => {
                            let answer = proxy.overflow(&received, &query, ruling);
                            timeout(idle, frames.send(Bytes::from(answer))).await??;
                        }
                        Ok(permit) => {
                            tasks.spawn(task(Arc::clone(proxy), received, query, ruling, permit, answers.clone()));
                        }
                    },
                }
            }
            () = tokio::time::sleep_until(deadline), if tasks.is_empty() => return Ok(()),
        }
    }
    // The client has asked everything; it may still be reading.
    drop(answers);
    while let Some(answer) = ready.recv().await {
        timeout(idle, frames.send(Bytes::from(answer))).await??;
    }
    Ok(())
}

async fn task(
    proxy: Arc<Proxy>,
    received: Received,
    query: Query,
    ruling: Ruling,
    permit: Permit,
    answers: mpsc::Sender<Vec<u8>>,
) {
    let (answer, rest) = proxy.resolve(&received, &query, ruling).await;
    if answers.send(answer).await.is_err() {
        return;
    }
    if let Some(mut rest) = rest {
        while let Ok(Some(message)) = timeout(proxy.options.upstream_timeout, rest.next()).await {
            if answers.send(message).await.is_err() {
                break;
            }
        }
    }
    drop(permit);
}
