//! `kill -9` of the agent under load, again and again (CVE-2023-27595 in a peer: filters were away for a
//! moment at each restart). Nothing that policy forbids passes, no allowed connection breaks, new ones come
//! about, and the agent that starts next finds the kernel as it should be. Needs root.
//!
//! `CHAOS_ROUNDS=100` for the long run; continuous integration has 15.

mod bench;
mod load;

use std::time::Duration;

use bench::Bench;
use load::Load;

fn rounds() -> u32 {
    std::env::var("CHAOS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

#[test]
fn a_killed_agent_opens_nothing_and_breaks_nothing() {
    Bench::isolated(async |mut bench| {
        bench.start();
        bench.ready().await;
        bench.describe().await;
        let load = Load::start(&bench);
        load.expect_progress("before the first kill");
        for round in 0..rounds() {
            // The next policy is on its way when the agent dies; some agents die while they start.
            let half_way = Duration::from_millis(u64::from(round * 37 % 250));
            bench.apply_and_kill(round, half_way).await;
            if round % 3 == 0 {
                bench.start();
                std::thread::sleep(half_way);
                bench.kill();
            }
            load.expect_progress("with no agent");
            bench.start();
            bench.ready().await;
            bench.expect_consistent().await;
            load.expect_progress("with the next agent");
        }
        load.finish();
    });
}
