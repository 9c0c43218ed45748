//! What is known of transactions that the source sends while they run. Pure.
//!
//! ```text
//!  (unknown) ── StreamStart ──▶ in its segment ◀──StreamStart/Stop──▶ between segments
//!                                    │ change                             │ StreamAbort of a part:
//!                                    ▼                                    │   back to its savepoint
//!                          savepoint? ─▶ gathered ─▶ written              ├ StreamAbort of all ─▶ (unknown)
//!                                                                         └ StreamCommit ──────▶ (unknown)
//!
//!  levels of one:   all of it │ 702 │ 705      each behind a savepoint, in the order of first changes
//! ```
//!
//! The stream tells when a subtransaction rolls back, and never when one ends well. What came
//! after its first change and before that is its own or its descendants', and goes with it: so
//! rolling back to the savepoint of its first change is right, and forgets all later ones. And
//! where a (sub)transaction with a level speaks again, those that began after it are over, and
//! will go only with it: their levels become part of its own.
//!
//! Invariant: what is gathered belongs to the segment that is open and to the last level of its
//! transaction; between segments nothing is gathered.

use super::PipelineError;
use super::in_hand::{Told, UNKNOWN_TABLE};
use super::relations::{Entry, Relations};
use crate::apply::{Batch, RowChange, Settings, Written};
use crate::mapping::TableMapping;
use crate::pg::Change;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Savepoints at most in one transaction: beyond these a server keeps numbers of subtransactions
/// on disk, and every reader looks there.
pub(super) const SAVEPOINTS_MAX: usize = 64;

/// Transactions in progress, and what of them waits to be written.
#[derive(Default)]
pub(super) struct Streamed {
    transactions: BTreeMap<u32, Transaction>,
    /// The transaction whose segment is open.
    segment: Option<u32>,
    gathered: Batch,
    /// Bytes that arrived since: its rows keep all of those alive.
    held_bytes: usize,
}

#[derive(Default)]
struct Transaction {
    /// Something was asked of its writer.
    is_begun: bool,
    /// What was written outside of all savepoints.
    written: Vec<Written>,
    levels: Vec<Level>,
}

/// What was written behind a savepoint, and before the next.
struct Level {
    subxid: u32,
    written: Vec<Written>,
}

/// What has to be done before a change can be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Gather,
    /// What is gathered is written, then this subtransaction gets a savepoint.
    Savepoint(u32),
    /// The savepoint of this one is released, and so are all after it.
    Release(u32),
}

/// What an abort undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undo {
    Nothing,
    /// Back to the savepoint of this subtransaction.
    To(u32),
    /// All of it.
    All,
}

/// A change that concerns the replica.
pub(super) enum Wanted {
    Row(Arc<TableMapping>, RowChange),
    Truncate(Vec<Arc<TableMapping>>, bool),
}

impl Wanted {
    /// Of which tables it is: of several where they are emptied.
    pub(super) fn tables(&self) -> &[Arc<TableMapping>] {
        match self {
            Self::Row(mapping, _) => std::slice::from_ref(mapping),
            Self::Truncate(mappings, _) => mappings,
        }
    }

    /// `None` where no rule speaks of its tables. Every table is past its copy, and none is set
    /// aside: otherwise nothing is streamed.
    pub(super) fn of(relations: &Relations, change: Change) -> Result<Option<Self>, PipelineError> {
        let unknown = || PipelineError::OutOfOrder(UNKNOWN_TABLE);
        match Told::from(change) {
            Told::Row(id, row) => match relations.entry(id).ok_or_else(unknown)? {
                Entry::Ignored => Ok(None),
                Entry::Mapped(table) => {
                    table.check_width(&row)?;
                    // It may yet be rolled back; if not, it is met again.
                    let checked = table.check_row(&row);
                    checked.map_err(|error| PipelineError::TakeWhole(error.to_string()))?;
                    Ok(Some(Self::Row(Arc::clone(&table.mapping), row)))
                }
            },
            Told::Truncate(ids, restart_identity) => {
                let mut tables = Vec::new();
                for id in ids {
                    if let Entry::Mapped(table) = relations.entry(id).ok_or_else(unknown)? {
                        tables.push(Arc::clone(&table.mapping));
                    }
                }
                Ok((!tables.is_empty()).then_some(Self::Truncate(tables, restart_identity)))
            }
        }
    }
}

