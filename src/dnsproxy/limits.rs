//! How many queries may be open at once: of one pod, and of all.
//!
//! Each open query holds memory, and over TCP a socket. The limit of all is for the process, the limit of one pod is
//! there so that a pod whose server is silent cannot use up what others need.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

/// Most open queries (or connections).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    pub of_one: usize,
    pub of_all: usize,
}

#[derive(Debug, Default)]
struct Open {
    by_client: HashMap<IpAddr, usize>,
    all: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Limiter {
    most: Most,
    open: Mutex<Open>,
}

impl Limiter {
    pub fn new(most: Most) -> Arc<Limiter> {
        Arc::new(Limiter { most, open: Mutex::default() })
    }

    /// A place for one more of this client's, until the permit goes; none if there is no room.
    pub fn enter(self: &Arc<Limiter>, client: IpAddr) -> Option<Permit> {
        let mut open = self.open.lock();
        if open.all >= self.most.of_all {
            return None;
        }
        let mine = open.by_client.entry(client).or_insert(0);
        if *mine >= self.most.of_one {
            return None;
        }
        *mine += 1;
        open.all += 1;
        Some(Permit { limiter: Arc::clone(self), client })
    }

    pub fn open(&self) -> usize {
        self.open.lock().all
    }
}

/// A taken place.
#[derive(Debug)]
pub struct Permit {
    limiter: Arc<Limiter>,
    client: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.limiter.open.lock();
        open.all -= 1;
        if let Some(mine) = open.by_client.get_mut(&self.client) {
            *mine -= 1;
            if *mine == 0 {
                open.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_at_its_limit_leaves_room_for_others_and_memory_is_given_back() {
        let limiter = Limiter::new(Most { of_one: 2, of_all: 3 });
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let mine: Vec<Permit> = (0..2).map(|_| limiter.enter(a).unwrap()).collect();
        assert!(limiter.enter(a).is_none());
        let other = limiter.enter(b).unwrap();
        assert!(limiter.enter(c).is_none(), "all places are taken");
        drop(mine);
        assert!(limiter.enter(a).is_some());
        drop(other);
        assert_eq!(limiter.open(), 0);
        assert!(limiter.open.lock().by_client.is_empty());
    }
}
