//! Export of flows: JSON lines into a file, OpenTelemetry logs to a collector.
//!
//! Both are consumers of the ring. A collector that does not answer gets the same batch again until it does; what
//! the ring has gone over meanwhile is lost and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::hub::Hub;
use super::tail::{PAUSE, Tail};
use crate::api::export::{Rotating, line};
use crate::api::otlp::{Collector, record, request};
use crate::config::ExportConfig;

/// Records in one message to a collector.
const RECORDS: usize = 1024;

/// What became of the flows that were to be exported.
#[derive(Debug, Default)]
pub struct ExportCounters {
    pub written: AtomicU64,
    pub lost: AtomicU64,
    pub errors: AtomicU64,
}

/// Starts what is configured.
///
/// # Errors
/// No thread could be started, or the collector's URL is none.
pub fn start(config: &ExportConfig, node: &str, hub: &Arc<Hub>) -> anyhow::Result<Arc<ExportCounters>> {
    let counters = Arc::new(ExportCounters::default());
    if let Some(path) = &config.file {
        let file = Rotating::new(path.clone(), config.max_bytes, config.max_files);
        let (tail, config, counters) = (Tail::new(Arc::clone(hub)), config.clone(), Arc::clone(&counters));
        let thread = std::thread::Builder::new().name("sluice-export".into());
        thread.spawn(move || write(file, tail, &config, &counters))?;
    }
    if let Some(address) = &config.collector {
        let collector = Collector::new(address)?;
        let (tail, config, counters) = (Tail::new(Arc::clone(hub)), config.clone(), Arc::clone(&counters));
        tokio::spawn(send(collector, tail, config, node.to_owned(), counters));
    }
    Ok(counters)
}

fn write(mut file: Rotating, mut tail: Tail, config: &ExportConfig, counters: &ExportCounters) {
    let mut is_failing = false;
    loop {
        let (flows, lost) = tail.next();
        counters.lost.fetch_add(lost, Ordering::Relaxed);
        let is_idle = flows.is_empty();
        let mut failed = None;
        for flow in flows.iter().filter(|flow| config.filter.matches(flow)) {
            match file.write(&line(flow, tail.naming(), &config.fields)) {
                Ok(()) => counters.written.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    failed = Some(error);
                    counters.lost.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
        failed = failed.or(file.flush().err());
        if let Some(error) = &failed {
            counters.errors.fetch_add(1, Ordering::Relaxed);
            if !is_failing {
                tracing::error!(%error, "flows are not exported to the file");
            }
        }
        if !is_idle {
            is_failing = failed.is_some();
        }
        if is_idle || is_failing {
            std::thread::sleep(PAUSE);
        }
    }
}

async fn send(
    mut collector: Collector,
    mut tail: Tail,
    config: ExportConfig,
    node: String,
    counters: Arc<ExportCounters>,
) {
    // What was said last: a trouble that goes on is told once, another one is told again.
    let mut told = String::new();
    loop {
        let (flows, lost) = tail.next();
        counters.lost.fetch_add(lost, Ordering::Relaxed);
        if flows.is_empty() {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let wanted: Vec<_> = flows.iter().filter(|flow| config.filter.matches(flow)).collect();
        for flows in wanted.chunks(RECORDS) {
            let records: Vec<_> =
                flows.iter().map(|flow| record(flow, tail.naming(), &config.fields)).collect();
            let request = request(&node, records);
            let mut pause = PAUSE;
            loop {
                match collector.send(request.clone()).await {
                    Ok(rejected) => {
                        counters.written.fetch_add(
                            flows.len() as u64 - rejected.min(flows.len() as u64),
                            Ordering::Relaxed,
                        );
                        counters.lost.fetch_add(rejected, Ordering::Relaxed);
                        told.clear();
                        break;
                    }
                    Err(error) => {
                        counters.errors.fetch_add(1, Ordering::Relaxed);
                        if told != error.message() {
                            told = error.message().to_owned();
                            tracing::error!(error = told, "flows are not exported to the collector yet");
                        }
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(10));
                    }
                }
            }
        }
    }
}
