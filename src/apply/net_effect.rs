//! The net effect of a batch: what remains to be done for each row; pure.
//!
//! Changes of one row become one: `keyed_rows.rs` follows rows by their keys, `full_rows.rs`
//! rows without one. A change that they cannot place closes the stage and begins the next one:
//! stages are carried out one after the other, so source order is kept where it matters.
//! TRUNCATE stands in a stage of its own; so do the changes of a table whose triggers fire,
//! which are to see each of them, and changes of a key where a row may not be deleted and
//! inserted anew.
//!
//! Within a stage: deletes, updates, inserts; so a unique value may move from a row that
//! went to a row that came. Where it moves between rows that stay, the replica objects, and
//! the batch is planned again with the rows of that table deleted and inserted (`moving.rs`).

use super::batch::{Batch, BatchItem, RowChange};
use super::full_rows::FullRows;
use super::keyed_rows::{KeyChange, KeyedRows, Placed, key_change};
use super::moving::MovingValues;
use crate::faults::{Bug, planted};
use crate::mapping::{RowIdentity, TableMapping};
use crate::pg::{OldTuple, ReplicaIdentity, Tuple, TupleValue};
use foldhash::HashMap;
use std::sync::Arc;

/// What is left to do for one table in one stage; numbers are places in [`Batch::items`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TableNet {
    /// Index into [`Batch::tables`].
    pub(crate) table: u32,
    /// Rows that must be there and go.
    pub(crate) deletes: Vec<u32>,
    /// Rows that came and went within the batch: none may be there from before.
    pub(crate) came_and_went: Vec<u32>,
    /// Rows that must be there and change.
    pub(crate) updates: Vec<u32>,
    /// Rows that come.
    pub(crate) inserts: Vec<u32>,
    /// Rows without a key that go.
    pub(crate) full_deletes: Vec<u32>,
    /// Rows without a key that change.
    pub(crate) full_updates: Vec<u32>,
}

/// One stage; all its statements come after those of the stage before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Sets of rows, in no order of their own.
    Net(Vec<TableNet>),
    /// Single changes, in source order.
    Ordered(Vec<u32>),
    /// The TRUNCATE at this place.
    Truncate(u32),
}

impl Stage {
    /// Every list of changes, of each of which one statement is made at least.
    pub(super) fn each_list(&self, mut each: impl FnMut(&[u32])) {
        match self {
            Self::Net(tables) => {
                for net in tables {
                    let deletes = [&net.deletes, &net.came_and_went, &net.full_deletes];
                    let others = [&net.full_updates, &net.updates, &net.inserts];
                    deletes
                        .into_iter()
                        .chain(others)
                        .for_each(|list| each(list));
                }
            }
            Self::Ordered(places) => each(places),
            Self::Truncate(place) => each(&[*place]),
        }
    }
}

/// The stages of a batch, and where merged updates find what later ones left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NetEffect {
    pub(crate) stages: Vec<Stage>,
    /// Changes that no statement carries, because another one of their row stands for them.
    pub(super) absorbed: Vec<u32>,
    /// For a change: the earlier one of the same row that it was merged with.
    earlier: HashMap<u32, u32>,
    /// For a change of a row without a key: the first one of that row, which says what it was.
    pub(super) first: HashMap<u32, u32>,
}

impl NetEffect {
    /// Every change by itself, in source order: nothing is merged.
    pub(crate) fn in_source_order(batch: &Batch) -> Self {
        let mut stages: Vec<Stage> = Vec::new();
        for (place, item) in (0u32..).zip(&batch.items) {
            match (item, stages.last_mut()) {
                (BatchItem::Truncate { .. }, _) => stages.push(Stage::Truncate(place)),
                (BatchItem::Row { .. }, Some(Stage::Ordered(places))) => places.push(place),
                (BatchItem::Row { .. }, _) => stages.push(Stage::Ordered(vec![place])),
            }
        }
        Self {
            stages,
            ..Self::default()
        }
    }

