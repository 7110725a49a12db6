//! The threads that serve connections: each has a runtime of its own, and a connection stays with its thread.
//!
//! Nothing is handed over between threads while a request is served, so that a request costs no wake-up of
//! another CPU. New connections go to the thread that has the fewest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

type Work = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// See the module.
#[derive(Debug)]
pub struct Crew {
    members: Mutex<Vec<Member>>,
}

#[derive(Debug)]
struct Member {
    work: UnboundedSender<Work>,
    /// Connections that it has.
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// Counts for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Crew {
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub fn start(threads: usize) -> std::io::Result<Crew> {
        let members = (0..threads.max(1)).map(|index| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (work, todo) = unbounded_channel();
            let thread = std::thread::Builder::new()
                .name(format!("sluice-http-{index}"))
                .spawn(move || runtime.block_on(serve(todo)))?;
            Ok(Member { work, load: Arc::default(), thread })
        });
        Ok(Crew { members: Mutex::new(members.collect::<std::io::Result<_>>()?) })
    }

    /// Runs `work` on the thread that has least to do; what `work` makes is made there. After
    /// [`Crew::end`] nothing is run.
    pub fn spawn(&self, work: impl FnOnce() -> BoxFuture<'static, ()> + Send + 'static) {
        let members = self.members.lock();
        let Some(member) = members.iter().min_by_key(|member| member.load.load(Ordering::Relaxed)) else {
            return;
        };
        member.load.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&member.load));
        let counted_work = || -> BoxFuture<'static, ()> {
            let running = work();
            Box::pin(async move {
                running.await;
                drop(counted);
            })
        };
        if member.work.send(Box::new(counted_work)).is_err() {
            tracing::error!("a thread of the proxy has ended");
        }
    }

    /// Cuts what still runs and waits for the threads.
    pub fn end(&self) {
        for Member { work, thread, .. } in self.members.lock().drain(..) {
            drop(work);
            if thread.join().is_err() {
                tracing::error!("a thread of the proxy has panicked");
            }
        }
    }
}

async fn serve(mut todo: UnboundedReceiver<Work>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            work = todo.recv() => match work {
                Some(work) => drop(running.spawn(work())),
                None => return,
            },
            Some(_) = running.join_next() => {}
        }
    }
}
