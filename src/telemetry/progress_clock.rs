//! When the stream last moved, on the monotonic clock, without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub(super) struct ProgressClock {
    started: Instant,
    /// Milliseconds from `started` to the last mark.
    marked_ms: AtomicU64,
}

impl ProgressClock {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            marked_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn mark(&self) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.marked_ms.fetch_max(elapsed_ms, Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.marked_ms.load(Relaxed))
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }
}
