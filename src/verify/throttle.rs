//! How long a comparison rests between two slices, to leave the servers to others; pure.
//!
//! Nothing need be asked to know that a server is busy: a slice takes longer for it. And where the apply
//! is behind, whatever is compared meanwhile is in its way.

use std::time::Duration;

/// A slice that takes so many times as long for each row as the quickest before is slowed by others.
const SLOWED_FROM: f64 = 2.0;
/// The longest rest, in times of what the slice took: the snapshots of the position wait as well.
const REST_MAX: f64 = 2.0;

/// What the slices before have taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throttle {
    /// Seconds for a row, of the quickest slice.
    quickest: Option<f64>,
}

impl Throttle {
    /// How long to rest after a slice that took so long, and of how many rows it is; `None`: nothing is known
    /// of how many were read.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn rest_after(
        &mut self,
        rows: Option<u64>,
        took: Duration,
        is_behind: bool,
    ) -> Duration {
        let slowed = rows.filter(|rows| *rows > 0).map_or(1.0, |rows| {
            let a_row = took.as_secs_f64() / rows as f64;
            let quickest = self.quickest.map_or(a_row, |quickest| quickest.min(a_row));
            self.quickest = Some(quickest);
            if quickest > 0.0 {
                a_row / quickest
            } else {
                1.0
            }
        });
        let times = match (is_behind, slowed >= SLOWED_FROM) {
            (true, _) => REST_MAX,
            (false, true) => (slowed - 1.0).min(REST_MAX),
            (false, false) => 0.0,
        };
        took.mul_f64(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_where_others_slow_it_or_it_slows_others() {
        let mut throttle = Throttle::default();
        let ms = Duration::from_millis;
        for (rows, took, is_behind, rest) in [
            (Some(1_000), ms(100), false, ms(0)),
            (Some(1_000), ms(190), false, ms(0)),
            (Some(1_000), ms(250), false, ms(375)),
            // Fewer rows take less.
            (Some(500), ms(90), false, ms(0)),
            (Some(1_000), ms(5_000), false, ms(10_000)),
            (Some(1_000), ms(100), true, ms(200)),
            // The quickest is what counts.
            (Some(1_000), ms(50), false, ms(0)),
            (Some(1_000), ms(100), false, ms(100)),
            // All rows of a slice may be filtered out.
            (Some(0), ms(5_000), false, ms(0)),
            (None, ms(5_000), false, ms(0)),
            (None, ms(100), true, ms(200)),
        ] {
            let given = throttle.rest_after(rows, took, is_behind);
            let off = given.abs_diff(rest);
            assert!(
                off < ms(1),
                "{rows:?} rows, {took:?}: {given:?}, not {rest:?}"
            );
        }
    }
}
