//! How old is the oldest change that the replica does not have yet?
//!
//! A sample is kept for a transaction every now and then, not for each: the age is then
//! right to within [`SAMPLE_EVERY_US`], and memory does not grow with the backlog's count.

use crate::pg::Lsn;
use std::collections::VecDeque;
use std::time::Duration;

const SAMPLE_EVERY_US: i64 = 10_000;
/// Samples kept, for hours of backlog; later ones then join the last, and the oldest count.
const SAMPLES_MAX: usize = 1_000_000;

/// Transactions that have arrived and are not applied, by samples.
#[derive(Debug, Default)]
pub(crate) struct Unapplied {
    samples: VecDeque<(Lsn, i64)>,
}

impl Unapplied {
    /// A transaction arrived that ends at `end` and committed at `commit_time_us`, source's clock.
    pub(crate) fn arrived(&mut self, end: Lsn, commit_time_us: i64) {
        let is_due = self
            .samples
            .back()
            .is_none_or(|(_, last)| commit_time_us.saturating_sub(*last) >= SAMPLE_EVERY_US);
        if is_due && self.samples.len() < SAMPLES_MAX {
            self.samples.push_back((end, commit_time_us));
        } else if let Some((last_end, _)) = self.samples.back_mut() {
            // The sample speaks for all that arrived since: it is done when they are.
            *last_end = end;
        }
    }

    /// The replica has everything before `applied`.
    pub(crate) fn applied(&mut self, applied: Option<Lsn>) {
        while self
            .samples
            .front()
            .is_some_and(|(end, _)| Some(*end) <= applied)
        {
            self.samples.pop_front();
        }
    }

    /// Age in seconds of the oldest, at `now_us` by the source's clock; 0 when there is none.
    #[expect(clippy::cast_precision_loss, reason = "an age for people and graphs")]
    pub(crate) fn age_seconds(&self, now_us: i64) -> f64 {
        self.samples.front().map_or(0.0, |(_, committed)| {
            now_us.saturating_sub(*committed).max(0) as f64 / 1e6
        })
    }
}

/// Seconds from a commit on the source to now; by two clocks, so never below zero.
pub(super) fn seconds_since(commit_time_us: i64) -> f64 {
    /// 2000-01-01 in seconds since 1970.
    const EPOCH: u64 = 946_684_800;
    let committed = std::time::UNIX_EPOCH
        + Duration::from_secs(EPOCH)
        + Duration::from_micros(u64::try_from(commit_time_us).unwrap_or(0));
    committed.elapsed().map_or(0.0, |age| age.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_wire(raw).unwrap()
    }

    #[test]
    fn the_oldest_unapplied_counts() {
        let mut unapplied = Unapplied::default();
        assert!(unapplied.age_seconds(9_000_000).abs() < 1e-9);
        unapplied.arrived(lsn(10), 1_000_000);
        unapplied.arrived(lsn(11), 1_000_001);
        unapplied.arrived(lsn(20), 3_000_000);
        assert!((unapplied.age_seconds(5_000_000) - 4.0).abs() < 1e-9);
        unapplied.applied(Some(lsn(10)));
        assert!(
            (unapplied.age_seconds(5_000_000) - 4.0).abs() < 1e-9,
            "11 is not applied yet"
        );
        unapplied.applied(Some(lsn(11)));
        assert!((unapplied.age_seconds(5_000_000) - 2.0).abs() < 1e-9);
        unapplied.applied(Some(lsn(20)));
        assert!(unapplied.age_seconds(5_000_000).abs() < 1e-9);
    }
}
