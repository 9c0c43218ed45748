//! The net effect of a batch: what remains to be done for each key; pure.
//!
//! ```text
//!  for one key:        then Insert          then Update          then Delete
//!   nothing yet        Insert               Update               Delete
//!   Insert             (impossible)         Insert, newer        Delete if there
//!   Update             (impossible)         Update, merged       Delete
//!   Delete             Replace              (impossible)         (impossible)
//!   Replace            (impossible)         Replace, newer       Delete
//! ```
//!
//! "Impossible" means that the keys' bytes cannot tell what the source's index could (two
//! texts of one number, say). The stage is then closed and the change begins the next one:
//! stages are carried out one after the other, so source order is kept where it matters.
//! Changes of a key and TRUNCATE stand in stages of their own; so do the changes of a table
//! whose triggers fire, which are to see each of them. For rows without a key, see
//! `full_rows.rs`.
//!
//! Within a stage: deletes, updates, inserts; so a unique value may move from a row that
//! went to a row that came. Where it moves between rows that stay, the replica may object,
//! and the batch is replayed in source order (`mod.rs`).

use super::batch::{Batch, BatchItem, RowChange};
use super::full_rows::FullRows;
use crate::faults::{Bug, planted};
use crate::mapping::{RowIdentity, TableMapping};
use crate::pg::{OldTuple, Tuple, TupleValue};
use foldhash::{HashMap, HashMapExt};
use std::collections::hash_map::Entry;

/// What is left to do for one table in one stage; numbers are places in [`Batch::items`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TableNet {
    /// Index into [`Batch::tables`].
    pub(crate) table: u32,
    /// Rows that must be there and go.
    pub(crate) deletes: Vec<u32>,
    /// Rows that came and went within the batch; an earlier one may be there.
    pub(crate) possible_deletes: Vec<u32>,
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

/// The stages of a batch, and where merged updates find what later ones left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NetEffect {
    pub(crate) stages: Vec<Stage>,
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
pub(crate) fn net_effect(batch: &Batch, is_replica_role: bool) -> NetEffect {
    let mut planner = Planner {
        batch,
        is_replica_role,
        effect: NetEffect::default(),
        open: Open::default(),
    };
    for (place, item) in (0u32..).zip(&batch.items) {
        planner.add(place, item);
    }
    planner.close();
    planner.effect
}

/// The bytes of a row's key, borrowed from its tuple.
#[derive(PartialEq, Eq, Hash, Clone)]
enum Key<'b> {
    One(&'b [u8]),
    Many(Box<[&'b [u8]]>),
}

/// What is known of one key within the open stage.
#[derive(Clone, Copy)]
enum Net {
    Insert(u32),
    Update(u32),
    Delete {
        at: u32,
        is_certain: bool,
    },
    Replace {
        deleted_at: u32,
        is_certain: bool,
        inserted_at: u32,
    },
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
    keys: HashMap<Key<'b>, usize>,
    /// In order of first appearance.
    nets: Vec<Net>,
    /// Of a table without a key.
    full_rows: FullRows<'b>,
}

struct Planner<'b> {
    batch: &'b Batch,
    is_replica_role: bool,
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
        let key = match single_key(change, &open.key_positions) {
            Some(key) => key,
            None => return self.add_ordered(place),
        };
        match merge(open, key.clone(), place, change) {
            Merged::Done => {}
            Merged::Onto(earlier) => {
                self.effect.earlier.insert(place, earlier);
            }
            Merged::Impossible => {
                self.close();
                let open = self.open_table(*table, mapping);
                // Into an empty stage everything goes.
                merge(open, key, place, change);
            }
        }
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
                keys: HashMap::new(),
                nets: Vec::new(),
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
            .map(|open| close_table(open, &mut self.effect.first))
            .filter(|net| !net.is_empty())
            .collect();
        if !nets.is_empty() {
            self.effect.stages.push(Stage::Net(nets));
        }
    }
}

impl TableNet {
    fn is_empty(&self) -> bool {
        self.deletes.is_empty()
            && self.possible_deletes.is_empty()
            && self.updates.is_empty()
            && self.inserts.is_empty()
            && self.full_deletes.is_empty()
            && self.full_updates.is_empty()
    }
}

