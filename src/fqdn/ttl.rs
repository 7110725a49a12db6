//! For how long an answer counts.

use std::time::Duration;

/// The least and the most time for which an address is fresh, whatever the TTL of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    floor: Duration,
    ceiling: Duration,
}

impl TtlBounds {
    /// A ceiling below the floor is the floor.
    pub fn new(floor: Duration, ceiling: Duration) -> TtlBounds {
        TtlBounds { floor, ceiling: ceiling.max(floor) }
    }

    /// How long an answer with this TTL is fresh.
    pub fn of(&self, ttl: Duration) -> Duration {
        ttl.clamp(self.floor, self.ceiling)
    }

    pub fn floor(&self) -> Duration {
        self.floor
    }

    pub fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// For what is left of a TTL to which the floor was applied before.
    pub(super) fn without_floor(self) -> TtlBounds {
        TtlBounds { floor: Duration::ZERO, ..self }
    }
}

impl Default for TtlBounds {
    /// A TTL may say 68 years (RFC 2181, section 8): whoever writes one would hold a place for as long.
    fn default() -> TtlBounds {
        TtlBounds::new(Duration::ZERO, Duration::from_secs(86_400))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_of_decades_ends_at_the_ceiling() {
        let seconds = Duration::from_secs;
        let bounds = TtlBounds::new(seconds(5), seconds(60));
        assert_eq!([0, 30, 2_000_000_000].map(|ttl| bounds.of(seconds(ttl)).as_secs()), [5, 30, 60]);
        assert_eq!(TtlBounds::new(seconds(5), seconds(1)).of(seconds(3)), seconds(5), "the floor wins");
    }
}
