//! The statements of a stage, and how many rows each must touch; pure.

use super::batch::{Batch, RowChange};
use super::error::ApplyError;
use super::net_effect::{NetEffect, TableNet};
use super::statement::{Absent, Shape};
use crate::faults::{self, Bug, planted};
use crate::mapping::{RowIdentity, TableMapping};
use crate::pg::{TupleValue, ValueFormat};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fewer rows than this are inserted in less time than it takes to begin a COPY.
const COPY_FROM_ROWS: u32 = 64;
/// From so many rows on, one look at the whole table costs less than one for each, which
/// ends at the row it finds.
const FULL_ROWS_MIN: usize = 5;
/// Of several updates none may find a row that another one has just made.
const FULL_UPDATES_MIN: usize = 2;

/// How many rows a statement must touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Exactly(u64),
    /// Rows may be missing and that is right: a filter, or a row that came and went.
    AtMost(u64),
}

/// One statement, its rows by their places in the batch.
pub(crate) struct Step<'a> {
    pub(crate) mapping: &'a Arc<TableMapping>,
    pub(crate) table: u32,
    pub(crate) shape: Shape,
    pub(crate) items: Vec<u32>,
    expected: Expected,
    /// Rows that this statement is the first to be handed.
    pub(crate) offered: u64,
}

impl Step<'_> {
    pub(crate) fn what(&self) -> &'static str {
        let shape = match &self.shape {
            Shape::Counted(shape) => shape,
            shape => shape,
        };
        match shape {
            Shape::Insert | Shape::Copy | Shape::InsertIfAbsent => "insert",
            Shape::Update(_)
            | Shape::Overwrite(_)
            | Shape::Rekey(_)
            | Shape::UpdateFull
            | Shape::UpdateFullRows => "update",
            Shape::Delete
            | Shape::DeleteFull
            | Shape::DeleteFullRows
            | Shape::DeleteFiltered(_) => "delete",
            Shape::Exists | Shape::Missing(_) => "look for",
            Shape::Counted(_) => "write",
        }
    }

    /// The same, failing by itself where not each row is touched; where each has to be.
    pub(crate) fn counted(self) -> Option<Self> {
        let is_one_each = self.expected == Expected::Exactly(self.items.len() as u64);
        let is_plain = matches!(
            self.shape,
            Shape::Insert | Shape::Update(_) | Shape::Rekey(_) | Shape::Delete
        );
        (is_one_each && is_plain).then(|| Self {
            shape: Shape::Counted(Box::new(self.shape)),
            ..self
        })
    }

    fn add(&mut self, item: u32) {
        self.items.push(item);
        self.offered += 1;
        match &mut self.expected {
            Expected::Exactly(rows) | Expected::AtMost(rows) => *rows += 1,
        }
    }

    /// Holds the rows that were touched against those that had to be.
    pub(crate) fn check(&self, touched: u64) -> Result<(), ApplyError> {
        let is_met = match self.expected {
            Expected::Exactly(rows) => touched == rows,
            Expected::AtMost(rows) => touched <= rows,
        };
        if is_met || planted(Bug::IgnoreRowCount) {
            return Ok(());
        }
        Err(ApplyError::RowCount {
            table: self.mapping.replica.clone(),
            what: self.what(),
            touched,
        })
    }
}

/// What a stage needs besides its session.
pub(crate) struct StageContext<'a> {
    pub(crate) batch: &'a Batch,
    /// Of the batch's values.
    pub(crate) format: ValueFormat,
    pub(crate) effect: &'a NetEffect,
    /// Place of each table of the batch when parents come before children.
    pub(crate) parents_first: &'a [u32],
}

