//! How consumers of flows share their CPU with the proxies.
//!
//! A proxy that is woken waits until whoever has its CPU lets go: Linux (6.12 and later, where preemption is lazy)
//! changes over when that one enters the kernel, or at the next tick of the clock, milliseconds later. So what can wait
//! gives way every few microseconds of work.
//!
//! Contract: giving way costs a whole turn of the others, which on a busy machine is milliseconds. Whoever is
//! [`Pace::Behind`] does not: traffic is a moment slower then, and nothing of what it did is lost.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Polite,
    Behind,
}

impl Pace {
    /// For a consumer that finds so many items waiting, and never so `many` when it keeps up.
    pub fn of(waiting: usize, many: usize) -> Pace {
        if waiting < many { Pace::Polite } else { Pace::Behind }
    }

    /// Items between two pauses.
    pub fn portion(self) -> usize {
        match self {
            Pace::Polite => 4,
            Pace::Behind => 256,
        }
    }

    /// What a pause is.
    pub fn pause(self) -> fn() {
        match self {
            Pace::Polite => std::thread::yield_now,
            Pace::Behind => || (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_up_gives_way_often_and_who_is_behind_goes_on() {
        assert_eq!(
            [0, 63, 64, 1000].map(|waiting| Pace::of(waiting, 64)).map(Pace::portion),
            [4, 4, 256, 256]
        );
    }
}