fn close_table(open: OpenTable<'_>, first: &mut HashMap<u32, u32>) -> TableNet {
    let full = open.full_rows.close();
    let mut net = TableNet {
        table: open.table,
        inserts: full.inserts,
        full_deletes: full.deletes,
        full_updates: full.updates.iter().map(|(last, _)| *last).collect(),
        ..TableNet::default()
    };
    first.extend(full.updates);
    for state in open.nets {
        let (deleted, inserted) = match state {
            Net::Insert(at) => (None, Some(at)),
            Net::Update(at) => {
                net.updates.push(at);
                (None, None)
            }
            Net::Delete { at, is_certain } => (Some((at, is_certain)), None),
            Net::Replace {
                deleted_at,
                is_certain,
                inserted_at,
            } => (Some((deleted_at, is_certain)), Some(inserted_at)),
        };
        match deleted {
            Some((at, true)) => net.deletes.push(at),
            Some((at, false)) => net.possible_deletes.push(at),
            None => {}
        }
        net.inserts.extend(inserted);
    }
    net
}

enum Merged {
    Done,
    /// The change builds on the one at this place.
    Onto(u32),
    Impossible,
}

/// Folds one change into what is known of its key: the table at the head of this file.
fn merge<'b>(open: &mut OpenTable<'b>, key: Key<'b>, place: u32, change: &RowChange) -> Merged {
    let net = match open.keys.entry(key) {
        Entry::Vacant(vacant) => {
            vacant.insert(open.nets.len());
            open.nets.push(match change {
                RowChange::Insert { .. } => Net::Insert(place),
                RowChange::Update { .. } => Net::Update(place),
                RowChange::Delete { .. } => Net::Delete {
                    at: place,
                    is_certain: true,
                },
            });
            return Merged::Done;
        }
        Entry::Occupied(known) => &mut open.nets[*known.get()],
    };
    let (next, merged) = match (*net, change) {
        (Net::Delete { at, is_certain }, RowChange::Insert { .. }) => {
            let next = Net::Replace {
                deleted_at: at,
                is_certain,
                inserted_at: place,
            };
            (next, Merged::Done)
        }
        (Net::Insert(at), RowChange::Update { .. }) => (Net::Insert(place), Merged::Onto(at)),
        (Net::Update(_), RowChange::Update { .. }) if planted(Bug::KeepFirstUpdate) => {
            return Merged::Done;
        }
        (Net::Update(at), RowChange::Update { .. }) => (Net::Update(place), Merged::Onto(at)),
        (
            Net::Replace {
                deleted_at,
                is_certain,
                inserted_at,
            },
            RowChange::Update { .. },
        ) => {
            let next = Net::Replace {
                deleted_at,
                is_certain,
                inserted_at: place,
            };
            (next, Merged::Onto(inserted_at))
        }
        (Net::Insert(_), RowChange::Delete { .. }) => (
            Net::Delete {
                at: place,
                is_certain: false,
            },
            Merged::Done,
        ),
        (Net::Update(_), RowChange::Delete { .. }) => (
            Net::Delete {
                at: place,
                is_certain: true,
            },
            Merged::Done,
        ),
        (Net::Replace { is_certain, .. }, RowChange::Delete { .. }) => (
            Net::Delete {
                at: place,
                is_certain,
            },
            Merged::Done,
        ),
        (Net::Insert(_) | Net::Update(_) | Net::Replace { .. }, RowChange::Insert { .. })
        | (Net::Delete { .. }, RowChange::Update { .. } | RowChange::Delete { .. }) => {
            return Merged::Impossible;
        }
    };
    *net = next;
    merged
}

/// The one key a change is about; `None` when it has two (the key changed) or none that is known.
fn single_key<'b>(change: &'b RowChange, positions: &[usize]) -> Option<Key<'b>> {
    let new = |position: usize| bytes_of(change.new_value(position, true)?);
    let old = |position: usize| bytes_of(change.old_tuple()?.tuple().value(position)?);
    match change {
        RowChange::Insert { .. } | RowChange::Update { old: None, .. } => key_of(positions, new),
        RowChange::Delete { .. } => key_of(positions, old),
        RowChange::Update { old: Some(_), .. } => {
            let is_same = positions
                .iter()
                .all(|p| new(*p).is_some() && new(*p) == old(*p));
            if is_same {
                key_of(positions, new)
            } else {
                None
            }
        }
    }
}

fn key_of<'b>(positions: &[usize], value: impl Fn(usize) -> Option<&'b [u8]>) -> Option<Key<'b>> {
    match positions {
        [] => None,
        [position] => value(*position).map(Key::One),
        positions => positions
            .iter()
            .map(|p| value(*p))
            .collect::<Option<_>>()
            .map(Key::Many),
    }
}

fn bytes_of(value: TupleValue<'_>) -> Option<&[u8]> {
    match value {
        TupleValue::Text(bytes) | TupleValue::Binary(bytes) => Some(bytes),
        TupleValue::Null | TupleValue::UnchangedToast => None,
    }
}

#[cfg(test)]
#[path = "net_effect_tests.rs"]
mod tests;