impl Streamed {
    /// A chunk has arrived.
    pub(super) fn hold(&mut self, bytes: usize) {
        if self.gathered.is_empty() {
            self.held_bytes = 0;
        }
        self.held_bytes += bytes;
    }

    /// A segment begins.
    pub(super) fn start(&mut self, xid: u32, is_first: bool) -> Result<(), PipelineError> {
        if self.segment.is_some() {
            return Err(PipelineError::OutOfOrder("a segment begins within another"));
        }
        if self.transactions.contains_key(&xid) == is_first {
            return Err(PipelineError::OutOfOrder(
                "a segment is the first one of a known transaction, or a later one of an unknown",
            ));
        }
        self.transactions.entry(xid).or_default();
        self.segment = Some(xid);
        Ok(())
    }

    /// The segment ends, all of it written.
    pub(super) fn stop(&mut self) -> Result<(), PipelineError> {
        match self.segment.take() {
            Some(_) => Ok(()),
            None => Err(PipelineError::OutOfOrder(
                "a segment ends that did not begin",
            )),
        }
    }

    pub(super) fn is_in_segment(&self) -> bool {
        self.segment.is_some()
    }

    /// What a change of this (sub)transaction needs first.
    pub(super) fn next_step(&self, subxid: u32) -> Result<Step, PipelineError> {
        let (xid, transaction) = self.current()?;
        let levels = &transaction.levels;
        let place = match levels.iter().position(|level| level.subxid == subxid) {
            Some(place) => place + 1,
            None if subxid == xid => 0,
            None if levels.len() < SAVEPOINTS_MAX => return Ok(Step::Savepoint(subxid)),
            None => {
                return Err(PipelineError::TakeWhole(format!(
                    "it has more than {SAVEPOINTS_MAX} subtransactions, and which of them are over is not told"
                )));
            }
        };
        // Those after it are over.
        let later = levels.get(place);
        Ok(later.map_or(Step::Gather, |level| Step::Release(level.subxid)))
    }

    /// A step is done on the replica.
    pub(super) fn stepped(&mut self, step: Step) {
        let Some(transaction) = self.current_mut() else {
            return;
        };
        match step {
            Step::Gather => {}
            Step::Savepoint(subxid) => {
                transaction.is_begun = true;
                transaction.levels.push(Level {
                    subxid,
                    written: Vec::new(),
                });
            }
            Step::Release(subxid) => {
                for level in transaction.cut(subxid) {
                    transaction.add(level.written);
                }
            }
        }
    }

    pub(super) fn gather(&mut self, change: Wanted) {
        match change {
            Wanted::Row(mapping, row) => {
                let number = self.gathered.table(&mapping);
                self.gathered.push_row(number, row);
            }
            Wanted::Truncate(tables, restart_identity) => {
                let number = |mapping: &Arc<TableMapping>| self.gathered.table(mapping);
                let numbers = tables.iter().map(number).collect();
                self.gathered.push_truncate(numbers, restart_identity);
            }
        }
    }

    pub(super) fn is_full(&self, settings: &Settings) -> bool {
        let (changes, tables) = (self.gathered.len(), self.gathered.tables.len());
        let is_full = settings.batch_changes_max.is_reached(changes, tables)
            || self.gathered.bytes.max(self.held_bytes) >= settings.batch_bytes_max;
        is_full && !self.gathered.is_empty()
    }

    /// Gives away what is gathered.
    pub(super) fn take_gathered(&mut self) -> Option<Batch> {
        if self.gathered.is_empty() {
            return None;
        }
        self.held_bytes = 0;
        Some(std::mem::take(&mut self.gathered))
    }

    /// The transaction whose segment is open.
    pub(super) fn segment(&self) -> Result<u32, PipelineError> {
        Ok(self.current()?.0)
    }

