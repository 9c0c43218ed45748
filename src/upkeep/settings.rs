//! What an operator says about proving.

use crate::verify::SliceSize;
use std::time::Duration;

const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);

/// `[verify]`; nothing is done where a time is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Each table's rows are compared this often.
    pub every: Duration,
    /// Each table's rows are counted this often.
    pub counts_every: Duration,
    /// So long a huge table is compared in one turn; zero: until it is done.
    pub budget: Duration,
    /// Larger tables are compared slice by slice.
    pub slice: SliceSize,
    /// What is found is mended, within the bounds that `repair` has by default.
    pub repair: bool,
}

impl Settings {
    /// How often it is worth while to look whose turn it is.
    pub(super) fn look_every(&self) -> Duration {
        let times = [self.every, self.counts_every].into_iter();
        let shortest = times.filter(|time| !time.is_zero()).min();
        let part = shortest.unwrap_or(LOOK_EVERY_MAX) / 6;
        part.clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(3600),
            counts_every: Duration::from_secs(60),
            budget: Duration::from_secs(60),
            slice: SliceSize::default(),
            repair: false,
        }
    }
}
