//! Which worker waits for datagrams: one at a time, the leader.
//!
//! The others sleep until it hands over, which it does before it deals with as much as one call can bring. Two reasons:
//!
//! - Who sends to a process that sleeps pays for waking it (several microseconds, more in a virtual machine). If every
//!   worker waited, each datagram would find one asleep, however busy the others are. This one takes what came
//!   meanwhile along with its next call.
//! - A leader whose last sleep was short looks for its next datagram some times before it sleeps again, which costs
//!   nobody a wake-up. Where there is one CPU alone it does not: whoever is to send needs that one.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
use nix::unistd::{SysconfVar, sysconf};
use parking_lot::{Mutex, MutexGuard};

/// Looks before it sleeps, about 20 us together.
const LOOKS: usize = 64;
/// A sleep after which the next one is likely to be short, too.
const SHORT: Duration = Duration::from_micros(50);

/// What the leader waits with. See the module.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    may_look: bool,
    is_near: bool,
    ending_since: Option<Instant>,
}

/// The worker that waits. To let go of it is to hand over.
pub(super) type Leader<'a> = MutexGuard<'a, Watch>;

/// See the module.
#[derive(Debug)]
pub(super) struct Lead(Mutex<Watch>);

impl Lead {
    /// Events of this set are what is waited for.
    pub(super) fn new(epoll: Epoll) -> Lead {
        // Not those that this process may run on: the senders may use the others.
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
        let may_look = cpus.is_some_and(|cpus| cpus > 1);
        Lead(Mutex::new(Watch { epoll, may_look, is_near: false, ending_since: None }))
    }

    /// Waits until nobody leads.
    pub(super) fn take(&self) -> Leader<'_> {
        self.0.lock()
    }
}

impl Watch {
    /// Fills in events that are there or come within `patience` (in milliseconds, cut off), and says how many.
    ///
    /// # Errors
    /// The set of events has failed.
    pub(super) fn wait(&mut self, events: &mut [EpollEvent], patience: Duration) -> io::Result<usize> {
        if self.may_look && self.is_near {
            for _ in 0..LOOKS {
                let ready = self.look(events, EpollTimeout::ZERO)?;
                if ready > 0 {
                    return Ok(ready);
                }
            }
        }
        let begin = Instant::now();
        let ready = self.look(events, EpollTimeout::try_from(patience).unwrap_or(EpollTimeout::ZERO))?;
        self.is_near = ready > 0 && begin.elapsed() < SHORT;
        Ok(ready)
    }

    fn look(&self, events: &mut [EpollEvent], timeout: EpollTimeout) -> io::Result<usize> {
        match self.epoll.wait(events, timeout) {
            Ok(ready) => Ok(ready),
            Err(nix::Error::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// How long the workers have been ending: since this was asked first.
    pub(super) fn ending_for(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.ending_since.get_or_insert(now))
    }
}
