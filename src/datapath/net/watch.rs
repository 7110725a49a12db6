//! Devices that come, change and go, and their addresses, as the kernel tells it.

use futures::StreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::NetError;

/// News about devices of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// Made or changed.
    Present { ifindex: u32, name: String, up: bool },
    /// Deleted, or moved to another namespace.
    Gone { ifindex: u32, name: String },
    /// An address was added, changed or deleted.
    Addresses { ifindex: u32 },
    /// The kernel had more to tell than fits: list the devices again.
    Missed,
}

const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
/// Most events of a batch.
const BATCH: usize = 4096;

/// A subscription; ends when dropped.
#[derive(Debug)]
pub struct DeviceWatch {
    events: mpsc::UnboundedReceiver<DeviceEvent>,
    tasks: [JoinHandle<()>; 2],
    /// The connection ends when nobody can make requests any more.
    _handle: Handle,
}

impl Drop for DeviceWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<DeviceEvent> {
    let (message, gone) = match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => (message, false),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => (message, true),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message),
        ) => return Some(DeviceEvent::Addresses { ifindex: message.header.index }),
        NetlinkPayload::Overrun(_) => return Some(DeviceEvent::Missed),
        _ => return None,
    };
    // A port of a bridge, which comes and goes as one while the device stays (`br_ifinfo_notify`).
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let ifindex = message.header.index;
    let up = message.header.flags.contains(LinkFlags::Up);
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })?;
    Some(if gone { DeviceEvent::Gone { ifindex, name } } else { DeviceEvent::Present { ifindex, name, up } })
}

impl DeviceWatch {
    /// Subscribes in the calling thread's namespace. To be called inside a tokio runtime.
    pub fn start() -> Result<DeviceWatch, NetError> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(|source| NetError::Netlink {
                operation: "subscribe to",
                object: "device events".to_owned(),
                source,
            })?;
        let (sender, events) = mpsc::unbounded_channel();
        let forward = async move {
            while let Some((message, _)) = messages.next().await {
                if let Some(event) = event(message.payload)
                    && sender.send(event).is_err()
                {
                    break;
                }
            }
        };
        Ok(DeviceWatch { events, tasks: [tokio::spawn(connection), tokio::spawn(forward)], _handle: handle })
    }

    /// The next event; `None` when the subscription broke.
    pub async fn next(&mut self) -> Option<DeviceEvent> {
        self.events.recv().await
    }

    /// Waits for an event, and takes along what is there besides; `None` when the subscription broke.
    pub async fn next_batch(&mut self) -> Option<Vec<DeviceEvent>> {
        let mut batch = Vec::new();
        let count = self.events.recv_many(&mut batch, BATCH).await;
        (count > 0).then_some(batch)
    }
}
