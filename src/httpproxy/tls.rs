//! Connections under `serverNames`: the ClientHello is read, then the bytes flow on untouched. Where the other side of the
//! connection has HTTP rules, what is no ClientHello is served as HTTP. Where nothing is refused, a client that is silent is not
//! waited for ([`greeting`]).

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::greeting::{self, Beginning};
use super::hello::Hello;
use super::io::{Inbox, reset};
use super::judge::Judged;
use super::policy::Verdict;
use super::tunnel::{self, End, Through};
use super::{Context, Ends, http1};
use crate::flow::L7;
use crate::flow::record::RecordVerdict;
use crate::policy::map_state::Proxy;

/// Serves one connection.
pub(super) async fn serve(mut client: TcpStream, ends: Ends, cx: Arc<Context>) {
    let mut inbox = Inbox::default();
    let Beginning { hello, connected } = greeting::read_hello(&mut client, &mut inbox, ends, &cx).await;
    let (name, is_whole) = match hello {
        Ok(Hello::Name(name)) => (name, true),
        Ok(Hello::Partial | Hello::NotTls) => (None, false),
        Err(error) => {
            if error.kind() == io::ErrorKind::TimedOut {
                cx.counters.timeouts.one();
            }
            (None, false)
        }
    };
    let judged = cx.judge.policy(ends.client, ends.server);
    // What a server said unasked has gone to the client already: such a connection stays as it is.
    if !is_whole && connected.is_none() && judged.policy.reads_http() {
        // Rare, and large: not a part of what every connection keeps.
        return Box::pin(http1::serve(client, inbox, ends, cx)).await;
    }
    cx.counters.handshakes.one();
    let verdict = judged.policy.server_name(name.as_deref());
    let named = name.clone();
    let l7 = || L7::Tls { server_name: named.as_deref().map(Into::into) };
    if verdict.refused_for == Some(Proxy::Http) {
        return Box::pin(http1::refuse_foreign(client, inbox, ends, cx)).await;
    }
    if !verdict.passes {
        cx.counters.handshakes_denied.one();
        if !is_whole {
            cx.counters.malformed.one();
        }
        cx.report(ends, &judged, &verdict, RecordVerdict::Denied, l7);
        reset(client);
        return;
    }
    let connected = match connected {
        Some(connected) => connected,
        None => greeting::connect(ends, &cx).await,
    };
    match connected {
        Ok(server) => {
            cx.counters.forwarded.one();
            cx.report(ends, &judged, &verdict, RecordVerdict::Forwarded, l7);
            tunnel::run(End { stream: client, inbox }, server, ends, &cx, Through::Tls(name)).await;
        }
        Err(error) => {
            tracing::debug!(%error, server = %ends.server, "no connection to the server");
            cx.counters.upstream_failures.one();
            cx.report(ends, &judged, &verdict, RecordVerdict::Failed, l7);
            reset(client);
        }
    }
}

/// Counts and records that rules for server names refuse what is not TLS.
pub(super) fn refused_other(cx: &Context, ends: Ends, judged: &Judged, verdict: &Verdict) {
    cx.counters.handshakes.one();
    cx.counters.handshakes_denied.one();
    cx.report(ends, judged, verdict, RecordVerdict::Denied, || L7::Tls { server_name: None });
}
