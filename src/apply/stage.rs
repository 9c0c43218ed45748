//! Carries out the stages of a batch: sets of rows, or one change at a time, as `plan.rs` has it.

use super::array::{TextArray, fill};
use super::batch::BatchItem;
use super::error::ApplyError;
use super::net_effect::Stage;
use super::plan::{StageContext, Step};
use super::session::{Prepared, ReplicaSession, Work};
use super::statement::Shape;
use crate::mapping::TableMapping;
use crate::pg::TupleValue;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Single changes sent at once before their answers are looked at.
const ORDERED_AT_ONCE: usize = 128;

/// By table number: rows offered less rows touched. In a filtered table what remains are
/// the rows that the filter kept out.
pub(crate) type Balance = BTreeMap<u32, i64>;

impl StageContext<'_> {
    /// Carries out one stage; `first` goes before its first statement.
    pub(crate) async fn run(
        &self,
        session: &mut ReplicaSession,
        stage: &Stage,
        first: Option<&str>,
        balance: &mut Balance,
    ) -> Result<(), ApplyError> {
        match stage {
            Stage::Net(tables) => {
                self.send(session, first, self.plan_net(tables), balance)
                    .await
            }
            Stage::Ordered(items) => {
                let mut first = first;
                for items in items.chunks(ORDERED_AT_ONCE) {
                    let steps = self.plan_ordered(items);
                    self.send(session, first.take(), steps, balance).await?;
                }
                Ok(())
            }
            Stage::Truncate(item) => {
                if let Some(sql) = first {
                    let begun = session.client.batch_execute(sql).await;
                    begun.map_err(ApplyError::transaction("begin a transaction"))?;
                }
                self.truncate(session, *item).await
            }
        }
    }

    async fn send(
        &self,
        session: &mut ReplicaSession,
        first: Option<&str>,
        steps: Vec<Step<'_>>,
        balance: &mut Balance,
    ) -> Result<(), ApplyError> {
        let mut works = Vec::with_capacity(steps.len());
        for step in &steps {
            *balance.entry(step.table).or_default() += step.offered.cast_signed();
            let prepared = session.prepare(step.mapping, &step.shape).await?;
            works.push(self.work(step.mapping, prepared, &step.items)?);
        }
        let sent = session.execute_all(first, works).await;
        let counts =
            sent.map_err(
                |(place, error)| match place.and_then(|place| steps.get(place)) {
                    Some(step) => ApplyError::statement(step.mapping, step.what(), error),
                    None => ApplyError::transaction("begin a transaction")(error),
                },
            )?;
        for (step, count) in steps.iter().zip(counts) {
            step.check(count)?;
            *balance.entry(step.table).or_default() -= count.cast_signed();
        }
        Ok(())
    }

    /// Runs one shape for one change and returns the rows it touched.
    pub(crate) async fn run_single(
        &self,
        session: &mut ReplicaSession,
        item: u32,
        shape: &Shape,
    ) -> Result<u64, ApplyError> {
        let Some((table, _)) = self.batch.row(item) else {
            return Ok(0);
        };
        let Some(mapping) = self.batch.mapping(table) else {
            return Ok(0);
        };
        let prepared = session.prepare(mapping, shape).await?;
        let work = self.work(mapping, prepared, &[item])?;
        let counts = session.execute_all(None, vec![work]).await;
        let counts = counts.map_err(|(_, e)| ApplyError::statement(mapping, "write", e))?;
        Ok(counts.first().copied().unwrap_or(0))
    }

    /// Fills a statement's arrays: one pass over each row's tuples.
    fn work(
        &self,
        mapping: &TableMapping,
        prepared: Arc<Prepared>,
        items: &[u32],
    ) -> Result<Work, ApplyError> {
        let mut arrays: Vec<TextArray> = Vec::new();
        arrays.resize_with(prepared.params, TextArray::default);
        let keys = mapping.key_positions();
        let filled = items.iter().try_for_each(|item| {
            let Some((_, change)) = self.batch.row(*item) else {
                return Ok(());
            };
            if let Some(tuple) = change.new_tuple() {
                fill(&prepared.new, tuple, &mut arrays, |position| {
                    let is_key = keys.contains(&position);
                    self.effect.new_value(self.batch, *item, position, is_key)
                })?;
            }
            // An update that sent no old image kept its key.
            let old = self.effect.old_tuple(self.batch, *item);
            let old = old.or(change.new_tuple());
            if let Some(tuple) = old {
                fill(&prepared.old, tuple, &mut arrays, |_| None)?;
            }
            prepared
                .markers
                .iter()
                .try_for_each(|marker| arrays[*marker].push(TupleValue::Null))
        });
        filled.map_err(|error| ApplyError::value(mapping, &error))?;
        Ok(Work { prepared, arrays })
    }

    async fn truncate(&self, session: &ReplicaSession, item: u32) -> Result<(), ApplyError> {
        let Some(BatchItem::Truncate {
            tables,
            restart_identity,
        }) = self.batch.items.get(item as usize)
        else {
            return Ok(());
        };
        let names: Vec<String> = tables
            .iter()
            .filter_map(|table| self.batch.mapping(*table))
            .map(|mapping| mapping.replica_rows())
            .collect();
        let names = names.join(", ");
        if names.is_empty() {
            return Ok(());
        }
        // CASCADE is not passed on: the source has listed every published table it reached,
        // and nothing beyond the mapping may be emptied.
        let plain = format!("TRUNCATE {names}");
        let first = tables.first().and_then(|table| self.batch.mapping(*table));
        let run = async |sql: &str| {
            let done = session.client.batch_execute(sql).await;
            done.map_err(|error| ApplyError::Truncate {
                tables: names.clone(),
                first: first.map(|mapping| mapping.replica.clone()),
                source: error.into(),
            })
        };
        if !restart_identity {
            return run(&plain).await;
        }
        let restart = format!("SAVEPOINT restart; {plain} RESTART IDENTITY");
        match run(&restart).await {
            // Only a sequence's owner may restart it; the values come from the source anyway.
            Err(ApplyError::Truncate { source, .. }) if source.sqlstate() == Some("42501") => {
                run(&format!("ROLLBACK TO SAVEPOINT restart; {plain}")).await
            }
            done => done,
        }
    }
}
