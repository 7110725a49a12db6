//! Bodies of HTTP/2 streams, from one connection to the other.
//!
//! A window is given back when its bytes have been sent on, so that a slow receiver holds its sender back.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::waits::Waits;

/// How a body came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Sent on whole, or one side failed and the other one was told.
    Done,
    /// Nothing of the exchange has moved for too long, and the sender is the one that was waited for.
    SourceLate,
    /// The same of the receiver: it gives no room.
    SinkLate,
}

/// Sends a body on, trailers included; a failure on either side resets the other one.
pub(super) async fn pipe(mut from: RecvStream, mut to: SendStream<Bytes>, waits: &mut Waits<'_>) -> Ended {
    if from.is_end_stream() {
        return Ended::Done;
    }
    loop {
        let data = waits.step(async {
            tokio::select! {
                data = from.data() => Ok(data),
                reason = poll_fn(|cx| to.poll_reset(cx)) => Err(reason),
            }
        });
        let mut data = match data.await {
            Some(Ok(Some(Ok(data)))) => data,
            Some(Ok(Some(Err(error)))) => {
                to.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
                return Ended::Done;
            }
            Some(Ok(None)) => break,
            Some(Err(reason)) => {
                tracing::debug!(?reason, "the receiver of a body has reset its stream");
                return Ended::Done;
            }
            None => return Ended::SourceLate,
        };
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let room = match waits.step(poll_fn(|cx| to.poll_capacity(cx))).await {
                Some(Some(Ok(room))) => room,
                Some(_) => return Ended::Done,
                None => return Ended::SinkLate,
            };
            let piece = data.split_to(room.min(data.len()));
            let count = piece.len();
            let is_last = data.is_empty() && from.is_end_stream();
            if to.send_data(piece, is_last).is_err() || from.flow_control().release_capacity(count).is_err() {
                return Ended::Done;
            }
            if is_last {
                return Ended::Done;
            }
        }
    }
    match waits.step(from.trailers()).await {
        // A stream that is gone needs no end.
        Some(Ok(Some(trailers))) => drop(to.send_trailers(trailers)),
        Some(Ok(None)) => drop(to.send_data(Bytes::new(), true)),
        Some(Err(error)) => to.send_reset(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
        None => return Ended::SourceLate,
    }
    Ended::Done
}
