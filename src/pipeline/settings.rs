//! What an operator says about trying again, and about the master's disk.

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

/// `[slot]`: how much log the source may keep for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotBudget {
    /// Beyond this somebody should look.
    pub warning_bytes: u64,
    /// Beyond this somebody must act.
    pub critical_bytes: u64,
    /// Beyond this the slot is dropped, to save the source; `None`: it is held whatever comes.
    pub drop_bytes: Option<u64>,
}

impl Default for SlotBudget {
    fn default() -> Self {
        Self {
            warning_bytes: 10 << 30,
            critical_bytes: 50 << 30,
            drop_bytes: None,
        }
    }
}

/// How a slot stands in its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spending {
    /// All is well.
    Within,
    /// Beyond the first bound.
    Warning,
    /// Beyond the second.
    Critical,
    /// Beyond the last: the slot goes.
    Exceeded,
}

impl SlotBudget {
    /// Where so many bytes stand.
    #[must_use]
    pub fn judge(&self, retained_bytes: u64) -> Spending {
        if self.drop_bytes.is_some_and(|max| retained_bytes > max) {
            Spending::Exceeded
        } else if retained_bytes > self.critical_bytes {
            Spending::Critical
        } else if retained_bytes > self.warning_bytes {
            Spending::Warning
        } else {
            Spending::Within
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_counts_from_above_it() {
        let mut budget = SlotBudget {
            warning_bytes: 10,
            critical_bytes: 20,
            drop_bytes: Some(30),
        };
        for (bytes, stands) in [
            (10, Spending::Within),
            (11, Spending::Warning),
            (20, Spending::Warning),
            (21, Spending::Critical),
            (30, Spending::Critical),
            (31, Spending::Exceeded),
        ] {
            assert_eq!(budget.judge(bytes), stands, "{bytes}");
        }
        budget.drop_bytes = None;
        assert_eq!(budget.judge(u64::MAX), Spending::Critical, "held");
    }
}
