//! Load: dnsperf for rates, a client of our own for latency, and processes that take over from each other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::site::Site;
use super::{NAMES, SUFFIX, ZONES};
use crate::agent::program;
use crate::stats::percentile;

/// Which CPU does what.
#[derive(Clone, Copy, Debug)]
pub enum Cpu {
    /// dnsperf and the server.
    Load,
    /// What is measured.
    Proxy,
}

impl Cpu {
    pub fn number(self) -> anyhow::Result<usize> {
        Ok(match self {
            Cpu::Load => 0,
            Cpu::Proxy => std::thread::available_parallelism()?.get() - 1,
        })
    }
}

/// Keeps the calling thread on a CPU.
pub fn pin(cpu: Cpu) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu.number()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

pub struct Throughput {
    /// Queries a second.
    pub rate: f64,
    pub lost: u32,
}

fn name(number: u32) -> String {
    format!("n{number}.z{}.{SUFFIX}", number % ZONES)
}

/// A query of type A.
pub fn question(id: u16, number: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    for word in [id, 0x0100, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name(number).split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn dnsperf(site: &Site, seconds: u32, most: Option<u32>) -> anyhow::Result<Command> {
    let mut names = tempfile::NamedTempFile::new()?;
    let mut text = String::new();
    for number in 0..NAMES {
        // Not one zone after the other.
        text += &format!("{} A\n", name(number.wrapping_mul(7919) % NAMES));
    }
    names.write_all(text.as_bytes())?;
    let (_, path) = names.keep()?;
    let mut command = Command::new("taskset");
    command
        .args([
            "-c",
            &Cpu::Load.number()?.to_string(),
            "dnsperf",
            "-T",
            "1",
            "-c",
            "16",
            "-q",
            "200",
            "-t",
            "3",
        ])
        .args(["-s", &site.resolver.ip().to_string(), "-l", &seconds.to_string(), "-d"])
        .arg(path);
    if let Some(most) = most {
        command.args(["-Q", &most.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(command)
}

fn read(output: &[u8]) -> anyhow::Result<Throughput> {
    let text = String::from_utf8_lossy(output);
    let field = |title: &str| -> anyhow::Result<f64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(title));
        let value = line.and_then(|rest| rest.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).with_context(|| format!("dnsperf: no {title} in {text}"))
    };
    let completed = field("Queries completed:")?;
    anyhow::ensure!(text.contains("NOERROR") && completed > 0.0, "dnsperf had no answers: {text}");
    anyhow::ensure!(
        !text.contains("SERVFAIL") && !text.contains("REFUSED"),
        "dnsperf had answers of another kind: {text}"
    );
    Ok(Throughput { rate: field("Queries per second:")?, lost: field("Queries lost:")? as u32 })
}

/// As many queries as get through.
pub fn throughput(site: &Site, seconds: u32) -> anyhow::Result<Throughput> {
    let mut command = dnsperf(site, seconds, None)?;
    let child = site.client.namespace.run(|| command.spawn())?.context("start dnsperf (scripts/setup)")?;
    read(&child.wait_with_output()?.stdout)
}

pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// Lookups one after the other, in microseconds, beside a steady load.
pub fn latency(site: &Site, background: u32, time: Duration) -> anyhow::Result<Latency> {
    let mut command = dnsperf(site, time.as_secs() as u32 + 1, Some(background))?;
    let child = site.client.namespace.run(|| command.spawn())?.context("start dnsperf")?;
    let samples = site.client.namespace.run(|| -> anyhow::Result<Vec<f64>> {
        pin(Cpu::Load)?;
        let socket = UdpSocket::bind((site.client.address, 0))?;
        socket.connect(site.resolver)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        // The first answers of a name may have to be learned: that is what `throughput` did just before.
        let mut samples = Vec::new();
        let begin = Instant::now();
        let mut answer = [0; 512];
        for number in 0.. {
            if begin.elapsed() > time {
                break;
            }
            let asked = Instant::now();
            socket.send(&question(number as u16, number % NAMES))?;
            let length = socket.recv(&mut answer).context("a lookup was lost")?;
            anyhow::ensure!(length > 12 && answer[3] & 0xf == 0, "not the answer");
            samples.push(asked.elapsed().as_nanos() as f64 / 1e3);
        }
        Ok(samples)
    })?;
    child.wait_with_output()?;
    let mut samples = samples?;
    Ok(Latency { p50: percentile(&mut samples, 0.5), p99: percentile(&mut samples, 0.99) })
}

/// Starts one proxy process after the other under load. Returns the lookups that were lost.
pub fn restarts(site: &Site, times: u32) -> anyhow::Result<u32> {
    let home = site.home.as_ref().context("a site with an agent")?;
    let pid_file = home.run.join("dns-proxy.pid");
    // With the agent's own arguments: another command line would be replaced.
    let mut hello = String::new();
    BufReader::new(UnixStream::connect(home.run.join("dns-proxy.sock"))?).read_line(&mut hello)?;
    let hello: serde_json::Value = serde_json::from_str(&hello)?;
    let arguments = hello["arguments"].as_array().context("the arguments of the proxy")?;
    let arguments: Vec<&str> = arguments.iter().filter_map(serde_json::Value::as_str).collect();
    let seconds = times.div_ceil(2).max(3);
    let mut command = dnsperf(site, seconds, Some(10_000))?;
    let load = site.client.namespace.run(|| command.spawn())?.context("start dnsperf")?;
    let mut children = Vec::new();
    for _ in 0..times {
        let mut proxy = Command::new("taskset");
        proxy
            .args(["-c", &Cpu::Proxy.number()?.to_string(), program()])
            .args(&arguments)
            .stdin(Stdio::null());
        let child = site.node.run(|| proxy.spawn())?.context("start a dns-proxy")?;
        let begin = Instant::now();
        while std::fs::read_to_string(&pid_file).unwrap_or_default().trim() != child.id().to_string() {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(10), "the next process does not take over");
            std::thread::sleep(Duration::from_millis(5));
        }
        children.push(child);
        std::thread::sleep(Duration::from_millis(150));
    }
    let outcome = read(&load.wait_with_output()?.stdout);
    for mut child in children {
        child.kill().ok();
        child.wait().ok();
    }
    Ok(outcome?.lost)
}
