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
use super::relations::{Entry, Relations};
use crate::apply::{Batch, RowChange, Settings};
use crate::faults::{Bug, planted};
use crate::pg::{Change, Lsn};

#[derive(Default)]
pub(super) struct InHand {
    batch: Batch,
    whole: Whole,
    /// Bytes that arrived since the batch began: its rows keep all of those alive.
    held_bytes: usize,
    transaction: Option<Received>,
    /// Part of the transaction is written and not committed.
    is_part_written: bool,
}

/// Items and bytes of the batch up to its last commit, that commit's end, and when each was.
#[derive(Debug, Default)]
struct Whole {
    items: usize,
    bytes: usize,
    end: Option<Lsn>,
    commit_times_us: Vec<i64>,
}

/// A commit of the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) end: Lsn,
    pub(super) time_us: i64,
}

/// Transactions to be committed together.
pub(super) struct WholeBatch {
    pub(super) batch: Batch,
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
}

impl InHand {
    /// A chunk has arrived.
    pub(super) fn hold(&mut self, bytes: usize) {
        if self.batch.is_empty() {
            // What came before is held by nothing.
            self.held_bytes = 0;
        }
        self.held_bytes += bytes;
    }

    pub(super) fn begin(&mut self, commit_lsn: Lsn, xid: u32) -> Result<(), PipelineError> {
        if self.transaction.is_some() {
            return Err(PipelineError::OutOfOrder(
                "a transaction begins within another",
            ));
        }
        self.transaction = Some(Received { commit_lsn, xid });
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
        let batch = &mut self.batch;
        let mut push = |id, change: RowChange| {
            match relations.entry(id) {
                None => return Err(PipelineError::OutOfOrder("a change of an unknown table")),
                Some(Entry::Mapped(table)) if table.state.wants(transaction.commit_lsn) => {
                    table.check_row(&change)?;
                    table.telemetry.received(1);
                    let number = batch.table(&table.mapping);
                    batch.push_row(number, change);
                }
                // Left alone by the rules, or already in the copy.
                Some(_) => {}
            }
            Ok(())
        };
        match change {
            Change::Insert { relation, new } => push(relation, RowChange::Insert { new }),
            Change::Update { relation, old, new } => push(relation, RowChange::Update { old, new }),
            Change::Delete { relation, old } => push(relation, RowChange::Delete { old }),
            Change::Truncate {
                relations: ids,
                restart_identity,
                ..
            } => {
                let mut numbers = Vec::new();
                for id in ids {
                    if let Some(Entry::Mapped(table)) = relations.entry(id)
                        && table.state.wants(transaction.commit_lsn)
                    {
                        table.telemetry.received(1);
                        numbers.push(batch.table(&table.mapping));
                    }
                }
                if !numbers.is_empty() && !planted(Bug::DropTruncate) {
                    batch.push_truncate(numbers, restart_identity);
                }
                Ok(())
            }
        }
    }

    /// Ends the transaction; false when nothing of it, nor of any before, concerns the replica.
    pub(super) fn commit(&mut self, last: Committed) -> Result<bool, PipelineError> {
        if self.transaction.take().is_none() {
            return Err(PipelineError::OutOfOrder("a commit without a transaction"));
        }
        if self.batch.is_empty() && !self.is_part_written {
            self.held_bytes = 0;
            return Ok(false);
        }
        self.whole.items = self.batch.items.len();
        self.whole.bytes = self.batch.bytes;
        self.whole.end = Some(last.end);
        self.whole.commit_times_us.push(last.time_us);
        Ok(true)
    }

    /// Never without rows, however much arrived: there would be nothing to write.
    pub(super) fn is_full(&self, settings: &Settings) -> bool {
        let is_full = self.batch.items.len() >= settings.batch_changes_max
            || self.batch.bytes.max(self.held_bytes) >= settings.batch_bytes_max;
        is_full && self.has_rows()
    }

    pub(super) fn has_whole(&self) -> bool {
        self.whole.end.is_some()
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

    /// Gives away all up to the last commit, and keeps the tail.
    pub(super) fn take_whole(&mut self) -> Option<WholeBatch> {
        let whole = std::mem::take(&mut self.whole);
        let end = whole.end?;
        let mut batch = std::mem::take(&mut self.batch);
        self.batch = batch.split_off(whole.items, whole.bytes);
        if planted(Bug::ForgetTail) {
            self.batch = Batch::default();
        }
        self.held_bytes = self.batch.bytes;
        self.is_part_written = false;
        Some(WholeBatch {
            batch,
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
