//! What is committed becomes durable, and only then is the source told.
//!
//! ```text
//!  idle ── commit ──▶ owed ── due ──▶ asked: all that is committed by now ── answer ──▶ told, idle
//!                      ▲                └── commit ──▶ asked, and owed ── answer ──▶ told ─┐
//!                      └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The witness (`apply/witness.rs`) is asked, and nothing waits for it. If it is lost, or does not do
//! it, the stream ends: the next start reads the position back, which is then what has survived. A
//! new witness would know nothing of commits before it.
//!
//! A position that moves without data is committed durably, and so are data where there is no witness.

use super::{Follower, ReplicaWriter};
use crate::apply::ApplyError;
use crate::faults::{self, Bug, planted};
use crate::pg::Lsn;
use crate::pipeline::PipelineError;
use crate::pipeline::durability::DurabilityClock;
use crate::progress::Durability;
use crate::telemetry::Chain;
use futures_util::FutureExt;
use std::future::pending;
use tokio::time::Instant;

/// What is committed and not durable.
pub(super) struct Disk<F> {
    pub(super) clock: DurabilityClock,
    /// Up to where all was committed when the witness was asked, and its answer.
    asked: Option<(Lsn, F)>,
}

impl<F: Future<Output = Result<(), ApplyError>> + Unpin> Disk<F> {
    pub(super) fn new(clock: DurabilityClock) -> Self {
        Self { clock, asked: None }
    }

    /// Up to where all is durable by the witness's word; never, if it was not asked. May be
    /// dropped and called again.
    pub(super) async fn answer(&mut self) -> Result<Lsn, ApplyError> {
        let Some((end, flush)) = &mut self.asked else {
            return pending().await;
        };
        let (end, answer) = (*end, flush.await);
        self.asked = None;
        answer.map(|()| match planted(Bug::VouchForLater) {
            true => self.clock.position(),
            false => end,
        })
    }

    /// Some of it is told as committed only.
    pub(super) fn is_behind(&self) -> bool {
        self.clock.is_owed() || self.asked.is_some()
    }
}

impl<W: ReplicaWriter> Follower<'_, W> {
    /// Something is to be made durable when it is due.
    pub(super) fn owes_the_disk(&self) -> bool {
        let may_begin = match self.disk.clock.has_witness() {
            true => self.disk.asked.is_none(),
            // It would end the transaction.
            false => !self.state.in_hand.is_part_written(),
        };
        self.disk.clock.is_owed() && may_begin
    }

    /// It is due.
    pub(super) async fn pay_the_disk(&mut self) -> Result<(), PipelineError> {
        match self.disk.clock.has_witness() {
            true => self.ask_witness().await,
            false => self.settle().await,
        }
    }

    /// The witness has answered.
    pub(super) async fn answered(
        &mut self,
        answer: Result<Lsn, ApplyError>,
    ) -> Result<(), PipelineError> {
        let flushed = answer.map_err(|error| match error.is_session_lost() {
            true => PipelineError::ReplicaLost,
            false => PipelineError::Waiting(Chain(&error).to_string()),
        })?;
        faults::at("follow.flushed").await?;
        self.state.positions.flush(flushed);
        self.tell_positions();
        Ok(())
    }

    /// Between batches, while there is always another one: takes an answer that is there, and asks
    /// when it is due. Waits for nothing.
    pub(super) async fn look_after_the_disk(&mut self) -> Result<(), PipelineError> {
        if let Some(answer) = self.disk.answer().now_or_never() {
            self.answered(answer).await?;
        }
        let clock = &self.disk.clock;
        if clock.has_witness() && self.owes_the_disk() && clock.due() <= Instant::now() {
            self.ask_witness().await?;
        }
        Ok(())
    }

    async fn ask_witness(&mut self) -> Result<(), PipelineError> {
        if let Some(flush) = self.applier.flush() {
            let end = self.disk.clock.begin_flush(Instant::now());
            self.disk.asked = Some((end, flush));
            // The first poll sends it.
            if let Some(answer) = self.disk.answer().now_or_never() {
                self.answered(answer).await?;
            }
            faults::at("follow.flush_asked").await?;
        }
        Ok(())
    }

    pub(super) async fn committed(
        &mut self,
        end: Lsn,
        durability: Durability,
    ) -> Result<(), PipelineError> {
        let now = Instant::now();
        self.disk.clock.committed(end, durability, now);
        self.state.positions.commit(end, durability);
        self.tell_positions();
        self.look_after_the_disk().await
    }

    /// Moves the position alone, by a commit that waits for the disk.
    pub(super) async fn commit_position(&mut self, end: Lsn) -> Result<(), PipelineError> {
        let committed = self.applier.commit(end, Durability::Durable).await;
        committed.map_err(|source| self.failed(end, false, source))?;
        faults::at("follow.settled").await?;
        self.committed(end, Durability::Durable).await
    }

    /// Makes durable what commits before have left.
    pub(super) async fn settle(&mut self) -> Result<(), PipelineError> {
        match self.state.positions.applied {
            Some(applied) => self.commit_position(applied).await,
            None => Ok(()),
        }
    }
}
