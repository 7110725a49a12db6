//! The streams of HTTP/2 connections: they run in their connection's task, and use memory again.
//!
//! A task for each would cost as much as what most streams do: its memory is larger than what malloc has at hand, its
//! alignment (two cache lines) makes that slower still, and the future in it is copied when the task begins and
//! twice when it ends. Here a future goes where one that is done was. And the connection sends what all streams
//! that could go on have for it in one piece, because it is asked after them.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio_util::sync::ReusableBoxFuture;

/// Places of streams that are done which a thread keeps, a few KiB each.
const KEPT: usize = 64;

type Place = ReusableBoxFuture<'static, ()>;

thread_local! {
    /// Connections of one thread take turns.
    static SPARE: RefCell<Vec<Place>> = const { RefCell::new(Vec::new()) };
}

/// Those of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    running: FuturesUnordered<Running>,
}

/// A stream; its end gives its place back.
#[derive(Debug)]
struct Running(Option<Place>);

impl Future for Running {
    type Output = Option<Place>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(place) = &mut self.0 {
            ready!(place.poll(cx));
        }
        Poll::Ready(self.0.take())
    }
}

impl Streams {
    /// One more; it runs when [`Streams::poll_quiet`] is called.
    pub(super) fn begin(&mut self, stream: impl Future<Output = ()> + Send + 'static) {
        let place = match SPARE.with_borrow_mut(Vec::pop) {
            Some(mut place) => {
                place.set(stream);
                place
            }
            None => ReusableBoxFuture::new(stream),
        };
        self.running.push(Running(Some(place)));
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Has all of them run once more, also those for which nothing has happened.
    pub(super) fn wake(&mut self) {
        self.running = std::mem::take(&mut self.running).into_iter().collect();
    }

    /// Lets every stream run that can; ready when none is left.
    pub(super) fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(done) = ready!(self.running.poll_next_unpin(cx)) {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < KEPT {
                    spare.extend(done);
                }
            });
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::poll_fn;
    use tokio::sync::oneshot;

    use super::*;

    fn places() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    /// Another test may have run on this thread.
    fn none_kept() -> Streams {
        SPARE.with_borrow_mut(Vec::clear);
        Streams::default()
    }

    #[test]
    fn a_stream_takes_the_place_of_one_that_is_done() {
        let mut streams = none_kept();
        let (tell, told) = oneshot::channel::<()>();
        streams.begin(async {});
        streams.begin(async move { drop(told.await) });
        assert!(poll_fn(|cx| streams.poll_quiet(cx)).now_or_never().is_none(), "one waits");
        assert_eq!((streams.len(), places()), (1, 1));
        streams.begin(async {});
        assert_eq!((streams.len(), places()), (2, 0));
        tell.send(()).unwrap();
        assert!(poll_fn(|cx| streams.poll_quiet(cx)).now_or_never().is_some());
        assert_eq!((streams.len(), places()), (0, 2));
    }

    #[test]
    fn a_stream_that_waits_for_nothing_runs_when_all_are_woken_and_hears_what_it_waits_for_after_that() {
        let mut streams = none_kept();
        let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (tell, mut told) = oneshot::channel::<()>();
        let counted = runs.clone();
        streams.begin(poll_fn(move |cx| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            told.poll_unpin(cx).map(drop)
        }));
        for expected in [1, 1, 2] {
            if expected == 2 {
                streams.wake();
            }
            assert!(poll_fn(|cx| streams.poll_quiet(cx)).now_or_never().is_none());
            assert_eq!(runs.load(std::sync::atomic::Ordering::Relaxed), expected);
        }
        tell.send(()).unwrap();
        assert!(poll_fn(|cx| streams.poll_quiet(cx)).now_or_never().is_some());
    }

    #[test]
    fn a_thread_keeps_only_so_many_places() {
        let mut streams = none_kept();
        (0..2 * KEPT).for_each(|_| streams.begin(async {}));
        poll_fn(|cx| streams.poll_quiet(cx)).now_or_never().unwrap();
        assert_eq!(places(), KEPT);
    }

    #[test]
    fn what_a_stream_holds_is_let_go_with_its_connection() {
        let held = std::sync::Arc::new(());
        let mut streams = Streams::default();
        let mine = held.clone();
        streams.begin(async move {
            std::future::pending::<()>().await;
            drop(mine);
        });
        poll_fn(|cx| streams.poll_quiet(cx)).now_or_never();
        drop(streams);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
