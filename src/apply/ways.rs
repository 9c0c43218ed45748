//! The ways a batch is written, the cheapest first.
//!
//! ```text
//!  sets of rows, the net effect of the batch
//!      │ a unique index refuses: roll back to where the batch began
//!  the same, rows of that table deleted and inserted (`moving.rs`)
//!      │ the replica objects still, or to a row count: roll back
//!  source order, one statement a change, sent ahead
//!      │ it objects still: roll back
//!  one change at a time, conflicts resolved by policy
//! ```
//!
//! All end in the same rows where source and replica agree; only the last one can end well
//! where they do not. A small batch goes in one go before all these (`one_go.rs`).

use super::batch::{Batch, BatchItem};
use super::error::ApplyError;
use super::moving::MovingValues;
use super::net_effect::{self, NetEffect};
use super::plan::StageContext;
use super::resolve::{Conflicts, Resolver};
use super::tally::Tally;
use super::{Applier, BEGIN, Outcome, Transaction};
use crate::mapping::TableMapping;
use crate::pg::{QualifiedName, ValueFormat};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Deferrable constraints wait for the end, as they may have done on the source.
const DEFER: &str = "SET CONSTRAINTS ALL DEFERRED";

impl Applier {
    /// Writes a batch in the cheapest way that passes.
    pub(super) async fn write_in_order_of_cost(
        &mut self,
        batch: &Batch,
    ) -> Result<Outcome, ApplyError> {
        self.begin_batch().await?;
        let is_part = self.transaction == Transaction::Open;
        let begin = match (is_part, self.is_replica_role) {
            (true, _) => "SAVEPOINT part".to_owned(),
            (false, true) => BEGIN.to_owned(),
            (false, false) => format!("{BEGIN}; {DEFER}"),
        };
        let mut done = self.run_sets(batch, &begin).await;
        let mut noted = Vec::new();
        while !self.session.is_out_of_step
            && let Err(error) = &done
            && let Some(table) = self.note_moving(batch, error)
        {
            noted.push(table);
            self.undo(is_part).await?;
            done = self.run_sets(batch, DEFER).await;
        }
        if self.session.is_out_of_step {
            return done;
        }
        if done.is_err() {
            noted.iter().for_each(|table| self.moving.not_in(table));
        }
        if done
            .as_ref()
            .is_err_and(ApplyError::may_pass_in_source_order)
        {
            self.undo(is_part).await?;
            self.session.wrote_in_source_order = true;
            let ordered = NetEffect::in_source_order(batch);
            done = self.run_stages(batch, &ordered, DEFER).await;
        }
        // One by one, conflicts are resolved, and the row that stands in the way is found.
        if done
            .as_ref()
            .is_err_and(|error| error.may_pass_in_source_order() || error.is_about_a_row())
            // What failed before the savepoint cannot be undone, and stands as it is.
            && self.undo(is_part).await.is_ok()
        {
            done = self.run_resolving(batch).await;
        }
        let outcome = done?;
        self.moving.batch_written();
        self.store.keep(&*self.session.client, &batch.kept).await?;
        if is_part {
            let release = "RELEASE SAVEPOINT part";
            let released = self.session.client.batch_execute(release).await;
            released.map_err(ApplyError::transaction("release a savepoint"))?;
        }
        Ok(outcome)
    }

    /// Sets of rows, `first` before them.
    async fn run_sets(&mut self, batch: &Batch, first: &str) -> Result<Outcome, ApplyError> {
        let effect = net_effect::net_effect(batch, self.is_replica_role, self.moving());
        if !effect.stages.is_empty() {
            return self.run_stages(batch, &effect, first).await;
        }
        // Rows may have come and gone.
        let begun = self.session.client.batch_execute(first).await;
        begun.map_err(ApplyError::transaction("begin a transaction"))?;
        Ok(Tally::new(batch, &effect).close(|_| false))
    }

    /// Rows may be deleted and inserted where no foreign key acts upon the DELETE, and where the
    /// server would refuse a row that lacks a column which the table was given since: as values of
    /// the table's own type.
    pub(super) fn moving(&self) -> Option<&MovingValues> {
        let is_safe = self.is_replica_role && self.session.format() == ValueFormat::Binary;
        is_safe.then_some(&self.moving)
    }

    /// Where a unique index refused an update of rows that may as well be deleted and inserted, and
    /// have not been yet: remembers the table, and returns it.
    fn note_moving(&mut self, batch: &Batch, error: &ApplyError) -> Option<QualifiedName> {
        let table = error.update_refused_by_index()?;
        let mut mappings = batch.tables.iter();
        let may_reinsert = self.moving().is_some()
            && mappings.any(|mapping| mapping.may_reinsert && mapping.replica == *table);
        (may_reinsert && self.moving.seen_in(table)).then(|| table.clone())
    }

    /// Back to where the batch began, ready to write it again.
    async fn undo(&mut self, is_part: bool) -> Result<(), ApplyError> {
        let sql = if is_part {
            "ROLLBACK TO SAVEPOINT part".to_owned()
        } else {
            format!("ROLLBACK; {BEGIN}")
        };
        let undone = self.session.client.batch_execute(&sql).await;
        undone.map_err(ApplyError::transaction("roll back"))
    }

    async fn run_stages(
        &mut self,
        batch: &Batch,
        effect: &NetEffect,
        first: &str,
    ) -> Result<Outcome, ApplyError> {
        let parents_first = self.places(batch);
        let context = StageContext {
            batch,
            format: self.session.format(),
            effect,
            parents_first: &parents_first,
        };
        let mut tally = Tally::new(batch, effect);
        let mut first = Some(first);
        for stage in &effect.stages {
            context
                .run(&mut self.session, stage, first.take(), &mut tally)
                .await?;
        }
        Ok(tally.close(|table| context.is_filtered(table)))
    }

    async fn run_resolving(&mut self, batch: &Batch) -> Result<Outcome, ApplyError> {
        let deferred = self.session.client.batch_execute(DEFER).await;
        deferred.map_err(ApplyError::transaction("defer constraints"))?;
        let parents_first = self.places(batch);
        let effect = NetEffect::default();
        let context = StageContext {
            batch,
            format: self.session.format(),
            effect: &effect,
            parents_first: &parents_first,
        };
        let mut tally = Tally::new(batch, &effect);
        let (mut conflicts, mut filtered) = (Conflicts::new(), BTreeMap::new());
        for (place, item) in (0u32..).zip(&batch.items) {
            if let BatchItem::Truncate { .. } = item {
                let stage = net_effect::Stage::Truncate(place);
                context
                    .run(&mut self.session, &stage, None, &mut tally)
                    .await?;
                continue;
            }
            let mut resolver = Resolver {
                context: &context,
                session: &mut self.session,
                conflicts: &mut conflicts,
                filtered: &mut filtered,
            };
            if let Err(error) = resolver.resolve(place).await {
                let row = batch.row(place).zip(batch.row_mapping(place));
                self.failed_key = row.and_then(|((_, change), to)| change.key_hash(to));
                return Err(error);
            }
            tally.settle(&[place]);
        }
        Ok(Outcome {
            conflicts,
            filtered,
            ..tally.close(|_| false)
        })
    }

    pub(super) fn places(&self, batch: &Batch) -> Vec<u32> {
        let place = |table: &Arc<TableMapping>| self.parents_first.get(&table.replica).copied();
        batch
            .tables
            .iter()
            .map(|table| place(table).unwrap_or_default())
            .collect()
    }
}
