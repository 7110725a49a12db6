//! The workloads: what answers on the ports of pods, externals and host-network pods.
//!
//! TCP ports speak HTTP/1.1 and h2c, and TLS with the same inside when the client starts with a
//! ClientHello; UDP ports echo; port 53 of the cluster DNS speaks DNS. Every HTTP answer is 200 and
//! says who answered and what arrived.
//!
//! Sockets are made inside their namespace and served by one runtime outside: a lab needs no
//! process and no thread per pod.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::LabError;
use super::dns::{Carrier, Zone};
use super::netns::Netns;
use super::topology::{Role, Site, Topology, Transport};

/// Names the workload that answered, so that a client can tell its answer from a proxy's.
pub const WORKLOAD_HEADER: &str = "x-sluice-lab-workload";
/// First byte of a TLS record that carries a handshake (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// Connections that a listener's queue holds.
const BACKLOG: i32 = 512;
/// A client that says nothing is dropped after this long.
const IDLE: Duration = Duration::from_secs(600);

/// One socket that answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    site: Site,
    address: SocketAddr,
    transport: Transport,
}

/// Who answers, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    owner: Arc<str>,
    role: Role,
}

/// The running listeners of a lab. Dropping this ends them and their connections.
#[derive(Debug)]
pub struct Workloads {
    shared: Arc<Shared>,
    listeners: BTreeMap<Key, (Service, DropGuard)>,
}

struct Shared {
    tls: TlsAcceptor,
    zone: ArcSwap<Zone>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("zone", &self.zone).finish_non_exhaustive()
    }
}

impl Workloads {
    /// No listeners yet.
    pub fn new() -> Result<Workloads, LabError> {
        let shared = Shared { tls: TlsAcceptor::from(tls_config()?), zone: ArcSwap::default() };
        Ok(Workloads { shared: Arc::new(shared), listeners: BTreeMap::new() })
    }

    /// Starts and ends listeners until exactly those of `topology` run, and replaces the DNS zone.
    /// `netns` finds the namespace of a site. Must be called inside a tokio runtime.
    pub fn converge(&mut self, topology: &Topology, netns: impl Fn(&Site) -> Netns) -> Result<(), LabError> {
        self.shared.zone.store(Arc::new(Zone::of(topology)));
        let wanted = wanted(topology);
        self.listeners.retain(|key, (service, _)| wanted.get(key) == Some(service));
        let mut missing: BTreeMap<&Site, Vec<(&Key, &Service)>> = BTreeMap::new();
        for (key, service) in wanted.iter().filter(|(key, _)| !self.listeners.contains_key(key)) {
            missing.entry(&key.site).or_default().push((key, service));
        }
        for (site, wanted) in missing {
            let netns = netns(site);
            let sockets: Vec<io::Result<Socket>> =
                netns.run(|| wanted.iter().map(|(key, _)| listening_socket(key)).collect())?;
            for ((key, service), socket) in wanted.into_iter().zip(sockets) {
                let cancel = CancellationToken::new();
                socket.and_then(|socket| self.serve(socket, key, service, cancel.clone())).map_err(|e| {
                    LabError::io("listen", format!("{site} {} {}", key.address, key.transport), e)
                })?;
                self.listeners.insert(key.clone(), (service.clone(), cancel.drop_guard()));
            }
        }
        Ok(())
    }

    fn serve(
        &self,
        socket: Socket,
        key: &Key,
        service: &Service,
        cancel: CancellationToken,
    ) -> io::Result<()> {
        let dns = service.role == Role::ClusterDns && key.address.port() == 53;
        let shared = self.shared.clone();
        match key.transport {
            Transport::Tcp => {
                let listener = TcpListener::from_std(socket.into())?;
                let owner = service.owner.clone();
                tokio::spawn(accept(listener, cancel, move |stream| {
                    let (shared, owner) = (shared.clone(), owner.clone());
                    async move {
                        if dns {
                            serve_dns_tcp(stream, &shared).await
                        } else {
                            serve_tcp(stream, &shared, owner).await
                        }
                    }
                }));
            }
            Transport::Udp => {
                let socket = UdpSocket::from_std(socket.into())?;
                tokio::spawn(cancel.run_until_cancelled_owned(async move {
                    serve_udp(&socket, dns.then_some(&*shared)).await;
                }));
            }
            // The kernel answers nothing for a protocol that it does not have; see `sctp_available`.
            Transport::Sctp => {
                let listener = TcpListener::from_std(socket.into())?;
                tokio::spawn(accept(listener, cancel, echo));
            }
        }
        Ok(())
    }
}

