//! Flow events from the kernel to a client of the gRPC API, while the load takes its share of the same CPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice::api::hubble::SOCKET;
use sluice::api::hubble::client::{ClientTls, MAX_RESPONSE, ServerAddress, connect};
use sluice::api::hubble::pb::observer::GetFlowsRequest;
use sluice::api::hubble::pb::observer::get_flows_response::ResponseTypes;
use sluice::api::hubble::pb::observer::observer_client::ObserverClient;
use tokio_util::sync::CancellationToken;

use super::{Renew, Rig};
use crate::report::{Bar, Report, Row};

/// Packets of new flows a second; each makes two flows, one for either side's policy.
const PACKETS: u64 = 85_000;
/// Packets between two looks at the clock.
const BURST: u64 = 64;

/// What a client has received.
#[derive(Debug, Default)]
struct Received {
    flows: AtomicU64,
    /// What it was told that it will not get.
    lost: AtomicU64,
}

/// A client follows all flows while new ones come at a steady rate.
pub fn run(rig: &Rig, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("a gRPC client follows");
    let received = Arc::new(Received::default());
    let stop = CancellationToken::new();
    let server = ServerAddress::Unix(rig.home.run.join(SOCKET));
    let client = std::thread::spawn({
        let (received, stop) = (Arc::clone(&received), stop.clone());
        move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(follow(&server, &received, stop))
        }
    });
    let before = rig.agent.status()?.counts;
    let begin = Instant::now();
    rig.flood(|number| {
        if number % BURST == 0 {
            // Behind its time it sends at once.
            let due = begin + Duration::from_nanos(number * 1_000_000_000 / PACKETS);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let renew = if number % 60_000 == 0 { Renew::Socket } else { Renew::Nothing };
        (1024 + (number % 60_000) as u16, renew)
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let flows = received.flows.load(Ordering::Relaxed) as f64 / seconds;
    // The last ones are on their way.
    let made = rig.agent.status()?.counts;
    let made = (made.flows_seen - before.flows_seen) + (made.flows_lost - before.flows_lost);
    let told = || received.flows.load(Ordering::Relaxed) + received.lost.load(Ordering::Relaxed);
    let patience = Instant::now() + Duration::from_secs(10);
    while told() < made && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    let unaccounted = made.saturating_sub(told());
    stop.cancel();
    client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let lost = received.lost.load(Ordering::Relaxed) as f64 / seconds;
    report.add(Row::absolute(
        "flows from the kernel to a gRPC client",
        flows,
        "1/s",
        Bar::AtLeast(150_000.0),
        1,
    ));
    report.add(Row::absolute("the same: lost, and the client was told", lost, "1/s", Bar::Shown, 1));
    report.add(Row::absolute("the same: lost untold", unaccounted as f64, "flows", Bar::AtMost(0.0), 1));
    Ok(())
}

async fn follow(server: &ServerAddress, received: &Received, stop: CancellationToken) -> anyhow::Result<()> {
    let channel = connect(server, &ClientTls::default()).await?;
    let mut client = ObserverClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    let mut stream = client.get_flows(request).await?.into_inner();
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            () = stop.cancelled() => return Ok(()),
        };
        let Some(response) = message else { return Ok(()) };
        match response.response_types {
            Some(ResponseTypes::Flow(_)) => received.flows.fetch_add(1, Ordering::Relaxed),
            Some(ResponseTypes::LostEvents(lost)) => {
                received.lost.fetch_add(lost.num_events_lost, Ordering::Relaxed)
            }
            _ => 0,
        };
    }
}
