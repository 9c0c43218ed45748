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
//! What naps bring is handed on together, for the same reason: a few milliseconds' worth of it, more
//! where the source's commits are old news, or while there is no commit among it: nobody waits for that.
//!
//! The nap has to stop the whole thread: a reactor that goes on would be woken all the same.
//! So nothing else may live on this thread. And the socket is taken off the reactor meanwhile:
//! each send to one that is on it costs the walsender a call into it, whether or not it sleeps.

use std::time::Duration;
use tokio::time::Instant;

const NAP_MIN: Duration = Duration::from_micros(100);
const NAP_MAX: Duration = Duration::from_millis(1);
/// What frames weigh that a nap is to bring: less than half of what Linux gives a socket that
/// nobody has set (`net.core.wmem_default`), so that it is not full before we are awake.
const NAP_WEIGHT: u64 = 80 * 1024;
/// What a frame weighs beside its bytes: the kernel keeps each in a buffer of its own.
const FRAME_WEIGHT: u64 = 640;
/// A nap never grows by more than this at once: one that brought little may have met a walsender that
/// had no processor just then.
const NAP_GROWTH: f64 = 1.25;
/// What came this long ago counts a third of what came now: longer than a walsender waits for a
/// processor.
const MEMORY: Duration = Duration::from_millis(4);
/// Frames remembered from which on a stream is busy, eight a millisecond: more than a small
/// transaction has.
const BUSY_FROM: f64 = 32.0;
/// Below it is quiet again: a nap would make a few frames wait for nothing.
const QUIET_BELOW: f64 = 16.0;

/// Each remembered frame is worth this much of waiting for more: a batch costs the replica less for
/// each row, the more there are.
const GATHER_PER_FRAME: Duration = Duration::from_micros(12);
const GATHER_MAX: Duration = Duration::from_micros(700);
/// A part of a large transaction that goes on: the replica need not be given it by twos.
const GATHER_OPEN: Duration = Duration::from_millis(5);
/// Who is as far behind has no use for less than a millisecond, and for the processor's time.
const GATHER_BEHIND: Duration = Duration::from_millis(20);
const BEHIND_FROM_US: i64 = 1_000_000;

