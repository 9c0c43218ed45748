//! What an operator says about trying again.

use std::time::Duration;

/// `[retry]`: the delay doubles from the least to the greatest, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// Before the first new attempt.
    pub delay_min: Duration,
    /// Never longer than this.
    pub delay_max: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_millis(200),
            delay_max: Duration::from_secs(30),
        }
    }
}