impl<'a> StageContext<'a> {
    /// Deletes (children first), then updates, then inserts (parents first).
    pub(crate) fn plan_net(&self, tables: &[TableNet]) -> Vec<Step<'a>> {
        let place = |net: &&TableNet| self.parents_first.get(net.table as usize).copied();
        let mut ordered: Vec<&TableNet> = tables.iter().collect();
        ordered.sort_by_key(place);
        let mut steps = Vec::new();
        for net in ordered.iter().rev() {
            if !self.is_filtered(net.table) {
                self.plan(net.table, Shape::Delete, &net.deletes, &mut steps);
            } else {
                self.plan_possible(net.table, &net.deletes, &mut steps);
            }
            let (gone, none) = (&net.came_and_went, Expected::Exactly(0));
            self.plan_expecting(net.table, Shape::Delete, gone, none, &mut steps);
            let shape = match net.full_deletes.len() {
                FULL_ROWS_MIN.. => Shape::DeleteFullRows,
                _ => Shape::DeleteFull,
            };
            self.plan_full(net.table, &shape, &net.full_deletes, &mut steps);
        }
        for net in &ordered {
            let shape = match net.full_updates.len() {
                FULL_UPDATES_MIN.. => Shape::UpdateFullRows,
                _ => Shape::UpdateFull,
            };
            self.plan_full(net.table, &shape, &net.full_updates, &mut steps);
            for (absent, items) in self.by_absent(net) {
                self.plan_update(net.table, absent, &items, &mut steps);
            }
        }
        for net in &ordered {
            let shape = self.insert_shape(net);
            self.plan(net.table, shape, &net.inserts, &mut steps);
        }
        steps
    }

    fn insert_shape(&self, net: &TableNet) -> Shape {
        let row_type = self
            .batch
            .mapping(net.table)
            .and_then(|mapping| mapping.row_type.as_ref());
        let may_copy = self.format == ValueFormat::Binary && row_type.is_some_and(|r| r.may_copy);
        let from_rows = faults::limit("apply.copy_from_rows", COPY_FROM_ROWS);
        match may_copy && net.inserts.len() >= from_rows as usize {
            true => Shape::Copy,
            false => Shape::Insert,
        }
    }

    /// Rows found by the whole old row: in one look at the table, or one by one.
    fn plan_full(&self, table: u32, shape: &Shape, items: &[u32], steps: &mut Vec<Step<'a>>) {
        if matches!(shape, Shape::UpdateFullRows | Shape::DeleteFullRows) {
            return self.plan(table, shape.clone(), items, steps);
        }
        for item in items {
            self.plan(table, shape.clone(), &[*item], steps);
        }
    }

    fn plan_possible(&self, table: u32, items: &[u32], steps: &mut Vec<Step<'a>>) {
        let rows = Expected::AtMost(items.len() as u64);
        self.plan_expecting(table, Shape::Delete, items, rows, steps);
    }

    /// An update; where a filter decides, a row may have to go or to come.
    fn plan_update(&self, table: u32, absent: Absent, items: &[u32], steps: &mut Vec<Step<'a>>) {
        if !self.is_filtered(table) {
            return self.plan(table, Shape::Update(absent), items, steps);
        }
        let leaves = Shape::DeleteFiltered(absent.clone());
        self.plan(table, leaves, items, steps);
        self.plan(table, Shape::Update(absent.clone()), items, steps);
        if absent.is_empty() {
            return self.plan(table, Shape::InsertIfAbsent, items, steps);
        }
        // A row that comes in must be known whole: none of these may be new to the replica.
        let missing = Shape::Missing(absent);
        self.plan_expecting(table, missing, items, Expected::Exactly(0), steps);
    }

    /// Single changes, in source order.
    pub(crate) fn plan_ordered(&self, items: &[u32]) -> Vec<Step<'a>> {
        let mut steps: Vec<Step<'a>> = Vec::with_capacity(items.len());
        for item in items {
            // A run of inserts is one statement, whose rows come in their order.
            match (self.batch.row(*item), steps.last_mut()) {
                (Some((table, RowChange::Insert { .. })), Some(last))
                    if last.table == table && last.shape == Shape::Insert =>
                {
                    last.add(*item);
                }
                _ => self.plan_single(*item, &mut steps),
            }
        }
        steps
    }

    /// The direct statements of one change.
    fn plan_single(&self, item: u32, steps: &mut Vec<Step<'a>>) {
        let Some((table, change)) = self.batch.row(item) else {
            return;
        };
        let items = [item];
        let absent = || self.absent(table, item);
        let shape = match (self.way(table, change), change) {
            (_, RowChange::Insert { .. }) => Shape::Insert,
            (Way::Key, RowChange::Update { .. }) => {
                return self.plan_update(table, absent(), &items, steps);
            }
            (Way::Rekey, RowChange::Update { .. }) => Shape::Rekey(absent()),
            (Way::Full, RowChange::Update { .. }) => Shape::UpdateFull,
            (Way::Full, RowChange::Delete { .. }) => Shape::DeleteFull,
            (Way::Key | Way::Rekey, RowChange::Delete { .. }) => {
                if self.is_filtered(table) {
                    return self.plan_possible(table, &items, steps);
                }
                Shape::Delete
            }
        };
        let is_moving = matches!(shape, Shape::Rekey(_) | Shape::UpdateFull);
        if is_moving && self.is_filtered(table) {
            // In or out of the filter: only the resolving way can tell.
            return self.plan_expecting(table, shape, &items, Expected::Exactly(1), steps);
        }
        self.plan(table, shape, &items, steps);
    }

    fn plan(&self, table: u32, shape: Shape, items: &[u32], steps: &mut Vec<Step<'a>>) {
        let rows = items.len() as u64;
        let expected = if self.is_filtered(table) {
            Expected::AtMost(rows)
        } else {
            Expected::Exactly(rows)
        };
        self.plan_expecting(table, shape, items, expected, steps);
    }

    fn plan_expecting(
        &self,
        table: u32,
        shape: Shape,
        items: &[u32],
        expected: Expected,
        steps: &mut Vec<Step<'a>>,
    ) {
        let Some(mapping) = self.batch.mapping(table) else {
            return;
        };
        if items.is_empty() {
            return;
        }
        let offered = match shape {
            Shape::DeleteFiltered(_) | Shape::InsertIfAbsent | Shape::Missing(_) => 0,
            _ => items.len() as u64,
        };
        steps.push(Step {
            mapping,
            table,
            shape,
            items: items.to_vec(),
            expected,
            offered,
        });
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
