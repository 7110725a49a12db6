//! What the proxy counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters since the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Counter),+ }

        /// [`Counters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct CountersSnapshot { $($(#[$doc])* pub $name: u64),+ }

        impl Counters {
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.get()),+ }
            }
        }
    };
}

counters! {
    /// Messages that came from clients.
    queries,
    /// Replies that were passed on.
    released,
    /// Queries that policy refused.
    refused,
    /// Messages from clients that were not forwarded because they cannot be read in one way.
    malformed,
    /// Queries over a pod's limit.
    over_limit,
    /// Replies that did not answer the question; they were ignored.
    stray_replies,
    /// Replies that answered the question in a way that cannot be read.
    malformed_replies,
    /// Queries that no server answered in time.
    timeouts,
    /// Queries that could not be sent on.
    unreachable,
    /// Answers whose addresses stay closed, because they could not be made known in time.
    closed_answers,
    /// Answers that could not be sent to the client.
    lost_answers,
}

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.add_many(1);
    }

    pub fn add_many(&self, count: u64) {
        if count > 0 {
            self.0.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
