//! Carries out the stages of a batch: sets of rows, or one change at a time.

use super::array::{TextArray, fill};
use super::batch::{Batch, BatchItem, RowChange};
use super::error::ApplyError;
use super::net_effect::{NetEffect, Stage, TableNet};
use super::session::{Prepared, ReplicaSession, Work};
use super::statement::{Absent, Shape};
use crate::mapping::{RowIdentity, TableMapping};
use crate::pg::{OldTuple, TupleValue};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Single changes sent at once before their answers are looked at.
const ORDERED_AT_ONCE: usize = 128;

/// How many rows a statement must touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Exactly(u64),
    /// Rows may be missing and that is right: a filter, or a row that came and went.
    AtMost(u64),
}

struct Planned {
    mapping: Arc<TableMapping>,
    what: &'static str,
    expected: Expected,
    table: u32,
    /// Rows that this statement is the first to be handed.
    offered: u64,
    work: Work,
}

/// By table number: rows offered less rows touched. In a filtered table what remains are
/// the rows that the filter kept out.
pub(crate) type Balance = BTreeMap<u32, i64>;

/// What a stage needs besides its session.
pub(crate) struct StageContext<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) effect: &'a NetEffect,
    /// Place of each table of the batch when parents come before children.
    pub(crate) parents_first: &'a [u32],
}

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
                let planned = self.plan_net(session, tables).await?;
                self.send(session, first, planned, balance).await
            }
            Stage::Ordered(items) => {
                let mut first = first;
                for items in items.chunks(ORDERED_AT_ONCE) {
                    let mut planned = Vec::with_capacity(items.len());
                    for item in items {
                        self.plan_single(session, *item, &mut planned).await?;
                    }
                    self.send(session, first.take(), planned, balance).await?;
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
        session: &ReplicaSession,
        first: Option<&str>,
        planned: Vec<Planned>,
        balance: &mut Balance,
    ) -> Result<(), ApplyError> {
        let mut checks = Vec::with_capacity(planned.len());
        let mut works = Vec::with_capacity(planned.len());
        for plan in planned {
            *balance.entry(plan.table).or_default() += plan.offered.cast_signed();
            checks.push((plan.mapping, plan.what, plan.expected, plan.table));
            works.push(plan.work);
        }
        let counts =
            session
                .execute_all(first, works)
                .await
                .map_err(
                    |(place, error)| match place.and_then(|place| checks.get(place)) {
                        Some((mapping, what, ..)) => ApplyError::statement(mapping, what, error),
                        None => ApplyError::transaction("begin a transaction")(error),
                    },
                )?;
        for ((mapping, what, expected, table), count) in checks.into_iter().zip(counts) {
            let is_met = match expected {
                Expected::Exactly(rows) => count == rows,
                Expected::AtMost(rows) => count <= rows,
            };
            if !is_met {
                let table = mapping.replica.clone();
                return Err(ApplyError::RowCount {
                    table,
                    what,
                    touched: count,
                });
            }
            *balance.entry(table).or_default() -= count.cast_signed();
        }
        Ok(())
    }

    /// Deletes (children first), then updates, then inserts (parents first).
    async fn plan_net(
        &self,
        session: &mut ReplicaSession,
        tables: &[TableNet],
    ) -> Result<Vec<Planned>, ApplyError> {
        let place = |net: &&TableNet| self.parents_first.get(net.table as usize).copied();
        let mut ordered: Vec<&TableNet> = tables.iter().collect();
        ordered.sort_by_key(place);
        let mut planned = Vec::new();
        for net in ordered.iter().rev() {
            if !self.is_filtered(net.table) {
                self.plan(
                    session,
                    net.table,
                    &Shape::Delete,
                    &net.deletes,
                    &mut planned,
                )
                .await?;
            } else {
                self.plan_possible(session, net.table, &net.deletes, &mut planned)
                    .await?;
            }
            self.plan_possible(session, net.table, &net.possible_deletes, &mut planned)
                .await?;
        }
        for net in &ordered {
            for (absent, items) in self.by_absent(net) {
                self.plan_update(session, net.table, absent, &items, &mut planned)
                    .await?;
            }
        }
        for net in &ordered {
            self.plan(
                session,
                net.table,
                &Shape::Insert,
                &net.inserts,
                &mut planned,
            )
            .await?;
        }
        Ok(planned)
    }

    async fn plan_possible(
        &self,
        session: &mut ReplicaSession,
        table: u32,
        items: &[u32],
        planned: &mut Vec<Planned>,
    ) -> Result<(), ApplyError> {
        let before = planned.len();
        self.plan(session, table, &Shape::Delete, items, planned)
            .await?;
        for plan in planned.iter_mut().skip(before) {
            plan.expected = Expected::AtMost(items.len() as u64);
        }
        Ok(())
    }

    /// An update; where a filter decides, a row may have to go or to come.
    async fn plan_update(
        &self,
        session: &mut ReplicaSession,
        table: u32,
        absent: Absent,
        items: &[u32],
        planned: &mut Vec<Planned>,
    ) -> Result<(), ApplyError> {
        if !self.is_filtered(table) {
            return self
                .plan(session, table, &Shape::Update(absent), items, planned)
                .await;
        }
        let leaves = Shape::DeleteFiltered(absent.clone());
        self.plan(session, table, &leaves, items, planned).await?;
        self.plan(
            session,
            table,
            &Shape::Update(absent.clone()),
            items,
            planned,
        )
        .await?;
        if absent.is_empty() {
            return self
                .plan(session, table, &Shape::InsertIfAbsent, items, planned)
                .await;
        }
        // A row that comes in must be known whole: none of these may be new to the replica.
        let before = planned.len();
        self.plan(session, table, &Shape::Missing(absent), items, planned)
            .await?;
        for plan in planned.iter_mut().skip(before) {
            plan.expected = Expected::Exactly(0);
        }
        Ok(())
    }

    /// The direct statements of one change, in source order.
    async fn plan_single(
        &self,
        session: &mut ReplicaSession,
        item: u32,
        planned: &mut Vec<Planned>,
    ) -> Result<(), ApplyError> {
        let Some((table, change)) = self.batch.row(item) else {
            return Ok(());
        };
        let items = [item];
        let absent = || self.absent(table, item);
        let shape = match (self.way(table, change), change) {
            (_, RowChange::Insert { .. }) => Shape::Insert,
            (Way::Key, RowChange::Update { .. }) => {
                return self
                    .plan_update(session, table, absent(), &items, planned)
                    .await;
            }
            (Way::Rekey, RowChange::Update { .. }) => Shape::Rekey(absent()),
            (Way::Full, RowChange::Update { .. }) => Shape::UpdateFull,
            (Way::Full, RowChange::Delete { .. }) => Shape::DeleteFull,
            (Way::Key | Way::Rekey, RowChange::Delete { .. }) => {
                if self.is_filtered(table) {
                    return self.plan_possible(session, table, &items, planned).await;
                }
                Shape::Delete
            }
        };
        let before = planned.len();
        self.plan(session, table, &shape, &items, planned).await?;
        let is_moving = matches!(shape, Shape::Rekey(_) | Shape::UpdateFull);
        if is_moving && self.is_filtered(table) {
            // In or out of the filter: only the resolving way can tell.
            for plan in planned.iter_mut().skip(before) {
                plan.expected = Expected::Exactly(1);
            }
        }
        Ok(())
    }

    async fn plan(
        &self,
        session: &mut ReplicaSession,
        table: u32,
        shape: &Shape,
        items: &[u32],
        planned: &mut Vec<Planned>,
    ) -> Result<(), ApplyError> {
        let Some(mapping) = self.batch.mapping(table) else {
            return Ok(());
        };
        if items.is_empty() {
            return Ok(());
        }
        let prepared = session.prepare(mapping, shape).await?;
        let work = self.work(mapping, prepared, items)?;
        let rows = items.len() as u64;
        let expected = if mapping.filter.is_some() {
            Expected::AtMost(rows)
        } else {
            Expected::Exactly(rows)
        };
        let what = match shape {
            Shape::Insert | Shape::InsertIfAbsent => "insert",
            Shape::Update(_) | Shape::Overwrite(_) | Shape::Rekey(_) | Shape::UpdateFull => {
                "update"
            }
            Shape::Delete | Shape::DeleteFull | Shape::DeleteFiltered(_) => "delete",
            Shape::Exists | Shape::Missing(_) => "look for",
        };
        let offered = match shape {
            Shape::DeleteFiltered(_) | Shape::InsertIfAbsent | Shape::Missing(_) => 0,
            _ => rows,
        };
        let mapping = Arc::clone(mapping);
        planned.push(Planned {
            mapping,
            what,
            expected,
            table,
            offered,
            work,
        });
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
            let old = change
                .old_tuple()
                .map(OldTuple::tuple)
                .or(change.new_tuple());
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

    fn by_absent(&self, net: &TableNet) -> BTreeMap<Absent, Vec<u32>> {
        let mut groups: BTreeMap<Absent, Vec<u32>> = BTreeMap::new();
        for item in &net.updates {
            groups
                .entry(self.absent(net.table, *item))
                .or_default()
                .push(*item);
        }
        groups
    }

    /// The columns that no image of the row holds.
    pub(crate) fn absent(&self, table: u32, item: u32) -> Absent {
        let Some(mapping) = self.batch.mapping(table) else {
            return Absent::new();
        };
        let Some((_, change)) = self.batch.row(item) else {
            return Absent::new();
        };
        let Some(new) = change.new_tuple() else {
            return Absent::new();
        };
        if !new
            .values()
            .any(|value| value == TupleValue::UnchangedToast)
        {
            return Absent::new();
        }
        let keys = mapping.key_positions();
        let unsent = mapping.inputs.iter().filter(|input| {
            let is_key = keys.contains(&input.position);
            let value = self
                .effect
                .new_value(self.batch, item, input.position, is_key);
            value == Some(TupleValue::UnchangedToast)
        });
        unsent
            .filter_map(|input| u16::try_from(input.position).ok())
            .collect()
    }

    pub(crate) fn is_filtered(&self, table: u32) -> bool {
        self.batch
            .mapping(table)
            .is_some_and(|mapping| mapping.filter.is_some())
    }

    /// How the row of a change is found.
    pub(crate) fn way(&self, table: u32, change: &RowChange) -> Way {
        let Some(mapping) = self.batch.mapping(table) else {
            return Way::Full;
        };
        if !matches!(mapping.identity, RowIdentity::Key(_)) {
            return Way::Full;
        }
        let (Some(old), Some(new)) = (change.old_tuple(), change.new_tuple()) else {
            return Way::Key;
        };
        let is_same = mapping.iter_key_positions().all(|position| {
            let new = new.value(position);
            new == Some(TupleValue::UnchangedToast) || new == old.tuple().value(position)
        });
        if is_same { Way::Key } else { Way::Rekey }
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
        let run = async |sql: &str| {
            let done = session.client.batch_execute(sql).await;
            done.map_err(|error| ApplyError::Truncate {
                tables: names.clone(),
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

/// How an update or delete finds its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a key that stays.
    Key,
    /// By a key that changes.
    Rekey,
    /// By the whole old row.
    Full,
}
