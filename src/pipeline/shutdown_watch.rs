//! Lets a source go that shuts down.
//!
//! Its walsender ends only when all that it has sent is durable here (walsender.c,
//! `WalSndDone`), so that nothing is missing after a switchover. Where that cannot be, since the
//! replica hangs or the slot is held back, it would wait for as long as it is answered, and the
//! source could not be stopped. So the stream ends once the source takes no sessions any more
//! and nothing has become durable for a while.

use super::PipelineError;
use crate::conn::Pool;
use crate::pg::Lsn;
use crate::progress::Positions;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A batch takes less, and a session that is lost is noticed meanwhile.
const LET_GO_AFTER: Duration = Duration::from_secs(15);

/// Ends when the source is to be let go; `stream` is then told to stop.
pub(super) async fn watch_shutdown(
    source: Pool,
    positions: watch::Receiver<Positions>,
    stream: CancellationToken,
) -> PipelineError {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut standing = Standing::default();
    loop {
        looks.tick().await;
        // A session that is open counts as well as a new one: a fast shutdown ends them all.
        let shuts_down = source
            .get()
            .await
            .is_err_and(|error| error.is_not_accepting());
        let flushed = positions.borrow().flushed;
        if standing.look(Instant::now(), shuts_down, flushed) >= LET_GO_AFTER {
            stream.cancel();
            return PipelineError::SourceShutsDown;
        }
    }
}

/// Since when a source that shuts down waits in vain.
#[derive(Debug, Default)]
struct Standing {
    since: Option<(Instant, Option<Lsn>)>,
}

impl Standing {
    /// For how long it has by now.
    fn look(&mut self, now: Instant, shuts_down: bool, flushed: Option<Lsn>) -> Duration {
        let before = self.since.filter(|(_, seen)| *seen == flushed);
        self.since = shuts_down.then(|| before.unwrap_or((now, flushed)));
        self.since.map_or(Duration::ZERO, |(since, _)| now - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_held_up_only_while_something_becomes_durable() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let lsn = Lsn::from_wire;
        let mut standing = Standing::default();
        assert_eq!(standing.look(after(0), false, lsn(7)), Duration::ZERO);
        assert_eq!(standing.look(after(90), true, lsn(7)), Duration::ZERO);
        assert_eq!(
            standing.look(after(92), true, lsn(7)),
            Duration::from_secs(2)
        );
        assert_eq!(standing.look(after(94), true, lsn(8)), Duration::ZERO);
        assert_eq!(
            standing.look(after(99), true, lsn(8)),
            Duration::from_secs(5)
        );
        // It was another thing that ended the session.
        assert_eq!(standing.look(after(101), false, lsn(8)), Duration::ZERO);
        assert_eq!(standing.look(after(103), true, lsn(8)), Duration::ZERO);
    }
}
