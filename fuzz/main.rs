//! Structured mutation of real inputs, without coverage feedback: real manifests, packets, messages and
//! requests, cut, spliced and sprinkled with values that parsers get wrong.
//!
//! `scripts/fuzz` runs every target for a minute. As a test, every target runs for a second. An input
//! that fails is written to `target/fuzz/`, with the seed that made it; `FUZZ_SEED` repeats a run. Needs
//! root for the packets.

mod admin;
mod filters;
#[allow(dead_code, reason = "the tests of the programs use all of it")]
#[path = "../integration/bpf/fixture.rs"]
mod fixture;
mod http;
mod mutate;
mod netlink;
mod packets;
mod text;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mutate::Random;

/// Something that reads what others wrote.
pub trait Target {
    fn name(&self) -> &'static str;

    /// Inputs as they should be.
    fn seeds(&self) -> Vec<Vec<u8>>;

    /// Reads one input; panics when it meets a defect.
    fn check(&mut self, input: &[u8]);

    /// Longest input worth making.
    fn longest(&self) -> usize {
        1 << 16
    }
}

/// No input may take longer, on a busy machine either.
const SLOW: Duration = Duration::from_secs(20);

fn fuzz(target: &mut dyn Target, time: Duration, seed: u64) -> Result<u64, String> {
    let mut random = Random::new(seed);
    let seeds = target.seeds();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name());
    let end = Instant::now() + time;
    let mut runs = 0;
    for (index, input) in seeds.iter().enumerate() {
        run(target, input).map_err(|why| format!("seed {index}: {why}"))?;
        runs += 1;
    }
    while Instant::now() < end {
        let mut input = random.pick(&seeds).clone();
        for _ in 0..=random.below(6) {
            mutate::mutate(&mut input, &seeds, &mut random);
        }
        input.truncate(target.longest());
        run(target, &input)?;
        runs += 1;
    }
    Ok(runs)
}

fn run(target: &mut dyn Target, input: &[u8]) -> Result<(), String> {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target.check(input)));
    let why = match outcome {
        Ok(()) if start.elapsed() < SLOW => return Ok(()),
        Ok(()) => format!("took {:?}", start.elapsed()),
        Err(_) => "panicked".to_owned(),
    };
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let path = directory.join(format!("{}-{:016x}", target.name(), mutate::hash(input)));
    std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, input)).expect("write the input");
    Err(format!("{why}; the input is in {}", path.display()))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with('-')).collect();
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let make: [fn() -> Box<dyn Target>; 17] = [
        || Box::new(text::Manifests),
        || Box::new(text::Scenarios),
        || Box::new(packets::Packets::new()),
        || Box::new(netlink::Devices),
        || Box::new(admin::Requests::new()),
        || Box::new(wire::DnsQueries),
        || Box::new(wire::DnsReplies),
        || Box::new(wire::IcmpErrors),
        || Box::new(wire::RecordBatches),
        || Box::new(wire::HttpHeads),
        || Box::new(wire::HttpExpressions),
        || Box::new(http::Requests),
        || Box::new(http::Responses),
        || Box::new(http::Http2::new()),
        || Box::new(http::Hellos),
        || Box::new(filters::FilterTexts),
        || Box::new(filters::FilterMessages),
    ];
    let mut failed = false;
    for make in make {
        let mut target = make();
        let name = target.name();
        if !arguments.is_empty() && !arguments.iter().any(|wanted| wanted == name) {
            continue;
        }
        match fuzz(&mut *target, Duration::from_secs(seconds), seed) {
            Ok(runs) => println!("{name}: {runs} inputs"),
            Err(why) => {
                println!("{name}: FAILED: {why} (FUZZ_SEED={seed})");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
