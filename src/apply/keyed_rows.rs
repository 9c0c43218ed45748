//! The net effect on a table with a key: what remains to be done for each row; pure.
//!
//! A row is followed from key to key, as it would be in an index on the key:
//!
//! ```text
//!  slot 7   ── it was there at the start ──▶ row A ─┐
//!  slot 9   ◀──────── key 7 becomes 9 ──────────────┘     slot 7 is cleared: another may come
//!
//!  a row          that is there at the end      that is gone
//!   was there      same key: Update              Delete
//!                  other key: Delete + Insert
//!   came           Insert                        nothing
//! ```
//!
//! Where a row leaves a slot that nobody was seen to clear before, an earlier row may be there
//! on the replica, of which the source knows nothing: that must not be so, and is looked at.
//!
//! All this holds where no two rows of the source have one key at any time: where its own index
//! on the key is the identity. Where the whole old row is (REPLICA IDENTITY FULL), its key may be
//! deferrable or none at all: no row is followed to another key, and a change of a row that is
//! not the one which was seen last (`net_effect.rs` compares them) is impossible.
//!
//! "Impossible" also means that the keys' bytes cannot tell what the source's index could (two
//! texts of one number, say).

use super::batch::RowChange;
use crate::faults::{Bug, planted};
use crate::pg::TupleValue;
use foldhash::HashMap;
use std::collections::hash_map::Entry;

