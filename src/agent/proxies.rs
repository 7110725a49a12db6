//! Keeps the proxies running.
//!
//! They are processes of their own, so that a restart of the agent cuts neither a request nor a lookup: an
//! agent that finds one running leaves it alone, unless it runs another program than the agent itself, or was
//! started with other settings; then
//! a new process takes over its listeners while it finishes what it has begun. One that ended is started
//! again, with growing pauses. Without any proxy the kernel drops what it would redirect.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::core::CoreHandle;
use super::proxy_host::{Hello, LEAVING, Place, build};
use crate::api;
use crate::config::AgentConfig;

/// First and longest pause before a proxy is started again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A proxy that lived so long is started again without much ado.
const LIVED: Duration = Duration::from_secs(20);
/// How long a new process may take until its listeners are in their places.
const START: Duration = Duration::from_secs(20);

/// The processes, by subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProxyProcess {
    Http,
    Dns,
}

impl ProxyProcess {
    pub const ALL: [ProxyProcess; 2] = [ProxyProcess::Http, ProxyProcess::Dns];

    /// Subcommand, and the name of its files in the agent's directory.
    pub fn name(self) -> &'static str {
        match self {
            ProxyProcess::Http => "http-proxy",
            ProxyProcess::Dns => super::dns_proxy::NAME,
        }
    }

    /// What of the agent's configuration is for this process.
    fn arguments(self, config: &AgentConfig) -> Vec<String> {
        match self {
            ProxyProcess::Http => {
                config.http_proxy.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]).collect()
            }
            ProxyProcess::Dns => config.dns.arguments(),
        }
    }
}

/// Starts and watches one proxy until the core is gone.
pub async fn supervise(process: ProxyProcess, config: std::sync::Arc<AgentConfig>, core: CoreHandle) {
    let place = Place::new(&config.run_dir, process.name());
    let mut pause = RETRY.0;
    loop {
        let begun = Instant::now();
        match find_or_start(process, &config, &place).await {
            Ok(running) => {
                tracing::info!(proxy = process.name(), pid = running.pid, "listening");
                if core.call(move |core| core.proxy_listens(process, true)).await.is_err() {
                    return;
                }
                if running.ended().await == Ended::Leaving {
                    // It accepts until the next one has its listeners in their places.
                    tracing::info!(proxy = process.name(), "leaving; another one takes over");
                    continue;
                }
                if meet(&place).await.is_ok() {
                    // Somebody has started another one, which has taken its place already.
                    continue;
                }
                tracing::warn!(proxy = process.name(), "ended");
                if core.call(move |core| core.proxy_listens(process, false)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(proxy = process.name(), error = %format!("{error:#}"), "not started");
            }
        }
        if begun.elapsed() > LIVED {
            pause = RETRY.0;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// A proxy that serves, and the connection that ends with it.
struct Running {
    pid: u32,
    stream: BufReader<UnixStream>,
    /// Started by this agent: to be waited for.
    child: Option<Child>,
}

/// How a proxy stops being the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was told to stop; until another one has taken over it still accepts.
    Leaving,
    Gone,
}

impl Running {
    async fn ended(mut self) -> Ended {
        let mut line = String::new();
        // Whatever else comes, the end of it is the end of the process.
        let read = self.stream.read_line(&mut line).await;
        let leaving = matches!(read, Ok(1..)) && line.trim_end() == LEAVING;
        match self.child {
            // It finishes what it has begun, and is to be reaped then.
            Some(mut child) if leaving => drop(tokio::spawn(async move { child.wait().await })),
            Some(mut child) => drop(child.wait().await),
            None => {}
        }
        if leaving { Ended::Leaving } else { Ended::Gone }
    }
}

async fn find_or_start(
    process: ProxyProcess,
    config: &AgentConfig,
    place: &Place,
) -> anyhow::Result<Running> {
    if let Ok((hello, stream)) = meet(place).await
        && hello.build == build()
        && hello.arguments == command_line(process, config)
    {
        return Ok(Running { pid: hello.pid, stream, child: None });
    }
    let mut child = start(process, config)?;
    let pid = child.id().context("the process has no number")?;
    let met = tokio::time::timeout(START, async {
        loop {
            if let Ok((hello, stream)) = meet(place).await
                && hello.pid == pid
            {
                return Ok(stream);
            }
            tokio::select! {
                status = child.wait() => anyhow::bail!("it ended at once: {}", status?),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
    })
    .await;
    match met {
        Ok(stream) => Ok(Running { pid, stream: stream?, child: Some(child) }),
        Err(_) => {
            child.kill().await.ok();
            anyhow::bail!("it did not listen within {} s", START.as_secs())
        }
    }
}

async fn meet(place: &Place) -> anyhow::Result<(Hello, BufReader<UnixStream>)> {
    let mut stream = BufReader::new(UnixStream::connect(&place.socket).await?);
    let mut line = String::new();
    tokio::time::timeout(Duration::from_secs(2), stream.read_line(&mut line)).await??;
    Ok((serde_json::from_str(&line)?, stream))
}

fn start(process: ProxyProcess, config: &AgentConfig) -> anyhow::Result<Child> {
    // The program that this agent runs, even if its file has been replaced or deleted meanwhile.
    let program = PathBuf::from("/proc/self/exe");
    let program = std::fs::canonicalize(&program).unwrap_or(program);
    let mut command = Command::new(&program);
    command
        .args(command_line(process, config))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A group of its own: what ends the agent does not end it.
        .process_group(0)
        .kill_on_drop(false);
    command.spawn().with_context(|| format!("start {} {}", program.display(), process.name()))
}

fn command_line(process: ProxyProcess, config: &AgentConfig) -> Vec<String> {
    let path = |path: &std::path::Path| path.display().to_string();
    let mut line = vec![process.name().to_owned()];
    for (flag, value) in [
        ("--run-dir", path(&config.run_dir)),
        ("--bpffs", path(&config.bpffs)),
        ("--log", config.log.clone()),
    ] {
        line.extend([flag.to_owned(), value]);
    }
    line.extend(process.arguments(config));
    line
}

/// What the running proxies say of themselves, for `sluice status`. One that does not answer is left out.
pub async fn ask(run_dir: &std::path::Path) -> Vec<api::types::Proxy> {
    let mut all = Vec::new();
    for process in ProxyProcess::ALL {
        let Ok((hello, _)) = meet(&Place::new(run_dir, process.name())).await else { continue };
        let counters = hello.counters.as_object().into_iter().flatten();
        let counters = counters.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)));
        all.push(api::types::Proxy {
            name: process.name().to_owned(),
            pid: hello.pid,
            counters: counters.collect(),
        });
    }
    all
}
