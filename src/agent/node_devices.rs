//! Devices that come and go, and the node's addresses on them, told to the core.
//!
//! The kernel's news only say that it is time to look: what is told to the core is a list made afterwards, so that lost
//! or reordered news cost nothing. A list is made at once, and then not again for [`PAUSE`]: a pod's device makes some
//! ten events, and a node has hundreds of pods. What fails is tried again with backoff until it works.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::core::{Core, CoreHandle};
use crate::datapath::net::Netlink;
use crate::datapath::net::own;
use crate::datapath::net::watch::{DeviceEvent, DeviceWatch};

/// Between two lists of devices.
const PAUSE: Duration = Duration::from_millis(50);
/// First and longest pause before a failed attempt is repeated.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Runs until the core or the subscription is gone. `watch` was made before the devices were listed for the first time.
pub async fn run(mut watch: DeviceWatch, netlink: Netlink, core: CoreHandle) {
    let mut retry: Option<(Instant, Duration)> = None;
    loop {
        let events = match retry {
            None => watch.next_batch().await,
            Some((at, _)) => timeout_at(at, watch.next_batch()).await.unwrap_or_else(|_| Some(Vec::new())),
        };
        let Some(events) = events else { return };
        let listed = Instant::now();
        let Ok(worked) = tell(&events, &netlink, &core).await else { return };
        retry = match (worked, retry) {
            (true, _) => None,
            (false, None) => Some((listed + RETRY.0, RETRY.0)),
            (false, Some((_, pause))) => {
                let pause = (pause * 2).min(RETRY.1);
                Some((listed + pause, pause))
            }
        };
        sleep_until(listed + PAUSE).await;
    }
}

/// The core has gone.
struct Ended;

/// Tells what the events mean and how the devices are now. Whether that worked.
async fn tell(events: &[DeviceEvent], netlink: &Netlink, core: &CoreHandle) -> Result<bool, Ended> {
    let gone: BTreeSet<u32> = events
        .iter()
        .filter_map(|event| match event {
            DeviceEvent::Gone { ifindex, .. } => Some(*ifindex),
            _ => None,
        })
        .collect();
    let missed = events.contains(&DeviceEvent::Missed);
    if missed || !gone.is_empty() {
        let may_be_gone = move |ifindex| missed || gone.contains(&ifindex);
        core.call(move |core| core.find_vanished(may_be_gone)).await.map_err(|_| Ended)?;
    }
    core.call(Core::find_missing).await.map_err(|_| Ended)?;
    let own = own::devices(netlink).await;
    core.call(move |core| core.node_devices(own)).await.map_err(|_| Ended)
}
