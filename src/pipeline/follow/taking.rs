//! Takes what the source said, a message at a time. Most need nothing but memory; where a server has
//! to be asked first, or room to be made, it is an errand.

use super::{Committed, Follower, Received, ReplicaWriter};
use crate::faults::{Bug, planted};
use crate::pg::{Change, Relation};
use crate::pgoutput::Message;
use crate::pipeline::PipelineError;
use crate::pipeline::receive::Event;
use crate::pipeline::streamed::{Step, Wanted};

/// What has to be done before the next message.
pub(super) enum Errand {
    /// The batch up to its last commit is written.
    CommitWhole,
    /// The batch is full in the middle of a transaction.
    KeepWithinBounds,
    /// A table is described anew.
    Learn(Relation),
    /// A description that was put aside is needed from this change on.
    ReadForms(Change),
    /// A transaction in progress begins, stops, or ends.
    Streamed(Message),
    /// A subtransaction of one begins, or others are over; then its change.
    Step(Step, Wanted),
    /// What is gathered of one is full.
    WriteGathered,
}

impl<W: ReplicaWriter> Follower<'_, W> {
    pub(super) fn take(&mut self, event: Event) -> Result<Option<Errand>, PipelineError> {
        let message = match event {
            Event::SentUpTo { end, is_awaited } => {
                let is_within = !self.state.in_hand.is_between_transactions()
                    || self.segments.known.is_in_segment();
                if !is_within || planted(Bug::AcknowledgeWithinTransaction) {
                    self.state.idle_end = self.state.idle_end.max(Some(end));
                    self.state.is_awaited |= is_awaited;
                }
                return Ok(None);
            }
            Event::Message(message) => message,
        };
        if self.is_streamed(&message) {
            return self.take_streamed(message);
        }
        match message {
            Message::Begin { final_lsn, xid, .. } => {
                self.state.in_hand.begin(Received {
                    commit_lsn: final_lsn,
                    xid,
                    skipped_by: self.skips.get(&final_lsn).copied(),
                })?;
                Ok(None)
            }
            Message::Change { change, .. } if self.relations.has_unread() => {
                Ok(Some(Errand::ReadForms(change)))
            }
            Message::Change { change, .. } => {
                let is_full = self.take_change(change)?;
                Ok(is_full.then_some(Errand::KeepWithinBounds))
            }
            Message::Commit {
                commit_lsn,
                end_lsn,
                commit_time_us,
            } => self.take_commit(Committed {
                commit_lsn,
                end: end_lsn,
                time_us: commit_time_us,
            }),
            other => self.take_description(other),
        }
    }

    /// True when the batch is full.
    fn take_change(&mut self, change: Change) -> Result<bool, PipelineError> {
        self.state.in_hand.change(&self.relations, change)?;
        Ok(self.state.in_hand.is_full(self.settings))
    }

    fn take_commit(&mut self, last: Committed) -> Result<Option<Errand>, PipelineError> {
        let in_hand = &mut self.state.in_hand;
        if !in_hand.commit(last)? {
            // Nothing of it concerns the replica; nothing before it waits.
            self.state.idle_end = self.state.idle_end.max(Some(last.end));
            return Ok(None);
        }
        let is_due = self.trouble.is_some()
            || in_hand.is_part_written()
            || in_hand.is_full(self.settings)
            || self.state.batch_size.is_reached(in_hand.len());
        Ok(is_due.then_some(Errand::CommitWhole))
    }

    fn take_description(&mut self, message: Message) -> Result<Option<Errand>, PipelineError> {
        self.state.in_hand.check_place(&message)?;
        match message {
            Message::Relation { relation, .. } => {
                let is_new = self.relations.is_new(&relation);
                Ok(is_new.then_some(Errand::Learn(relation)))
            }
            Message::Type { oid, name, .. } => {
                self.relations.learn_type(oid, name);
                Ok(None)
            }
            // Logical messages are the source's own; an origin says where a transaction came
            // from, and it is applied all the same.
            Message::Logical { .. } | Message::Origin { .. } => Ok(None),
            _ => Err(PipelineError::OutOfOrder(
                "a prepared transaction was not asked for",
            )),
        }
    }

    pub(super) async fn run_errand(&mut self, errand: Errand) -> Result<(), PipelineError> {
        match errand {
            Errand::CommitWhole => self.commit_whole().await,
            Errand::KeepWithinBounds => self.keep_within_bounds().await,
            Errand::Learn(relation) => {
                // Statements of the old version must be on their way before the new one's.
                self.write_out().await?;
                let transaction = self.state.in_hand.transaction();
                self.relations.learn(relation, transaction).await
            }
            Errand::ReadForms(change) => {
                self.read_forms(&change).await?;
                match self.take_change(change)? {
                    true => self.keep_within_bounds().await,
                    false => Ok(()),
                }
            }
            Errand::Streamed(message) => self.run_streamed(message).await,
            Errand::Step(step, wanted) => self.step(step, wanted).await,
            Errand::WriteGathered => self.write_gathered().await,
        }
    }

    /// Descriptions that were put aside are needed from the first change on that is not in the copy.
    async fn read_forms(&mut self, change: &Change) -> Result<(), PipelineError> {
        let transaction = self.state.in_hand.transaction();
        for id in change.relations() {
            if transaction.is_some_and(|t| self.relations.is_unread(*id, t.commit_lsn)) {
                self.write_out().await?;
                self.relations.learn_unread(*id, transaction).await?;
            }
        }
        Ok(())
    }
}
