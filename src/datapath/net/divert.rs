//! Local delivery of what the programs give to a proxy: packets with the proxy's mark are for this
//! host, whatever their destination.
//!
//! ```text
//! ip rule add fwmark 0x200/0xf00 lookup 2005 pref 10
//! ip route add local default dev lo table 2005
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{RouteAttribute, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::RouteMessageBuilder;

use super::{NetError, Netlink, sysctl};
use crate::datapath::abi::{MARK_MASK, MARK_PROXY};

/// Routing table of diverted packets.
const TABLE: u32 = 2005;
/// Before the tables that everybody else uses.
const PRIORITY: u32 = 10;

/// Makes rules and routes, in the namespace of `node`. Calling it again is harmless. Whether a rule was missing.
pub async fn prepare(node: &Netlink) -> Result<bool, NetError> {
    let lo = node.get("lo").await?;
    node.set_up(lo.ifindex).await?;
    let mut families: Vec<IpAddr> = vec![Ipv4Addr::UNSPECIFIED.into()];
    if sysctl::has_ipv6() {
        families.push(Ipv6Addr::UNSPECIFIED.into());
    }
    let mut missing = false;
    for any in families {
        local_route(node, any, lo.ifindex).await?;
        missing |= mark_rule(node, any).await?;
    }
    Ok(missing)
}

async fn local_route(node: &Netlink, any: IpAddr, lo: u32) -> Result<(), NetError> {
    let object = || format!("local default of {any} in table {TABLE}");
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(any, 0)
        .map_err(|error| NetError::Netlink {
            operation: "build route",
            object: object(),
            source: io::Error::other(error.to_string()),
        })?
        .output_interface(lo)
        .table_id(TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build();
    // A default route has no destination attribute.
    message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Destination(_)));
    let request = node.handle().route().add(message).replace();
    request.execute().await.map_err(super::link::failed("add route", object()))
}

async fn mark_rule(node: &Netlink, any: IpAddr) -> Result<bool, NetError> {
    let request = node
        .handle()
        .rule()
        .add()
        .fw_mark(MARK_PROXY)
        .priority(PRIORITY)
        .table_id(TABLE)
        .action(RuleAction::ToTable);
    let result = match any {
        IpAddr::V4(_) => {
            let mut request = request.v4();
            request.message_mut().attributes.push(RuleAttribute::FwMask(MARK_MASK));
            request.execute().await
        }
        IpAddr::V6(_) => {
            let mut request = request.v6();
            request.message_mut().attributes.push(RuleAttribute::FwMask(MARK_MASK));
            request.execute().await
        }
    };
    match result.map_err(super::link::failed("add rule", format!("fwmark {MARK_PROXY:#x}/{MARK_MASK:#x}"))) {
        Err(NetError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        result => result.map(|()| true),
    }
}
