//! The net effect on a table without a key: what remains to be done for each row; pure.
//!
//! Rows are told apart by the bytes of all columns that the mapping reads. Of several equal
//! rows any will do, so the table is a bag, and a change takes one row out of it, puts one
//! in, or both:
//!
//! ```text
//!  rows after a batch  =  rows before  −  old rows  +  new rows
//! ```
//!
//! A sum has no order. A change whose old row is one that the batch itself left takes that
//! one, and both become one:
//!
//! ```text
//!  what left the row     then Update old → new     then Delete old
//!   Insert               Insert, newer             nothing
//!   Update first → old   Update first → new        Delete first
//! ```
//!
//! What is taken from the rows before the batch is thereby never more than source order would
//! take from them: if the replica lacks a row here, it lacks it there as well. Columns of the
//! replica's own stay with the row that a chain of updates began at.
//!
//! Not told apart, and so left to source order: rows that the stream does not hold whole, and
//! tables with a filter (whether an old row is there, only the filter knows) or of whose
//! columns none can be looked for.

use super::batch::RowChange;
use super::statement::is_looked_for;
use crate::mapping::{RowIdentity, TableMapping};
use crate::pg::{OldTuple, Tuple, TupleValue};
use foldhash::{HashMap, HashMapExt};

/// A whole row, as far as the mapping reads it.
type Row<'b> = Box<[TupleValue<'b>]>;

/// What is known of one row within the open stage; numbers are places in the batch.
#[derive(Clone, Copy)]
enum Net {
    Insert(u32),
    /// The row before `first` becomes the row after `last`.
    Update {
        first: u32,
        last: u32,
    },
    /// The row before this change goes.
    Delete(u32),
    /// It came and went.
    Nothing,
}

/// The changes of one table without a key within the open stage.
pub(super) struct FullRows<'b> {
    /// By position in the source's tuples: whether the mapping reads it. `None`: its rows
    /// are not told apart.
    reads: Option<Vec<bool>>,
    /// In order of first appearance.
    nets: Vec<Net>,
    /// Rows that the batch left: which nets end with them.
    left: HashMap<Row<'b>, Vec<usize>>,
    /// Changes that others of their row stand for.
    absorbed: Vec<u32>,
}

/// What remains, each in order of first appearance.
#[derive(Default)]
pub(super) struct Remaining {
    pub(super) deletes: Vec<u32>,
    /// The last change of each row, and the first.
    pub(super) updates: Vec<(u32, u32)>,
    pub(super) inserts: Vec<u32>,
    /// What does not: in no order.
    pub(super) absorbed: Vec<u32>,
}

impl<'b> FullRows<'b> {
    pub(super) fn new(mapping: &TableMapping) -> Self {
        let is_told_apart = mapping.identity == RowIdentity::FullRow
            && mapping.filter.is_none()
            && mapping.columns.iter().any(is_looked_for);
        let reads = || {
            let is_input = |position| mapping.input_at(position).is_some();
            (0..mapping.relation.columns.len()).map(is_input).collect()
        };
        Self {
            reads: is_told_apart.then(reads),
            nets: Vec::new(),
            left: HashMap::new(),
            absorbed: Vec::new(),
        }
    }

    /// Takes a change in; false where only source order will do.
    pub(super) fn add(&mut self, place: u32, change: &'b RowChange) -> bool {
        match change {
            RowChange::Insert { new } => {
                let row = self.row(new.values());
                self.leave(row, Net::Insert(place));
                true
            }
            RowChange::Update {
                old: Some(OldTuple::Full(old)),
                new,
            } => {
                let (before, after) = (self.row(old.values()), self.row(whole(new, old)));
                let (Some(before), Some(after)) = (before, after) else {
                    return false;
                };
                let Some(net) = self.take(&before) else {
                    let (first, last) = (place, place);
                    self.leave(Some(after), Net::Update { first, last });
                    return true;
                };
                self.nets[net] = match self.nets[net] {
                    Net::Update { first, last } => {
                        // The first one may yet have to carry a DELETE.
                        self.absorbed.extend((last != first).then_some(last));
                        Net::Update { first, last: place }
                    }
                    Net::Insert(at) => {
                        self.absorbed.push(at);
                        Net::Insert(place)
                    }
                    // Neither leaves a row.
                    net @ (Net::Delete(_) | Net::Nothing) => net,
                };
                self.left.entry(after).or_default().push(net);
                true
            }
            RowChange::Delete {
                old: OldTuple::Full(old),
            } => {
                let Some(before) = self.row(old.values()) else {
                    return false;
                };
                let Some(net) = self.take(&before) else {
                    self.nets.push(Net::Delete(place));
                    return true;
                };
                self.nets[net] = match self.nets[net] {
                    Net::Update { first, last } => {
                        // The first one carries what all come to.
                        let others = [last, place].into_iter().filter(|at| *at != first);
                        self.absorbed.extend(others);
                        Net::Delete(first)
                    }
                    Net::Insert(at) => {
                        self.absorbed.extend([at, place]);
                        Net::Nothing
                    }
                    net @ (Net::Delete(_) | Net::Nothing) => net,
                };
                true
            }
            RowChange::Update { .. } | RowChange::Delete { .. } => false,
        }
    }

    pub(super) fn close(self) -> Remaining {
        let mut remaining = Remaining {
            absorbed: self.absorbed,
            ..Remaining::default()
        };
        for net in self.nets {
            match net {
                Net::Insert(at) => remaining.inserts.push(at),
                Net::Update { first, last } => {
                    remaining.updates.push((last, first));
                    remaining.absorbed.extend((first != last).then_some(first));
                }
                Net::Delete(at) => remaining.deletes.push(at),
                Net::Nothing => {}
            }
        }
        remaining
    }

    fn leave(&mut self, row: Option<Row<'b>>, net: Net) {
        if let Some(row) = row {
            self.left.entry(row).or_default().push(self.nets.len());
        }
        self.nets.push(net);
    }

    /// A row like this one that the batch left, if there is one.
    fn take(&mut self, row: &Row<'b>) -> Option<usize> {
        self.left.get_mut(row)?.pop()
    }

    /// What the mapping reads of a row; `None` where that is not known whole.
    fn row(&self, values: impl Iterator<Item = TupleValue<'b>>) -> Option<Row<'b>> {
        let reads = self.reads.as_ref()?;
        let mut row = Vec::with_capacity(reads.len());
        let mut known = 0;
        for (value, is_read) in values.zip(reads) {
            known += 1;
            match value {
                _ if !is_read => {}
                TupleValue::UnchangedToast => return None,
                value => row.push(value),
            }
        }
        (known == reads.len()).then(|| row.into_boxed_slice())
    }
}

/// The row as it is, with what the update left alone as it was.
fn whole<'b>(new: &'b Tuple, old: &'b Tuple) -> impl Iterator<Item = TupleValue<'b>> {
    new.values().zip(old.values()).map(|values| match values {
        (TupleValue::UnchangedToast, old) => old,
        (new, _) => new,
    })
}

#[cfg(test)]
#[path = "full_rows_tests.rs"]
mod tests;
