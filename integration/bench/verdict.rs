//! What one verdict costs, by BPF_PROG_TEST_RUN: policies of both pods, delivery included.
//!
//! The kernel hands the same packet to the program again and again, as the last run left it. So the
//! router has the MAC address of the sender (a delivered packet looks as if it was sent again), the
//! TTL limits a batch to 250 runs, and a new flow is a SYN with RST: it ends the connection that it
//! opens, and so each run judges both policies anew and writes an entry.
//!
//! The kernel's loop around the program costs something too, more on a busy machine: a program that ends at its
//! first test (a packet with the mark of our own answers) shows how much. The bars hold with it.

use std::net::IpAddr;

use sluice::datapath::abi::{self, Addr};
use sluice::datapath::connections::Kept;
use sluice::datapath::testrun::{Action, Context, Frame, Hook, Kernel, L4, TcpFlags};

use super::report::{Bar, Report, Row};

const CLIENT: u32 = 1001;
const SERVER: u32 = 1002;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const PORT: u16 = 8080;
const BATCH: u32 = 250;
const BATCHES: usize = 400;
/// Elements beside ours: policy entries, addresses, connections.
const CROWD: u32 = 60_000;

fn client() -> IpAddr {
    IpAddr::from([10, 100, 0, 10])
}

fn server() -> IpAddr {
    IpAddr::from([10, 100, 0, 20])
}

struct Bed {
    kernel: Kernel,
    device: u32,
}

impl Bed {
    fn new() -> anyhow::Result<Bed> {
        let devices = Kernel::isolate(&["bench-a", "bench-b"]);
        let mut kernel =
            Kernel::load_whole().map_err(|error| anyhow::anyhow!("load the programs: {error}"))?;
        let pods = [(client(), CLIENT, CLIENT_MAC), (server(), SERVER, SERVER_MAC)];
        for (id, ((address, identity, mac), ifindex)) in (1..).zip(pods.into_iter().zip(&devices)) {
            let info = abi::EndpointInfo {
                ifindex: *ifindex,
                identity,
                policy_id: u32::from(id),
                id,
                mac,
                ..Default::default()
            };
            kernel.put("sl_endpoints", Addr::from(address), info);
        }
        let enforced = abi::PF_ID_EXACT | abi::PF_ENFORCED | abi::PF_DEFAULT_DENY;
        let mut flags = [[0; 2]; 2];
        flags[0][abi::DIR_EGRESS as usize] = enforced;
        flags[1][abi::DIR_INGRESS as usize] = enforced;
        for ((policy_id, peer, direction), flags) in
            [(1, SERVER, abi::DIR_EGRESS), (2, CLIENT, abi::DIR_INGRESS)].into_iter().zip(flags)
        {
            kernel.put("sl_policy", cell(policy_id, peer, direction as u8), allow());
            kernel.set(
                "sl_policy_info",
                policy_id,
                abi::PolicyInfoValue { epoch: policy_id, flags, subject_identity: 0 },
            );
        }
        let config =
            abi::NodeConfig { flags: abi::CFG_REDIRECT_PEER, router_mac: CLIENT_MAC, ..Default::default() };
        kernel.set("sl_config", 0, config);
        Ok(Bed { kernel, device: devices[0] })
    }

    /// Policies, addresses and connections of others.
    fn crowd(&mut self) {
        for index in 0..CROWD {
            let address = |base: u32| Addr::from(IpAddr::from((base + index).to_be_bytes()));
            self.kernel.put("sl_policy", cell(2, 2000 + index, abi::DIR_INGRESS as u8), allow());
            let known = abi::IpcacheValue { identity: 2000 + index, ..Default::default() };
            self.kernel.put("sl_ipcache_exact", address(0x0b00_0000), known);
            let key = abi::CtKey {
                lo_addr: address(0x0b00_0000),
                hi_addr: address(0x0c00_0000),
                lo_port: 40000,
                hi_port: PORT,
                protocol: 6,
                ..Default::default()
            };
            let (entry, expires) = (abi::CtEntry::default(), u32::MAX / 2);
            self.kernel.keep_connection(&Kept { key, entry, expires });
        }
    }

