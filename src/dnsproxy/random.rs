//! Numbers that nobody can guess, without a system call for each.

use std::io;

use ring::rand::{SecureRandom as _, SystemRandom};

/// Bytes that are drawn at once.
const POOL: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Random {
    source: SystemRandom,
    pool: [u8; POOL],
    at: usize,
}

impl Random {
    /// # Errors
    /// The kernel has no random numbers.
    pub(super) fn new() -> io::Result<Random> {
        let mut random = Random { source: SystemRandom::new(), pool: [0; POOL], at: POOL };
        random.draw()?;
        Ok(random)
    }

    fn draw(&mut self) -> io::Result<()> {
        self.source.fill(&mut self.pool).map_err(|_| io::Error::other("the kernel has no random numbers"))?;
        self.at = 0;
        Ok(())
    }

    pub(super) fn next(&mut self) -> u16 {
        if self.at + 2 > POOL {
            // It had some when it started, and the kernel's generator does not run dry.
            self.draw().expect("the kernel has random numbers");
        }
        let bytes = [self.pool[self.at], self.pool[self.at + 1]];
        self.at += 2;
        u16::from_be_bytes(bytes)
    }
}
