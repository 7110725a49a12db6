//! Limits of the name manager, and what is counted where they are met.

use crate::fqdn::TtlBounds;

/// Limits and bounds of TTLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameManagerOptions {
    pub ttl: TtlBounds,
    /// Most addresses of one name; the ones that end first make room.
    pub max_addresses: usize,
    /// Most names. Who makes room for one more, or is refused: see `shares`.
    pub max_names: usize,
    /// Most addresses of all names together, one that two names have counted twice; as with names.
    pub max_all_addresses: usize,
}

impl Default for NameManagerOptions {
    fn default() -> NameManagerOptions {
        NameManagerOptions {
            ttl: TtlBounds::default(),
            max_addresses: 1000,
            max_names: 50_000,
            max_all_addresses: 200_000,
        }
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameManagerStats {
    /// Addresses that were dropped early because their name had too many.
    pub evicted: u64,
    /// Names that some rule wants and that made room for other clients'.
    pub evicted_names: u64,
    /// Names that no rule wants and that made room.
    pub evicted_spares: u64,
    /// Answers that were not learned because there are too many names.
    pub refused_names: u64,
    /// Answers whose new addresses were not learned because there are too many of all names.
    pub refused_addresses: u64,
    pub expired: u64,
}
