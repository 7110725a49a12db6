//! How much may be open at once: of one pod, and of all.
//!
//! Each open query or connection of a proxy holds memory, and mostly a socket. The limit of all is for the process, the
//! limit of one pod is there so that a pod whose server is silent, or that opens connections and leaves them, cannot
//! use up what others need. A pod is told by its address.

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

/// Which limit there was no room under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of the one client.
    One,
    All,
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

    /// A place for one more of this client's, until the permit goes.
    ///
    /// # Errors
    /// There is no room, for it or for anybody.
    pub fn enter(self: &Arc<Limiter>, client: IpAddr) -> Result<Permit, Full> {
        let mut open = self.open.lock();
        if open.all >= self.most.of_all {
            return Err(Full::All);
        }
        let mine = open.by_client.entry(client).or_insert(0);
        if *mine >= self.most.of_one {
            // Nobody who has nothing open is kept: a limit of 0 lets nobody in.
            if *mine == 0 {
                open.by_client.remove(&client);
            }
            return Err(Full::One);
        }
        *mine += 1;
        open.all += 1;
        Ok(Permit { limiter: Arc::clone(self), client })
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
        assert_eq!(limiter.enter(a).unwrap_err(), Full::One);
        let other = limiter.enter(b).unwrap();
        assert_eq!(limiter.enter(c).unwrap_err(), Full::All);
        drop(mine);
        assert!(limiter.enter(a).is_ok());
        drop(other);
        assert_eq!(limiter.open(), 0);
        assert!(limiter.open.lock().by_client.is_empty());
    }
}
