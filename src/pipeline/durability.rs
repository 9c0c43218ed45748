//! When commits on the replica become durable.
//!
//! ```text
//!  with a witness:   commit ─ commit ─ commit ─ commit ─ …       none waits
//!                        └▶ flush ▶┘     └▶ flush ▶┘             at most one every DURABLE_EVERY
//!
//!  without one:      commit ─ waits ─┬─ commit ─ commit ─┬─ commit ─ waits ─ …
//!                                    └── DURABLE_EVERY ──┘
//! ```
//!
//! What waits for the disk makes all before it durable, so one now and then is enough; and the
//! source is told of no more than that. After a crash of the replica the position and its
//! data are back at the same commit, and the source still has what came after.

use crate::pg::Lsn;
use crate::progress::Durability;
use std::time::Duration;
use tokio::time::Instant;

/// No commit stays without the disk for longer, unless that is slow; without a witness also while a
/// transaction of the source is half written.
const DURABLE_EVERY: Duration = Duration::from_millis(100);

/// What has been committed, and when the disk is next waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct DurabilityClock {
    has_witness: bool,
    due: Instant,
    committed: Lsn,
    is_owed: bool,
}

impl DurabilityClock {
    /// Goes on from what is durable.
    pub(super) fn new(committed: Lsn, has_witness: bool, now: Instant) -> Self {
        Self {
            has_witness,
            due: now,
            committed,
            is_owed: false,
        }
    }

    pub(super) fn has_witness(&self) -> bool {
        self.has_witness
    }

    /// What the next commit of data is to do.
    pub(super) fn next(&self, now: Instant) -> Durability {
        if self.has_witness || now < self.due {
            Durability::Later
        } else {
            Durability::Durable
        }
    }

    /// A commit has succeeded.
    pub(super) fn committed(&mut self, end: Lsn, durability: Durability, now: Instant) {
        self.committed = self.committed.max(end);
        self.is_owed = durability == Durability::Later;
        if durability == Durability::Durable {
            self.due = now + DURABLE_EVERY;
        }
    }

    /// What is committed by now is about to become durable: up to where that is.
    pub(super) fn begin_flush(&mut self, now: Instant) -> Lsn {
        self.is_owed = false;
        self.due = now + DURABLE_EVERY;
        self.committed
    }

    /// The position that the replica has stored.
    pub(super) fn position(&self) -> Lsn {
        self.committed
    }

    /// Nothing is under way yet that makes commits durable.
    pub(super) fn is_owed(&self) -> bool {
        self.is_owed
    }

    /// When that has to begin.
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_wire(raw).unwrap()
    }

    #[test]
    fn without_a_witness_one_commit_now_and_then_waits() {
        let now = Instant::now();
        let mut clock = DurabilityClock::new(lsn(1), false, now);
        assert_eq!(clock.next(now), Durability::Durable, "a lone one waits");
        clock.committed(lsn(2), Durability::Durable, now);
        assert!(!clock.is_owed());
        assert_eq!(clock.next(now), Durability::Later);
        clock.committed(lsn(3), Durability::Later, now);
        assert!(clock.is_owed());
        assert_eq!(clock.due(), now + DURABLE_EVERY);
        assert_eq!(clock.next(clock.due()), Durability::Durable);
        clock.committed(lsn(4), Durability::Durable, clock.due());
        assert!(!clock.is_owed());
    }

    #[test]
    fn with_a_witness_none_waits_and_a_lone_one_is_flushed_at_once() {
        let now = Instant::now();
        let mut clock = DurabilityClock::new(lsn(1), true, now);
        assert_eq!(clock.next(now), Durability::Later);
        clock.committed(lsn(2), Durability::Later, now);
        assert!(clock.is_owed() && clock.due() <= now);
        assert_eq!(clock.begin_flush(now), lsn(2));
        assert!(!clock.is_owed());
        clock.committed(lsn(3), Durability::Later, now);
        assert!(clock.is_owed(), "the flush began before");
        assert_eq!(clock.due(), now + DURABLE_EVERY);
        assert_eq!(clock.next(clock.due()), Durability::Later);
        assert_eq!(clock.begin_flush(clock.due()), lsn(3));
    }
}