    fn context(&self) -> Context {
        Context { ifindex: self.device, mark: 0, arrived_by: 0 }
    }

    /// Nanoseconds of a run that ends before it looks at the packet.
    fn time_nothing(&mut self) -> f64 {
        let frame = Bed::frame(TcpFlags::ACK);
        let context = Context { mark: abi::MARK_ANSWER, ..self.context() };
        self.median(&frame, context)
    }

    fn median(&mut self, frame: &[u8], context: Context) -> f64 {
        let times: Vec<f64> = (0..BATCHES)
            .map(|_| self.kernel.time(Hook::FromContainer, frame, context, BATCH).as_nanos() as f64)
            .collect();
        super::stats::median(&times)
    }

    fn frame(flags: TcpFlags) -> Vec<u8> {
        let l4 = L4::Tcp { sport: 40000, dport: PORT, flags };
        let mut frame = Frame::new(client(), server(), l4);
        (frame.src_mac, frame.dst_mac, frame.ttl) = (CLIENT_MAC, CLIENT_MAC, 255);
        frame.bytes()
    }

    /// Nanoseconds a packet: the median of many batches.
    fn time(&mut self, flags: TcpFlags) -> anyhow::Result<f64> {
        let (frame, context) = (Bed::frame(flags), self.context());
        let outcome = self.kernel.run(Hook::FromContainer, &frame, context);
        anyhow::ensure!(outcome.action == Action::Redirect, "the packet was not delivered: {outcome:?}");
        Ok(self.median(&frame, context))
    }
}

fn cell(policy_id: u32, identity: u32, direction: u8) -> abi::PolicyMapKey {
    let port_class = abi::PORT_EXACT | u32::from(PORT);
    abi::PolicyMapKey { policy_id, identity, port_class, protocol: 6, direction, pad: 0 }
}

fn allow() -> abi::PolicyMapEntry {
    let normal = abi::PolicySlot { precedence: 10, rule_set: 7, action: abi::ACTION_ALLOW };
    abi::PolicyMapEntry { admin: Default::default(), normal }
}

/// A SYN that ends what it opens: new at every run.
const ALWAYS_NEW: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::RST.0);

pub fn run(rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("one verdict");
    // A thread of its own: it moves into a namespace of its own.
    let measured = std::thread::spawn(move || -> anyhow::Result<[Vec<f64>; 5]> {
        let mut times = [const { Vec::new() }; 5];
        let mut small = Bed::new()?;
        let mut large = Bed::new()?;
        large.crowd();
        for bed in [&mut small, &mut large] {
            let (frame, context) = (Bed::frame(TcpFlags::SYN), bed.context());
            bed.kernel.run(Hook::FromContainer, &frame, context);
        }
        super::stats::interleaved(rounds, 5, |which| -> anyhow::Result<()> {
            if which == 4 {
                times[which].push(small.time_nothing());
                return Ok(());
            }
            let bed = if which < 2 { &mut small } else { &mut large };
            let flags = if which % 2 == 0 { ALWAYS_NEW } else { TcpFlags::ACK };
            times[which].push(bed.time(flags)?);
            Ok(())
        })?;
        Ok(times)
    });
    let [new, established, new_among, established_among, nothing] =
        measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let median = |values: &[f64]| super::stats::median(values);
    report.add(Row::absolute(
        "a program that ends at its first test (contained in the next figures)",
        median(&nothing),
        "ns",
        Bar::Shown,
        nothing.len(),
    ));
    report.add(Row::absolute(
        "verdict, new flow, both policies",
        median(&new),
        "ns",
        Bar::AtMost(250.0),
        new.len(),
    ));
    report.add(Row::absolute(
        "verdict, established",
        median(&established),
        "ns",
        Bar::AtMost(70.0),
        established.len(),
    ));
    let few = "few entries";
    report.add(Row::compared(
        "new flow, 60,000 entries a table",
        &new_among,
        (few, &new),
        "ns",
        Bar::AtMost(1.1),
    ));
    report.add(Row::compared(
        "established, 60,000 entries a table",
        &established_among,
        (few, &established),
        "ns",
        Bar::AtMost(1.1),
    ));
    Ok(())
}
