//! How often an address may try to join: a token bucket for each.
//!
//! A secret of 256 bits cannot be guessed; this keeps the work for wrong ones small.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Attempts at once.
const BURST: u32 = 20;
/// One more attempt after this time.
const REFILL: Duration = Duration::from_secs(3);
/// Addresses remembered. Beyond that all unknown ones share one bucket.
const ADDRESSES: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct JoinLimiter {
    /// When the bucket of an address will be full again.
    full_at: HashMap<Option<IpAddr>, Instant>,
}

impl JoinLimiter {
    /// Counts an attempt; the error is the time to wait before the next.
    pub(super) fn attempt(&mut self, address: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        self.full_at.retain(|_, full_at| *full_at > now);
        let key = match address {
            Some(address) if self.full_at.len() < ADDRESSES || self.full_at.contains_key(&address.into()) => {
                Some(address)
            }
            _ => None,
        };
        let full_at = self.full_at.entry(key).or_insert(now);
        let next = *full_at + REFILL;
        let latest = now + REFILL * BURST;
        if next > latest {
            return Err(next - latest);
        }
        *full_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_for_each_refill() {
        let mut limiter = JoinLimiter::default();
        let start = Instant::now();
        let one = Some(IpAddr::from([192, 0, 2, 1]));
        for _ in 0..BURST {
            limiter.attempt(one, start).unwrap();
        }
        assert_eq!(limiter.attempt(one, start), Err(REFILL));
        limiter.attempt(Some(IpAddr::from([192, 0, 2, 2])), start).unwrap();
        limiter.attempt(one, start + REFILL).unwrap();
        assert!(limiter.attempt(one, start + REFILL).is_err());
        limiter.attempt(one, start + REFILL * 100).unwrap();
        assert_eq!(limiter.full_at.len(), 1, "full buckets are forgotten");
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = JoinLimiter::default();
        let now = Instant::now();
        for n in 0..2 * ADDRESSES as u32 {
            let _ = limiter.attempt(Some(IpAddr::from(n.to_be_bytes())), now);
        }
        assert!(limiter.full_at.len() <= ADDRESSES + 1);
        assert!(
            limiter.attempt(Some(IpAddr::from([255, 0, 0, 1])), now).is_err(),
            "strangers share one bucket"
        );
    }
}
