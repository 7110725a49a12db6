//! `kill -9` of the agent under load, again and again (CVE-2023-27595 in a peer: filters were away for a
//! moment at each restart). Nothing that policy forbids passes, no allowed connection breaks, new ones come
//! about, and the agent that starts next finds the kernel as it should be. Needs root.
//!
//! The same for restarts of the agent and of both proxies, with requests and lookups that go through them: none
//! fails, and nothing that is refused passes.
//!
//! `CHAOS_ROUNDS=100` for the long run; continuous integration has fewer.

mod bench;
mod load;
mod proxied;
mod time_wait;

use std::time::Duration;

use bench::Bench;
use load::Load;
use proxied::Proxied;

fn rounds(usual: u32) -> u32 {
    std::env::var("CHAOS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_killed_agent_opens_nothing_and_breaks_nothing() {
    Bench::isolated(async |mut bench| {
        bench.start();
        bench.ready().await;
        bench.describe().await;
        let load = Load::start(&bench);
        load.expect_progress("before the first kill");
        for round in 0..rounds(15) {
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

#[test]
fn a_restart_of_the_agent_or_a_proxy_fails_no_request_and_no_lookup() {
    Bench::isolated(async |mut bench| {
        bench.start();
        bench.ready().await;
        bench.describe_proxied(proxied::policy()).await;
        let load = Proxied::start(&bench);
        load.expect_progress("before the first restart");
        for _ in 0..rounds(4) {
            bench.replace_proxy("http-proxy").await;
            load.expect_progress("with the next HTTP proxy");
            bench.replace_proxy("dns-proxy").await;
            load.expect_progress("with the next DNS proxy");
            bench.kill();
            load.expect_progress("with no agent");
            bench.start();
            bench.ready().await;
            load.expect_progress("with the next agent");
        }
        load.finish();
    });
}

/// Without `find_proxy` (bpf/datapath.c) the old connection's socket answers the SYN.
#[test]
fn a_port_in_time_wait_reaches_the_proxy_at_the_first_try() {
    Bench::isolated(async |mut bench| {
        bench.start();
        bench.ready().await;
        bench.describe_proxied(proxied::policy()).await;
        let load = Proxied::start(&bench);
        load.expect_progress("before");
        load.finish();
        let with = time_wait::reuse(&bench, 10);
        assert_eq!(with.sent_again, 0, "SYNs that were sent again: {with:?}");
        // The counter would tell: without the program there are some.
        bench.remove_find_proxy();
        let without = time_wait::reuse(&bench, 10);
        assert_ne!(without.sent_again, 0, "the test sees nothing: {without:?}");
        println!("with find_proxy {with:?}, without {without:?}");
    });
}
