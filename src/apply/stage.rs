//! Carries out the stages of a batch: sets of rows, or one change at a time, as `plan.rs` has it.

use super::array::{ElementError, Parameter, fill};
use super::batch::BatchItem;
use super::error::ApplyError;
use super::net_effect::Stage;
use super::plan::{StageContext, Step};
use super::ready::Ready;
use super::row::CopyRows;
use super::session::{Failed, Flight, ReplicaSession};
use super::statement::{Fields, ImageSide, Shape};
use super::tally::Tally;
use crate::mapping::TableMapping;
use crate::pg::{Tuple, TupleValue};
use std::sync::Arc;

/// Single changes sent at once before their answers are looked at.
const ORDERED_AT_ONCE: usize = 128;

/// What one statement takes: the server works on it while the next one is made ready.
const BYTES_AT_ONCE: usize = 512 << 10;
/// How often it is looked whether it is enough.
const LOOK_EVERY_ROWS: usize = 16;
/// What a COPY is sent at once.
const COPY_PIECE_BYTES: usize = 64 << 10;

impl StageContext<'_> {
    /// Carries out one stage; `first` goes before its first statement.
    pub(crate) async fn run(
        &self,
        session: &mut ReplicaSession,
        stage: &Stage,
        first: Option<&str>,
        tally: &mut Tally,
    ) -> Result<(), ApplyError> {
        match stage {
            Stage::Net(tables) => {
                self.send(session, first, self.plan_net(tables), tally)
                    .await
            }
            Stage::Ordered(items) => {
                let mut first = first;
                for items in items.chunks(ORDERED_AT_ONCE) {
                    let steps = self.plan_ordered(items);
                    self.send(session, first.take(), steps, tally).await?;
                }
                Ok(())
            }
            Stage::Truncate(item) => {
                if let Some(sql) = first {
                    let begun = session.client.batch_execute(sql).await;
                    begun.map_err(ApplyError::transaction("begin a transaction"))?;
                }
                self.truncate(session, *item).await?;
                tally.settle(&[*item]);
                Ok(())
            }
        }
    }

    async fn send(
        &self,
        session: &mut ReplicaSession,
        first: Option<&str>,
        steps: Vec<Step<'_>>,
        tally: &mut Tally,
    ) -> Result<(), ApplyError> {
        let mut flight = self.send_ahead(session, first, &steps).await?;
        let landed = flight.land().await;
        landed.map_err(|error| failed(&steps, error))?;
        let mut counts = vec![0; steps.len()];
        for (place, rows) in flight.touched() {
            counts[place] += rows;
        }
        for (step, count) in steps.iter().zip(counts) {
            step.check(count)?;
            tally.add_rows(step.table, step.offered, count);
            tally.settle(&step.items);
        }
        Ok(())
    }

    /// Sends statements, `first` before them; of most the answers are yet to come.
    pub(super) async fn send_ahead(
        &self,
        session: &mut ReplicaSession,
        first: Option<&str>,
        steps: &[Step<'_>],
    ) -> Result<Flight, ApplyError> {
        // First all of these: a statement that fails would be in the way of a shape that is named.
        let copies = steps.iter().filter(|step| step.shape == Shape::Copy);
        let inserts: Vec<_> = copies.map(|step| (step.mapping, &Shape::Insert)).collect();
        let mut inserts = session.ready(&inserts).await?.into_iter();
        let own = steps.iter().map(|step| (step.mapping, &step.shape));
        let own = session.ready(&own.collect::<Vec<_>>()).await?;
        let mut flight = session.flight();
        let failed = |error| failed(steps, error);
        if let Some(sql) = first {
            flight.send_sql(sql).await.map_err(failed)?;
        }
        for (place, (step, ready)) in steps.iter().zip(&own).enumerate() {
            if step.shape == Shape::Copy
                && let Some(insert) = inserts.next()
            {
                let copied = self.copy(&mut flight, place, step, [&insert, ready]).await;
                session.is_out_of_step = flight.is_out_of_step;
                copied.map_err(failed)??;
                continue;
            }
            let mut rest = step.items.as_slice();
            while !rest.is_empty() {
                let bytes_max = bytes_at_once(&step.shape);
                let (parameters, rows) = self.parameters(step.mapping, ready, rest, bytes_max)?;
                rest = rest.get(rows..).unwrap_or_default();
                let sent = flight.send_rows(place, ready, parameters).await;
                sent.map_err(failed)?;
            }
        }
        Ok(flight)
    }

    /// Sends rows piece by piece, as they are made. The first one is inserted: what COPY would be
    /// refused for is met there, a row that has other types than the table has by now is not
    /// misread, and from then on the table is locked against another form.
    async fn copy(
        &self,
        flight: &mut Flight,
        place: usize,
        step: &Step<'_>,
        [insert, copy]: [&Arc<Ready>; 2],
    ) -> Result<Result<(), ApplyError>, Failed> {
        let Some((first, rest)) = step.items.split_first() else {
            return Ok(Ok(()));
        };
        match self.parameters(step.mapping, insert, &[*first], usize::MAX) {
            Ok((parameters, _)) => flight.send_rows(place, insert, parameters).await?,
            Err(error) => return Ok(Err(error)),
        }
        let Some(row_type) = &step.mapping.row_type else {
            return Ok(Ok(()));
        };
        let refused = |error| ApplyError::value(step.mapping, &error);
        let mut rows = match CopyRows::new(row_type) {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(refused(error))),
        };
        let mut items = rest.iter();
        let mut is_done = false;
        let mut values = Vec::new();
        let next_piece = || {
            while !is_done && rows.len() < COPY_PIECE_BYTES {
                match items.next() {
                    Some(item) => {
                        let new = self.batch.row(*item).and_then(|(_, row)| row.new_tuple());
                        if new.is_some_and(|new| rows.push_as_sent(new)) {
                            continue;
                        }
                        self.values(&mut values, step.mapping, *item, ImageSide::New);
                        rows.push(row_type, &values).map_err(refused)?;
                    }
                    None => {
                        rows.finish();
                        is_done = true;
                    }
                }
            }
            Ok(Some(rows.take()).filter(|piece| !piece.is_empty()))
        };
        flight.copy(place, copy, next_piece).await
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
        let ready = session.ready_one(mapping, shape).await?;
        let (parameters, _) = self.parameters(mapping, &ready, &[item], usize::MAX)?;
        let mut flight = session.flight();
        let failed = |(_, error)| ApplyError::statement(mapping, "write", error);
        let sent = flight.send_rows(0, &ready, parameters).await;
        sent.map_err(failed)?;
        flight.land().await.map_err(failed)?;
        Ok(flight.touched().iter().map(|(_, rows)| rows).sum())
    }

    /// Fills a statement's parameters, one pass over each row's tuples, until there is enough for
    /// one statement; with how many rows.
    fn parameters(
        &self,
        mapping: &TableMapping,
        ready: &Ready,
        items: &[u32],
        bytes_max: usize,
    ) -> Result<(Vec<Parameter>, usize), ApplyError> {
        let mut parameters = ready.parameters();
        let mut values = Vec::new();
        let mut taken = 0;
        for item in items {
            let filled = self.fill_row(mapping, ready, *item, &mut values, &mut parameters);
            filled.map_err(|error| ApplyError::value(mapping, &error))?;
            taken += 1;
            let bytes = || parameters.iter().map(Parameter::len).sum::<usize>();
            if taken % LOOK_EVERY_ROWS == 0 && bytes() >= bytes_max {
                break;
            }
        }
        Ok((parameters, taken))
    }

    fn fill_row<'v>(
        &'v self,
        mapping: &TableMapping,
        ready: &Ready,
        item: u32,
        values: &mut Vec<TupleValue<'v>>,
        parameters: &mut [Parameter],
    ) -> Result<(), ElementError> {
        let Some((_, change)) = self.batch.row(item) else {
            return Ok(());
        };
        let is_key = |position| mapping.iter_key_positions().any(|key| key == position);
        if let Some(tuple) = change.new_tuple().filter(|_| !ready.new.is_empty()) {
            fill(&ready.new, tuple, parameters, |position| {
                self.effect
                    .new_value(self.batch, item, position, is_key(position))
            })?;
        }
        if let Some(tuple) = self.old_or_new(item).filter(|_| !ready.old.is_empty()) {
            fill(&ready.old, tuple, parameters, |_| None)?;
        }
        for (number, side, fields) in &ready.rows {
            self.values(values, mapping, item, *side);
            let is_wanted = |position: usize| match fields {
                Fields::Key => is_key(position),
                Fields::AllBut(absent) => !absent.iter().any(|a| usize::from(*a) == position),
            };
            let row_type = mapping.row_type.as_ref();
            if let (Some(Parameter::Rows(rows)), Some(row_type)) =
                (parameters.get_mut(*number), row_type)
            {
                rows.push(row_type, is_wanted, values)?;
            }
        }
        ready
            .markers
            .iter()
            .try_for_each(|marker| match parameters.get_mut(*marker) {
                Some(Parameter::Column(array)) => array.push(TupleValue::Null),
                _ => Ok(()),
            })
    }

    /// The row as it was. An update that sent no old image kept its key.
    fn old_or_new(&self, item: u32) -> Option<&Tuple> {
        let old = self.effect.old_tuple(self.batch, item);
        old.or_else(|| self.batch.row(item)?.1.new_tuple())
    }

    /// The values of one of a change's tuples, by position.
    fn values<'v>(
        &'v self,
        values: &mut Vec<TupleValue<'v>>,
        mapping: &TableMapping,
        item: u32,
        side: ImageSide,
    ) {
        values.clear();
        let Some((_, change)) = self.batch.row(item) else {
            return;
        };
        let tuple = match side {
            ImageSide::New => change.new_tuple(),
            ImageSide::Old => self.old_or_new(item),
        };
        values.extend(tuple.into_iter().flat_map(Tuple::values));
        if side == ImageSide::Old {
            return;
        }
        for (position, value) in values.iter_mut().enumerate() {
            if *value == TupleValue::UnchangedToast {
                let is_key = mapping.iter_key_positions().any(|p| p == position);
                let known = self.effect.new_value(self.batch, item, position, is_key);
                *value = known.unwrap_or(TupleValue::UnchangedToast);
            }
        }
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

/// What went wrong with one of these steps, or with what came before them.
pub(super) fn failed(steps: &[Step<'_>], (place, error): Failed) -> ApplyError {
    match place.and_then(|place| steps.get(place)) {
        Some(step) => ApplyError::statement(step.mapping, step.what(), error),
        None => ApplyError::transaction("begin a transaction")(error),
    }
}

/// Where the whole table is looked through, once is enough.
fn bytes_at_once(shape: &Shape) -> usize {
    match shape {
        Shape::UpdateFullRows | Shape::DeleteFullRows => usize::MAX,
        _ => BYTES_AT_ONCE,
    }
}
