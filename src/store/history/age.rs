//! What "older than" means when the wall clock jumps.
//!
//! A clock that jumps a year ahead must not delete the week that is kept, so a jump ahead is believed only
//! after it has lasted an hour of time that passed (monotonic). A jump back is believed at once: nothing
//! becomes older by it.

use std::time::Duration;

/// Differences below are drift and slewing.
const JUMP: Duration = Duration::from_secs(60);
/// How long a jump ahead must last.
const TRIAL: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgeClock {
    /// What was believed last: wall clock time, and when on the monotonic clock.
    believed: Option<(Duration, Duration)>,
    /// Monotonic time of a jump ahead that is on trial.
    jumped_at: Option<Duration>,
    jumps: u64,
}

impl AgeClock {
    /// The time that ages are measured against. `wall` is since 1970, `monotonic` since any start.
    pub fn now(&mut self, wall: Duration, monotonic: Duration) -> Duration {
        let Some((then, at)) = self.believed else {
            self.believed = Some((wall, monotonic));
            return wall;
        };
        let expected = then + monotonic.saturating_sub(at);
        let is_ahead = wall > expected + JUMP;
        let is_behind = wall + JUMP < expected;
        if (is_ahead && self.jumped_at.is_none()) || is_behind {
            self.jumps += 1;
        }
        let now = match (is_ahead, self.jumped_at) {
            (true, None) => {
                self.jumped_at = Some(monotonic);
                return expected;
            }
            (true, Some(since)) if monotonic.saturating_sub(since) < TRIAL => return expected,
            _ => wall,
        };
        self.jumped_at = None;
        self.believed = Some((now, monotonic));
        now
    }

    /// Jumps of either kind so far.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_jump_ahead_is_believed_after_an_hour() {
        let mut clock = AgeClock::default();
        let start = 20_000 * DAY;
        assert_eq!(clock.now(start, seconds(0)), start);
        assert_eq!(clock.now(start + seconds(10), seconds(10)), start + seconds(10));
        let far = start + 365 * DAY;
        assert_eq!(clock.now(far, seconds(20)), start + seconds(20));
        assert_eq!(clock.now(far + seconds(60), seconds(80)), start + seconds(80));
        assert_eq!(clock.now(far + seconds(3700), seconds(3720)), far + seconds(3700));
        assert_eq!(clock.jumps(), 1);
    }

    #[test]
    fn a_jump_that_is_taken_back_never_was() {
        let mut clock = AgeClock::default();
        let start = 20_000 * DAY;
        clock.now(start, seconds(0));
        clock.now(start + 300 * DAY, seconds(10));
        assert_eq!(clock.now(start + seconds(20), seconds(20)), start + seconds(20));
        // The next one has its own hour.
        clock.now(start + 300 * DAY, seconds(4000));
        assert_eq!(clock.now(start + 300 * DAY, seconds(4010)), start + seconds(4010));
    }

    #[test]
    fn a_jump_back_is_believed_at_once() {
        let mut clock = AgeClock::default();
        let start = 20_000 * DAY;
        clock.now(start, seconds(0));
        assert_eq!(clock.now(start - 10 * DAY, seconds(1)), start - 10 * DAY);
        assert_eq!(clock.jumps(), 1);
    }
}
