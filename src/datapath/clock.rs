//! The clock of the programs: the kernel's jiffies, as seconds since boot.
//!
//! `bpf_jiffies64` is pasted into a program as one load; `bpf_ktime_get_coarse_ns` is a call, which cost an established
//! packet 12 of 110 ns on an AMD EPYC. What a jiffy is, the kernel was built with, so the programs are told when they are loaded.
//! Jiffies follow CLOCK_MONOTONIC (`tick_do_update_jiffies64`) from some moment of the boot on: what is read here and
//! there differs by less than a second as a rule, and ages are seconds.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use aya::EbpfLoader;

use super::DatapathError;
use super::abi::CLOCK_SHIFT;
use super::sys;

/// Seconds before its first overflow (of 32 bits) at which a kernel begins to count jiffies (`INITIAL_JIFFIES`).
const BEFORE_OVERFLOW: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    /// Jiffies when the kernel started.
    zero: u64,
    /// Seconds of a jiffy, as a fraction of 2^[`CLOCK_SHIFT`].
    seconds: u64,
}

impl Clock {
    /// Of a kernel whose coarse clocks advance by so much.
    fn of_tick(tick: Duration) -> Option<Clock> {
        let tick = u64::try_from(tick.as_nanos()).ok().filter(|tick| *tick > 0)?;
        // The kernel's TICK_NSEC is rounded, too.
        let hertz = (1_000_000_000 + tick / 2) / tick;
        let seconds = ((1_u64 << CLOCK_SHIFT) + hertz / 2) / hertz.max(1);
        (hertz > 0).then(|| Clock { zero: (1 << 32) - BEFORE_OVERFLOW * hertz, seconds })
    }

    /// The twin of `now_seconds()` in `bpf/lib/helpers.h`.
    #[cfg(test)]
    fn count(self, jiffies: u64) -> u32 {
        (((jiffies - self.zero) * self.seconds) >> CLOCK_SHIFT) as u32
    }
}

/// Tells the programs of this object what a jiffy is.
///
/// # Errors
/// The kernel does not say how long its ticks are.
pub(super) fn tell(loader: &mut EbpfLoader<'_>) -> Result<(), DatapathError> {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    let failed = |source| DatapathError::Syscall {
        operation: "clock_getres",
        object: "CLOCK_MONOTONIC_COARSE".to_owned(),
        source,
    };
    let clock = match CLOCK.get() {
        Some(clock) => clock,
        None => {
            let clock = sys::tick().and_then(|tick| {
                Clock::of_tick(tick).ok_or_else(|| io::Error::other(format!("a tick of {tick:?}")))
            });
            let clock = clock.map_err(failed)?;
            CLOCK.get_or_init(|| clock)
        }
    };
    loader.override_global("sl_clock_zero", &clock.zero, true).override_global(
        "sl_clock_seconds",
        &clock.seconds,
        true,
    );
    Ok(())
}

/// Seconds since boot, as the programs count them, give or take one.
///
/// # Errors
/// The kernel does not say.
pub(super) fn seconds_since_boot() -> Result<u64, DatapathError> {
    let now = sys::monotonic_now().map_err(|source| DatapathError::Syscall {
        operation: "clock_gettime",
        object: "CLOCK_MONOTONIC".to_owned(),
        source,
    })?;
    Ok(now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_those_since_boot_whatever_a_jiffy_is() {
        for (tick, hertz) in [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)] {
            let clock = Clock::of_tick(Duration::from_nanos(tick)).unwrap();
            let zero = u64::from(0_u32.wrapping_sub(300 * hertz));
            assert_eq!(clock.zero, zero);
            // The overflow of 32 bits, a year, and three.
            for second in [0, 1, 299, 300, 301, 31_536_000, 94_608_000] {
                let jiffies = zero + second * u64::from(hertz);
                let counted = u64::from(clock.count(jiffies + u64::from(hertz) / 2));
                assert!(counted.abs_diff(second) <= 1, "{hertz} Hz: {counted} for {second}");
                let next = clock.count(jiffies + u64::from(hertz) * 3 / 2);
                assert_eq!(u64::from(next) - counted, 1, "{hertz} Hz");
            }
        }
        assert_eq!(Clock::of_tick(Duration::ZERO), None);
    }
}
