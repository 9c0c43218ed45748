//! Threads with a reactor of their own, for what must not wait for the rest, nor hold it up.
//!
//! ```text
//!  main        the pipeline: an answer of the replica wakes nobody but who waits for it
//!  listener    the stream; it stops as a whole while frames gather
//!  verify      comparisons, which sort and count
//!  copy        one for each session of a first copy
//!  endpoints   scrapes, and the service manager's watchdog
//! ```
//!
//! A socket belongs to the reactor that it was opened on. A runtime of several threads would move
//! each answer from the thread that polls to the one that waits, which costs more than the answer.

use std::io;
use tokio::runtime::{Builder, Handle};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The thread. It ends when this is dropped, and whatever runs on it.
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
    _end: DropGuard,
}

impl Reactor {
    /// Starts the thread, under this name.
    ///
    /// # Errors
    /// The system has no place for another one.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || runtime.block_on(ended.cancelled()))?;
        Ok(Self {
            handle,
            _end: end.drop_guard(),
        })
    }

    /// Runs a task on the thread.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(task)
    }

    /// Runs a task on the thread, as one of several.
    pub fn spawn_in<F>(&self, tasks: &mut JoinSet<F::Output>, task: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tasks.spawn_on(task, &self.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_thread_ends_with_its_owner() {
        let reactor = Reactor::start("listener").unwrap();
        let name = reactor.spawn(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap().as_deref(), Some("listener"));
        let task = reactor.spawn(std::future::pending::<()>());
        drop(reactor);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
