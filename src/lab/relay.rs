//! The relay of a lab that was left running (`sluice lab up`): the flows of all its nodes in one place.
//!
//! It lives in the fabric's namespace, from which every node is reached and where whoever removes the lab finds
//! it, asks the agent of the first node for the others, and shows them that node's certificate.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::LabError;
use super::fabric::Lab;
use super::topology::Site;
use crate::api::hubble::client::{self, ClientTls, ServerAddress};
use crate::api::hubble::pb::observer::observer_client::ObserverClient;
use crate::api::hubble::pb::observer::{ServerStatusRequest, ServerStatusResponse};
use crate::api::hubble::{RELAY_SOCKET, SOCKET};

/// How long the relay has to open its socket.
const START: Duration = Duration::from_secs(10);
/// How long the nodes have to answer it.
const NODES: Duration = Duration::from_secs(10);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

/// Where its flow API is.
pub fn socket(lab: &Path) -> PathBuf {
    lab.join("relay").join(RELAY_SOCKET)
}

/// That as clients name it.
pub fn address(lab: &Path) -> String {
    ServerAddress::Unix(socket(lab)).to_string()
}

/// Starts the relay and waits until it knows every node; what a node keeps it from, `lab status` says.
/// A lab without nodes has no relay.
pub async fn spawn(lab: &Lab, program: &Path) -> Result<(), LabError> {
    let nodes = &lab.topology().nodes;
    let Some(first) = nodes.first() else { return Ok(()) };
    let directory = lab.dir().path();
    let home = directory.join("relay");
    fs::create_dir_all(&home).map_err(|e| LabError::io("create", &home, e))?;
    let failed = |source| LabError::io("start the relay of", lab.name(), source);
    let log = home.join("log");
    let out = File::create(&log).map_err(failed)?;
    let err = out.try_clone().map_err(failed)?;
    let node = directory.join("node").join(&first.name);
    let mut command = Command::new(program);
    command.arg("relay").arg("--run-dir").arg(&home);
    command.arg("--peer-service").arg(ServerAddress::Unix(node.join(SOCKET)).to_string());
    command.arg("--credentials-dir").arg(node.join("state/server"));
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    let mut child = lab.netns(&Site::Fabric).run(|| command.spawn())?.map_err(failed)?;
    let deadline = Instant::now() + START;
    while status(directory).await.is_err() {
        ended(&mut child, &log).map_err(failed)?;
        if Instant::now() >= deadline {
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        sleep(POLL).await;
    }
    let (wanted, deadline) = (nodes.len(), Instant::now() + NODES);
    while Instant::now() < deadline && status(directory).await.is_ok_and(|said| connected(&said) < wanted) {
        ended(&mut child, &log).map_err(failed)?;
        sleep(POLL).await;
    }
    Ok(())
}

/// An error when the process has ended, with what it wrote.
fn ended(child: &mut Child, log: &Path) -> std::io::Result<()> {
    match child.try_wait()? {
        None => Ok(()),
        Some(status) => {
            let text = fs::read_to_string(log).unwrap_or_default();
            Err(std::io::Error::other(format!("{status}: {}", text.trim())))
        }
    }
}

/// What the relay says of itself and the nodes.
///
/// # Errors
/// It does not answer.
pub async fn status(lab: &Path) -> Result<ServerStatusResponse, String> {
    let server = ServerAddress::Unix(socket(lab));
    let channel = client::connect(&server, &ClientTls::default()).await.map_err(|error| error.to_string())?;
    let answer = ObserverClient::new(channel).server_status(ServerStatusRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| client::causes(&status))
}

/// Nodes that answer the relay.
pub fn connected(said: &ServerStatusResponse) -> usize {
    said.num_connected_nodes.and_then(|count| usize::try_from(count).ok()).unwrap_or_default()
}
