//! Transactions that arrive while they run: each goes into a replica transaction of its own, on a
//! session of its own, and is nearly applied when it commits.
//!
//! ```text
//!  stream:  … Commit │ segment of 700 │ Begin … Commit │ segment of 700 │ StreamCommit 700 │ …
//!  main     COMMIT   │ idle           │ COMMIT         │ idle           │ COMMIT if need be│
//!  sibling           │ writes         │ idle           │ writes         │ position, COMMIT │
//! ```
//!
//! What came before a segment is committed before anything of it is written: its rows may be
//! those that others have left. Never do two of our sessions have a statement under way, so each
//! finds all that was committed; and one that waits for another's transaction would do so for
//! ever, which a lock time-out tells.
//!
//! Nothing here is booked as an error, for the transaction may yet roll back and has no position.
//! Whatever stands in the way ends the attempt, and the next one takes transactions whole.

use super::taking::Errand;
use super::{Committed, Follower, ReplicaWriter};
use crate::apply::{ApplyError, Written};
use crate::faults::{self, Bug, planted};
use crate::pg::{Change, Lsn};
use crate::pgoutput::Message;
use crate::pipeline::PipelineError;
use crate::pipeline::lag::seconds_since;
use crate::pipeline::receipts::Receipts;
use crate::pipeline::streamed::{Step, Streamed, Undo, Wanted};
use crate::telemetry::{Chain, StreamedOutcome};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Transactions in progress, and the sessions that write them.
pub(super) struct Segments<W> {
    pub(super) known: Streamed,
    received: Receipts,
    writers: BTreeMap<u32, W>,
    /// Sessions whose transaction has ended.
    free: Vec<W>,
    at_once_max: usize,
}

impl<W: ReplicaWriter> Segments<W> {
    pub(super) fn new(at_once_max: usize) -> Self {
        Self {
            known: Streamed::default(),
            received: Receipts::default(),
            writers: BTreeMap::new(),
            free: Vec::new(),
            at_once_max,
        }
    }

    /// Ends every open transaction without a trace.
    pub(super) async fn rollback(&mut self) {
        for writer in self.writers.values_mut() {
            writer.rollback().await;
        }
    }

    /// Whether a transaction is being written that has not committed.
    pub(super) fn is_one_open(&self) -> bool {
        !self.writers.is_empty()
    }

    pub(super) fn is_one_lost(&self) -> bool {
        self.writers.values().any(ReplicaWriter::is_lost)
    }
}

