//! Bytes as they are, in both directions, for as long as the rules allow what began the tunnel.
//!
//! How long both sides may be silent is their business. That both are there is ours: the kernel probes a quiet
//! connection, and a side that takes nothing of what it is sent for `body_timeout` is as good as gone.

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
