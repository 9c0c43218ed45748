//! The live workload: what a CRM's users and agents do to the source, at a steady rate.
//!
//! Each [`Workload`] is one connection that runs one transaction after the other. Several
//! may run at once: every transaction takes its rows with `FOR UPDATE SKIP LOCKED`, the
//! lead before anything that hangs on it, so they neither fail nor wait in a circle.
//! What to do, to whom and with which values follows from the seed; which row has that
//! number at the time, and the clock, are the server's.

use super::random::Random;
use super::steps::Step;
use crate::pg::{Disposition, sqlstate_disposition};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// A lock or a statement that takes longer than this is given up, never waited for.
const SESSION: &str = "SET application_name = 'pglockstep_demo_workload'; \
                       SET lock_timeout = '5s'; SET statement_timeout = '30s'";

/// One connection's worth of work.
#[derive(Debug)]
pub struct Workload {
    seed: u64,
}

/// What a workload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions that were committed and changed rows.
    pub committed: u64,
    /// Transactions that found every row taken by others.
    pub idle: u64,
    /// Transactions that the server refused for the moment: a lock time-out, a deadlock.
    pub abandoned: u64,
    /// Committed transactions by what they did.
    pub steps: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Adds what another connection has done.
    pub fn add(&mut self, other: &Self) {
        self.committed += other.committed;
        self.idle += other.idle;
        self.abandoned += other.abandoned;
        for (step, count) in &other.steps {
            *self.steps.entry(step).or_default() += count;
        }
    }
}

/// The workload cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the demo's workload (seed {seed}) failed on the source while it was to {doing}")]
pub struct WorkloadError {
    /// The seed to repeat it with.
    pub seed: u64,
    /// What it was about to do.
    pub doing: &'static str,
    /// What the server or the connection said.
    pub source: tokio_postgres::Error,
}

impl Workload {
    /// A workload that the seed determines; give each connection its own.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Runs transactions until `stop`, which is heard between two of them.
    ///
    /// A source that is too slow for the rate gets them back to back.
    ///
    /// # Errors
    /// [`WorkloadError`] when the connection is lost or the tables are not the demo's.
    pub async fn run(
        self,
        mut client: Client,
        rate_per_second: NonZeroU32,
        stop: CancellationToken,
    ) -> Result<Counts, WorkloadError> {
        let failed = |doing| {
            move |source| WorkloadError {
                seed: self.seed,
                doing,
                source,
            }
        };
        client
            .batch_execute(SESSION)
            .await
            .map_err(failed("set up its session"))?;
        let mut random = Random::new(self.seed);
        let mut counts = Counts::default();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate_per_second.get());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(counts),
                _ = ticks.tick() => {}
            }
            let step = Step::draw(&mut random);
            match transact(&mut client, step, &mut random).await {
                Ok(true) => {
                    counts.committed += 1;
                    *counts.steps.entry(step.name()).or_default() += 1;
                }
                Ok(false) => counts.idle += 1,
                Err(error) if passes(&error) && !client.is_closed() => counts.abandoned += 1,
                Err(error) => return Err(failed(step.name())(error)),
            }
        }
    }
}

/// One transaction; false when it found nothing to work on. An error rolls it back.
async fn transact(
    client: &mut Client,
    step: Step,
    random: &mut Random,
) -> Result<bool, tokio_postgres::Error> {
    let mut tx = client.transaction().await?;
    let done = step.run(&mut tx, random).await?;
    tx.commit().await?;
    Ok(done)
}

/// Whether the server only refused for the moment.
fn passes(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|state| sqlstate_disposition(state.code()) == Disposition::Transient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let one = |name| Counts {
            committed: 1,
            idle: 2,
            abandoned: 3,
            steps: BTreeMap::from([(name, 1)]),
        };
        let mut sum = one("a");
        sum.add(&one("a"));
        sum.add(&one("b"));
        assert_eq!((sum.committed, sum.idle, sum.abandoned), (3, 6, 9));
        assert_eq!(sum.steps, BTreeMap::from([("a", 2), ("b", 1)]));
    }
}