    /// The row before the change at `item`, and before those that were merged into it.
    pub(crate) fn old_tuple<'b>(&self, batch: &'b Batch, item: u32) -> Option<&'b Tuple> {
        let first = self.first.get(&item).copied().unwrap_or(item);
        batch.row(first)?.1.old_tuple().map(OldTuple::tuple)
    }

    /// A value of a row after the change at `item`, looking back through merged updates.
    pub(crate) fn new_value<'b>(
        &self,
        batch: &'b Batch,
        mut item: u32,
        position: usize,
        is_key: bool,
    ) -> Option<TupleValue<'b>> {
        loop {
            let value = batch.row(item)?.1.new_value(position, is_key)?;
            match self.earlier.get(&item) {
                Some(earlier) if value == TupleValue::UnchangedToast => item = *earlier,
                None if value == TupleValue::UnchangedToast && planted(Bug::NullForToast) => {
                    return Some(TupleValue::Null);
                }
                _ => return Some(value),
            }
        }
    }
}

/// Computes the net effect, for a session with or without `session_replication_role = replica`.
/// Without `moving` no row is deleted and inserted anew.
pub(crate) fn net_effect(
    batch: &Batch,
    is_replica_role: bool,
    moving: Option<&MovingValues>,
) -> NetEffect {
    let mut planner = Planner {
        batch,
        is_replica_role,
        moving,
        effect: NetEffect::default(),
        open: Open::default(),
    };
    for (place, item) in (0u32..).zip(&batch.items) {
        planner.add(place, item);
    }
    planner.close();
    planner.effect
}

#[derive(Default)]
struct Open<'b> {
    /// By table; in order of first appearance, so that plans are deterministic.
    tables: Vec<OpenTable<'b>>,
    /// By number of the table: its place among those.
    places: Vec<Option<usize>>,
}

struct OpenTable<'b> {
    table: u32,
    key_positions: Vec<usize>,
    keyed_rows: KeyedRows<'b>,
    /// Of a table without a key.
    full_rows: FullRows<'b>,
}

struct Planner<'b> {
    batch: &'b Batch,
    is_replica_role: bool,
    moving: Option<&'b MovingValues>,
    effect: NetEffect,
    open: Open<'b>,
}

impl<'b> Planner<'b> {
    fn add(&mut self, place: u32, item: &'b BatchItem) {
        let BatchItem::Row { table, change } = item else {
            self.close();
            self.effect.stages.push(Stage::Truncate(place));
            return;
        };
        let Some(mapping) = self.batch.mapping(*table) else {
            return;
        };
        if mapping.triggers.fire(self.is_replica_role) {
            return self.add_ordered(place);
        }
        if !matches!(mapping.identity, RowIdentity::Key(_)) {
            let rows = &mut self.open_table(*table, mapping).full_rows;
            if !rows.add(place, change) {
                self.add_ordered(place);
            }
            return;
        }
        let open = self.open_table(*table, mapping);
        let Some(keys) = key_change(change, &open.key_positions) else {
            return self.add_ordered(place);
        };
        let (is_moving, from) = match &keys {
            KeyChange::Moves { from, .. } => (true, Some(from)),
            KeyChange::Stays(key) | KeyChange::Goes(key) => (false, Some(key)),
            KeyChange::Comes(_) => (false, None),
        };
        let before = from.and_then(|key| open.keyed_rows.last_of(key));
        let may_follow = self.moving.is_some() && mapping.may_reinsert;
        if is_moving && !(may_follow && self.is_whole(mapping, change, before)) {
            return self.add_ordered(place);
        }
        if !is_held_at_once(Some(mapping)) && !self.is_seen_last(mapping, change, before) {
            return self.add_to_next(place, *table, mapping, keys);
        }
        let open = self.open_table(*table, mapping);
        match open.keyed_rows.add(place, keys.clone()) {
            Placed::Done => {}
            Placed::Onto(earlier) => {
                self.effect.earlier.insert(place, earlier);
            }
            Placed::Impossible => self.add_to_next(place, *table, mapping, keys),
        }
    }

    /// Adds a change to the next stage, where nothing is known of its row.
    fn add_to_next(&mut self, place: u32, table: u32, mapping: &TableMapping, keys: KeyChange<'b>) {
        self.close();
        let change = self.batch.row(place).map(|(_, change)| change);
        let moves = matches!(keys, KeyChange::Moves { .. });
        if moves && !change.is_some_and(|change| self.is_whole(mapping, change, None)) {
            return self.add_ordered(place);
        }
        self.open_table(table, mapping).keyed_rows.add(place, keys);
    }

