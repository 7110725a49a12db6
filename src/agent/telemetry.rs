//! What the agent counts about its own work, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::api::metrics::{FAST_BUCKETS, Histogram};

/// Numbers of the core's work.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// From a change being known to the kernel enforcing it, seconds.
    pub implementation_delay: Histogram,
    /// What the kernel needed for one change, seconds.
    pub regeneration: Histogram,
    pub regenerations_failed: u64,
    /// Transactions of the source that were refused.
    pub changes_refused: u64,
    pub changes: u64,
    /// From the start of the agent to the first full state in the kernel.
    pub bootstrap: Option<Duration>,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry {
            implementation_delay: Histogram::new(FAST_BUCKETS),
            regeneration: Histogram::new(FAST_BUCKETS),
            regenerations_failed: 0,
            changes_refused: 0,
            changes: 0,
            bootstrap: None,
        }
    }
}

impl Telemetry {
    /// The kernel took a change.
    pub fn regenerated(&mut self, took: Duration, since_known: Duration) {
        self.regeneration.observe(took.as_secs_f64());
        self.implementation_delay.observe(since_known.as_secs_f64());
    }
}

static ERRORS: AtomicU64 = AtomicU64::new(0);
static WARNINGS: AtomicU64 = AtomicU64::new(0);

/// Errors and warnings that were logged by this process.
pub fn logged() -> [(&'static str, u64); 2] {
    [("error", ERRORS.load(Ordering::Relaxed)), ("warning", WARNINGS.load(Ordering::Relaxed))]
}

/// Counts what is logged; put beside the layer that writes.
#[derive(Clone, Copy, Debug)]
pub struct LogCounter;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for LogCounter {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        match *event.metadata().level() {
            tracing::Level::ERROR => ERRORS.fetch_add(1, Ordering::Relaxed),
            tracing::Level::WARN => WARNINGS.fetch_add(1, Ordering::Relaxed),
            _ => return,
        };
    }
}
