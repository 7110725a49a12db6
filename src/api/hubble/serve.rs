//! Sockets of the flow API and what one client may take of them.
//!
//! Bounds: connections in all, calls on one connection, bytes of a request, seconds of a TLS handshake. A
//! peer that has vanished without a word is found by HTTP/2 pings.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::late::Late;
use super::pb;
use super::tls::Credentials;

/// Longest request in bytes; the longest sensible one has some hundred filters.
pub const MAX_REQUEST: usize = 256 * 1024;
const CONNECTIONS: usize = 128;
const CALLS: u32 = 32;
const HANDSHAKE: Duration = Duration::from_secs(5);
const PING: Duration = Duration::from_secs(15);
/// Names under which clients ask for our health: Hubble's, the service's, and the whole.
const HEALTH: [&str; 3] = ["hubble.server.Observer", "observer.Observer", ""];
const VALID: &str = "the build script wrote valid descriptors";

/// A connection with its place in the count. It ends when the server is told to stop: calls that follow flows
/// would not end by themselves.
struct Counted<T> {
    io: T,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl<T> Counted<T> {
    fn new(io: T, place: OwnedSemaphorePermit, stop: &CancellationToken) -> Counted<T> {
        Counted { io, stopped: Box::pin(stop.clone().cancelled_owned()), _place: place }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T> Connected for Counted<T> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// The services together with health and reflection.
pub async fn routes(mut services: RoutesBuilder) -> Routes {
    let (health, service) = tonic_health::server::health_reporter();
    for name in HEALTH {
        health.set_service_status(name, tonic_health::ServingStatus::Serving).await;
    }
    services
        .add_service(service)
        .add_service(Late::new(|| reflection().build_v1().expect(VALID)))
        .add_service(Late::new(|| reflection().build_v1alpha().expect(VALID)));
    services.routes()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(pb::DESCRIPTORS)
}

/// The places that all sockets of one program share.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Places {
        Places(Arc::new(Semaphore::new(CONNECTIONS)))
    }
}

impl Places {
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.0).try_acquire_owned().ok();
        if place.is_none() {
            tracing::warn!("{CONNECTIONS} clients are connected to the flow API: another one was refused");
        }
        place
    }
}

/// Serves until told to stop.
pub async fn unix(
    listener: UnixListener,
    routes: Routes,
    places: Places,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (sender, incoming) = mpsc::channel(16);
    let ends = stop.clone();
    let accept = async move {
        loop {
            match listener.accept().await {
                Ok((io, _)) => {
                    let Some(place) = places.take() else { continue };
                    if sender.send(Ok::<_, io::Error>(Counted::new(io, place, &ends))).await.is_err() {
                        return;
                    }
                }
                Err(error) => pause(&error).await,
            }
        }
    };
    run(incoming, accept, routes, stop).await
}

/// Serves until told to stop; without credentials in plain text.
pub async fn tcp(
    listener: TcpListener,
    credentials: Option<Credentials>,
    routes: Routes,
    places: Places,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let ends = stop.clone();
    match credentials {
        None => {
            let (sender, incoming) = mpsc::channel(16);
            let accept = async move {
                loop {
                    match listener.accept().await {
                        Ok((io, _)) => {
                            io.set_nodelay(true).ok();
                            let Some(place) = places.take() else { continue };
                            if sender.send(Ok::<_, io::Error>(Counted::new(io, place, &ends))).await.is_err()
                            {
                                return;
                            }
                        }
                        Err(error) => pause(&error).await,
                    }
                }
            };
            run(incoming, accept, routes, stop).await
        }
        Some(credentials) => {
            let (sender, incoming) = mpsc::channel(16);
            let accept = async move {
                loop {
                    let (io, peer) = match listener.accept().await {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            pause(&error).await;
                            continue;
                        }
                    };
                    io.set_nodelay(true).ok();
                    let Some(place) = places.take() else { continue };
                    let acceptor = tokio_rustls::TlsAcceptor::from(credentials.current());
                    let (sender, ends) = (sender.clone(), ends.clone());
                    // A client that takes its time keeps nobody else waiting.
                    tokio::spawn(async move {
                        match tokio::time::timeout(HANDSHAKE, acceptor.accept(io)).await {
                            Ok(Ok(io)) => {
                                let connection = Counted::new(io, place, &ends);
                                sender.send(Ok::<_, io::Error>(connection)).await.ok();
                            }
                            Ok(Err(error)) => tracing::info!(%peer, %error, "a TLS handshake failed"),
                            Err(_) => tracing::info!(%peer, "a TLS handshake took too long"),
                        }
                    });
                }
            };
            run(incoming, accept, routes, stop).await
        }
    }
}

/// Out of file descriptors, most likely: trying again at once would only burn time.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a client of the flow API could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn run<T>(
    incoming: mpsc::Receiver<io::Result<Counted<T>>>,
    accept: impl Future<Output = ()> + Send + 'static,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let accepting = tokio::spawn(accept);
    let server = Server::builder()
        .max_concurrent_streams(CALLS)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING))
        .http2_max_header_list_size(16 * 1024)
        .add_routes(routes)
        .serve_with_incoming(ReceiverStream::new(incoming));
    let result = tokio::select! {
        result = server => result,
        () = stop.cancelled() => Ok(()),
    };
    accepting.abort();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_reflection_can_be_built() {
        assert!(reflection().build_v1().is_ok());
        assert!(reflection().build_v1alpha().is_ok());
    }
}
