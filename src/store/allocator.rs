//! [`IdentityAllocator`] over an [`IdentityStore`], for one holder.
//!
//! Uses are counted: an identity is released in the store when every allocation was met by a release.
//! Clones share everything, because the view owns its allocator and others collect what it released.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::error::StoreError;
use super::identities::{Holder, IdentityChange, IdentityStore};
use crate::identity::{AllocateError, IdentityAllocator};
use crate::model::{Identity, Labels};

/// See the module. Methods block for as long as a transaction of the store takes.
#[derive(Clone, Debug)]
pub struct StoreAllocator {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    identities: IdentityStore,
    holder: Holder,
    /// Uses since the start, or since [`StoreAllocator::start_over`].
    uses: BTreeMap<u32, usize>,
    /// Releases that could not be stored; tried again by [`StoreAllocator::collect`].
    unstored: BTreeSet<u32>,
    /// Assignments that this holder made and nobody has taken yet.
    assigned: Vec<(Labels, Identity)>,
}

impl StoreAllocator {
    /// [`Holder::Local`] for the agent that embeds the store.
    pub fn new(identities: IdentityStore, holder: Holder) -> StoreAllocator {
        let shared = Shared {
            identities,
            holder,
            uses: BTreeMap::new(),
            unstored: BTreeSet::new(),
            assigned: Vec::new(),
        };
        StoreAllocator { shared: Arc::new(Mutex::new(shared)) }
    }

    /// The assignments of every holder. Nothing is allocated or released while the guard lives.
    pub fn identities(&self) -> MappedMutexGuard<'_, IdentityStore> {
        MutexGuard::map(self.shared.lock(), |shared| &mut shared.identities)
    }

    /// New assignments that were made through this allocator since the last call.
    pub fn take_assigned(&self) -> Vec<(Labels, Identity)> {
        std::mem::take(&mut self.shared.lock().assigned)
    }

    /// Forgets every use: whoever used this allocator is gone and another begins. Nothing is
    /// released until [`StoreAllocator::release_unclaimed`].
    pub fn start_over(&self) {
        self.shared.lock().uses.clear();
    }

    /// Call once the stored objects have been loaded: releases what the holder still holds from an
    /// earlier run and does not use in this one.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn release_unclaimed(&self) -> Result<(), StoreError> {
        let Shared { identities, holder, uses, .. } = &mut *self.shared.lock();
        identities.release_where(holder, |id| !uses.contains_key(&id))
    }

    /// Forgets assignments whose grace period has ended; call it every minute or so.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the write.
    pub fn collect(&self) -> Result<IdentityChange, StoreError> {
        let Shared { identities, holder, unstored, .. } = &mut *self.shared.lock();
        identities.release_where(holder, |id| unstored.contains(&id))?;
        unstored.clear();
        identities.collect()
    }
}

impl IdentityAllocator for StoreAllocator {
    fn allocate(&mut self, labels: &Labels) -> Result<Identity, AllocateError> {
        let shared = &mut *self.shared.lock();
        let (id, change) =
            shared.identities.allocate(labels, &shared.holder).map_err(|error| error.of(labels))?;
        shared.assigned.extend(change.added);
        *shared.uses.entry(id.0).or_default() += 1;
        shared.unstored.remove(&id.0);
        Ok(id)
    }

    fn shared(&self, labels: &Labels) -> Option<Labels> {
        self.shared.lock().identities.shared(labels)
    }

    fn release(&mut self, id: Identity) {
        let shared = &mut *self.shared.lock();
        match shared.uses.get_mut(&id.0) {
            Some(uses) if *uses > 1 => *uses -= 1,
            _ => {
                shared.uses.remove(&id.0);
                // The store has reported the error; the number stays taken until it is stored.
                if shared.identities.release(id, &shared.holder).is_err() {
                    shared.unstored.insert(id.0);
                }
            }
        }
    }
}
