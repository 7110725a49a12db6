//! `sluice relay`: the flows of all nodes in one place, and the web UI over them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{CliError, CliResult, Exit, logs};
use crate::api::hubble::client::{ClientTls, ServerAddress};
use crate::api::hubble::relay::page::RelayPage;
use crate::api::hubble::relay::pool::{PeerAddress, Pool, parse_peer};
use crate::api::hubble::relay::relay_services;
use crate::api::hubble::serve::{self, Places};
use crate::api::hubble::tls::{Clients, Credentials, TlsFiles};
use crate::api::hubble::{RELAY_SOCKET, SOCKET};
use crate::api::unix;
use crate::config::{LogFormat, UiConfig, UiSettings};

const EXAMPLES: &str = "\
Examples:
  sluice relay
  sluice relay --peer node1=192.0.2.1:4245 --peer node2=tls://192.0.2.2
  sluice relay --listen-address 127.0.0.1:4245 --disable-server-tls --ui-listen off";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RelayArgs {
    /// Where the socket (relay.sock) is, and that of the agent of this node
    #[arg(long, env = "SLUICE_RUN_DIR", default_value = "/run/sluice", value_name = "DIR")]
    run_dir: PathBuf,
    /// Observer that knows the others [default: the agent of this node]
    #[arg(long, env = "SLUICE_PEER_SERVICE", value_name = "ADDRESS", conflicts_with = "peer")]
    peer_service: Option<ServerAddress>,
    /// A peer by NAME=ADDRESS (repeat), instead of asking one
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = parse_peer)]
    peer: Vec<(String, PeerAddress)>,
    /// Credentials for the agents: a directory with node.crt, node.key and ca.crt, as a node gets it when it
    /// joins a server
    #[arg(
        long,
        env = "SLUICE_CREDENTIALS_DIR",
        default_value = "/var/lib/sluice/server",
        value_name = "DIR"
    )]
    credentials_dir: PathBuf,
    /// Serve on this address too, such as 0.0.0.0:4245
    #[arg(long, env = "SLUICE_RELAY_LISTEN_ADDRESS", value_name = "IP:PORT")]
    listen_address: Option<SocketAddr>,
    /// Certificate for that [default: the one of the credentials]
    #[arg(long, value_name = "FILE", requires = "tls_server_key_file")]
    tls_server_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_server_cert_file")]
    tls_server_key_file: Option<PathBuf>,
    /// Authority of the clients [default: the one of the credentials]
    #[arg(long, value_name = "FILE")]
    tls_client_ca_file: Option<PathBuf>,
    /// Serve in plain text; on a loopback address only
    #[arg(long)]
    disable_server_tls: bool,
    #[command(flatten)]
    ui: UiSettings,
    /// Log level or filter
    #[arg(long, env = "SLUICE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

impl RelayArgs {
    /// What the TCP socket shows; refuses to show flows in plain text beyond this machine.
    fn server_tls(&self, listen: SocketAddr) -> Result<Option<TlsFiles>, CliError> {
        if self.disable_server_tls {
            return if listen.ip().is_loopback() {
                Ok(None)
            } else {
                Err(CliError::Invalid(format!("--disable-server-tls: {listen} is not a loopback address")))
            };
        }
        let file = |name: &str| self.credentials_dir.join(name);
        Ok(Some(TlsFiles {
            certificate: self.tls_server_cert_file.clone().unwrap_or_else(|| file("node.crt")),
            key: self.tls_server_key_file.clone().unwrap_or_else(|| file("node.key")),
            clients: Clients::SignedBy(self.tls_client_ca_file.clone().unwrap_or_else(|| file("ca.crt"))),
        }))
    }

    fn client_tls(&self) -> ClientTls {
        let file = |name: &str| self.credentials_dir.join(name);
        if !file("node.key").exists() {
            return ClientTls::default();
        }
        ClientTls {
            authorities: vec![file("ca.crt")],
            identity: Some((file("node.crt"), file("node.key"))),
            server_name: None,
        }
    }
}

pub fn run(args: RelayArgs) -> CliResult {
    logs::init(LogFormat::Text, &args.log).map_err(|error| CliError::Invalid(error.to_string()))?;
    let tcp = match args.listen_address {
        None => None,
        Some(listen) => {
            let credentials = args.server_tls(listen)?.map(Credentials::load).transpose();
            Some((listen, credentials.map_err(|error| CliError::Invalid(error.to_string()))?))
        }
    };
    let ui = args.ui.of_relay().map_err(|problems| CliError::Invalid(problems.join("\n")))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(serve(args, tcp, ui)).map_err(CliError::Failed)?;
    Ok(Exit::Done)
}