/// The bytes of a row's key, borrowed from its tuple.
#[derive(PartialEq, Eq, Hash, Clone)]
pub(super) enum Key<'b> {
    One(&'b [u8]),
    Many(Box<[&'b [u8]]>),
}

/// What a change does to the keys of its table.
#[derive(Clone)]
pub(super) enum KeyChange<'b> {
    Comes(Key<'b>),
    Stays(Key<'b>),
    Moves { from: Key<'b>, to: Key<'b> },
    Goes(Key<'b>),
}

/// Where one key's row stands.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// The row that has the key now.
    row: Option<u32>,
    /// Whatever had it when the stage began is deleted.
    is_cleared: bool,
}

/// One row; numbers of changes are places in the batch.
struct Row {
    /// The slot it had when the stage began; `None`: it came.
    home: Option<u32>,
    /// The change that took it from there.
    left_home: Option<u32>,
    /// Its slot now.
    slot: u32,
    /// The last change that says what it is like; `None`: it is gone.
    last: Option<u32>,
}

/// What became of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    Done,
    /// The change builds on the one at this place.
    Onto(u32),
    Impossible,
}

/// The changes of one table with a key within the open stage.
#[derive(Default)]
pub(super) struct KeyedRows<'b> {
    keys: HashMap<Key<'b>, u32>,
    slots: Vec<Slot>,
    /// In order of first appearance.
    rows: Vec<Row>,
    /// Changes that took a row from a key that nobody had when the stage began.
    came_and_went: Vec<u32>,
    /// Changes that others of their row stand for.
    absorbed: Vec<u32>,
}

/// What remains, each in order of first appearance.
#[derive(Default)]
pub(super) struct Remaining {
    pub(super) deletes: Vec<u32>,
    pub(super) came_and_went: Vec<u32>,
    pub(super) updates: Vec<u32>,
    pub(super) inserts: Vec<u32>,
    /// What does not: in no order.
    pub(super) absorbed: Vec<u32>,
}

impl<'b> KeyedRows<'b> {
    /// The last change of the row that has a key now, if one of this stage.
    pub(super) fn last_of(&self, key: &Key<'b>) -> Option<u32> {
        let slot = self.slots.get(*self.keys.get(key)? as usize)?;
        self.rows.get(slot.row? as usize)?.last
    }

    /// Takes a change in. What is impossible changes nothing; into an empty stage everything goes.
    pub(super) fn add(&mut self, place: u32, change: KeyChange<'b>) -> Placed {
        match change {
            KeyChange::Comes(key) => {
                let slot = self.slot(key);
                if self.slots[slot as usize].row.is_some() {
                    return Placed::Impossible;
                }
                self.stand(slot, None, place);
                Placed::Done
            }
            KeyChange::Stays(key) => {
                let Some(row) = self.row_at(key, place) else {
                    return Placed::Impossible;
                };
                self.write(row, place)
            }
            KeyChange::Goes(key) => {
                let Some(row) = self.row_at(key, place) else {
                    return Placed::Impossible;
                };
                self.leave(row, place);
                let gone = &mut self.rows[row as usize];
                // What took it from home carries the DELETE; one that came goes with this one.
                let carries = gone.left_home;
                let others = gone.last.take().into_iter().chain([place]);
                self.absorbed
                    .extend(others.filter(|at| Some(*at) != carries));
                Placed::Done
            }
            KeyChange::Moves { from, to } => {
                let to = self.slot(to);
                if self.slots[to as usize].row.is_some() {
                    return Placed::Impossible;
                }
                let Some(row) = self.row_at(from, place) else {
                    return Placed::Impossible;
                };
                self.leave(row, place);
                self.slots[to as usize].row = Some(row);
                self.rows[row as usize].slot = to;
                self.write(row, place)
            }
        }
    }

    /// `is_rewritten` says of a row's last change whether the row is to be deleted and inserted
    /// anew though its key is the same.
    pub(super) fn close(self, is_rewritten: impl Fn(u32) -> bool) -> Remaining {
        let mut remaining = Remaining {
            came_and_went: self.came_and_went,
            absorbed: self.absorbed,
            ..Remaining::default()
        };
        let lost = usize::from(planted(Bug::LoseRow));
        for row in self.rows.into_iter().skip(lost) {
            match (row.home, row.last) {
                (Some(home), Some(last)) if home == row.slot && !is_rewritten(last) => {
                    remaining.updates.push(last);
                    // It came back.
                    remaining.absorbed.extend(row.left_home);
                }
                (Some(_), last) => {
                    // Where it never left, its last change kept its key.
                    remaining.deletes.extend(row.left_home.or(last));
                    remaining.inserts.extend(last);
                }
                (None, last) => remaining.inserts.extend(last),
            }
        }
        remaining
    }

    fn slot(&mut self, key: Key<'b>) -> u32 {
        let next = number(self.slots.len());
        let slot = *self.keys.entry(key).or_insert(next);
        if slot == next {
            self.slots.push(Slot::default());
        }
        slot
    }

    /// The row that has this key; one not seen before has been there all along.
    fn row_at(&mut self, key: Key<'b>, place: u32) -> Option<u32> {
        match self.keys.entry(key) {
            Entry::Occupied(known) => self.slots[*known.get() as usize].row,
            Entry::Vacant(vacant) => {
                let slot = number(self.slots.len());
                vacant.insert(slot);
                self.slots.push(Slot::default());
                self.stand(slot, Some(slot), place);
                self.slots[slot as usize].row
            }
        }
    }

    /// A row not seen before.
    fn stand(&mut self, slot: u32, home: Option<u32>, place: u32) {
        self.slots[slot as usize].row = Some(number(self.rows.len()));
        self.rows.push(Row {
            home,
            left_home: None,
            slot,
            // Of one that was there, it is not known before its first change is written.
            last: home.is_none().then_some(place),
        });
    }

    fn leave(&mut self, row: u32, place: u32) {
        let row = &mut self.rows[row as usize];
        let slot = &mut self.slots[row.slot as usize];
        slot.row = None;
        if row.home == Some(row.slot) {
            row.left_home.get_or_insert(place);
        } else if !slot.is_cleared {
            self.came_and_went.push(place);
        }
        slot.is_cleared = true;
    }

    fn write(&mut self, row: u32, place: u32) -> Placed {
        let row = &mut self.rows[row as usize];
        if planted(Bug::KeepFirstUpdate) && row.home.is_some() && row.last.is_some() {
            return Placed::Done;
        }
        let last = row.last.replace(place);
        self.absorbed
            .extend(last.filter(|last| row.left_home != Some(*last)));
        last.map_or(Placed::Done, Placed::Onto)
    }
}

/// Fewer than four thousand million changes are in a batch.
fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// What a change does to the keys; `None` where the stream does not say them whole.
pub(super) fn key_change<'b>(change: &'b RowChange, positions: &[usize]) -> Option<KeyChange<'b>> {
    let new = |position: usize| bytes_of(change.new_value(position, true)?);
    let old = |position: usize| bytes_of(change.old_tuple()?.tuple().value(position)?);
    match change {
        RowChange::Insert { .. } => key_of(positions, new).map(KeyChange::Comes),
        RowChange::Update { old: None, .. } => key_of(positions, new).map(KeyChange::Stays),
        RowChange::Delete { .. } => key_of(positions, old).map(KeyChange::Goes),
        RowChange::Update { old: Some(_), .. } => {
            let (from, to) = (key_of(positions, old)?, key_of(positions, new)?);
            Some(match from == to {
                true => KeyChange::Stays(to),
                false => KeyChange::Moves { from, to },
            })
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

pub(super) fn bytes_of(value: TupleValue<'_>) -> Option<&[u8]> {
    match value {
        TupleValue::Text(bytes) | TupleValue::Binary(bytes) => Some(bytes),
        TupleValue::Null | TupleValue::UnchangedToast => None,
    }
}
