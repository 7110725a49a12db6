//! Prefixes of addresses: a map with longest-prefix lookup, and the precedence of what sources say
//! about one prefix. PURE.

pub mod layers;
pub mod prefix_map;

pub use layers::{Claim, Layers, Source};
pub use prefix_map::PrefixMap;
