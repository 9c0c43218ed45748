//! Follows the stream: gathers changes into batches and has them applied.
//!
//! Natural batching: while the replica works on one batch, the next one waits in the
//! inbox; whatever is there when the replica is free becomes the next batch. An idle
//! replica gets a transaction at once, a busy one gets many together.
//!
//! ```text
//!  events ─▶ batch ──────────────┬─ commit ─┬─ more of the next one ─▶
//!                                │ whole    │ tail: not committed, waits for its end
//!  at the inbox's end, or when full: the whole part is committed, the tail is kept
//!  a tail that alone is full is written as a part of an open transaction
//! ```

use super::PipelineError;
use super::receive::{Chunk, Event, Inbox};
use super::relations::{Entry, Relations};
use super::source_watch::SourceWatch;
use crate::apply::{Applier, ApplyError, Batch, RowChange, Settings, Written};
use crate::pg::{Change, Lsn, Tuple};
use crate::pgoutput::Message;
use crate::progress::Positions;
use crate::telemetry::{PipelineState, Telemetry};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Positions without data are written this often.
const IDLE_ADVANCE_EVERY: Duration = Duration::from_secs(10);

/// What a start hands over.
pub(crate) struct Streams {
    pub(crate) inbox: Inbox,
    pub(crate) applier: Applier,
    pub(crate) relations: Relations,
    pub(crate) watch: SourceWatch,
}

/// The one owner of a running stream.
pub(crate) struct Follower<'a> {
    inbox: Inbox,
    applier: Applier,
    relations: Relations,
    watch: SourceWatch,
    settings: &'a Settings,
    telemetry: &'a Telemetry,
    /// Every table is past its copy.
    is_streaming: bool,
    state: State,
}

/// Why a stream ended, other than by an error.
enum Ended {
    Shutdown,
    /// The receiver is gone, and knows why.
    NothingMoreComes,
}

/// What is in hand. Invariant after each action: `whole` ends at a commit of the source.
struct State {
    batch: Batch,
    /// Items, bytes and transactions of `batch` up to its last commit, and that commit's end.
    whole: Whole,
    /// Bytes that arrived since the batch began: its rows keep all of those alive.
    held_bytes: usize,
    /// The transaction that is being received.
    transaction: Option<Received>,
    /// Part of the transaction is written and not committed.
    is_part_written: bool,
    positions: Positions,
    /// Everything before it is known to need nothing; not yet written down.
    idle_end: Option<Lsn>,
    idle_written_at: Instant,
    last_commit_time_us: Option<i64>,
    /// What the open transaction wrote, told once it is committed.
    written: Vec<Written>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    items: usize,
    bytes: usize,
    transactions: u64,
    end: Option<Lsn>,
}

/// The transaction between Begin and Commit.
#[derive(Clone, Copy, Debug)]
struct Received {
    commit_lsn: Lsn,
    xid: u32,
}

impl<'a> Follower<'a> {
    pub(crate) fn new(
        streams: Streams,
        applied: Lsn,
        settings: &'a Settings,
        telemetry: &'a Telemetry,
    ) -> Self {
        let state = State {
            batch: Batch::default(),
            whole: Whole::default(),
            held_bytes: 0,
            transaction: None,
            is_part_written: false,
            positions: Positions::resumed_at(applied),
            idle_end: None,
            idle_written_at: Instant::now(),
            last_commit_time_us: None,
            written: Vec::new(),
        };
        let Streams {
            inbox,
            applier,
            relations,
            watch,
        } = streams;
        Self {
            inbox,
            applier,
            relations,
            watch,
            settings,
            telemetry,
            is_streaming: false,
            state,
        }
    }

    /// Runs until shut down, or until something fails.
    pub(crate) async fn run(mut self, shutdown: &CancellationToken) -> Result<(), PipelineError> {
        let ended = self.follow(shutdown).await;
        // A transaction that is half written goes: its end has not been seen.
        self.applier.rollback().await;
        self.relations.forget_pending();
        match ended {
            Ok(Ended::Shutdown) => {
                self.inbox.close().await;
                Ok(())
            }
            Ok(Ended::NothingMoreComes) => Err(self.inbox.reason().await),
            Err(error) => {
                self.inbox.close().await;
                Err(error)
            }
        }
    }

