//! Load, and servers that answer it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sluice::datapath::net::Namespace;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{LARGE, PATH, SMALL, proxies};

/// Of one run.
const SECONDS: u64 = 3;
const CONNECTIONS: usize = 64;
const BODY: u64 = 1 << 30;
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";

/// Moves the calling thread, and what it starts, to one CPU.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// Where load and servers run.
pub fn last_cpu() -> anyhow::Result<usize> {
    let count = std::thread::available_parallelism()?.get();
    let cpus = sched_cpus()?;
    anyhow::ensure!(cpus > 1, "two CPUs are needed, there is {count}");
    Ok(cpus - 1)
}

fn sched_cpus() -> anyhow::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let last = text.trim().rsplit(['-', ',']).next().context("online CPUs")?;
    Ok(last.parse::<usize>()? + 1)
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_second: f64,
    /// NaN where the tool does not say.
    pub p99_us: f64,
    /// Of the proxy, a request.
    pub cpu_us: f64,
    /// Of one CPU, by the proxy.
    pub share: f64,
}

/// CPU time of processes, user and system, in seconds.
fn cpu(pids: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit(')').next().context("stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks as f64 / 100.0)
}

fn tool(client: &Namespace, program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = client.run(|| -> anyhow::Result<_> {
        pin(last_cpu()?)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        command.output().with_context(|| format!("run {program}: scripts/setup installs it"))
    })??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

fn after<'a>(text: &'a str, label: &str) -> anyhow::Result<&'a str> {
    let (_, rest) = text.split_once(label).with_context(|| format!("no {label:?} in: {text}"))?;
    rest.split_whitespace().next().with_context(|| format!("nothing behind {label:?}"))
}

/// `1.23ms` as microseconds.
fn micros(text: &str) -> anyhow::Result<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        unit => anyhow::bail!("unknown unit {unit:?}"),
    };
    Ok(digits.parse::<f64>()? * factor)
}

fn rate(requests: f64, took: f64, p99_us: f64, cpu: f64) -> Rate {
    Rate { per_second: requests / took, p99_us, cpu_us: cpu * 1e6 / requests, share: cpu / took }
}

/// wrk.
pub fn http1(client: &Namespace, url: &str, pids: &[u32]) -> anyhow::Result<Rate> {
    let (connections, seconds) = (CONNECTIONS.to_string(), format!("{SECONDS}s"));
    let before = cpu(pids)?;
    let begun = Instant::now();
    let text = tool(client, "wrk", &["-t1", "-c", &connections, "-d", &seconds, "--latency", url])?;
    let (took, spent) = (begun.elapsed().as_secs_f64(), cpu(pids)? - before);
    anyhow::ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "wrk: {text}");
    let per_second: f64 = after(&text, "Requests/sec:")?.parse()?;
    let line = text.lines().find(|line| line.contains(" requests in ")).context("requests")?;
    let requests: f64 = line.split_whitespace().next().context("requests")?.parse()?;
    // Not the column of the table above it, where "69.99%" may stand.
    let p99 = text.lines().find_map(|line| line.trim().strip_prefix("99%")).context("99%")?;
    Ok(Rate { per_second, ..rate(requests, took, micros(p99.trim())?, spent) })
}

/// h2load.
pub fn http2(client: &Namespace, url: &str, pids: &[u32]) -> anyhow::Result<Rate> {
    let before = cpu(pids)?;
    let begun = Instant::now();
    let duration = SECONDS.to_string();
    let text = tool(client, "h2load", &["-t1", "-c16", "-m16", "-D", &duration, url])?;
    let (took, spent) = (begun.elapsed().as_secs_f64(), cpu(pids)? - before);
    let line = text.lines().find(|line| line.starts_with("status codes:")).context("status codes")?;
    let good: f64 = after(line, "status codes:")?.parse()?;
    anyhow::ensure!(line.contains(" 0 3xx, 0 4xx, 0 5xx") && good > 0.0, "h2load: {text}");
    let finished = text.lines().find(|line| line.starts_with("finished in")).context("finished")?;
    let per_second: f64 = after(finished, ", ")?.parse()?;
    Ok(Rate { per_second, ..rate(good, took, f64::NAN, spent) })
}

/// Asks once; the status.
pub fn status(client: &Namespace, to: SocketAddr, method: &str, path: &str) -> anyhow::Result<u16> {
    client.run(|| -> anyhow::Result<u16> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        let head = std::str::from_utf8(&head)?;
        head.get(9..12).and_then(|status| status.parse().ok()).with_context(|| format!("{head:?}"))
    })?
}

/// Gigabytes a second of a large body.
pub fn download(client: &Namespace, from: SocketAddr) -> anyhow::Result<f64> {
    client.run(|| -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect_timeout(&from, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let begun = Instant::now();
        let request = format!("GET {PATH} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
        // In one piece: the server reads once.
        stream.write_all(request.as_bytes())?;
        let mut buffer = vec![0; 256 * 1024];
        let mut bytes = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => bytes += count as u64,
            }
        }
        anyhow::ensure!(bytes > BODY, "{bytes} bytes came");
        Ok(bytes as f64 / begun.elapsed().as_nanos() as f64)
    })?
}

/// Connections that have asked once.
pub struct Idle(Vec<TcpStream>);

impl Idle {
    pub fn open(client: &Namespace, to: &SocketAddr, count: usize) -> anyhow::Result<Idle> {
        client.run(|| -> anyhow::Result<Idle> {
            let mut open = Vec::with_capacity(count);
            for _ in 0..count {
                let mut stream = TcpStream::connect_timeout(to, Duration::from_secs(5))?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                stream.write_all(format!("GET {PATH} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
                stream.read_exact(&mut [0; ANSWER.len()])?;
                open.push(stream);
            }
            Ok(Idle(open))
        })?
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Servers in a namespace, on one thread for all small answers.
pub struct Answers;

impl Answers {
    pub fn start(space: &Namespace, address: IpAddr) -> anyhow::Result<Answers> {
        let bind = |port| -> anyhow::Result<TcpListener> {
            let listener = space.run(|| TcpListener::bind((address, port)))??;
            Ok(listener)
        };
        let small = bind(SMALL)?;
        small.set_nonblocking(true)?;
        std::thread::spawn(move || pin(last_cpu()?).and_then(|()| serve_small(small)));
        for port in [LARGE, proxies::LARGE_DIRECT] {
            let listener = bind(port)?;
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    std::thread::spawn(move || serve_large(stream));
                }
            });
        }
        Ok(Answers)
    }
}

fn serve_small(listener: TcpListener) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    // A request of the bench fits into one segment.
                    if stream.write_all(ANSWER).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

fn serve_large(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let chunk = vec![b'x'; 256 * 1024];
    for _ in 0..BODY / chunk.len() as u64 {
        stream.write_all(&chunk)?;
    }
    Ok(())
}
