//! A small batch in one go: its statements, the position and COMMIT are on the wire before the first
//! answer is looked at.
//!
//! ```text
//!  usual    BEGIN, statements ─▶ ◀─ rows touched ─ as many as had to be? ─ position, COMMIT ─▶ ◀─
//!  one go   BEGIN, statements that count for themselves, position, COMMIT ─▶ ◀─
//! ```
//!
//! A statement that does not touch a row for each it takes fails by itself, and so does all behind it:
//! nothing is committed, and the batch goes the usual way, which finds out what it is. To be counted costs
//! each row a little, and an answer costs the way to the replica and back: so only few rows go in one go.

use super::net_effect::{NetEffect, Stage, net_effect};
use super::plan::{StageContext, Step};
use super::stage::failed;
use super::tally::{Tally, tell};
use super::{
    Applier, ApplyError, BEGIN, Batch, Outcome, Transaction, Uncommitted, Written, is_written,
};
use crate::pg::{Disposition, Lsn};
use crate::progress::Durability;

/// Changes of a batch that goes so, at most.
const CHANGES_MAX: usize = 32;
/// Once the server has objected, so many batches go the usual way: it may do so each time, as where
/// the table has rules.
const BATCHES_WITHOUT: u64 = 64;

impl Applier {
    /// Writes a batch and commits: as [`write`](Self::write) and [`commit`](Self::commit).
    ///
    /// # Errors
    /// As of those.
    pub async fn write_and_commit(
        &mut self,
        batch: &Batch,
        applied: Lsn,
        durability: Durability,
    ) -> Result<Vec<Written>, ApplyError> {
        let may_go = self.transaction == Transaction::None
            && self.is_replica_role
            && (1..=CHANGES_MAX).contains(&batch.items.len())
            && batch.kept.is_empty()
            && self.session.batches() >= self.usual_until;
        if may_go && let Some(outcome) = self.in_one_go(batch, applied, durability).await? {
            return Ok(tell(batch, &outcome));
        }
        let written = self.write(batch).await?;
        self.commit(applied, durability).await?;
        Ok(written)
    }

    /// None where it does not go so: then nothing is written, and no transaction open.
    async fn in_one_go(
        &mut self,
        batch: &Batch,
        applied: Lsn,
        durability: Durability,
    ) -> Result<Option<Outcome>, ApplyError> {
        let effect = net_effect(batch, self.is_replica_role, self.moving());
        let parents_first = self.places(batch);
        let context = StageContext {
            batch,
            format: self.session.format(),
            effect: &effect,
            parents_first: &parents_first,
        };
        let Some(steps) = counted(&context, &effect) else {
            return Ok(None);
        };
        self.begin_batch().await?;
        self.transaction = Transaction::Open;
        let sent = context.send_ahead(&mut self.session, Some(BEGIN), &steps);
        let flight = match sent.await {
            Ok(flight) => flight,
            Err(error) => return self.unless_definite(error).await,
        };
        is_written().await?;
        match self.commit_behind(Some(flight), applied, durability).await {
            Ok(()) => {}
            Err(Uncommitted::Before(error)) => {
                return self.unless_definite(failed(&steps, error)).await;
            }
            Err(Uncommitted::At(error)) => return Err(error),
        }
        self.moving.batch_written();
        let mut tally = Tally::new(batch, &effect);
        steps.iter().for_each(|step| tally.settle(&step.items));
        Ok(Some(tally.close(|_| false)))
    }

    /// What does not pass by itself may pass the usual way.
    async fn unless_definite(&mut self, error: ApplyError) -> Result<Option<Outcome>, ApplyError> {
        // A COMMIT behind SET LOCAL was not reached.
        self.rollback().await;
        if error.disposition() != Disposition::Definite {
            return Err(error);
        }
        self.usual_until = self.session.batches() + BATCHES_WITHOUT;
        Ok(None)
    }
}

/// The batch's steps, counting for themselves; where all of them can.
fn counted<'a>(context: &StageContext<'a>, effect: &NetEffect) -> Option<Vec<Step<'a>>> {
    let mut all = Vec::new();
    for stage in &effect.stages {
        let Stage::Net(tables) = stage else {
            return None;
        };
        for step in context.plan_net(tables) {
            all.push(step.counted()?);
        }
    }
    (!all.is_empty()).then_some(all)
}
