//! rtnetlink messages, as the kernel sends them and not quite: a list of devices is read or refused.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use sluice::datapath::net::link::read_devices;

use crate::Target;

pub struct Devices;

/// What `ip link` asks: `nlmsghdr` (length, RTM_GETLINK, REQUEST | DUMP, number, port) and `ifinfomsg`.
fn question() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(32u32.to_ne_bytes());
    bytes.extend(18u16.to_ne_bytes());
    bytes.extend(0x301u16.to_ne_bytes());
    bytes.extend([0; 8 + 16]);
    bytes
}

fn answers() -> io::Result<Vec<Vec<u8>>> {
    let route = SockProtocol::NetlinkRoute;
    let netlink: OwnedFd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), route)?;
    send(netlink.as_raw_fd(), &question(), MsgFlags::empty())?;
    let mut answers = Vec::new();
    loop {
        let mut buffer = vec![0; 1 << 16];
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(length);
        // NLMSG_DONE is 3.
        let is_last = buffer.get(4..6) == Some(&3u16.to_ne_bytes());
        answers.push(buffer);
        if is_last {
            return Ok(answers);
        }
    }
}

impl Target for Devices {
    fn name(&self) -> &'static str {
        "netlink"
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let seeds = answers().expect("the kernel lists the devices");
        assert!(seeds.iter().any(|seed| !read_devices(seed).is_empty()), "a list of devices is understood");
        seeds
    }

    fn check(&mut self, input: &[u8]) {
        read_devices(input);
    }
}
