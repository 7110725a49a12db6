//! A table of things with small stable numbers.
//!
//! The number of a removed thing is not given out again before [`Slab::reclaim`]: what was
//! compiled from it may still name it until the next settlement.

/// See the module.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
    retired: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { items: Vec::new(), free: Vec::new(), retired: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.items[number as usize] = Some(item);
            return number;
        }
        self.items.push(Some(item));
        (self.items.len() - 1) as u32
    }

    /// Panics when there is no such thing: numbers come from `insert` alone.
    pub(super) fn remove(&mut self, number: u32) -> T {
        let item = self.items[number as usize].take().expect("a number is removed once");
        self.retired.push(number);
        item
    }

    /// Removed numbers may be given out again.
    pub(super) fn reclaim(&mut self) {
        self.free.append(&mut self.retired);
    }

    pub(super) fn get(&self, number: u32) -> &T {
        self.items[number as usize].as_ref().expect("a number in use names a thing")
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut T {
        self.items[number as usize].as_mut().expect("a number in use names a thing")
    }
}