impl<W: ReplicaWriter> Follower<'_, W> {
    /// Whether a message is one of a segment, or says what becomes of a transaction in progress.
    pub(super) fn is_streamed(&self, message: &Message) -> bool {
        self.segments.known.is_in_segment()
            || matches!(
                message,
                Message::StreamStart { .. }
                    | Message::StreamStop
                    | Message::StreamAbort { .. }
                    | Message::StreamCommit { .. }
            )
    }

    /// What to do for a message of a transaction in progress; most changes are only gathered.
    pub(super) fn take_streamed(
        &mut self,
        message: Message,
    ) -> Result<Option<Errand>, PipelineError> {
        if !self.state.in_hand.is_between_transactions() {
            return Err(PipelineError::OutOfOrder(
                "a transaction in progress within one that has committed",
            ));
        }
        match message {
            Message::Change {
                xid: Some(subxid),
                change,
            } => self.gather(subxid, change),
            Message::Relation { relation, .. } => {
                self.relations.expect_known(&relation)?;
                Ok(None)
            }
            // A type's name concerns a relation, and that has to be known.
            Message::Type { .. } | Message::Logical { .. } | Message::Origin { .. } => Ok(None),
            message => Ok(Some(Errand::Streamed(message))),
        }
    }

    pub(super) async fn run_streamed(&mut self, message: Message) -> Result<(), PipelineError> {
        match message {
            Message::StreamStart { xid, first_segment } => {
                if !planted(Bug::SegmentBeforeCommits) {
                    self.commit_whole().await?;
                }
                self.segments.known.start(xid, first_segment)
            }
            Message::StreamStop => {
                self.write_gathered().await?;
                self.segments.known.stop()
            }
            Message::StreamAbort { xid, subxid, .. } => self.abort(xid, subxid).await,
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time_us,
            } => {
                let committed = Committed {
                    commit_lsn,
                    end: end_lsn,
                    time_us: commit_time_us,
                };
                self.commit_streamed(xid, committed).await
            }
            _ => Err(PipelineError::OutOfOrder(
                "what belongs to no segment came within one",
            )),
        }
    }

    fn gather(&mut self, subxid: u32, change: Change) -> Result<Option<Errand>, PipelineError> {
        let Some(wanted) = Wanted::of(&self.relations, change)? else {
            return Ok(None);
        };
        let xid = self.segments.known.segment()?;
        for mapping in wanted.tables() {
            let received = &mut self.segments.received;
            received.note(xid, subxid, mapping.relation.id);
        }
        match self.segments.known.next_step(subxid)? {
            Step::Gather => {
                self.segments.known.gather(wanted);
                let is_full = self.segments.known.is_full(self.settings);
                Ok(is_full.then_some(Errand::WriteGathered))
            }
            step => Ok(Some(Errand::Step(step, wanted))),
        }
    }

    /// What a change needs first, and then the change.
    pub(super) async fn step(&mut self, step: Step, wanted: Wanted) -> Result<(), PipelineError> {
        match step {
            Step::Gather => {}
            Step::Savepoint(subxid) => {
                self.write_gathered().await?;
                let done = self.writer().await?.savepoint(subxid).await;
                done.map_err(|error| self.refused(error))?;
            }
            Step::Release(subxid) => {
                let done = self.writer().await?.release_savepoint(subxid).await;
                done.map_err(|error| self.refused(error))?;
            }
        }
        self.segments.known.stepped(step);
        self.segments.known.gather(wanted);
        if self.segments.known.is_full(self.settings) {
            self.write_gathered().await?;
        }
        Ok(())
    }

    pub(super) async fn write_gathered(&mut self) -> Result<(), PipelineError> {
        let Some(batch) = self.segments.known.take_gathered() else {
            return Ok(());
        };
        if planted(Bug::LosePart) {
            return Ok(());
        }
        let written = self.writer().await?.write(&batch).await;
        let written = written.map_err(|error| self.refused(error))?;
        self.segments.known.wrote(written);
        self.telemetry.progressed();
        faults::at("streamed.part_written").await?;
        Ok(())
    }

    /// The session of the transaction whose segment is open.
    async fn writer(&mut self) -> Result<&mut W, PipelineError> {
        let xid = self.segments.known.segment()?;
        if !self.segments.writers.contains_key(&xid) {
            let open = self.segments.writers.len();
            if open >= self.segments.at_once_max {
                return Err(PipelineError::TakeWhole(format!(
                    "more than {open} are in progress at once"
                )));
            }
            if open == 0 {
                let limited = self.applier.limit_lock_waits(true).await;
                limited.map_err(|error| self.refused(error))?;
            }
            self.segments.free.retain(|writer| !writer.is_lost());
            let writer = match self.segments.free.pop() {
                Some(writer) => writer,
                None => self.applier.sibling().await.map_err(take_whole)?,
            };
            self.segments.writers.insert(xid, writer);
        }
        let writer = self.segments.writers.get_mut(&xid);
        writer.ok_or(PipelineError::ReplicaLost)
    }

    async fn abort(&mut self, xid: u32, subxid: u32) -> Result<(), PipelineError> {
        self.segments.received.abort(xid, subxid);
        match self.segments.known.abort(xid, subxid)? {
            Undo::Nothing => {}
            Undo::To(_) if planted(Bug::KeepAborted) => {}
            Undo::To(subxid) => {
                if let Some(writer) = self.segments.writers.get_mut(&xid) {
                    let done = writer.rollback_to(subxid).await;
                    done.map_err(|error| self.refused(error))?;
                }
            }
            Undo::All => {
                if let Some(writer) = self.segments.writers.get_mut(&xid) {
                    writer.rollback().await;
                }
                self.telemetry.streamed(StreamedOutcome::RolledBack);
            }
        }
        if subxid == xid {
            self.release(xid).await?;
        }
        Ok(())
    }

    async fn commit_streamed(&mut self, xid: u32, last: Committed) -> Result<(), PipelineError> {
        self.commit_whole().await?;
        self.state.in_hand.commit_streamed(last)?;
        for (relation, changes) in self.segments.received.commit(xid) {
            self.relations.tell_received(relation, changes);
        }
        let Some(written) = self.segments.known.commit(xid)? else {
            self.state.idle_end = self.state.idle_end.max(Some(last.end));
            return Ok(());
        };
        let started = Instant::now();
        let durability = self.disk.clock.next(started);
        let Some(writer) = self.segments.writers.get_mut(&xid) else {
            // The position must not move past what nobody commits.
            return Err(PipelineError::OutOfOrder(
                "a transaction commits whose session is not known",
            ));
        };
        let committed = writer.commit(last.end, durability).await;
        committed.map_err(|source| match source {
            // Whose it is, and whether it came through, the next attempt learns.
            ApplyError::Progress(_) => PipelineError::Apply {
                at: last.commit_lsn,
                is_alone: true,
                source,
            },
            source => self.refused(source),
        })?;
        faults::at("streamed.committed").await?;
        self.committed(last.end, durability).await?;
        self.tell_streamed(written, started);
        self.telemetry
            .observe_end_to_end(seconds_since(last.time_us));
        self.release(xid).await
    }

    fn tell_streamed(&mut self, written: Vec<Written>, started: Instant) {
        self.state.written = written;
        self.tell_written(1, started);
        self.telemetry.streamed(StreamedOutcome::Committed);
    }

    /// A transaction in progress is over, and its session free.
    async fn release(&mut self, xid: u32) -> Result<(), PipelineError> {
        let Some(writer) = self.segments.writers.remove(&xid) else {
            return Ok(());
        };
        self.segments.free.push(writer);
        if self.segments.writers.is_empty() {
            let unlimited = self.applier.limit_lock_waits(false).await;
            unlimited.map_err(|error| self.refused(error))?;
        }
        Ok(())
    }

    /// A transaction in progress cannot be written; or the replica is gone, which is nobody's fault.
    fn refused(&self, error: ApplyError) -> PipelineError {
        if error.is_session_lost() {
            return PipelineError::Apply {
                at: self.in_hand_from(),
                is_alone: false,
                source: error,
            };
        }
        take_whole(error)
    }

    /// What ends an attempt whose main session could not write. While others have transactions
    /// open, a wait that lasts may be for one of those.
    pub(super) fn failed(&self, at: Lsn, is_alone: bool, source: ApplyError) -> PipelineError {
        if !self.segments.writers.is_empty() && source.sqlstate() == Some("55P03") {
            return take_whole(source);
        }
        PipelineError::Apply {
            at,
            is_alone,
            source,
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` has it")]
fn take_whole(error: ApplyError) -> PipelineError {
    PipelineError::TakeWhole(Chain(&error).to_string())
}
