//! Connections under `serverNames`: the ClientHello is read, then the bytes flow on untouched. Where nothing is refused, a
//! client that is silent is not waited for ([`greeting`]).

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::greeting::{self, Beginning};
use super::hello::Hello;
use super::io::{Inbox, reset};
use super::tunnel::{self, End};
use super::{Context, Ends};
use crate::flow::L7;
use crate::flow::record::RecordVerdict;

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
    cx.counters.handshakes.one();
    let judged = cx.judge.policy(ends.client, ends.server);
    let verdict = judged.policy.server_name(name.as_deref());
    let named = name.clone();
    let l7 = || L7::Tls { server_name: named.as_deref().map(Into::into) };
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
            let allowed =
                move |policy: &super::policy::ConnectionPolicy| policy.server_name(name.as_deref()).passes;
            tunnel::run(End { stream: client, inbox }, server, ends, &cx, allowed).await;
        }
        Err(error) => {
            tracing::debug!(%error, server = %ends.server, "no connection to the server");
            cx.counters.upstream_failures.one();
            cx.report(ends, &judged, &verdict, RecordVerdict::Failed, l7);
            reset(client);
        }
    }
}
