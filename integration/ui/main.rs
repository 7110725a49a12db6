//! The web UI in a real browser: the real router and page over a synthetic cluster, driven by the scripts beside this
//! file (`*.test.mjs`, Playwright with the machine's Chromium), and once over the agents of a real lab. Needs root.
//!
//! `cargo test --features root-tests --test ui` runs them. `... --test ui -- serve WORKLOADS FLOWS_PER_SECOND [PORT]` only serves, for
//! measurements and for work on the page.

mod lab;
mod synthetic;

use std::process::{Command, ExitCode};
use std::sync::Arc;

use sluice::api::ui::guard::{Guard, Token, Transport};
use sluice::api::ui::{listen, router};
use tokio::net::TcpListener;

use self::synthetic::Synthetic;

const TOKEN: &str = "integration-test-token";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("start the runtime");
    if arguments.first().is_some_and(|argument| argument == "serve") {
        let number = |index: usize, default| {
            arguments.get(index).map_or(default, |text| text.parse().expect("a number"))
        };
        let (workloads, rate, port) = (number(1, 500), number(2, 1000), number(3, 0));
        runtime.block_on(async {
            let cluster = Synthetic::new(workloads);
            println!("{}", serve(&cluster, None, port as u16).await);
            cluster.run(rate as u64).await;
        });
        return ExitCode::SUCCESS;
    }
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/ui");
    if !std::path::Path::new(directory).join("node_modules/playwright-core").exists() {
        eprintln!("{directory}/node_modules is not there: scripts/ui check installs what the lockfile says");
        return ExitCode::FAILURE;
    }
    let (open, locked) = runtime.block_on(async {
        let cluster = Synthetic::new(30);
        tokio::spawn(Arc::clone(&cluster).run(200));
        (serve(&cluster, None, 0).await, serve(&cluster, Token::new(TOKEN), 0).await)
    });
    let lab = lab::Lab::start();
    let status = Command::new("node")
        .args(["--test", "--test-reporter=spec"])
        .args(arguments.iter().filter(|argument| argument.ends_with(".test.mjs")))
        .current_dir(directory)
        .envs(lab.environment())
        .env("SLUICE_UI", &open)
        .env("SLUICE_UI_LOCKED", &locked)
        .env("SLUICE_UI_TOKEN", TOKEN)
        .status()
        .expect("node: scripts/setup installs it");
    drop(lab);
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves on loopback; returns the URL.
async fn serve(cluster: &Arc<Synthetic>, token: Option<Token>, port: u16) -> String {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("listen on loopback");
    let address = listener.local_addr().expect("an address");
    let guard = Guard { transport: Transport::Plain, token, names: Vec::new() };
    tokio::spawn(listen::serve(listener, None, router(cluster.clone(), guard)));
    format!("http://{address}")
}
