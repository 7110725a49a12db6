//! What comes first on a connection whose client may be silent because its server speaks first (SMTP, MySQL).
//!
//! Contract: where nothing is refused, a silent client is not waited for. Its server is connected to after [`SILENCE`], and what that
//! says is passed on, while the client's first bytes are still looked at when they come. Where rules refuse, nothing goes to a
//! server before its client has said what it wants: there the wait stays.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::hello::{self, Hello};
use super::io::{Inbox, within};
use super::tunnel::End;
use super::{Context, Ends};

/// A client that is silent for so long may be waiting for its server.
pub(super) const SILENCE: Duration = Duration::from_millis(150);

/// How a connection has begun.
pub(super) struct Beginning {
    pub(super) hello: io::Result<Hello>,
    /// To the server, if it was tried before the client had spoken.
    pub(super) connected: Option<io::Result<End>>,
}

/// Reads the client's first flight.
pub(super) async fn read_hello(
    client: &mut TcpStream,
    inbox: &mut Inbox,
    ends: Ends,
    cx: &Context,
) -> Beginning {
    let limit = cx.limits.header_timeout;
    let mut changes = cx.changes.clone();
    changes.mark_unchanged();
    let refuses_nothing = || cx.judge.policy(ends.client, ends.server).policy.opaque().passes;
    if !refuses_nothing() || tokio::time::timeout(SILENCE, client.peek(&mut [0])).await.is_ok() {
        return Beginning { hello: within(limit, first_flight(client, inbox)).await, connected: None };
    }
    let mut server = match connect(ends, cx).await {
        Ok(server) => server,
        Err(error) => return Beginning { hello: Ok(Hello::Partial), connected: Some(Err(error)) },
    };
    let (mut from_client, mut to_client) = client.split();
    let may_refuse = async {
        loop {
            match changes.changed().await {
                Ok(()) if refuses_nothing() => {}
                Ok(()) => return,
                Err(_) => std::future::pending().await,
            }
        }
    };
    let hello = tokio::select! {
        read = first_flight(&mut from_client, inbox) => read,
        // What is left of its words is the tunnel's.
        () = pass_on(&mut server.stream, &mut server.inbox, &mut to_client) => Ok(Hello::Partial),
        () = may_refuse => Ok(Hello::Partial),
        // Nobody was kept waiting.
        () = tokio::time::sleep(limit) => Ok(Hello::Partial),
    };
    Beginning { hello, connected: Some(Ok(server)) }
}

pub(super) async fn connect(ends: Ends, cx: &Context) -> io::Result<End> {
    let stream = within(cx.limits.connect_timeout, cx.network.connect(ends)).await?;
    Ok(End { stream, inbox: Inbox::default() })
}

async fn first_flight(client: &mut (impl AsyncRead + Unpin), inbox: &mut Inbox) -> io::Result<Hello> {
    loop {
        let end = inbox.fill(client).await? == 0;
        match hello::read(inbox.data()) {
            Hello::Partial if end => return Ok(Hello::Partial),
            Hello::Partial => {}
            read => return Ok(read),
        }
    }
}

/// Until one side fails or the server has said all. Nothing is lost when it is dropped: what was not written is in the inbox.
async fn pass_on(
    server: &mut (impl AsyncRead + Unpin),
    inbox: &mut Inbox,
    client: &mut (impl AsyncWrite + Unpin),
) {
    while let Ok(1..) = inbox.fill(server).await {
        while !inbox.is_empty() {
            match client.write(inbox.data()).await {
                Ok(count @ 1..) => inbox.consume(count),
                Ok(0) | Err(_) => return,
            }
        }
    }
}
