//! Keeps what the source is told some time behind what the replica has. Pure.
//!
//! ```text
//!  replica durable   ●────●────●────●────●   now
//!  source told       ○────○                  `keep` ago
//! ```
//!
//! A replica that may fail over to an asynchronous standby can go back by what that standby
//! lacked. The source must still have it then: a slot that is ahead of the replica is a gap.

use crate::pg::Lsn;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Marks kept at most; between two of them nothing is told.
const MARKS: u32 = 64;

/// Positions of the last while.
#[derive(Clone, Debug)]
pub struct Holdback {
    keep: Duration,
    marks: VecDeque<(Instant, Lsn)>,
    told: Option<Lsn>,
}

impl Holdback {
    /// Nothing has been told yet.
    #[must_use]
    pub fn new(keep: Duration) -> Self {
        Self {
            keep,
            marks: VecDeque::new(),
            told: None,
        }
    }

    /// Everything before `flushed` is durable on the replica now; returns what the source may
    /// be told. It never goes back.
    pub fn pass(&mut self, now: Instant, flushed: Option<Lsn>) -> Option<Lsn> {
        if self.keep.is_zero() {
            return flushed;
        }
        if let Some(flushed) = flushed {
            let is_due = self.marks.back().is_none_or(|(at, lsn)| {
                flushed > *lsn && now.duration_since(*at) >= self.keep / MARKS
            });
            if is_due {
                self.marks.push_back((now, flushed));
            }
        }
        while let Some((at, lsn)) = self.marks.front().copied()
            && now.duration_since(at) >= self.keep
        {
            self.told = self.told.max(Some(lsn));
            self.marks.pop_front();
        }
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Option<Lsn> {
        Lsn::from_wire(raw)
    }

    #[test]
    fn the_source_hears_of_what_was_durable_a_while_ago() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut holdback = Holdback::new(Duration::from_secs(64));
        assert_eq!(holdback.pass(at(0), None), None);
        assert_eq!(holdback.pass(at(1), lsn(100)), None);
        assert_eq!(holdback.pass(at(10), lsn(200)), None);
        assert_eq!(
            holdback.pass(at(10), lsn(250)),
            None,
            "too close to the last mark"
        );
        assert_eq!(holdback.pass(at(64), lsn(300)), None);
        assert_eq!(holdback.pass(at(65), lsn(300)), lsn(100));
        assert_eq!(holdback.pass(at(74), lsn(300)), lsn(200));
        assert_eq!(holdback.pass(at(74), None), lsn(200), "it stays told");
        assert_eq!(holdback.pass(at(200), lsn(300)), lsn(300));
        assert!(holdback.marks.len() <= MARKS as usize);
        let mut none = Holdback::new(Duration::ZERO);
        assert_eq!(none.pass(at(0), lsn(100)), lsn(100));
    }
}
