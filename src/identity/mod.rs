//! Who is who: from labels to numbers. PURE.
//!
//! - [`filter`]: which of a pod's labels are security relevant.
//! - [`pod`]: the identity labels of a pod.
//! - [`reserved`]: the identities that every node knows, and the records of nodes and of the world.
//! - [`memory`]: the allocator of cluster-scoped numbers; its state can be saved and loaded, its
//!   time is an argument.
//! - [`registry`]: reference counts of numbers in use.
//!
//! Where the numbers come from is behind [`IdentityAllocator`]: the agent alone uses
//! [`memory::MemoryAllocator`], a larger cluster asks its server.

pub mod filter;
pub mod memory;
pub mod pod;
pub mod registry;
pub mod reserved;

pub use filter::LabelFilter;
pub use memory::{AllocatorState, MemoryAllocator};

use crate::model::{Identity, Labels};

/// Gives out cluster-scoped numbers. The same labels have the same number on every node, for as
/// long as any node uses it and for a grace period after.
pub trait IdentityAllocator {
    /// The number of these labels, allocated if there is none.
    fn allocate(&mut self, labels: &Labels) -> Result<Identity, AllocateError>;

    /// The allocator's own copy of equal labels, if it has one: users that keep that copy share its memory.
    fn shared(&self, _labels: &Labels) -> Option<Labels> {
        None
    }

    /// This user needs the number no more. It stays with its labels for the grace period.
    fn release(&mut self, id: Identity);
}

/// No number for a label set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    #[error(
        "all {capacity} cluster identities are in use or in their grace period; none is left for {labels}"
    )]
    Exhausted { capacity: usize, labels: Labels },
    /// A remote allocator did not answer, and the number is not known here.
    #[error("the identity allocator has no answer for {labels}: {reason}")]
    Unavailable { labels: Labels, reason: String },
}
