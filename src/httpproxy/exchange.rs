//! One request and its answer on the wire: bodies both ways, interim answers, and how either may fail.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::Context;
use super::body::Body;
use super::head::{self, Parsed, Scan};
use super::io::{Alarm, Inbox};
use super::splice;
use crate::policy::l7::message::Fault;

/// Why an exchange was not finished.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's message.
    Malformed(Fault),
    /// The server's message.
    Server(Fault),
    Timeout,
    /// The client went away.
    Client,
    /// The server reads no more.
    Writing,
    /// The server went away before it answered.
    Closed,
}

impl Failure {
    pub(super) fn or_timeout(error: &io::Error, otherwise: Failure) -> Failure {
        if error.kind() == io::ErrorKind::TimedOut { Failure::Timeout } else { otherwise }
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
    pub(super) begun: Instant,
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
        from: &mut ReadHalf<'_>,
        inbox: &mut Inbox,
        to: &mut WriteHalf<'_>,
        alarm: &mut Alarm,
        cx: &Context,
    ) -> Result<Answered, Failure> {
        let limits = &cx.limits;
        let mut scan = Scan::default();
        loop {
            let head = match head::response(inbox.data(), &mut scan, limits.header_count, self.is_head) {
                Parsed::Complete(head) => head,
                Parsed::Fault(fault) => return Err(Failure::Server(fault)),
                Parsed::TooMany => return Err(Failure::Server("the server's head has too many fields")),
                Parsed::Partial if inbox.data().len() > limits.header_bytes => {
                    return Err(Failure::Server("the server's head is too large"));
                }
                Parsed::Partial => match alarm.within(limits.response_timeout, inbox.fill(from)).await {
                    Ok(0) if inbox.is_empty() => return Err(Failure::Closed),
                    Ok(0) => return Err(Failure::Server("the server closed in a head")),
                    Ok(_) => continue,
                    Err(error) => return Err(Failure::or_timeout(&error, Failure::Closed)),
                },
            };
            let is_interim = head.status / 100 == 1;
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
                send(to, &last, alarm, limits.body_timeout).await?;
            } else {
                send(to, first, alarm, limits.body_timeout).await?;
            }
            inbox.consume(head.len + with_head);
            if head.status == 101 {
                return Ok(Answered::Switched);
            }
            if is_interim {
                continue;
            }
            if !body.is_done() {
                let relayed = relay(&mut body, inbox, from, to, alarm, limits.body_timeout).await;
                relayed.map_err(|failure| match failure {
                    Failure::Malformed(fault) => Failure::Server(fault),
                    Failure::Writing => Failure::Client,
                    Failure::Client => Failure::Closed,
                    other => other,
                })?;
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
    alarm: &mut Alarm,
    limit: Duration,
) -> Result<(), Failure> {
    alarm.within(limit, to.write_all(bytes)).await.map_err(|_| Failure::Client)
}

/// Forwards the rest of a body.
pub(super) async fn relay(
    body: &mut Body,
    inbox: &mut Inbox,
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    alarm: &mut Alarm,
    limit: Duration,
) -> Result<(), Failure> {
    while !body.is_done() {
        if inbox.is_empty()
            && let Some(left) = body.plain()
            && *left >= splice::WORTH
            && let Some(moved) = splice::relay(*left, from.as_ref(), to.as_ref(), alarm, limit).await
        {
            // A body that was not moved whole is not done, whatever is missing of it.
            if moved.is_ok() {
                *left = 0;
            }
            return moved;
        }
        if inbox.is_empty() {
            match alarm.within(limit, inbox.fill(from)).await {
                Ok(0) if body.ends_with_connection() => return Ok(()),
                Ok(0) => return Err(Failure::Client),
                Ok(_) => {}
                Err(error) => return Err(Failure::or_timeout(&error, Failure::Client)),
            }
        }
        let count = body.accept(inbox.data()).map_err(Failure::Malformed)?;
        let sent = alarm.within(limit, to.write_all(&inbox.data()[..count])).await;
        sent.map_err(|error| Failure::or_timeout(&error, Failure::Writing))?;
        inbox.consume(count);
    }
    Ok(())
}
