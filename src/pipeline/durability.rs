//! Which commits on the replica wait for its disk.
//!
//! ```text
//!  commit ─ waits ─┬─ commit ─ commit ─ commit ─┬─ commit ─ waits ─ …
//!                  └────── DURABLE_EVERY ───────┘
//! ```
//!
//! A commit that waits makes all before it durable, so one now and then is enough; and the
//! source is told of no more than that. After a crash of the replica the position and its
//! data are back at the same commit, and the source still has what came after.

use crate::progress::Durability;
use std::time::Duration;
use tokio::time::Instant;

/// No commit stays without the disk for longer, unless a transaction of the source is half written.
const DURABLE_EVERY: Duration = Duration::from_millis(100);

/// When the last commit waited, and whether one since did not.
#[derive(Clone, Copy, Debug)]
pub(super) struct DurabilityClock {
    waited_at: Instant,
    is_owed: bool,
}

impl DurabilityClock {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            waited_at: now,
            is_owed: false,
        }
    }

    /// What the next commit is to do.
    pub(super) fn next(&self, now: Instant) -> Durability {
        if now < self.due() {
            Durability::Later
        } else {
            Durability::Durable
        }
    }

    /// A commit has succeeded.
    pub(super) fn committed(&mut self, durability: Durability, now: Instant) {
        self.is_owed = durability == Durability::Later;
        if durability == Durability::Durable {
            self.waited_at = now;
        }
    }

    /// Commits are not durable yet.
    pub(super) fn is_owed(&self) -> bool {
        self.is_owed
    }

    /// When they have to be.
    pub(super) fn due(&self) -> Instant {
        self.waited_at + DURABLE_EVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_commit_now_and_then_waits() {
        let start = Instant::now();
        let mut clock = DurabilityClock::new(start);
        let now = start + DURABLE_EVERY;
        assert_eq!(clock.next(now), Durability::Durable, "a lone one waits");
        clock.committed(Durability::Durable, now);
        assert!(!clock.is_owed());
        assert_eq!(clock.next(now), Durability::Later);
        clock.committed(Durability::Later, now);
        assert!(clock.is_owed());
        assert_eq!(clock.due(), now + DURABLE_EVERY);
        assert_eq!(clock.next(clock.due()), Durability::Durable);
        clock.committed(Durability::Durable, clock.due());
        assert!(!clock.is_owed());
    }
}
