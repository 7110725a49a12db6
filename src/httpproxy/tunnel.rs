//! Bytes as they are, in both directions, for as long as the rules allow what began the tunnel.
//!
//! How long both sides may be silent is their business. That both are there is ours: the kernel probes a quiet
//! connection, and a side that takes nothing of what it is sent for `body_timeout` is as good as gone.

use std::io;
use std::task::{self, Poll, ready};

use tokio::net::TcpStream;

use super::Context;
use super::Ends;
use super::io::{Inbox, Rewound, reset};
use super::policy::ConnectionPolicy;
use super::presence;

/// A stream with what was read of it already.
pub(super) struct End {
    pub(super) stream: TcpStream,
    pub(super) inbox: Inbox,
}

impl End {
    /// Ready when the other side has said something that nobody asked for, or has closed.
    pub(super) fn poll_unasked(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        loop {
            // An error is an end, too.
            let is_ready = ready!(self.stream.poll_read_ready(cx)).is_ok();
            // A read that filled its buffer, or a splice, leaves a socket marked as readable that has nothing more.
            match self.stream.try_read(&mut [0]) {
                Err(error) if is_ready && error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Runs until both directions are closed, one fails, or `allowed` no longer holds under new rules: then
/// both connections are reset.
pub(super) async fn run(
    client: End,
    server: End,
    ends: Ends,
    cx: &Context,
    allowed: impl Fn(&ConnectionPolicy) -> bool,
) {
    cx.counters.tunnels.one();
    for stream in [&client.stream, &server.stream] {
        presence::probe(stream);
        presence::bound(stream, cx.limits.body_timeout);
    }
    let mut changes = cx.changes.clone();
    changes.mark_unchanged();
    let mut client = Rewound { inbox: client.inbox, stream: client.stream };
    let mut server = Rewound { inbox: server.inbox, stream: server.stream };
    // The rules may have changed since they were asked.
    let mut holds = allowed(&cx.judge.policy(ends.client, ends.server).policy);
    {
        let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
        tokio::pin!(copy);
        while holds {
            tokio::select! {
                // An end that failed has closed its side; the other one follows when both are dropped.
                _ = &mut copy => return,
                Ok(()) = changes.changed() => {
                    holds = allowed(&cx.judge.policy(ends.client, ends.server).policy);
                }
            }
        }
    }
    cx.counters.tunnels_cut.one();
    reset(client.stream);
    reset(server.stream);
}