    /// That it was written.
    pub(super) fn wrote(&mut self, written: Vec<Written>) {
        if let Some(transaction) = self.current_mut() {
            transaction.is_begun = true;
            transaction.add(written);
        }
    }

    /// The transaction, or a part of it, has rolled back.
    pub(super) fn abort(&mut self, xid: u32, subxid: u32) -> Result<Undo, PipelineError> {
        let Some(transaction) = self.transactions.get_mut(&xid) else {
            return Err(PipelineError::OutOfOrder(
                "a transaction rolls back of which no segment came",
            ));
        };
        if subxid != xid {
            let is_gone = !transaction.cut(subxid).is_empty();
            return Ok(if is_gone {
                Undo::To(subxid)
            } else {
                Undo::Nothing
            });
        }
        let is_begun = transaction.is_begun;
        self.transactions.remove(&xid);
        Ok(if is_begun { Undo::All } else { Undo::Nothing })
    }

    /// The transaction has committed: what was written of it; `None`: nothing of it concerns the
    /// replica.
    pub(super) fn commit(&mut self, xid: u32) -> Result<Option<Vec<Written>>, PipelineError> {
        let Some(mut transaction) = self.transactions.remove(&xid) else {
            return Err(PipelineError::OutOfOrder(
                "a transaction commits of which no segment came",
            ));
        };
        let levels = std::mem::take(&mut transaction.levels);
        for level in levels {
            transaction.add(level.written);
        }
        Ok(transaction.is_begun.then_some(transaction.written))
    }

    fn current(&self) -> Result<(u32, &Transaction), PipelineError> {
        self.segment
            .and_then(|xid| Some((xid, self.transactions.get(&xid)?)))
            .ok_or(PipelineError::OutOfOrder("a change outside a segment"))
    }

    fn current_mut(&mut self) -> Option<&mut Transaction> {
        self.transactions.get_mut(&self.segment?)
    }
}

impl Transaction {
    /// Takes away the level of a subtransaction and all later ones.
    fn cut(&mut self, subxid: u32) -> Vec<Level> {
        let place = self.levels.iter().position(|level| level.subxid == subxid);
        self.levels.split_off(place.unwrap_or(self.levels.len()))
    }

