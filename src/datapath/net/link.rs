//! Devices, addresses, routes and neighbours over rtnetlink.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::{Namespace, NetError};

/// A device as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u32,
    pub name: String,
    /// Six bytes for Ethernet; empty for devices without.
    pub mac: Vec<u8>,
    /// Bytes of a packet, link layer excluded.
    pub mtu: u32,
    pub up: bool,
    /// Kind as in `ip -d link`: `veth`, `vxlan` ...; `None` for hardware.
    pub kind: Option<String>,
    /// Index of the other end (veth, in its own namespace) or of the device below.
    pub link: Option<u32>,
    /// An XDP program is attached.
    pub xdp: bool,
    /// VXLAN settings.
    pub vxlan: Option<VxlanInfo>,
}

/// What we look at in a VXLAN device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VxlanInfo {
    pub port: u16,
    /// Tunnel keys come with each packet.
    pub external: bool,
}

/// A socket in one network namespace. Closing it (drop) ends its task.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

pub(super) fn failed(
    operation: &'static str,
    object: impl ToString,
) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let object = object.to_string();
    move |error| NetError::Netlink { operation, object, source: to_io(error) }
}

/// What was to be deleted is gone already.
fn absent_is_fine(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(NetError::Netlink { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The devices in a buffer of rtnetlink messages, as a socket delivers it. Ends at the first message that
/// makes no sense.
pub fn read_devices(mut buffer: &[u8]) -> Vec<Device> {
    let mut devices = Vec::new();
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(buffer) {
        let length = message.header.length as usize;
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload {
            devices.push(device(link));
        }
        // Messages are padded to four bytes (NLMSG_ALIGN).
        match length.checked_next_multiple_of(4).and_then(|length| buffer.get(length..)) {
            Some(rest) if length > 0 => buffer = rest,
            _ => break,
        }
    }
    devices
}

fn device(message: LinkMessage) -> Device {
    let mut device = Device {
        ifindex: message.header.index,
        name: String::new(),
        mac: Vec::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        kind: None,
        link: None,
        xdp: false,
        vxlan: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::Address(mac) => device.mac = mac,
            LinkAttribute::Mtu(mtu) => device.mtu = mtu,
            LinkAttribute::Link(link) => device.link = Some(link),
            LinkAttribute::Xdp(xdp) => {
                let attached = |x: &LinkXdp| matches!(x, LinkXdp::Attached(a) if *a != XdpAttached::None);
                device.xdp = xdp.iter().any(attached);
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => device.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => device.vxlan = Some(vxlan(&data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    device
}

fn vxlan(data: &[netlink_packet_route::link::InfoVxlan]) -> VxlanInfo {
    use netlink_packet_route::link::InfoVxlan;
    let mut info = VxlanInfo::default();
    for attribute in data {
        match attribute {
            InfoVxlan::Port(port) => info.port = *port,
            InfoVxlan::CollectMetadata(external) => info.external = *external,
            _ => {}
        }
    }
    info
}

/// A veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    pub host_name: &'a str,
    pub peer_name: &'a str,
    /// Where the peer goes.
    pub peer_namespace: &'a Namespace,
    pub mtu: u32,
}

impl Netlink {
    /// A socket in the calling thread's namespace. To be called inside a tokio runtime.
    pub fn here() -> Result<Netlink, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| NetError::Netlink {
            operation: "open",
            object: "rtnetlink socket".to_owned(),
            source,
        })?;
        Ok(Netlink { handle, task: tokio::spawn(connection) })
    }

    /// A socket in another namespace. A socket stays where it was made, whoever uses it.
    pub fn inside(namespace: &Namespace) -> Result<Netlink, NetError> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run(|| {
            let _in_runtime = runtime.enter();
            Netlink::here()
        })?
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// All devices.
    pub async fn devices(&self) -> Result<Vec<Device>, NetError> {
        let messages = self.handle.link().get().execute();
        messages.map_ok(device).try_collect().await.map_err(failed("list", "devices"))
    }

    /// A device by name.
    pub async fn find(&self, name: &str) -> Result<Option<Device>, NetError> {
        let mut messages = Box::pin(self.handle.link().get().match_name(name).execute());
        match messages.next().await {
            Some(Ok(message)) => Ok(Some(device(message))),
            None => Ok(None),
            Some(Err(error)) => match to_io(error) {
                error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                source => Err(NetError::Netlink { operation: "find", object: name.to_owned(), source }),
            },
        }
    }

    /// A device by number. Asks for one: a node has hundreds, and looks for each of them at start.
    pub async fn by_index(&self, ifindex: u32) -> Result<Option<Device>, NetError> {
        let mut messages = Box::pin(self.handle.link().get().match_index(ifindex).execute());
        match messages.next().await {
            Some(Ok(message)) => Ok(Some(device(message))),
            None => Ok(None),
            Some(Err(error)) => match to_io(error) {
                error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                source => {
                    Err(NetError::Netlink { operation: "find", object: format!("device {ifindex}"), source })
                }
            },
        }
    }

    /// A device by name that has to be there.
    pub async fn get(&self, name: &str) -> Result<Device, NetError> {
        self.find(name).await?.ok_or_else(|| NetError::NoDevice(name.to_owned()))
    }

    /// Makes a veth pair, the peer straight in its namespace.
    pub async fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), NetError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.peer_name)
            .mtu(pair.mtu)
            .setns_by_fd(pair.peer_namespace.as_fd().as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(pair.host_name)
            .mtu(pair.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(message).execute().await.map_err(failed("add veth", pair.host_name))
    }

    /// Makes any device.
    pub(super) async fn add(&self, name: &str, message: LinkMessage) -> Result<(), NetError> {
        self.handle.link().add(message).execute().await.map_err(failed("add device", name))
    }

    async fn set(
        &self,
        operation: &'static str,
        ifindex: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        let message = change(LinkUnspec::new_with_index(ifindex)).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(operation, format!("device {ifindex}")))
    }

    pub async fn set_up(&self, ifindex: u32) -> Result<(), NetError> {
        self.set("set up", ifindex, LinkMessageBuilder::up).await
    }

    pub async fn set_mtu(&self, ifindex: u32, mtu: u32) -> Result<(), NetError> {
        self.set("set MTU of", ifindex, |message| message.mtu(mtu)).await
    }

    pub async fn set_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), NetError> {
        self.set("set MAC of", ifindex, |message| message.address(mac.to_vec())).await
    }

    /// Deletes a device; one that is gone is fine.
    pub async fn delete(&self, ifindex: u32) -> Result<(), NetError> {
        let result = self.handle.link().del(ifindex).execute().await;
        absent_is_fine(result.map_err(failed("delete", format!("device {ifindex}"))))
    }

    /// Gives a device an address, without duplicate address detection.
    pub async fn add_address(&self, ifindex: u32, address: IpNet) -> Result<(), NetError> {
        let mut request = self.handle.address().add(ifindex, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(failed("add address", address))
    }

    /// Addresses of global scope on a device.
    pub async fn addresses(&self, ifindex: u32) -> Result<Vec<IpNet>, NetError> {
        let messages = self.handle.address().get().set_link_index_filter(ifindex).execute();
        let messages: Vec<_> =
            messages.try_collect().await.map_err(failed("list addresses of", format!("device {ifindex}")))?;
        let global = messages.into_iter().filter(|m| m.header.scope == AddressScope::Universe);
        Ok(global
            .filter_map(|message| {
                let length = message.header.prefix_len;
                // `Local` is the own address where it differs from the peer's (`Address`).
                let local = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                });
                IpNet::new(local.or(address)?, length).ok()
            })
            .collect())
    }

    /// Routes `destination` to a device, directly or by `via` (which need not be in its network).
    pub async fn add_route(
        &self,
        destination: IpNet,
        via: Option<IpAddr>,
        ifindex: u32,
    ) -> Result<(), NetError> {
        let message = route(destination, via, ifindex)?;
        let request = self.handle.route().add(message).replace();
        request.execute().await.map_err(failed("add route", destination))
    }

    /// Deletes a route of [`Netlink::add_route`]; one that is gone is fine.
    pub async fn delete_route(&self, destination: IpNet, ifindex: u32) -> Result<(), NetError> {
        let result = self.handle.route().del(route(destination, None, ifindex)?).execute().await;
        absent_is_fine(result.map_err(failed("delete route", destination)))
    }

    /// A permanent neighbour.
    pub async fn add_neighbour(&self, ifindex: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), NetError> {
        let request = self.handle.neighbours().add(ifindex, address).link_layer_address(&mac).replace();
        request.execute().await.map_err(failed("add neighbour", address))
    }
}

fn route(destination: IpNet, via: Option<IpAddr>, ifindex: u32) -> Result<RouteMessage, NetError> {
    let bad = |error: &dyn std::error::Error| NetError::Netlink {
        operation: "build route",
        object: destination.to_string(),
        source: io::Error::other(error.to_string()),
    };
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .map_err(|e| bad(&e))?
        .output_interface(ifindex)
        .protocol(RouteProtocol::Static);
    let mut message = match via {
        Some(via) => builder.gateway(via).map_err(|e| bad(&e))?.onlink().build(),
        None => builder.scope(RouteScope::Link).build(),
    };
    // A default route has no destination attribute.
    if destination.prefix_len() == 0 {
        use netlink_packet_route::route::RouteAttribute;
        message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Destination(_)));
    }
    if destination.addr().is_ipv6() {
        message.header.address_family = AddressFamily::Inet6;
        message.header.scope = RouteScope::Universe;
    }
    Ok(message)
}
