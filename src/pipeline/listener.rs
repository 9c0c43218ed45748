//! The thread that listens to the source, with a reactor of its own.
//!
//! A walsender sends each change by itself. Whoever waits for its socket is woken by each,
//! which costs both ends more than all the work on the change. In a busy stream it is
//! cheaper not to wait, but to sleep while frames gather, and then to take all of them:
//!
//! ```text
//!  quiet   wait ─▶ frame ─▶ wait ─▶ frame ─▶ wait            at once, whatever comes
//!  busy    nap ─▶ frames ─▶ nap ─▶ frames ─▶ nap              a nap is far below a millisecond
//! ```
//!
//! The nap has to stop the whole thread: a reactor that goes on would be woken all the same.
//! So nothing else may live on this thread.

use super::PipelineError;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Far shorter than a walsender needs to fill a socket's buffer.
const NAP: Duration = Duration::from_micros(200);
/// Frames that are closer than this follow each other.
const APART: Duration = Duration::from_millis(1);
/// After this many that follow each other the stream is busy: more than a small transaction has.
const BUSY_AFTER: u32 = 16;

/// The thread. It ends when this is dropped, and whatever runs on it.
pub(crate) struct Listener {
    reactor: Handle,
    _end: DropGuard,
}

impl Listener {
    pub(crate) fn start() -> Result<Self, PipelineError> {
        let refused = |error: std::io::Error| {
            PipelineError::Waiting(format!(
                "the thread that listens to the source cannot be started: {error}"
            ))
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(refused)?;
        let reactor = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        std::thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || runtime.block_on(ended.cancelled()))
            .map_err(refused)?;
        Ok(Self {
            reactor,
            _end: end.drop_guard(),
        })
    }

    /// Runs a task on the thread. A socket belongs to the reactor it was opened on.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.reactor.spawn(task)
    }
}

/// Knows a busy stream from a quiet one.
pub(super) struct Pace {
    last_heard: Instant,
    following: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_heard: now,
            following: 0,
        }
    }

    /// Frames have come.
    pub(super) fn heard(&mut self, now: Instant) {
        let is_close = now.duration_since(self.last_heard) < APART;
        self.following = if is_close { self.following + 1 } else { 0 };
        self.last_heard = now;
    }

    /// Stops the thread for a moment if the stream is busy.
    pub(super) fn nap(&self) {
        if self.is_busy() {
            std::thread::sleep(NAP);
        }
    }

    fn is_busy(&self) -> bool {
        self.following >= BUSY_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_transaction_is_not_a_busy_stream() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..BUSY_AFTER {
            assert!(!pace.is_busy());
            now += Duration::from_micros(50);
            pace.heard(now);
        }
        assert!(pace.is_busy());
        pace.heard(now + NAP);
        assert!(pace.is_busy(), "a nap must not end it");
        pace.heard(now + NAP + APART);
        assert!(!pace.is_busy());
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_owner() {
        let listener = Listener::start().unwrap();
        let name = listener.spawn(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap().as_deref(), Some("listener"));
        let task = listener.spawn(std::future::pending::<()>());
        drop(listener);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