    async fn follow(&mut self, shutdown: &CancellationToken) -> Result<Ended, PipelineError> {
        self.tell_positions();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                chunk = self.inbox.chunks.recv() => match chunk {
                    Some(chunk) => self.take_all(chunk).await?,
                    None => return Ok(Ended::NothingMoreComes),
                },
                name = self.watch.table_left() => {
                    return Err(PipelineError::TableLeft(name.to_string()));
                }
                _ = tick.tick() => self.advance_idle().await?,
            }
            // Only here: while a batch hangs, nothing pretends otherwise.
            self.telemetry.progressed();
        }
    }

    /// Takes a chunk and whatever else has arrived, then commits what is whole.
    async fn take_all(&mut self, chunk: Chunk) -> Result<(), PipelineError> {
        let mut next = Some(chunk);
        let committed = self.state.positions.applied;
        while let Some(chunk) = next {
            self.state.held_bytes += chunk.bytes;
            for event in chunk.events {
                self.take(event).await?;
            }
            // After a commit others get their turn: shutdown, and whoever watches progress.
            let is_turn_over = self.state.positions.applied > committed;
            next = if is_turn_over {
                None
            } else {
                self.inbox.chunks.try_recv().ok()
            };
        }
        self.commit_whole().await?;
        self.advance_idle().await
    }

    async fn take(&mut self, event: Event) -> Result<(), PipelineError> {
        let message = match event {
            Event::SentUpTo(end) => {
                if self.state.transaction.is_none() {
                    self.state.idle_end = self.state.idle_end.max(Some(end));
                }
                return Ok(());
            }
            Event::Message(message) => message,
        };
        match message {
            Message::Begin { final_lsn, xid, .. } => {
                if self.state.transaction.is_some() {
                    return Err(PipelineError::OutOfOrder(
                        "a transaction begins within another",
                    ));
                }
                self.state.transaction = Some(Received {
                    commit_lsn: final_lsn,
                    xid,
                });
                Ok(())
            }
            Message::Change { change, .. } => {
                self.take_change(change)?;
                self.keep_within_bounds().await
            }
            Message::Commit {
                end_lsn,
                commit_time_us,
                ..
            } => self.take_commit(end_lsn, commit_time_us).await,
            Message::Relation { relation, .. } => {
                if self.relations.is_new(&relation) {
                    // Statements of the old version must be on their way before the new one's.
                    self.write_out().await?;
                    let xid = self.state.transaction.map(|t| t.xid);
                    self.relations.learn(relation, xid).await?;
                }
                Ok(())
            }
            Message::Type { oid, name, .. } => {
                self.relations.learn_type(oid, name);
                Ok(())
            }
            // Logical messages are the source's own; an origin says where a transaction came
            // from, and it is applied all the same.
            Message::Logical { .. } | Message::Origin { .. } => Ok(()),
            _ => Err(PipelineError::OutOfOrder(
                "a streamed or prepared transaction was not asked for",
            )),
        }
    }

    fn take_change(&mut self, change: Change) -> Result<(), PipelineError> {
        let Some(transaction) = self.state.transaction else {
            return Err(PipelineError::OutOfOrder("a change outside a transaction"));
        };
        let batch = &mut self.state.batch;
        let mut push = |relations: &Relations, id, change: RowChange| {
            match relations.entry(id) {
                None => return Err(PipelineError::OutOfOrder("a change of an unknown table")),
                Some(Entry::Mapped(table)) if table.state.wants(transaction.commit_lsn) => {
                    check_width(&change, table.mapping.relation.columns.len())?;
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
            Change::Insert { relation, new } => {
                push(&self.relations, relation, RowChange::Insert { new })
            }
            Change::Update { relation, old, new } => {
                push(&self.relations, relation, RowChange::Update { old, new })
            }
            Change::Delete { relation, old } => {
                push(&self.relations, relation, RowChange::Delete { old })
            }
            Change::Truncate {
                relations,
                restart_identity,
                ..
            } => {
                let mut numbers = Vec::new();
                for id in relations {
                    if let Some(Entry::Mapped(table)) = self.relations.entry(id)
                        && table.state.wants(transaction.commit_lsn)
                    {
                        table.telemetry.received(1);
                        numbers.push(batch.table(&table.mapping));
                    }
                }
                if !numbers.is_empty() {
                    batch.push_truncate(numbers, restart_identity);
                }
                Ok(())
            }
        }
    }

    async fn take_commit(&mut self, end: Lsn, time_us: i64) -> Result<(), PipelineError> {
        if self.state.transaction.take().is_none() {
            return Err(PipelineError::OutOfOrder("a commit without a transaction"));
        }
        let batch = &self.state.batch;
        let whole = &mut self.state.whole;
        if batch.is_empty() && !self.state.is_part_written {
            self.state.held_bytes = 0;
            // Nothing of it concerns the replica; nothing before it waits.
            self.state.idle_end = self.state.idle_end.max(Some(end));
            return Ok(());
        }
        *whole = Whole {
            items: batch.items.len(),
            bytes: batch.bytes,
            transactions: whole.transactions + 1,
            end: Some(end),
        };
        let whole = *whole;
        self.state.last_commit_time_us = Some(time_us);
        if self.state.is_part_written || self.is_full(whole.items, whole.bytes) {
            self.commit_whole().await?;
        }
        Ok(())
    }

    fn is_full(&self, items: usize, bytes: usize) -> bool {
        items >= self.settings.batch_changes_max
            || bytes.max(self.state.held_bytes) >= self.settings.batch_bytes_max
    }

    /// In the middle of a transaction: commits what came before it, or writes a part of it.
    async fn keep_within_bounds(&mut self) -> Result<(), PipelineError> {
        if !self.is_full(self.state.batch.items.len(), self.state.batch.bytes) {
            return Ok(());
        }
        if self.state.whole.end.is_some() {
            self.commit_whole().await
        } else {
            self.write_part().await
        }
    }

    /// Everything in hand goes to the replica: whole transactions committed, the rest as a part.
    async fn write_out(&mut self) -> Result<(), PipelineError> {
        self.commit_whole().await?;
        if self.state.batch.is_empty() {
            Ok(())
        } else {
            self.write_part().await
        }
    }

    async fn write_part(&mut self) -> Result<(), PipelineError> {
        let batch = std::mem::take(&mut self.state.batch);
        let at = self
            .state
            .transaction
            .map_or(self.in_hand_from(), |t| t.commit_lsn);
        let written = self.applier.write(&batch).await;
        let written = written.map_err(|source| PipelineError::Apply { at, source })?;
        self.state.is_part_written = true;
        self.state.held_bytes = 0;
        self.state.written.extend(written);
        self.telemetry.progressed();
        Ok(())
    }

    /// Commits up to the last commit of the source; keeps what came after.
    async fn commit_whole(&mut self) -> Result<(), PipelineError> {
        let whole = std::mem::take(&mut self.state.whole);
        let Some(end) = whole.end else { return Ok(()) };
        let started = Instant::now();
        let mut batch = std::mem::take(&mut self.state.batch);
        self.state.batch = batch.split_off(whole.items, whole.bytes);
        self.state.held_bytes = self.state.batch.bytes;
        self.write_and_commit(batch, end)
            .await
            .map_err(|source| PipelineError::Apply { at: end, source })?;
        self.state.is_part_written = false;
        self.state.positions.commit(end);
        self.tell_positions();
        self.tell_written(whole.transactions, started);
        Ok(())
    }

    async fn write_and_commit(&mut self, batch: Batch, end: Lsn) -> Result<(), ApplyError> {
        if !batch.is_empty() {
            let written = self.applier.write(&batch).await?;
            self.state.written.extend(written);
        }
        self.applier.commit(end).await
    }

    /// With nothing in hand, all that the source has sent counts as applied. In memory at
    /// once; on the replica (and so for the slot) every now and then.
    async fn advance_idle(&mut self) -> Result<(), PipelineError> {
        let is_idle = self.state.batch.is_empty()
            && self.state.transaction.is_none()
            && !self.state.is_part_written;
        let Some(end) = self.state.idle_end.filter(|_| is_idle) else {
            return Ok(());
        };
        let is_news = Some(end) > self.state.positions.flushed;
        if !is_news {
            self.state.idle_end = None;
            return Ok(());
        }
        if self.state.idle_written_at.elapsed() >= IDLE_ADVANCE_EVERY {
            let advanced = self.applier.commit(end).await;
            advanced.map_err(|source| PipelineError::Apply { at: end, source })?;
            self.state.idle_written_at = Instant::now();
            self.state.idle_end = None;
            self.state.positions.commit(end);
            self.tell_positions();
        } else if Some(end) > self.state.positions.applied {
            self.state.positions.applied = Some(end);
            self.tell_positions();
        }
        Ok(())
    }

    fn in_hand_from(&self) -> Lsn {
        self.state
            .positions
            .applied
            .unwrap_or(self.relations.resumed_at)
    }

    fn tell_positions(&mut self) {
        let positions = self.state.positions;
        self.inbox.positions.send_replace(positions);
        if let Some(applied) = positions.applied {
            self.telemetry.set_applied(applied);
            if !self.is_streaming && self.relations.tell_ready(applied) {
                self.is_streaming = true;
                self.telemetry.set_state(PipelineState::Streaming, None);
                tracing::info!(%applied, "every table is in step: streaming");
            }
        }
        if let Some(flushed) = positions.flushed {
            self.telemetry.set_flushed(flushed);
        }
    }

    fn tell_written(&mut self, transactions: u64, started: Instant) {
        self.telemetry.transaction_applied(transactions);
        self.telemetry
            .observe_batch(started.elapsed().as_secs_f64());
        for written in self.state.written.drain(..) {
            self.relations.tell_written(&written);
        }
        if let Some(commit_time_us) = self.state.last_commit_time_us.take() {
            self.telemetry
                .observe_end_to_end(seconds_since(commit_time_us));
        }
    }
}

/// A row must have the columns that its table was last said to have.
fn check_width(change: &RowChange, columns: usize) -> Result<(), PipelineError> {
    let fits = |tuple: &Tuple| tuple.len() == columns;
    let is_new_right = change.new_tuple().is_none_or(fits);
    let is_old_right = change.old_tuple().is_none_or(|old| fits(old.tuple()));
    if is_new_right && is_old_right {
        return Ok(());
    }
    Err(PipelineError::OutOfOrder(
        "a row has another number of columns than its table",
    ))
}

/// Seconds from a commit on the source to now; by two clocks, so never below zero.
fn seconds_since(commit_time_us: i64) -> f64 {
    /// 2000-01-01 in seconds since 1970.
    const EPOCH: u64 = 946_684_800;
    let committed = std::time::UNIX_EPOCH
        + Duration::from_secs(EPOCH)
        + Duration::from_micros(u64::try_from(commit_time_us).unwrap_or(0));
    committed.elapsed().map_or(0.0, |age| age.as_secs_f64())
}
