//! How long until the source gives the slot up, at the rate of the last minutes. Pure.
//!
//! ```text
//!  safe_wal_size   ●
//!                     ●           the line from the oldest look of the window to the newest
//!                        ●
//!  0 ───────────────────────●──── lost
//! ```

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Long enough for a checkpoint or two, which is when the server takes stock.
const WINDOW: Duration = Duration::from_secs(600);
/// Two looks that are closer say nothing of a rate.
const LEAST: Duration = Duration::from_secs(4);

/// The looks of the window.
#[derive(Default)]
pub(super) struct Exhaustion(VecDeque<(Instant, i64)>);

impl Exhaustion {
    /// Notes how many bytes are left (`safe_wal_size`; none where there is no bound), and
    /// returns the seconds until they are used up; none when they will not be.
    pub(super) fn look(&mut self, now: Instant, safe_bytes: Option<i64>) -> Option<f64> {
        let Some(safe_bytes) = safe_bytes else {
            self.0.clear();
            return None;
        };
        while self
            .0
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            self.0.pop_front();
        }
        self.0.push_back((now, safe_bytes));
        if safe_bytes <= 0 {
            return Some(0.0);
        }
        let (then, safe_then) = *self.0.front()?;
        let passed = now.duration_since(then);
        let used = safe_then.saturating_sub(safe_bytes);
        if passed < LEAST || used <= 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a forecast")]
        let seconds = safe_bytes as f64 / used as f64 * passed.as_secs_f64();
        Some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_through_the_window() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut exhaustion = Exhaustion::default();
        assert_eq!(exhaustion.look(at(0), Some(1_000)), None, "one look");
        assert_eq!(exhaustion.look(at(1), Some(900)), None, "too close");
        assert_eq!(exhaustion.look(at(10), Some(500)), Some(10.0));
        assert_eq!(exhaustion.look(at(20), Some(1_000)), None, "it was read on");
        assert_eq!(exhaustion.look(at(30), Some(0)), Some(0.0));
        assert_eq!(exhaustion.look(at(40), Some(-5)), Some(0.0));
        // What is older than the window does not count.
        assert_eq!(exhaustion.look(at(700), Some(400)), None);
        assert_eq!(exhaustion.look(at(710), Some(300)), Some(30.0));
        assert_eq!(exhaustion.look(at(720), None), None, "no bound");
        assert_eq!(exhaustion.look(at(730), Some(300)), None, "it begins anew");
    }
}
