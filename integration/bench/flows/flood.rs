//! A flood of packets as fast as the machine makes them: whole frames, many to a system call, from every CPU.
//!
//! They leave by a packet socket on the pod's own device, as a hostile pod with `CAP_NET_RAW` would send them.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, socket,
};
use nix::unistd::Pid;
use sluice::datapath::config::ROUTER_MAC;
use sluice::datapath::testrun::{Frame, L4};

use crate::pods::Pod;

/// Packets of one system call.
const BATCH: usize = 64;

/// Datagrams from a pod to these ports of an address, until `time` is over. Returns how many were sent a second.
pub fn send(pod: &Pod, to: IpAddr, ports: std::ops::Range<u16>, time: Duration) -> anyhow::Result<f64> {
    let frames: Vec<Vec<u8>> = ports
        .map(|dport| {
            let l4 = L4::Udp { sport: 40_000, dport };
            let frame = Frame::new(pod.address, to, l4);
            Frame { src_mac: pod.device.mac, dst_mac: ROUTER_MAC, payload: b"flood".to_vec(), ..frame }
                .bytes()
        })
        .collect();
    let cpus = std::thread::available_parallelism()?.get();
    let sockets: Vec<OwnedFd> =
        pod.namespace.run(|| (0..cpus).map(|_| open()).collect::<anyhow::Result<_>>())??;
    let sent = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let senders: Vec<_> = sockets
            .iter()
            .enumerate()
            .map(|(cpu, socket)| {
                let (frames, sent) = (&frames, Arc::clone(&sent));
                scope.spawn(move || flood(socket, cpu, frames, &sent, begin + time))
            })
            .collect();
        for sender in senders {
            sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        Ok(())
    })?;
    Ok(sent.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

/// A socket that sends by the pod's device, and receives nothing.
fn open() -> anyhow::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let device = nix::ifaddrs::getifaddrs()?
        .filter(|device| device.interface_name == "eth0")
        .find_map(|device| device.address?.as_link_addr().copied())
        .context("the pod has no eth0")?;
    bind(socket.as_raw_fd(), &device)?;
    Ok(socket)
}

fn flood(
    socket: &OwnedFd,
    cpu: usize,
    frames: &[Vec<u8>],
    sent: &AtomicU64,
    end: Instant,
) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let batches: Vec<Vec<[std::io::IoSlice<'_>; 1]>> = frames
        .iter()
        .cycle()
        .map(|frame| [std::io::IoSlice::new(frame)])
        .take(frames.len() * BATCH)
        .collect::<Vec<_>>()
        .chunks(BATCH)
        .map(<[_]>::to_vec)
        .collect();
    let nowhere = vec![None::<()>; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    for batch in batches.iter().cycle() {
        let done = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            batch.iter(),
            nowhere.as_slice(),
            [] as [ControlMessage<'_>; 0],
            MsgFlags::empty(),
        );
        // A full queue is part of a flood.
        sent.fetch_add(done.map_or(0, |done| done.count() as u64), Ordering::Relaxed);
        if Instant::now() > end {
            break;
        }
    }
    Ok(())
}
