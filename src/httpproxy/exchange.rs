//! One request and its answer on the wire: bodies both ways, interim answers, and how either may fail.

use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::Context;
use super::body::Body;
use super::head::{self, Parsed, Scan};
use super::io::Inbox;
use super::policy::Verdict;
use super::splice;
use super::waits::{Lost, MOST_INTERIM, Waits};
use super::wire::Wire;
use crate::policy::l7::message::Fault;

/// Why an exchange was not finished.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's message.
    Malformed(Fault),
    /// The server's message.
    Server(Fault),
    /// The client does not go on with its request.
    ClientLate,
    /// The server neither answers nor takes what it is sent.
    ServerLate,
    /// The client went away.
    Client,
    /// The server went away before it answered.
    Closed,
    /// New rules do not let it pass.
    Refused(Box<Verdict>),
}

/// Why a body was not forwarded whole.
#[derive(Debug)]
pub(super) enum Halt {
    Fault(Fault),
    SourceLate,
    SourceGone,
    SinkLate,
    /// It takes no more.
    SinkGone,
    /// New rules do not let the request pass.
    Refused(Box<Verdict>),
}

impl From<Lost> for Halt {
    fn from(lost: Lost) -> Halt {
        match lost {
            Lost::Late => Halt::SourceLate,
            Lost::SinkGone => Halt::SinkGone,
            Lost::Refused(verdict) => Halt::Refused(verdict),
        }
    }
}

/// Of the answer.
impl From<Lost> for Failure {
    fn from(lost: Lost) -> Failure {
        match lost {
            Lost::Late => Failure::ServerLate,
            Lost::SinkGone => Failure::Client,
            Lost::Refused(verdict) => Failure::Refused(verdict),
        }
    }
}

impl Halt {
    /// Of the request's body. `None`: the server may answer before it has everything, even if it reads no more.
    pub(super) fn of_upload(self) -> Option<Failure> {
        match self {
            Halt::Fault(fault) => Some(Failure::Malformed(fault)),
            Halt::SourceLate => Some(Failure::ClientLate),
            Halt::SourceGone => Some(Failure::Client),
            Halt::SinkLate => Some(Failure::ServerLate),
            Halt::SinkGone => None,
            Halt::Refused(verdict) => Some(Failure::Refused(verdict)),
        }
    }

    fn of_download(self) -> Failure {
        match self {
            Halt::Fault(fault) => Failure::Server(fault),
            Halt::SourceLate => Failure::ServerLate,
            Halt::SourceGone => Failure::Closed,
            Halt::SinkLate | Halt::SinkGone => Failure::Client,
            Halt::Refused(verdict) => Failure::Refused(verdict),
        }
    }
}

pub(super) enum Answered {
    Whole { server_keeps: bool },
    Switched,
}

/// One request and its answer.
pub(super) struct Exchange {
    pub(super) is_head: bool,
    pub(super) upgrade: bool,
    pub(super) begun: std::time::Instant,
    /// The client has got the beginning of the final answer.
    pub(super) started: bool,
    /// The client was told that its connection ends.
    pub(super) closes: bool,
    pub(super) status: u16,
    pub(super) latency: Duration,
}