async fn serve(
    args: RelayArgs,
    tcp: Option<(SocketAddr, Option<Credentials>)>,
    ui: Option<UiConfig>,
) -> anyhow::Result<()> {
    let pool = Pool::new(args.client_tls());
    if args.peer.is_empty() {
        let service =
            args.peer_service.clone().unwrap_or_else(|| ServerAddress::Unix(args.run_dir.join(SOCKET)));
        tokio::spawn(Arc::clone(&pool).discover(service));
    }
    for (name, address) in &args.peer {
        pool.put(name, address.clone());
    }
    let version = concat!("sluice relay v", env!("CARGO_PKG_VERSION")).to_owned();
    if let Some(ui) = ui {
        show(&ui, RelayPage::new(Arc::clone(&pool), env!("CARGO_PKG_VERSION").to_owned())).await;
    }
    let routes = serve::routes(relay_services(pool, version)).await;
    let (places, stop) = (Places::default(), CancellationToken::new());
    let path = args.run_dir.join(RELAY_SOCKET);
    let listener = unix::bind(&path).await?;
    let mut serving = tokio::task::JoinSet::new();
    if let Some((listen, credentials)) = tcp {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
        serving.spawn(serve::tcp(listener, credentials, routes.clone(), places.clone(), stop.clone()));
    }
    serving.spawn(serve::unix(listener, routes, places, stop.clone()));
    tracing::info!(socket = %path.display(), "ready");
    // Not running under systemd is no failure.
    sd_notify::notify(false, &[sd_notify::NotifyState::Ready]).ok();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = serving.join_next() => ended.transpose()?.transpose().map(drop).context("serve the flow API")?,
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    stop.cancel();
    std::fs::remove_file(&path).ok();
    Ok(())
}

/// Opens the web UI. What keeps it from opening is said; flows are served without it.
async fn show(config: &UiConfig, page: RelayPage) {
    let url = config.url();
    match config.open().await {
        Ok(opened) => {
            tokio::spawn(opened.serve(Arc::new(page)));
            tracing::info!(url, "the web UI is open");
        }
        Err(error) => tracing::warn!(%error, "the web UI is not open"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        relay: RelayArgs,
    }

    #[test]
    fn flows_leave_the_machine_encrypted_only() {
        let plain = |listen: &str| {
            let line = ["x", "--listen-address", listen, "--disable-server-tls"];
            let args = Line::try_parse_from(line).unwrap().relay;
            args.server_tls(args.listen_address.unwrap())
        };
        assert!(plain("127.0.0.1:4245").unwrap().is_none());
        assert!(plain("192.0.2.1:4245").is_err());
    }

    #[test]
    fn peers_are_given_or_asked_for() {
        let peers = Line::try_parse_from(["x", "--peer", "a=tls://192.0.2.1", "--peer", "b=192.0.2.2:1"]);
        let peers = peers.unwrap().relay.peer;
        assert_eq!(peers[0].1.server_name.as_deref(), Some("a"));
        assert_eq!(peers[1].1.server_name, None);
        assert!(Line::try_parse_from(["x", "--peer", "a"]).is_err());
        assert!(Line::try_parse_from(["x", "--peer", "a=b", "--peer-service", "/x"]).is_err());
    }

    #[test]
    fn a_page_beyond_loopback_needs_more_than_an_address() {
        let args = Line::try_parse_from(["x", "--ui-listen", "192.0.2.1:4247"]).unwrap().relay;
        assert!(args.ui.of_relay().is_err());
        let off = Line::try_parse_from(["x", "--ui-listen", "off"]).unwrap().relay;
        assert_eq!(off.ui.of_relay(), Ok(None));
    }

    #[test]
    fn the_unit_of_the_assets_is_the_one_that_is_installed() {
        let unit = include_str!("../../assets/systemd/sluice-relay.service");
        let script = include_str!("../../install.sh");
        let written =
            script.split("<<RELAY_UNIT\n").nth(1).and_then(|rest| rest.split("\nRELAY_UNIT\n").next());
        let written = written.expect("install.sh writes the unit of the relay");
        let installed = written.replace("$bin_dir", "/usr/local/bin").replace("$etc_dir", "/etc/sluice");
        assert_eq!(format!("{installed}\n"), unit);
    }
}
