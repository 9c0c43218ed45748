//! How often the source hears from us, and how long it may be silent; pure.
//!
//! A walsender ends a client of which it has heard nothing for `wal_sender_timeout`, and at half
//! of it asks for a word. So the same time tells how soon a healthy source is heard, whatever
//! it is busy with: one that decodes a large transaction of which we get nothing looks up after
//! half of it (walsender.c, `WalSndUpdateProgress`).
//!
//! ```text
//!  0 ── status, status, … ── ask ───────── ½ the source asks ── ¾ given up ── wal_sender_timeout
//! ```

use std::time::Duration;

/// Positions that moved are told this soon.
const TICK_MAX: Duration = Duration::from_millis(200);
const TICK_MIN: Duration = Duration::from_millis(20);
const STATUS_EVERY_MAX: Duration = Duration::from_secs(1);
const ASK_AFTER_MAX: Duration = Duration::from_secs(10);
/// A source with a very short time-out may still be slow for a moment.
const GIVE_UP_AFTER_MIN: Duration = Duration::from_secs(10);
/// For a source that waits for ever.
const GIVE_UP_AFTER_DEFAULT: Duration = Duration::from_secs(60);

/// The receiver's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rhythm {
    /// How often it looks at the clock.
    pub(super) tick: Duration,
    /// A status goes out this often even when nothing moved.
    pub(super) status_every: Duration,
    /// After this long without a word the source is asked for one.
    pub(super) ask_after: Duration,
    /// After this long without a word the connection is taken for dead.
    pub(super) give_up_after: Duration,
}

impl Rhythm {
    /// As the source's `wal_sender_timeout` needs it; `None` where that is off.
    pub(super) fn of(wal_sender_timeout: Option<Duration>) -> Self {
        let give_up_after = wal_sender_timeout.map_or(GIVE_UP_AFTER_DEFAULT, |limit| {
            (limit * 3 / 4).max(GIVE_UP_AFTER_MIN)
        });
        let limit = wal_sender_timeout.unwrap_or(Duration::MAX);
        Self {
            tick: (limit / 12).clamp(TICK_MIN, TICK_MAX),
            status_every: (limit / 4).min(STATUS_EVERY_MAX),
            ask_after: (give_up_after / 4).min(ASK_AFTER_MAX),
            give_up_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_hears_in_time_and_its_silence_is_noticed_in_time() {
        let seconds = Duration::from_secs;
        for limit in [
            Duration::from_millis(300),
            seconds(1),
            seconds(5),
            seconds(60),
            seconds(3600),
        ] {
            let rhythm = Rhythm::of(Some(limit));
            // A status is at most a tick late.
            assert!(
                rhythm.status_every + rhythm.tick < limit / 2,
                "{limit:?} {rhythm:?}"
            );
            assert!(
                rhythm.ask_after < rhythm.give_up_after / 2,
                "{limit:?} {rhythm:?}"
            );
            assert!(rhythm.give_up_after > limit / 2, "{limit:?} {rhythm:?}");
            let is_noticed_first = rhythm.give_up_after < limit;
            assert_eq!(
                is_noticed_first,
                limit > GIVE_UP_AFTER_MIN,
                "{limit:?} {rhythm:?}"
            );
        }
        assert_eq!(Rhythm::of(None).give_up_after, seconds(60));
        assert_eq!(Rhythm::of(Some(seconds(60))).give_up_after, seconds(45));
    }
}