    /// Whether the row as it was is the one that the change before has left.
    fn is_seen_last(
        &self,
        mapping: &TableMapping,
        change: &RowChange,
        before: Option<u32>,
    ) -> bool {
        let (Some(before), Some(old)) = (before, change.old_tuple()) else {
            return true;
        };
        mapping.inputs.iter().all(|input| {
            let position = input.position;
            let is_key = mapping.iter_key_positions().any(|key| key == position);
            let left = self.effect.new_value(self.batch, before, position, is_key);
            left == old.tuple().value(position)
        })
    }

    /// Whether a change, with the one of the same row before it, says all of the row.
    fn is_whole(&self, mapping: &TableMapping, change: &RowChange, before: Option<u32>) -> bool {
        let is_known = |value| value != Some(TupleValue::UnchangedToast);
        let earlier = |position, is_key| {
            let value = self.effect.new_value(self.batch, before?, position, is_key);
            value.filter(|value| is_known(Some(*value)))
        };
        mapping.inputs.iter().all(|input| {
            let position = input.position;
            let is_key = mapping.iter_key_positions().any(|key| key == position);
            is_known(change.new_value(position, is_key)) || earlier(position, is_key).is_some()
        })
    }

    fn open_table(&mut self, table: u32, mapping: &TableMapping) -> &mut OpenTable<'b> {
        let Open { tables, places } = &mut self.open;
        let number = table as usize;
        if places.len() <= number {
            places.resize(number + 1, None);
        }
        let index = *places[number].get_or_insert_with(|| {
            tables.push(OpenTable {
                table,
                key_positions: mapping.key_positions(),
                keyed_rows: KeyedRows::default(),
                full_rows: FullRows::new(mapping),
            });
            tables.len() - 1
        });
        &mut tables[index]
    }

    fn add_ordered(&mut self, place: u32) {
        self.close();
        match self.effect.stages.last_mut() {
            Some(Stage::Ordered(places)) => places.push(place),
            _ => self.effect.stages.push(Stage::Ordered(vec![place])),
        }
    }

    fn close(&mut self) {
        let tables = std::mem::take(&mut self.open).tables;
        let nets: Vec<TableNet> = tables
            .into_iter()
            .map(|open| self.close_table(open))
            .filter(|net| !net.is_empty())
            .collect();
        if !nets.is_empty() {
            self.effect.stages.push(Stage::Net(nets));
        }
    }

    fn close_table(&mut self, open: OpenTable<'b>) -> TableNet {
        let mapping = self.batch.mapping(open.table);
        let moving = mapping.filter(|mapping| {
            let are_in = |moving: &MovingValues| moving.are_in(&mapping.replica);
            mapping.may_reinsert && self.moving.is_some_and(are_in)
        });
        let keyed = open.keyed_rows.close(|last| {
            let row = moving.zip(self.batch.row(last));
            row.is_some_and(|(mapping, (_, change))| {
                self.is_whole(mapping, change, self.effect.earlier.get(&last).copied())
            })
        });
        let full = open.full_rows.close();
        self.effect.first.extend(full.updates.iter().copied());
        let absorbed = keyed.absorbed.into_iter().chain(full.absorbed);
        self.effect.absorbed.extend(absorbed);
        let mut inserts = keyed.inserts;
        inserts.extend(full.inserts);
        TableNet {
            table: open.table,
            deletes: keyed.deletes,
            came_and_went: match is_held_at_once(mapping) {
                true => keyed.came_and_went,
                false => Vec::new(),
            },
            updates: keyed.updates,
            inserts,
            full_deletes: full.deletes,
            full_updates: full.updates.iter().map(|(last, _)| *last).collect(),
        }
    }
}

/// Whether no two rows of the source have one key at any time: an index that holds at once is
/// its identity. Where the whole old row is, any key of the replica's may be ours.
fn is_held_at_once(mapping: Option<&Arc<TableMapping>>) -> bool {
    mapping.is_some_and(|m| m.relation.replica_identity != ReplicaIdentity::Full)
}

impl TableNet {
    fn is_empty(&self) -> bool {
        self.deletes.is_empty()
            && self.came_and_went.is_empty()
            && self.updates.is_empty()
            && self.inserts.is_empty()
            && self.full_deletes.is_empty()
            && self.full_updates.is_empty()
    }
}

#[cfg(test)]
#[path = "net_effect_tests.rs"]
mod tests;
