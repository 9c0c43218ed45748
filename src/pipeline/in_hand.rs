//! What has arrived and is not committed on the replica. Pure.
//!
//! ```text
//!  batch:  change change | commit | change change | commit | change
//!          └────────────── whole ─────────────────────────┘  └ tail ┘
//! ```
//!
//! Invariant: `whole` ends at a commit of the source. A tail that alone is full is given away
//! as a part; what follows of its transaction then belongs to the same one on the replica.

use super::PipelineError;
use super::mapped_table::MappedTable;
use super::relations::{Entry, Relations};
use crate::apply::{Batch, BatchItem, Cut, RowChange, Settings};
use crate::faults::{Bug, planted};
use crate::pg::{Change, Lsn, Relation, RelationId};
use crate::pgoutput::{Message, encode_change, encode_relation};
use crate::progress::KeptChange;
use bytes::Bytes;
use foldhash::HashMap;

/// The stream describes a table before it speaks of it.
pub(super) const UNKNOWN_TABLE: &str = "a change of an unknown table";

#[derive(Default)]
pub(super) struct InHand {
    batch: Batch,
    whole: Whole,
    /// Bytes that arrived since the batch began: its rows keep all of those alive.
    held_bytes: usize,
    transaction: Option<Received>,
    /// Where the one before it ended.
    last_end: Option<Lsn>,
    /// Part of the transaction is written and not committed.
    is_part_written: bool,
    /// The form last kept of each table that is set aside.
    kept_forms: HashMap<RelationId, Relation>,
}

/// The batch up to its last commit, that commit with its end, and when each was.
#[derive(Debug, Default)]
struct Whole {
    cut: Cut,
    commit_and_end: Option<(Lsn, Lsn)>,
    commit_times_us: Vec<i64>,
}

/// A commit of the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) commit_lsn: Lsn,
    pub(super) end: Lsn,
    pub(super) time_us: i64,
}

/// Transactions to be committed together.
pub(super) struct WholeBatch {
    pub(super) batch: Batch,
    /// The commit record of the last one.
    pub(super) commit_lsn: Lsn,
    /// The end of the last one.
    pub(super) end: Lsn,
    /// When each was committed on the source, in microseconds since 2000.
    pub(super) commit_times_us: Vec<i64>,
}

/// The transaction between Begin and Commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) commit_lsn: Lsn,
    pub(super) xid: u32,
    /// The error by which an operator has it passed by.
    pub(super) skipped_by: Option<i64>,
}

/// A change as a batch takes it.
pub(super) enum Told {
    Row(RelationId, RowChange),
    /// Tables emptied, and whether their sequences begin anew.
    Truncate(Vec<RelationId>, bool),
}

impl From<Change> for Told {
    fn from(change: Change) -> Self {
        match change {
            Change::Insert { relation, new } => Self::Row(relation, RowChange::Insert { new }),
            Change::Update { relation, old, new } => {
                Self::Row(relation, RowChange::Update { old, new })
            }
            Change::Delete { relation, old } => Self::Row(relation, RowChange::Delete { old }),
            Change::Truncate {
                relations,
                restart_identity,
                ..
            } => Self::Truncate(relations, restart_identity),
        }
    }
}

impl InHand {
    /// Everything before this is applied.
    pub(super) fn after(applied: Lsn) -> Self {
        Self {
            last_end: Some(applied),
            ..Self::default()
        }
    }

    /// A chunk has arrived.
    pub(super) fn hold(&mut self, bytes: usize) {
        if self.batch.is_empty() {
            // What came before is held by nothing.
            self.held_bytes = 0;
        }
        self.held_bytes += bytes;
    }

    pub(super) fn begin(&mut self, transaction: Received) -> Result<(), PipelineError> {
        if self.transaction.is_some() {
            return Err(PipelineError::OutOfOrder(
                "a transaction begins within another",
            ));
        }
        self.expect_later(transaction.commit_lsn)?;
        self.transaction = Some(transaction);
        Ok(())
    }

