//! DNS names and the addresses that answers gave for them. PURE: time is an argument.
//!
//! - [`answer`]: which addresses of an answer belong to the name that was asked for.
//! - `pattern`: `matchName` and `matchPattern`, from text to their canonical form.
//! - [`name_manager`]: names, their fresh addresses, and the `toFQDNs` patterns that match them.
//! - `ttl`: for how long an answer counts.

pub mod answer;
mod pattern;
mod ttl;

pub mod name_manager;

pub use answer::{Given, Learned, Record, RecordData};
pub use name_manager::{NameManager, NameManagerOptions, NameManagerStats, Snapshot};
pub use pattern::DnsPatternError;
pub use ttl::TtlBounds;

use std::sync::Arc;

use crate::policy::l7::DnsPattern;

/// The canonical text of a pattern, by which identities name it.
pub fn pattern_text(pattern: &DnsPattern) -> &Arc<str> {
    match pattern {
        DnsPattern::Name(text) | DnsPattern::Pattern(text) => text,
    }
}
