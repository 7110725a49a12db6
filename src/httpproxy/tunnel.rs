//! Bytes as they are, in both directions, for as long as the rules allow what began the tunnel.
//!
//! How long both sides may be silent is their business. That both are there is ours: the kernel probes a quiet
//! connection, and a side that takes nothing of what it is sent for `body_timeout` is as good as gone.

use std::io;
use std::task::{self, Poll, ready};

use tokio::net::TcpStream;

use super::http1::Passed;
use super::io::{Inbox, Rewound, reset};
use super::policy::{ConnectionPolicy, Verdict};
use super::{Context, Ends, presence};
use crate::flow::record::RecordVerdict;
use crate::flow::{HttpVersion, L7};
use crate::policy::map_state::Proxy;

/// What a tunnel carries.
pub(super) enum Through {
    /// What a request switched to.
    Upgraded(Passed),
    /// TLS for this name.
    Tls(Option<String>),
    /// Bytes of no protocol that we know, where nothing is refused.
    Opaque,
}

impl Through {
    fn verdict(&self, policy: &ConnectionPolicy) -> Verdict {
        match self {
            Through::Upgraded(passed) => passed.verdict(policy),
            Through::Tls(name) => policy.server_name(name.as_deref()),
            Through::Opaque => policy.opaque(),
        }
    }

    /// What a record says of it when `verdict` ends it.
    fn told(&self, cx: &Context, verdict: &Verdict) -> L7 {
        match self {
            Through::Upgraded(passed) => passed.told(cx, verdict),
            Through::Tls(name) => L7::Tls { server_name: name.as_deref().map(Into::into) },
            Through::Opaque if verdict.refused_for == Some(Proxy::Tls) => L7::Tls { server_name: None },
            Through::Opaque => L7::Http {
                method: "".into(),
                path: "".into(),
                host: "".into(),
                status: 0,
                latency_us: 0,
                version: HttpVersion::default(),
                mismatches: Vec::new(),
            },
        }
    }
}

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

/// Runs until both directions are closed, one fails, or new rules refuse what goes through: then that is recorded, and
/// both connections are reset.
pub(super) async fn run(client: End, server: End, ends: Ends, cx: &Context, through: Through) {
    cx.counters.tunnels.one();
    for stream in [&client.stream, &server.stream] {
        presence::probe(stream);
        presence::bound(stream, cx.limits.body_timeout);
    }
    let mut changes = cx.changes.clone();
    changes.mark_unchanged();
    let mut client = Rewound { inbox: client.inbox, stream: client.stream };
    let mut server = Rewound { inbox: server.inbox, stream: server.stream };
    let refusal = || {
        let judged = cx.judge.policy(ends.client, ends.server);
        let verdict = through.verdict(&judged.policy);
        (!verdict.passes).then_some((judged, verdict))
    };
    // The rules may have changed since they were asked.
    let mut refused = refusal();
    let (judged, verdict) = {
        let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
        tokio::pin!(copy);
        loop {
            if let Some(refused) = refused {
                break refused;
            }
            tokio::select! {
                // An end that failed has closed its side; the other one follows when both are dropped.
                _ = &mut copy => return,
                Ok(()) = changes.changed() => refused = refusal(),
            }
        }
    };
    cx.counters.tunnels_cut.one();
    cx.report(ends, &judged, &verdict, RecordVerdict::Denied, || through.told(cx, &verdict));
    reset(client.stream);
    reset(server.stream);
}