/// Every listener of a topology. Where two host-network pods want one port, the first has it.
fn wanted(topology: &Topology) -> BTreeMap<Key, Service> {
    let mut wanted = BTreeMap::new();
    let sctp = sctp_available();
    let mut add =
        |site: Site, addresses: &[IpAddr], ports: &[super::topology::ListenPort], service: Service| {
            for address in addresses {
                for port in ports.iter().filter(|port| port.transport != Transport::Sctp || sctp) {
                    let address = SocketAddr::new(*address, port.port);
                    let key = Key { site: site.clone(), address, transport: port.transport };
                    wanted.entry(key).or_insert_with(|| service.clone());
                }
            }
        };
    for pod in &topology.pods {
        let service = Service { owner: pod.path().into(), role: pod.role };
        let addresses = if pod.host_network {
            topology.node(&pod.node).map_or(&[][..], |node| &node.addresses)
        } else {
            &pod.addresses
        };
        add(pod.site(), addresses, &pod.ports, service);
    }
    for external in &topology.externals {
        let site = Site::External(external.name.clone());
        let service = Service { owner: site.to_string().into(), role: Role::Workload };
        add(site, &external.addresses, &external.ports, service);
    }
    wanted
}

/// Whether this kernel has SCTP sockets.
pub fn sctp_available() -> bool {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP)).is_ok()
}

fn listening_socket(key: &Key) -> io::Result<Socket> {
    let domain = Domain::for_address(key.address);
    let socket = match key.transport {
        Transport::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?,
        Transport::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?,
        Transport::Sctp => Socket::new(domain, Type::STREAM, Some(Protocol::SCTP))?,
    };
    socket.set_reuse_address(true)?;
    socket.bind(&key.address.into())?;
    if key.transport != Transport::Udp {
        socket.listen(BACKLOG)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Accepts until cancelled; connections end with their listener.
async fn accept<F>(listener: TcpListener, cancel: CancellationToken, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve(stream);
                tokio::spawn(cancel.clone().run_until_cancelled_owned(async move {
                    // A client that goes away in the middle is no failure of the lab.
                    tokio::time::timeout(IDLE, connection).await.ok();
                }));
            }
            // Out of descriptors: accepting again at once would only burn the processor.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_tcp(stream: TcpStream, shared: &Shared, owner: Arc<str>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0u8; 1];
    if stream.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE {
        serve_http(shared.tls.accept(stream).await?, owner).await
    } else {
        serve_http(stream, owner).await
    }
}

async fn serve_http<S>(stream: S, owner: Arc<str>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, owner.clone()));
    let builder = auto::Builder::new(TokioExecutor::new());
    builder.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

/// 200, with what arrived.
async fn answer(request: Request<Incoming>, owner: Arc<str>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut text = format!("{owner}\n{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    // The connection is good for another request only when this one was read to its end.
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if !body.is_empty() {
        text.push_str(&format!("\n{} bytes\n", body.len()));
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if let Ok(value) = hyper::header::HeaderValue::from_str(&owner) {
        response.headers_mut().insert(WORKLOAD_HEADER, value);
    }
    Ok(response)
}

async fn serve_udp(socket: &UdpSocket, dns: Option<&Shared>) {
    let mut buffer = vec![0u8; 65535];
    loop {
        // An ICMP error for an earlier answer shows up here; the socket is fine.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = match dns {
            Some(shared) => shared.zone.load().answer(&buffer[..length], Carrier::Udp),
            None => Some(buffer[..length].to_vec()),
        };
        if let Some(answer) = answer {
            socket.send_to(&answer, peer).await.ok();
        }
    }
}

/// DNS over TCP: each message behind its length (RFC 1035, section 4.2.2).
async fn serve_dns_tcp(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0u8; usize::from(length)];
        stream.read_exact(&mut question).await?;
        let Some(answer) = shared.zone.load().answer(&question, Carrier::Tcp) else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        stream.write_all(&framed).await?;
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.map(drop)
}

/// One self-signed certificate for every workload; the lab's clients do not check it.
fn tls_config() -> Result<Arc<rustls::ServerConfig>, LabError> {
    let failed = |e: &dyn std::fmt::Display| LabError::Tls(e.to_string());
    let certified =
        rcgen::generate_simple_self_signed(vec!["workload.sluice.lab".to_owned()]).map_err(|e| failed(&e))?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der())
        .map_err(|e| failed(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
