//! Large bodies go from socket to socket inside the kernel: their bytes are not copied through this process.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::exchange::Halt;
use super::waits::Waits;

/// Bodies with so much left are worth a pipe.
pub(super) const WORTH: u64 = 256 * 1024;
/// Bytes that a pipe holds.
const CAPACITY: usize = 256 * 1024;

/// A pipe that is empty between two calls.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        // The usual size does, too: the limit of a user's pipes may be reached.
        if let Err(error) = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as libc::c_int)) {
            tracing::debug!(%error, "a pipe stays small");
        }
        Ok(Pipe { read, write })
    }
}

/// Moves `count` bytes; `None`: there is no pipe to be had, and nothing was moved.
pub(super) async fn relay(
    count: u64,
    from: &TcpStream,
    to: &TcpStream,
    waits: &mut Waits<'_>,
) -> Option<Result<(), Halt>> {
    let pipe = Pipe::new().map_err(|error| tracing::debug!(%error, "bodies are copied")).ok()?;
    Some(through(&pipe, count, from, to, waits).await)
}

async fn through(
    pipe: &Pipe,
    mut left: u64,
    from: &TcpStream,
    to: &TcpStream,
    waits: &mut Waits<'_>,
) -> Result<(), Halt> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CAPACITY);
        let take = || Ok(splice(from.as_fd(), None, pipe.write.as_fd(), None, most, flags)?);
        let mut held = match waits.step_for(to, from.async_io(Interest::READABLE, take)).await? {
            Ok(0) | Err(_) => return Err(Halt::SourceGone),
            Ok(count) => count,
        };
        left -= held as u64;
        while held > 0 {
            let give = || Ok(splice(pipe.read.as_fd(), None, to.as_fd(), None, held, flags)?);
            let given = waits.step(to.async_io(Interest::WRITABLE, give)).await;
            held -= given.ok_or(Halt::SinkLate)?.map_err(|_| Halt::SinkGone)?;
        }
    }
    Ok(())
}
