//! What a stream is written to: the replica, or in a simulation a model of it.

use super::{Applier, ApplyError, Batch, Flush, Transaction, Written};
use crate::pg::{Lsn, ServerError};
use crate::progress::Durability;

/// Takes batches, and the position they end at.
pub(crate) trait ReplicaWriter {
    /// What was committed is being made durable.
    type Flush: Future<Output = Result<(), ApplyError>> + Unpin;

    /// Writes a batch into the open transaction, opening one if there is none.
    async fn write(&mut self, batch: &Batch) -> Result<Vec<Written>, ApplyError>;
    /// Moves the position and commits.
    async fn commit(&mut self, applied: Lsn, durability: Durability) -> Result<(), ApplyError>;
    /// Writes a batch and commits: both after each other, or in one go.
    async fn write_and_commit(
        &mut self,
        batch: &Batch,
        applied: Lsn,
        durability: Durability,
    ) -> Result<Vec<Written>, ApplyError> {
        let written = self.write(batch).await?;
        self.commit(applied, durability).await?;
        Ok(written)
    }
    /// Ends an open transaction without a trace.
    async fn rollback(&mut self);
    /// Ends when nobody else keeps the position where it is. No transaction may be open.
    async fn await_position(&mut self) -> Result<(), ApplyError>;
    /// A second session with the same replica, with a transaction of its own.
    async fn sibling(&self) -> Result<Self, ApplyError>
    where
        Self: Sized;
    /// Whether to give up waiting for a lock: it may be a sibling's.
    async fn limit_lock_waits(&mut self, is_limited: bool) -> Result<(), ApplyError>;
    /// Sets a savepoint of this number, opening a transaction if there is none.
    async fn savepoint(&mut self, number: u32) -> Result<(), ApplyError>;
    /// Lets what came since the savepoint stand, whatever becomes of it.
    async fn release_savepoint(&mut self, number: u32) -> Result<(), ApplyError>;
    /// Undoes what came since the savepoint, and forgets it.
    async fn rollback_to(&mut self, number: u32) -> Result<(), ApplyError>;
    /// Whether another session makes durable what is committed without a wait.
    fn has_witness(&self) -> bool;
    /// Has it make durable what is committed by now. Sent when first polled.
    fn flush(&self) -> Option<Self::Flush>;
    /// Whether its session is gone; it is noticed here while there is nothing to write.
    fn is_lost(&self) -> bool {
        false
    }
    /// Whether the last batch passed in the source's order only.
    fn wrote_in_source_order(&self) -> bool {
        false
    }
    /// Tells the row at which the last batch failed from others of its table.
    fn failed_key(&self) -> Option<&str> {
        None
    }
}

impl ReplicaWriter for Applier {
    type Flush = Flush;

    async fn write(&mut self, batch: &Batch) -> Result<Vec<Written>, ApplyError> {
        Self::write(self, batch).await
    }

    async fn commit(&mut self, applied: Lsn, durability: Durability) -> Result<(), ApplyError> {
        Self::commit(self, applied, durability).await
    }

    async fn write_and_commit(
        &mut self,
        batch: &Batch,
        applied: Lsn,
        durability: Durability,
    ) -> Result<Vec<Written>, ApplyError> {
        Self::write_and_commit(self, batch, applied, durability).await
    }

    async fn rollback(&mut self) {
        Self::rollback(self).await;
    }

    async fn await_position(&mut self) -> Result<(), ApplyError> {
        // It ends with a COMMIT.
        if self.transaction == Transaction::Open {
            return Err(ApplyError::Transaction {
                what: "wait for the position",
                source: ServerError::Lost("a transaction is open".into()),
            });
        }
        Ok(self.store.await_position(&self.session.client).await?)
    }

    async fn sibling(&self) -> Result<Self, ApplyError> {
        Self::sibling(self).await
    }

    async fn limit_lock_waits(&mut self, is_limited: bool) -> Result<(), ApplyError> {
        Self::limit_lock_waits(self, is_limited).await
    }

    async fn savepoint(&mut self, number: u32) -> Result<(), ApplyError> {
        Self::savepoint(self, number).await
    }

    async fn release_savepoint(&mut self, number: u32) -> Result<(), ApplyError> {
        Self::release_savepoint(self, number).await
    }

    async fn rollback_to(&mut self, number: u32) -> Result<(), ApplyError> {
        Self::rollback_to(self, number).await
    }

    fn has_witness(&self) -> bool {
        Self::has_witness(self)
    }

    fn flush(&self) -> Option<Flush> {
        Self::flush(self)
    }

    fn is_lost(&self) -> bool {
        Self::is_lost(self)
    }

    fn wrote_in_source_order(&self) -> bool {
        self.session.wrote_in_source_order
    }

    fn failed_key(&self) -> Option<&str> {
        Self::failed_key(self)
    }
}
