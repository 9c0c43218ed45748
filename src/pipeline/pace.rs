//! How the thread that listens to the source waits.
//!
//! A walsender sends each change by itself. Whoever waits for its socket is woken by each,
//! which costs both ends more than all the work on the change. In a busy stream it is
//! cheaper not to wait, but to sleep while frames gather, and then to take all of them:
//!
//! ```text
//!  quiet   wait ─▶ frame ─▶ wait ─▶ frame ─▶ wait            at once, whatever comes
//!  busy    nap ─▶ frames ─▶ nap ─▶ frames ─▶ nap              a nap is a millisecond at most
//! ```
//!
//! A nap is as long as it takes to fill a part of the socket's buffer, by what the one before has
//! brought: a walsender that finds it full waits, and nothing is gained.
//!
//! The nap has to stop the whole thread: a reactor that goes on would be woken all the same.
//! So nothing else may live on this thread.

use std::time::Duration;
use tokio::time::Instant;

const NAP_MIN: Duration = Duration::from_micros(100);
const NAP_MAX: Duration = Duration::from_millis(1);
/// What frames weigh that a nap is to bring: less than half of what Linux gives a socket that
/// nobody has set (`net.core.wmem_default`), so that it is not full before we are awake.
const NAP_WEIGHT: u64 = 80 * 1024;
/// What a frame weighs beside its bytes: the kernel keeps each in a buffer of its own.
const FRAME_WEIGHT: u64 = 640;
/// Frames that are closer than this follow each other.
const APART: Duration = Duration::from_millis(1);
/// A nap that brings fewer makes them wait for nothing.
const WORTH_FRAMES: usize = 8;
/// After this many that follow each other the stream is busy: more than a small transaction has.
const BUSY_AFTER: u32 = 16;

/// Knows a busy stream from a quiet one.
pub(super) struct Pace {
    last_heard: Instant,
    following: u32,
    nap: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_heard: now,
            following: 0,
            nap: NAP_MIN,
        }
    }

    /// Frames have come.
    pub(super) fn heard(&mut self, now: Instant) {
        let napped = if self.is_busy() {
            self.nap
        } else {
            Duration::ZERO
        };
        let is_close = now.duration_since(self.last_heard) < napped + APART;
        self.following = if is_close { self.following + 1 } else { 0 };
        self.last_heard = now;
    }

    /// So much was there.
    pub(super) fn gathered(&mut self, frames: usize, bytes: usize) {
        if self.is_busy() && self.nap == NAP_MAX && frames < WORTH_FRAMES {
            self.following = 0;
        }
        let weight = (frames as u64).saturating_mul(FRAME_WEIGHT) + bytes as u64;
        let nap_us = self.nap.as_micros() as u64 * NAP_WEIGHT / weight.max(1);
        self.nap = Duration::from_micros(nap_us).clamp(NAP_MIN, NAP_MAX);
    }

    /// Stops the thread for a moment if the stream is busy.
    pub(super) fn nap(&self) {
        if self.is_busy() {
            std::thread::sleep(self.nap);
        }
    }

    fn is_busy(&self) -> bool {
        self.following >= BUSY_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_transaction_is_not_a_busy_stream() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..BUSY_AFTER {
            assert!(!pace.is_busy());
            now += Duration::from_micros(50);
            pace.heard(now);
        }
        assert!(pace.is_busy());
        now += pace.nap + APART / 2;
        pace.heard(now);
        assert!(pace.is_busy(), "a nap must not end it");
        pace.heard(now + pace.nap + APART);
        assert!(!pace.is_busy());
    }

    #[test]
    fn a_stream_of_which_a_nap_brings_little_is_not_busy() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut hear = |pace: &mut Pace, frames| {
            now += NAP_MAX;
            pace.heard(now);
            pace.gathered(frames, frames * 100);
        };
        pace.following = BUSY_AFTER;
        pace.nap = NAP_MAX;
        hear(&mut pace, WORTH_FRAMES);
        assert!(pace.is_busy());
        hear(&mut pace, WORTH_FRAMES - 1);
        assert!(!pace.is_busy());
    }

    #[test]
    fn naps_bring_a_part_of_what_the_socket_holds() {
        let mut pace = Pace::new(Instant::now());
        // A frame each 5 µs, of 100 bytes.
        for _ in 0..10 {
            let frames = pace.nap.as_micros() as usize / 5;
            pace.gathered(frames, frames * 100);
        }
        let expected = NAP_WEIGHT / (FRAME_WEIGHT + 100) * 5;
        let nap = pace.nap.as_micros() as u64;
        assert!(nap.abs_diff(expected) < 20, "{nap} µs, not {expected}");
        pace.gathered(1, 10 << 20);
        assert_eq!(pace.nap, NAP_MIN);
        for _ in 0..10 {
            pace.gathered(1, 100);
        }
        assert_eq!(pace.nap, NAP_MAX);
    }
}