    fn expect_later(&self, commit_lsn: Lsn) -> Result<(), PipelineError> {
        if self.last_end > Some(commit_lsn) {
            return Err(PipelineError::OutOfOrder(
                "a transaction that was committed before the end of the one before it",
            ));
        }
        Ok(())
    }

    /// A transaction that was sent while it ran takes its place in the order of commits.
    pub(super) fn commit_streamed(&mut self, last: Committed) -> Result<(), PipelineError> {
        self.expect_later(last.commit_lsn)?;
        if last.end <= last.commit_lsn {
            return Err(PipelineError::OutOfOrder(
                "a commit that ends before it begins",
            ));
        }
        self.last_end = Some(last.end);
        Ok(())
    }

    /// What describes a transaction's changes stands within it.
    pub(super) fn check_place(&self, message: &Message) -> Result<(), PipelineError> {
        let is_within_only = matches!(
            message,
            Message::Relation { .. }
                | Message::Type { .. }
                | Message::Origin { .. }
                | Message::Logical {
                    transactional: true,
                    ..
                }
        );
        if is_within_only && self.transaction.is_none() {
            return Err(PipelineError::OutOfOrder(
                "what belongs to a transaction came outside of one",
            ));
        }
        Ok(())
    }

    pub(super) fn change(
        &mut self,
        relations: &Relations,
        change: Change,
    ) -> Result<(), PipelineError> {
        let Some(transaction) = self.transaction else {
            return Err(PipelineError::OutOfOrder("a change outside a transaction"));
        };
        let (id, row_change) = match Told::from(change) {
            Told::Row(id, row_change) => (id, row_change),
            Told::Truncate(ids, restart_identity) => {
                return self.truncate(relations, transaction, &ids, restart_identity);
            }
        };
        let table = match relations.entry(id) {
            None => return Err(PipelineError::OutOfOrder(UNKNOWN_TABLE)),
            Some(Entry::Mapped(table)) if table.state.wants(transaction.commit_lsn) => table,
            // Left alone by the rules, or already in the copy.
            Some(_) => return Ok(()),
        };
        table.check_width(&row_change)?;
        table.telemetry.received(1);
        if is_kept(table, transaction) {
            let change = row_change.into_change(id);
            self.keep(table, transaction, &change);
            return Ok(());
        }
        table.check_row(&row_change)?;
        let number = self.batch.table(&table.mapping);
        self.batch.push_row(number, row_change);
        Ok(())
    }

    fn truncate(
        &mut self,
        relations: &Relations,
        transaction: Received,
        ids: &[RelationId],
        restart_identity: bool,
    ) -> Result<(), PipelineError> {
        let mut numbers = Vec::new();
        for id in ids {
            let table = match relations.entry(*id) {
                None => return Err(PipelineError::OutOfOrder(UNKNOWN_TABLE)),
                Some(Entry::Ignored) => continue,
                Some(Entry::Mapped(table)) => table,
            };
            if !table.state.wants(transaction.commit_lsn) {
                continue;
            }
            table.telemetry.received(1);
            if is_kept(table, transaction) {
                let change = Change::Truncate {
                    relations: vec![*id],
                    cascade: false,
                    restart_identity,
                };
                self.keep(table, transaction, &change);
            } else {
                numbers.push(self.batch.table(&table.mapping));
            }
        }
        if !numbers.is_empty() && !planted(Bug::DropTruncate) {
            self.batch.push_truncate(numbers, restart_identity);
        }
        Ok(())
    }

    fn keep(&mut self, table: &MappedTable, transaction: Received, change: &Change) {
        let form = table.form();
        // What is passed by for good is read by itself: it brings its own form.
        let is_news =
            transaction.skipped_by.is_some() || self.kept_forms.get(&form.id) != Some(form);
        if is_news && transaction.skipped_by.is_none() {
            self.kept_forms.insert(form.id, form.clone());
        }
        self.batch.keep(KeptChange {
            source_oid: form.id,
            commit_lsn: transaction.commit_lsn,
            form: is_news.then(|| Bytes::from(encode_relation(form))),
            change: Bytes::from(encode_change(change)),
            skipped_by: transaction.skipped_by,
        });
    }

