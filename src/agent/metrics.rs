//! Metrics of the agent: `cilium_*` on one port, `hubble_*` on another.
//!
//! Flows are counted by a consumer of the ring on a thread of its own. The agent's numbers are asked of the core when
//! somebody scrapes, once for all of them.

mod numbers;
mod page;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use parking_lot::Mutex;

use self::page::agent_page;
use super::core::{Core, CoreHandle};
use super::export::ExportCounters;
use super::history::Recorder;
use super::hub::Hub;
use super::pace::Pace;
use super::tail::{PAUSE, Tail};
use crate::api::metrics::Format;
use crate::api::metrics::context::Context;
use crate::api::metrics::flows::{FlowMetrics, LostAt};

/// Counts flows from now on; the counters are behind what is returned.
///
/// # Errors
/// No thread could be started.
pub fn count_flows(context: Context, most: usize, hub: Arc<Hub>) -> std::io::Result<Arc<Mutex<FlowMetrics>>> {
    let metrics = Arc::new(Mutex::new(FlowMetrics::new(context, most)));
    let counted = Arc::clone(&metrics);
    std::thread::Builder::new().name("sluice-metrics".into()).spawn(move || {
        let mut tail = Tail::new(Arc::clone(&hub));
        let mut lost_in_kernel = 0;
        loop {
            let (flows, lost) = tail.next();
            let in_kernel = hub.lost();
            {
                let mut metrics = counted.lock();
                metrics.lose(LostAt::Ring, lost);
                metrics.lose(LostAt::Kernel, in_kernel.saturating_sub(lost_in_kernel));
            }
            lost_in_kernel = in_kernel;
            // A scrape never waits long.
            let pace = Pace::of(flows.len(), super::tail::BATCH);
            for some in flows.chunks(pace.portion()) {
                let mut metrics = counted.lock();
                some.iter().for_each(|flow| metrics.count(flow));
                drop(metrics);
                pace.pause()();
            }
            if flows.len() < super::tail::BATCH {
                std::thread::sleep(PAUSE);
            }
        }
    })?;
    Ok(metrics)
}

/// Where the numbers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    pub core: CoreHandle,
    pub history: Option<Arc<Recorder>>,
    pub export: Arc<ExportCounters>,
    pub flows: Arc<Mutex<FlowMetrics>>,
}

/// Serves `GET /metrics` with the agent's numbers.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_agent(listen: SocketAddr, sources: Sources) -> anyhow::Result<()> {
    let page = move |headers: HeaderMap| {
        let sources = sources.clone();
        async move {
            let format = format(&headers);
            match sources.core.call(Core::numbers).await {
                Ok(numbers) => answer(format, agent_page(format, &numbers, &sources)),
                Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
            }
        }
    };
    serve(listen, Router::new().route("/metrics", get(page))).await
}

/// Serves `GET /metrics` with what flows were counted.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_flows(listen: SocketAddr, sources: Sources) -> anyhow::Result<()> {
    let page = move |headers: HeaderMap| {
        let sources = sources.clone();
        async move {
            // The kernel's own count of what it lost is read along.
            sources
                .core
                .call(|core| {
                    let lost = core.kernel.lost_events();
                    core.hub.set_lost(lost)
                })
                .await
                .ok();
            let format = format(&headers);
            answer(format, sources.flows.lock().page(format))
        }
    };
    serve(listen, Router::new().route("/metrics", get(page))).await
}

async fn serve(listen: SocketAddr, router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, %listen, "metrics are no longer served");
        }
    });
    Ok(())
}

fn format(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    Format::accepted(accept.unwrap_or_default())
}

fn answer(format: Format, page: String) -> Response {
    ([(header::CONTENT_TYPE, format.content_type())], page).into_response()
}