/// Knows a busy stream from a quiet one.
pub(super) struct Pace {
    /// Frames that came, each the less the longer ago.
    remembered: f64,
    as_of: Instant,
    is_busy: bool,
    is_behind: bool,
    nap: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            remembered: 0.0,
            as_of: now,
            is_busy: false,
            is_behind: false,
            nap: NAP_MIN,
        }
    }

    /// So much was there at once.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn gathered(&mut self, now: Instant, frames: usize, bytes: usize) {
        let passed = now.duration_since(self.as_of).as_secs_f64() / MEMORY.as_secs_f64();
        self.remembered = self.remembered * (-passed).exp() + frames as f64;
        self.as_of = now;
        self.is_busy = match self.is_busy {
            false => self.remembered >= BUSY_FROM,
            true => self.remembered >= QUIET_BELOW,
        };
        let weight = (frames as u64).saturating_mul(FRAME_WEIGHT) + bytes as u64;
        let wanted = NAP_WEIGHT as f64 / weight.max(1) as f64;
        let nap = self.nap.mul_f64(wanted.min(NAP_GROWTH));
        self.nap = nap.clamp(NAP_MIN, NAP_MAX);
    }

    /// A transaction came this long after its commit, by the source's clock.
    pub(super) fn committed(&mut self, age_us: i64) {
        self.is_behind = age_us > BEHIND_FROM_US;
    }

    /// How long frames may wait for others, to be handed on together, once a commit is among them.
    pub(super) fn gather_for(&self) -> Duration {
        match (self.is_busy, self.is_behind) {
            (false, _) => Duration::ZERO,
            (true, false) => GATHER_PER_FRAME.mul_f64(self.remembered).min(GATHER_MAX),
            (true, true) => GATHER_BEHIND,
        }
    }

    /// The same for frames of which none is a commit; never less.
    pub(super) fn gather_open_for(&self) -> Duration {
        match self.is_busy {
            false => Duration::ZERO,
            true => self.gather_for().max(GATHER_OPEN),
        }
    }

    /// How long the thread is to stop, if the stream is busy.
    pub(super) fn nap(&self) -> Option<Duration> {
        self.is_busy.then_some(self.nap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Frames of 100 bytes, so many at once, `times` times, `apart`.
    fn hear(pace: &mut Pace, now: &mut Instant, frames: usize, times: usize, apart: Duration) {
        for _ in 0..times {
            *now += apart;
            pace.gathered(*now, frames, frames * 100);
        }
    }

    fn quiet() -> (Pace, Instant) {
        let now = Instant::now();
        (Pace::new(now), now)
    }

    #[test]
    fn a_small_transaction_is_not_a_busy_stream() {
        let (mut pace, mut now) = quiet();
        for _ in 0..100 {
            hear(&mut pace, &mut now, 1, 25, MS / 100);
            assert!(!pace.is_busy);
            now += MS * 20;
        }
        hear(&mut pace, &mut now, 1, 100, MS / 100);
        assert!(pace.is_busy);
        hear(&mut pace, &mut now, 1, 1, MS * 20);
        assert!(!pace.is_busy);
    }

    #[test]
    fn a_stream_of_which_a_nap_brings_little_is_not_busy() {
        let (mut pace, mut now) = quiet();
        hear(&mut pace, &mut now, 100, 10, MS);
        assert!(pace.is_busy);
        hear(&mut pace, &mut now, 3, 50, MS);
        assert!(!pace.is_busy);
        hear(&mut pace, &mut now, 1, 200, MS / 5);
        assert!(!pace.is_busy, "five a millisecond, each by itself");
    }

    #[test]
    fn a_walsender_that_waits_for_a_processor_leaves_the_stream_busy() {
        let (mut pace, mut now) = quiet();
        hear(&mut pace, &mut now, 100, 10, MS);
        let nap = pace.nap;
        hear(&mut pace, &mut now, 1, 1, MS * 5);
        assert!(pace.is_busy);
        assert!(pace.nap <= nap.mul_f64(NAP_GROWTH), "{:?}", pace.nap);
    }

    #[test]
    fn the_more_comes_the_longer_it_is_gathered_and_longest_when_behind() {
        let (mut pace, mut now) = quiet();
        assert_eq!(pace.gather_for(), Duration::ZERO);
        hear(&mut pace, &mut now, 10, 50, MS);
        let some = pace.gather_for();
        assert!(some > Duration::ZERO && some < MS, "{some:?}");
        hear(&mut pace, &mut now, 300, 50, MS);
        assert_eq!(pace.gather_for(), GATHER_MAX);
        assert_eq!(pace.gather_open_for(), GATHER_OPEN);
        pace.committed(BEHIND_FROM_US + 1);
        assert_eq!(pace.gather_for(), GATHER_BEHIND);
        assert_eq!(pace.gather_open_for(), GATHER_BEHIND);
        pace.committed(BEHIND_FROM_US);
        assert_eq!(pace.gather_for(), GATHER_MAX);
        pace.committed(BEHIND_FROM_US + 1);
        hear(&mut pace, &mut now, 1, 1, MS * 50);
        assert_eq!(pace.gather_for(), Duration::ZERO);
        assert_eq!(pace.gather_open_for(), Duration::ZERO);
    }

    #[test]
    fn naps_bring_a_part_of_what_the_socket_holds() {
        let (mut pace, mut now) = quiet();
        // A frame each 5 µs, of 100 bytes.
        for _ in 0..20 {
            let nap = pace.nap;
            let frames = nap.as_micros() as usize / 5;
            hear(&mut pace, &mut now, frames, 1, nap);
        }
        let expected = NAP_WEIGHT / (FRAME_WEIGHT + 100) * 5;
        let nap = pace.nap.as_micros() as u64;
        assert!(nap.abs_diff(expected) < 20, "{nap} µs, not {expected}");
        hear(&mut pace, &mut now, 1 << 16, 1, MS);
        assert_eq!(pace.nap, NAP_MIN);
        hear(&mut pace, &mut now, 1, 20, MS);
        assert_eq!(pace.nap, NAP_MAX);
    }
}