    /// Ends the transaction; false when nothing of it, nor of any before, concerns the replica.
    pub(super) fn commit(&mut self, last: Committed) -> Result<bool, PipelineError> {
        let Some(transaction) = self.transaction.take() else {
            return Err(PipelineError::OutOfOrder("a commit without a transaction"));
        };
        if last.commit_lsn != transaction.commit_lsn || last.end <= last.commit_lsn {
            return Err(PipelineError::OutOfOrder(
                "a commit that is not the one its transaction began with",
            ));
        }
        self.last_end = Some(last.end);
        if self.batch.is_empty() && !self.is_part_written {
            self.held_bytes = 0;
            return Ok(false);
        }
        self.whole.cut = self.batch.end();
        self.whole.commit_and_end = Some((transaction.commit_lsn, last.end));
        self.whole.commit_times_us.push(last.time_us);
        Ok(true)
    }

    /// Never without rows, however much arrived: there would be nothing to write.
    pub(super) fn is_full(&self, settings: &Settings) -> bool {
        let (changes, tables) = (self.batch.len(), self.batch.tables.len());
        let is_full = settings.batch_changes_max.is_reached(changes, tables)
            || self.batch.bytes.max(self.held_bytes) >= settings.batch_bytes_max;
        is_full && self.has_rows()
    }

    /// Changes of the batch.
    pub(super) fn len(&self) -> usize {
        self.batch.len()
    }

    pub(super) fn has_whole(&self) -> bool {
        self.whole.commit_and_end.is_some()
    }

    pub(super) fn has_rows(&self) -> bool {
        !self.batch.is_empty()
    }

    pub(super) fn is_part_written(&self) -> bool {
        self.is_part_written
    }

    /// Between transactions, with none that waits.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.transaction.is_none() && !self.is_part_written
    }

    pub(super) fn is_between_transactions(&self) -> bool {
        self.transaction.is_none()
    }

    /// The transaction that is being received.
    pub(super) fn transaction(&self) -> Option<Received> {
        self.transaction
    }

    /// Adds the changes in hand, table by table.
    pub(super) fn count(&self, changes: &mut HashMap<RelationId, u64>) {
        let mut add = |id: RelationId| *changes.entry(id).or_default() += 1;
        let of_number = |number: u32| self.batch.mapping(number).map(|m| m.relation.id);
        for item in &self.batch.items {
            match item {
                BatchItem::Row { table, .. } => of_number(*table).into_iter().for_each(&mut add),
                BatchItem::Truncate { tables, .. } => {
                    let ids = tables.iter().filter_map(|table| of_number(*table));
                    ids.for_each(&mut add);
                }
            }
        }
        let kept = self.batch.kept.iter();
        kept.for_each(|change| add(change.source_oid));
    }

    /// Gives away all up to the last commit, and keeps the tail.
    pub(super) fn take_whole(&mut self) -> Option<WholeBatch> {
        let whole = std::mem::take(&mut self.whole);
        let (commit_lsn, end) = whole.commit_and_end?;
        let mut batch = std::mem::take(&mut self.batch);
        self.batch = batch.split_off(whole.cut);
        if planted(Bug::ForgetTail) {
            self.batch = Batch::default();
        }
        self.held_bytes = self.batch.bytes;
        self.is_part_written = false;
        Some(WholeBatch {
            batch,
            commit_lsn,
            end,
            commit_times_us: whole.commit_times_us,
        })
    }

    /// Gives away a part of the transaction that is being received.
    pub(super) fn take_part(&mut self) -> Batch {
        self.is_part_written = true;
        self.held_bytes = 0;
        std::mem::take(&mut self.batch)
    }
}

/// Whether a change goes into the books instead of its table.
fn is_kept(table: &MappedTable, transaction: Received) -> bool {
    transaction.skipped_by.is_some() || table.state.is_quarantined()
}
