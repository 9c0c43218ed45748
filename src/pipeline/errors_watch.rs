//! Looks into the books on the replica while the stream runs: operators leave their requests
//! there, and what waits for them is told now and then.

use super::PipelineError;
use super::quarantine::tell;
use crate::conn::Pool;
use crate::progress::{Positions, Store};
use crate::telemetry::Telemetry;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is kept is counted this often.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// A replica that is out of reach for so long is gone, also while nothing is to be written there.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// What the looks need.
pub(super) struct ErrorsWatch {
    pub(super) replica: Pool,
    pub(super) store: Store,
    pub(super) telemetry: Telemetry,
    pub(super) positions: watch::Receiver<Positions>,
    /// What could not be carried out yet when the attempt began.
    pub(super) known_requests: Option<String>,
    /// Errors wait for somebody.
    pub(super) has_open: bool,
}

impl ErrorsWatch {
    /// Ends when an operator wants something, or when the replica cannot be reached any more.
    pub(super) async fn run(mut self) -> PipelineError {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told_at, mut reached_at) = (Instant::now(), Instant::now());
        loop {
            looks.tick().await;
            let is_to_tell = self.has_open && told_at.elapsed() >= TELL_EVERY;
            if is_to_tell {
                told_at = Instant::now();
            }
            match self.look(is_to_tell).await {
                Ok(true) => return PipelineError::Requested,
                Err(PipelineError::Conn(error)) if error.is_out_of_reach() => {
                    if reached_at.elapsed() >= LOST_AFTER {
                        return error.into();
                    }
                }
                // Any answer is a sign of life.
                Ok(false) | Err(_) => reached_at = Instant::now(),
            }
        }
    }

    /// Whether something new is wanted.
    async fn look(&mut self, is_to_tell: bool) -> Result<bool, PipelineError> {
        let client = self.replica.get().await?;
        let pipeline = self.store.pipeline();
        let requests = Store::fetch_requests(&client, pipeline).await?;
        if requests.is_some() && requests != self.known_requests {
            return Ok(true);
        }
        if is_to_tell {
            let applied = self.positions.borrow().applied;
            if let Some(applied) = applied {
                self.store.pass_errors(&client, applied).await?;
            }
            let open = Store::fetch_errors(&client, pipeline, true).await?;
            self.has_open = !open.is_empty();
            tell(&self.telemetry, &open);
        }
        Ok(false)
    }
}
