//! The HTTP/2 connection to the server, which the streams of one client's connection share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use http::StatusCode;

use super::h2c::{CONNECTION_WINDOW, STREAM_WINDOW, most_header_bytes};
use super::io::within;
use super::presence;
use super::{Context, Ends};

/// Made for the first request that passes, and anew for the next one after a server closed it or announced that it will.
pub(super) struct Upstream {
    ends: Ends,
    cx: Arc<Context>,
    current: tokio::sync::Mutex<Current>,
    /// How often there was no connection to be had.
    unreachable: AtomicU64,
}

#[derive(Default)]
struct Current {
    send: Option<SendRequest<Bytes>>,
    /// Grows with every connection.
    number: u64,
}

impl Upstream {
    pub(super) fn new(ends: Ends, cx: Arc<Context>) -> Upstream {
        Upstream { ends, cx, current: Default::default(), unreachable: AtomicU64::new(0) }
    }

    async fn connect(&self) -> std::io::Result<SendRequest<Bytes>> {
        let limits = &self.cx.limits;
        let stream = within(limits.connect_timeout, self.cx.network.connect(self.ends)).await?;
        stream.set_nodelay(true).ok();
        presence::bound(&stream, limits.body_timeout);
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .max_header_list_size(most_header_bytes(limits))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (send, connection) = builder.handshake(stream).await.map_err(std::io::Error::other)?;
        // Ends when the last handle is gone.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the server's HTTP/2 connection failed");
            }
        });
        Ok(send)
    }

    /// The connection that there is, or a new one if that takes no more requests. Streams that wait while one tries share
    /// its luck: one after the other, each with a timeout of its own, the last ones would wait for many.
    pub(super) async fn ready(&self) -> Result<SendRequest<Bytes>, StatusCode> {
        let mut last = 0;
        loop {
            let (send, number) = {
                let unreachable = self.unreachable.load(Ordering::Relaxed);
                let mut server = self.current.lock().await;
                match &server.send {
                    // Another stream may have replaced the one that failed already.
                    Some(send) if server.number != last => (send.clone(), server.number),
                    _ if self.unreachable.load(Ordering::Relaxed) != unreachable => {
                        return Err(StatusCode::SERVICE_UNAVAILABLE);
                    }
                    _ => {
                        // Seldom; inside, it would make each stream larger.
                        let made = Box::pin(self.connect()).await.map_err(|error| {
                            self.unreachable.fetch_add(1, Ordering::Relaxed);
                            tracing::debug!(%error, server = %self.ends.server, "no connection to the server");
                            StatusCode::SERVICE_UNAVAILABLE
                        })?;
                        server.number += 1;
                        server.send = Some(made.clone());
                        (made, server.number)
                    }
                }
            };
            let is_second = last != 0;
            last = number;
            match send.ready().await {
                Ok(ready) => return Ok(ready),
                Err(error) if is_second => {
                    tracing::debug!(%error, server = %self.ends.server, "a new connection takes no request");
                    return Err(StatusCode::BAD_GATEWAY);
                }
                Err(_) => {}
            }
        }
    }
}
