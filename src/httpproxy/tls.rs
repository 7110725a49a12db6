//! Connections under `serverNames`: the ClientHello is read, then the bytes flow on untouched.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::hello::{self, Hello};
use super::io::{Inbox, reset, within};
use super::tunnel::{self, End};
use super::{Context, Ends};
use crate::flow::L7;
use crate::flow::record::RecordVerdict;

/// Serves one connection.
pub(super) async fn serve(mut client: TcpStream, ends: Ends, cx: Arc<Context>) {
    let mut inbox = Inbox::default();
    let read = within(cx.limits.header_timeout, read_hello(&mut client, &mut inbox)).await;
    let (name, is_whole) = match read {
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
    match within(cx.limits.connect_timeout, cx.network.connect(ends)).await {
        Ok(stream) => {
            cx.counters.forwarded.one();
            cx.report(ends, &judged, &verdict, RecordVerdict::Forwarded, l7);
            let server = End { stream, inbox: Inbox::default() };
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

async fn read_hello(client: &mut TcpStream, inbox: &mut Inbox) -> io::Result<Hello> {
    loop {
        let end = inbox.fill(client).await? == 0;
        match hello::read(inbox.data()) {
            Hello::Partial if end => return Ok(Hello::Partial),
            Hello::Partial => {}
            read => return Ok(read),
        }
    }
}