impl Exchange {
    pub(super) async fn answer(
        &mut self,
        from: &mut Wire<'_>,
        inbox: &mut Inbox,
        to: &mut Wire<'_>,
        waits: &mut Waits<'_>,
        cx: &Context,
    ) -> Result<Answered, Failure> {
        let limits = &cx.limits;
        let mut scan = Scan::default();
        let mut head_due = None;
        let mut interim = 0;
        loop {
            let head = match head::response(inbox.data(), &mut scan, limits.header_count, self.is_head) {
                Parsed::Complete(head) if head.len <= limits.header_bytes => head,
                Parsed::Fault(fault) => return Err(Failure::Server(fault)),
                Parsed::TooMany => {
                    cx.counters.headers_too_many.one();
                    return Err(Failure::Server("the server's head has too many fields"));
                }
                Parsed::Partial if inbox.data().len() <= limits.header_bytes => {
                    let is_begun = !inbox.is_empty();
                    let read = if is_begun {
                        let due = *head_due.get_or_insert_with(|| Instant::now() + limits.header_timeout);
                        waits.head_for(to.0, due, inbox.fill(from)).await?
                    } else {
                        waits.answer_for(to.0, limits.response_timeout, inbox.fill(from)).await?
                    };
                    match read {
                        Ok(0) if is_begun => return Err(Failure::Server("the server closed in a head")),
                        Ok(0) | Err(_) => return Err(Failure::Closed),
                        Ok(_) => continue,
                    }
                }
                Parsed::Complete(_) | Parsed::Partial => {
                    cx.counters.headers_too_large.one();
                    return Err(Failure::Server("the server's head is too large"));
                }
            };
            let is_interim = head.status / 100 == 1;
            interim += usize::from(is_interim);
            if interim > MOST_INTERIM {
                return Err(Failure::Server("the server sends interim answers without end"));
            }
            if head.status == 101 && !self.upgrade {
                return Err(Failure::Server("the server switched protocols unasked"));
            }
            let mut body = Body::from(head.length);
            let with_head = body.accept(&inbox.data()[head.len..]).map_err(Failure::Server)?;
            if !is_interim || head.status == 101 {
                self.started = true;
                self.status = head.status;
                self.latency = self.begun.elapsed();
            }
            let first = &inbox.data()[..head.len + with_head];
            if !is_interim && cx.is_draining() {
                self.closes = true;
                let mut last = head::with_close(&first[..head.len]);
                last.extend_from_slice(&first[head.len..]);
                send(to, &last, waits).await?;
            } else {
                send(to, first, waits).await?;
            }
            inbox.consume(head.len + with_head);
            if head.status == 101 {
                return Ok(Answered::Switched);
            }
            if is_interim {
                waits.pace().moved();
                head_due = None;
                continue;
            }
            if !body.is_done() {
                relay(&mut body, inbox, from, to, waits).await.map_err(Halt::of_download)?;
            }
            let server_keeps = head.keep_alive && !body.ends_with_connection() && inbox.is_empty();
            return Ok(Answered::Whole { server_keeps });
        }
    }
}

/// To the client.
async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    waits: &mut Waits<'_>,
) -> Result<(), Failure> {
    write(to, bytes, waits).await.map_err(Halt::of_download)
}

/// Every piece that the other side takes is a move.
async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    mut bytes: &[u8],
    waits: &mut Waits<'_>,
) -> Result<(), Halt> {
    while !bytes.is_empty() {
        match waits.step(to.write(bytes)).await {
            None => return Err(Halt::SinkLate),
            Some(Ok(count @ 1..)) => bytes = &bytes[count..],
            Some(Ok(0) | Err(_)) => return Err(Halt::SinkGone),
        }
    }
    Ok(())
}

/// Forwards the rest of a body.
pub(super) async fn relay(
    body: &mut Body,
    inbox: &mut Inbox,
    from: &mut Wire<'_>,
    to: &mut Wire<'_>,
    waits: &mut Waits<'_>,
) -> Result<(), Halt> {
    while !body.is_done() {
        if inbox.is_empty()
            && let Some(left) = body.plain()
            && *left >= splice::WORTH
            && let Some(moved) = splice::relay(*left, from.0, to.0, waits).await
        {
            // A body that was not moved whole is not done, whatever is missing of it.
            if moved.is_ok() {
                *left = 0;
            }
            return moved;
        }
        if inbox.is_empty() {
            match waits.step_for(to.0, inbox.fill(from)).await? {
                Ok(0) if body.ends_with_connection() => return Ok(()),
                Ok(0) | Err(_) => return Err(Halt::SourceGone),
                Ok(_) => {}
            }
        }
        let count = body.accept(inbox.data()).map_err(Halt::Fault)?;
        write(to, &inbox.data()[..count], waits).await?;
        inbox.consume(count);
    }
    Ok(())
}