    /// Counts what was written at the last level; one entry a table, however many parts.
    fn add(&mut self, written: Vec<Written>) {
        let last = self.levels.last_mut();
        let counted = last.map_or(&mut self.written, |level| &mut level.written);
        for more in written {
            let is_it = |known: &&mut Written| Arc::ptr_eq(&known.mapping, &more.mapping);
            match counted.iter_mut().find(is_it) {
                Some(known) => known.add(&more),
                None => counted.push(more),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::simulation::tables::Plan;

    const XID: u32 = 700;

    fn written(inserts: u64) -> Vec<Written> {
        thread_local! {
            static MAPPING: Arc<TableMapping> =
                Arc::clone(&Plan::new().tables.values().next().unwrap().mapping);
        }
        let mapping = MAPPING.with(Arc::clone);
        vec![Written {
            inserts,
            ..Written::nothing(&mapping)
        }]
    }

    fn begun() -> Streamed {
        let mut streamed = Streamed::default();
        streamed.start(XID, true).unwrap();
        streamed
    }

    /// So many rows of a (sub)transaction, and the step before them.
    fn write(streamed: &mut Streamed, subxid: u32, rows: u64) -> Step {
        let step = streamed.next_step(subxid).unwrap();
        streamed.stepped(step);
        streamed.wrote(written(rows));
        step
    }

    fn committed(mut streamed: Streamed) -> Option<u64> {
        if streamed.is_in_segment() {
            streamed.stop().unwrap();
        }
        let rows = streamed.commit(XID).unwrap()?;
        assert!(rows.len() <= 1, "an entry a table");
        Some(rows.iter().map(|written| written.inserts).sum())
    }

    #[test]
    fn savepoints_are_made_and_released() {
        for (changes, steps) in [
            (vec![XID, XID], vec![Step::Gather, Step::Gather]),
            (
                vec![XID, 701, 701, 702],
                vec![
                    Step::Gather,
                    Step::Savepoint(701),
                    Step::Gather,
                    Step::Savepoint(702),
                ],
            ),
            // The outer one speaks again: the inner ones are over.
            (
                vec![701, 702, 703, 701, 701, 704],
                vec![
                    Step::Savepoint(701),
                    Step::Savepoint(702),
                    Step::Savepoint(703),
                    Step::Release(702),
                    Step::Gather,
                    Step::Savepoint(704),
                ],
            ),
            (
                vec![701, XID, 702],
                vec![
                    Step::Savepoint(701),
                    Step::Release(701),
                    Step::Savepoint(702),
                ],
            ),
        ] {
            let mut streamed = begun();
            let done: Vec<Step> = changes
                .iter()
                .map(|subxid| write(&mut streamed, *subxid, 1))
                .collect();
            assert_eq!(done, steps, "{changes:?}");
            assert_eq!(committed(streamed), Some(changes.len() as u64));
        }
    }

    #[test]
    fn what_rolls_back_is_not_counted() {
        for (aborted, undone, left) in [
            (vec![703], vec![Undo::To(703)], Some(0b0111)),
            (vec![702], vec![Undo::To(702)], Some(0b0011)),
            // Its savepoint went with the one before it.
            (
                vec![702, 703],
                vec![Undo::To(702), Undo::Nothing],
                Some(0b0011),
            ),
            (vec![701], vec![Undo::To(701)], Some(0b0001)),
            (vec![709], vec![Undo::Nothing], Some(0b1111)),
        ] {
            let mut streamed = begun();
            for (subxid, rows) in [(XID, 1), (701, 2), (702, 4), (703, 8)] {
                write(&mut streamed, subxid, rows);
            }
            streamed.stop().unwrap();
            let done: Vec<Undo> = aborted
                .iter()
                .map(|subxid| streamed.abort(XID, *subxid).unwrap())
                .collect();
            assert_eq!(done, undone, "{aborted:?}");
            assert_eq!(committed(streamed), left, "{aborted:?}");
        }
        let mut streamed = begun();
        write(&mut streamed, 701, 1);
        streamed.stop().unwrap();
        assert_eq!(streamed.abort(XID, XID).unwrap(), Undo::All);
        streamed.start(XID + 9, true).unwrap();
        streamed.stop().unwrap();
        assert_eq!(streamed.abort(XID + 9, XID + 9).unwrap(), Undo::Nothing);
    }

    #[test]
    fn one_of_which_nothing_was_wanted_has_nothing_to_commit() {
        assert_eq!(committed(begun()), None);
    }

    #[test]
    fn savepoints_have_an_end() {
        let mut streamed = begun();
        let subxids = (701..).take(SAVEPOINTS_MAX);
        for subxid in subxids {
            write(&mut streamed, subxid, 1);
        }
        let one_more = streamed.next_step(999);
        assert!(matches!(one_more, Err(PipelineError::TakeWhole(_))));
        assert_eq!(streamed.next_step(XID).unwrap(), Step::Release(701));
    }

    #[test]
    fn segments_begin_and_end_in_turn() {
        let is_out = |done: Result<(), PipelineError>| {
            assert!(
                matches!(done, Err(PipelineError::OutOfOrder(_))),
                "{done:?}"
            );
        };
        let mut streamed = Streamed::default();
        is_out(streamed.start(1, false));
        is_out(streamed.stop());
        is_out(streamed.abort(1, 1).map(drop));
        is_out(streamed.commit(1).map(drop));
        is_out(streamed.next_step(1).map(drop));
        streamed.start(1, true).unwrap();
        is_out(streamed.start(2, true));
        streamed.stop().unwrap();
        is_out(streamed.start(1, true));
        streamed.start(2, true).unwrap();
        streamed.stop().unwrap();
        streamed.start(1, false).unwrap();
        streamed.stop().unwrap();
        streamed.commit(1).unwrap();
        is_out(streamed.start(1, false));
    }
}
