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
//!
//! What the source sends of transactions that have not committed goes another way: `segments.rs`.

mod cutting;
mod disk;
mod segments;
mod taking;
mod telling;

use self::cutting::{PendingCut, placed};
use self::disk::Disk;
use self::segments::Segments;
use super::PipelineError;
use super::batch_size::BatchSize;
use super::cut::Cuts;
use super::durability::DurabilityClock;
use super::in_hand::{Committed, InHand, Received, WholeBatch};
use super::lag::seconds_since;
use super::quarantine::{self, Books};
use super::receive::{Chunk, Inbox};
use super::relations::Relations;
use super::trouble::Trouble;
use super::watch::Watch;
use crate::apply::{Applier, ApplyError, Batch, ReplicaWriter, Settings, Written};
use crate::faults::{self, Bug, planted};
use crate::pg::{Lsn, RelationId, ValueFormat};
use crate::progress::{Durability, Positions};
use crate::telemetry::{Chain, Telemetry};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

/// Positions without data are written this often, and this often while the source waits for it.
const IDLE_ADVANCE_EVERY: Duration = Duration::from_secs(10);
const AWAITED_ADVANCE_EVERY: Duration = Duration::from_secs(1);

/// What a start hands over.
pub(crate) struct Streams<W = Applier> {
    pub(crate) inbox: Inbox,
    pub(crate) applier: W,
    pub(crate) relations: Relations,
    pub(crate) watch: Watch,
    /// None where nobody keeps any: in the simulation.
    pub(crate) books: Option<Books>,
    /// Transactions at most that are written while they run; 0 where none is sent so.
    pub(crate) in_progress_max: usize,
}

/// The one owner of a running stream.
pub(crate) struct Follower<'a, W: ReplicaWriter = Applier> {
    inbox: Inbox,
    applier: W,
    segments: Segments<W>,
    relations: Relations,
    watch: Watch,
    books: Option<Books>,
    /// Transactions that an operator wants passed by: the commit record and the error of each.
    skips: HashMap<Lsn, i64>,
    settings: &'a Settings,
    telemetry: &'a Telemetry,
    /// Every table is past its copy.
    is_streaming: bool,
    /// An attempt before failed; until the replica is beyond that, it goes a transaction at a time.
    trouble: Option<Trouble>,
    state: State,
    disk: Disk<W::Flush>,
    cut: Option<PendingCut>,
}

/// Why a stream ended, other than by an error.
enum Ended {
    Shutdown,
    /// The receiver is gone, and knows why.
    NothingMoreComes,
}

/// How far it is.
struct State {
    in_hand: InHand,
    batch_size: BatchSize,
    positions: Positions,
    /// Everything before it is known to need nothing; not yet written down.
    idle_end: Option<Lsn>,
    idle_written_at: Instant,
    /// The source waits for it.
    is_awaited: bool,
    /// What the open transaction wrote, told once it is committed.
    written: Vec<Written>,
    /// Changes it put into the books, by table.
    kept: BTreeMap<RelationId, u64>,
}

impl<'a, W: ReplicaWriter> Follower<'a, W> {
    pub(crate) fn new(
        streams: Streams<W>,
        applied: Lsn,
        settings: &'a Settings,
        telemetry: &'a Telemetry,
    ) -> Self {
        let state = State {
            in_hand: InHand::after(applied),
            batch_size: BatchSize::unlimited(),
            positions: Positions::resumed_at(applied),
            idle_end: None,
            idle_written_at: Instant::now(),
            is_awaited: false,
            written: Vec::new(),
            kept: BTreeMap::new(),
        };
        let Streams {
            inbox,
            applier,
            relations,
            watch,
            books,
            in_progress_max,
        } = streams;
        let clock = DurabilityClock::new(applied, applier.has_witness(), Instant::now());
        Self {
            inbox,
            applier,
            segments: Segments::new(in_progress_max),
            relations,
            watch,
            skips: books.as_ref().map(Books::skips).unwrap_or_default(),
            books,
            settings,
            telemetry,
            is_streaming: false,
            trouble: None,
            state,
            disk: Disk::new(clock),
            cut: None,
        }
    }

    /// Says what an attempt before has met.
    pub(crate) fn after(self, trouble: Option<Trouble>) -> Self {
        Self { trouble, ..self }
    }

    /// Runs until shut down, or until something fails.
    pub(crate) async fn run(
        mut self,
        shutdown: &CancellationToken,
        cuts: &mut Cuts,
    ) -> Result<(), PipelineError> {
        let ended = self.follow(shutdown, cuts).await;
        if ended.is_ok() {
            self.reconcile();
        }
        // A transaction that is half written goes: its end has not been seen.
        self.applier.rollback().await;
        self.segments.rollback().await;
        self.relations.discard_pending();
        let ended = match ended {
            Err(error) => Err(self.book(error).await),
            ended => ended,
        };
        match ended {
            Ok(Ended::Shutdown) => {
                if self.disk.is_behind() {
                    // Only so that the source is told: what fails here is seen at the next start.
                    let _ = self.settle().await;
                }
                self.inbox.close().await;
                Ok(())
            }
            Ok(Ended::NothingMoreComes) => {
                let format = self.relations.format();
                Err(unless_binary(format, self.inbox.reason().await))
            }
            Err(error) => {
                self.inbox.close().await;
                Err(error)
            }
        }
    }

    async fn book(&self, error: PipelineError) -> PipelineError {
        // What is wrong with a value is told by the text it came in.
        if self.relations.format() == ValueFormat::Binary
            && let PipelineError::Apply { source, .. } = &error
            && source.may_be_about_values()
        {
            return PipelineError::TakeText(Chain(source).to_string());
        }
        let on_error = self.settings.on_error;
        let error = match &self.books {
            Some(books) => {
                let key = self.applier.failed_key();
                quarantine::book(&books.store, on_error, &self.relations, key, error).await
            }
            None => error,
        };
        if let PipelineError::Apply { source, .. } = &error
            && error.failed_at().is_some()
            && let Some(table) = source.table()
        {
            self.relations.tell_errored(table);
        }
        error
    }

    async fn follow(
        &mut self,
        shutdown: &CancellationToken,
        cuts: &mut Cuts,
    ) -> Result<Ended, PipelineError> {
        self.tell_positions();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.disk.clock.due();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                // Before the chunks: of these there may always be more.
                ended = self.watch.ended() => return Err(ended),
                answer = self.disk.answer() => self.answered(answer).await?,
                () = sleep_until(due), if self.owes_the_disk() => self.pay_the_disk().await?,
                _ = tick.tick() => {
                    if self.applier.is_lost() || self.segments.is_one_lost() {
                        return Err(PipelineError::ReplicaLost);
                    }
                    self.telemetry.set_pool(self.relations.pool_health());
                    self.reconcile();
                    self.advance_idle().await?;
                }
                request = cuts.next(), if self.may_cut() => self.seek_cut(request),
                () = placed(&mut self.cut) => self.cut_where_all_is_applied().await?,
                chunk = self.inbox.chunks.recv() => match chunk {
                    Some(chunk) => self.take_all(chunk).await?,
                    None => return Ok(Ended::NothingMoreComes),
                },
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
            faults::at("follow.taken").await?;
            self.state.in_hand.hold(chunk.bytes);
            self.segments.known.hold(chunk.bytes);
            for event in chunk.events {
                self.cut_before(&event, chunk.arrived).await?;
                if let Some(errand) = self.take(event)? {
                    self.run_errand(errand).await?;
                }
            }
            // After a commit others get their turn: shutdown, and whoever watches progress. In a
            // segment there may be none for long.
            let is_turn_over =
                self.state.positions.applied > committed || self.segments.known.is_in_segment();
            next = if is_turn_over {
                None
            } else {
                self.inbox.chunks.try_recv().ok()
            };
        }
        self.commit_whole().await?;
        self.advance_idle().await?;
        self.cut_where_all_is_applied().await
    }

    /// In the middle of a transaction: commits what came before it, or writes a part of it.
    async fn keep_within_bounds(&mut self) -> Result<(), PipelineError> {
        let in_hand = &self.state.in_hand;
        match (in_hand.is_full(self.settings), in_hand.has_whole()) {
            (false, _) => Ok(()),
            (true, true) => self.commit_whole().await,
            (true, false) => self.write_part().await,
        }
    }

    /// Everything in hand goes to the replica: whole transactions committed, the rest as a part.
    async fn write_out(&mut self) -> Result<(), PipelineError> {
        self.commit_whole().await?;
        if self.state.in_hand.has_rows() {
            self.write_part().await?;
        }
        Ok(())
    }

    async fn write_part(&mut self) -> Result<(), PipelineError> {
        let transaction = self.state.in_hand.transaction();
        let at = transaction.map_or(self.in_hand_from(), |t| t.commit_lsn);
        let batch = self.state.in_hand.take_part();
        let written = self.write(&batch).await;
        written.map_err(|source| self.failed(at, true, source))?;
        self.telemetry.progressed();
        faults::at("follow.part_written").await?;
        self.look_after_the_disk().await
    }

    /// Commits up to the last commit of the source; keeps what came after.
    async fn commit_whole(&mut self) -> Result<(), PipelineError> {
        let Some(whole) = self.state.in_hand.take_whole() else {
            return Ok(());
        };
        let started = Instant::now();
        let durability = self.disk.clock.next(Instant::now());
        let done = self.write_and_commit(&whole, durability).await;
        let is_alone = whole.commit_times_us.len() == 1;
        done.map_err(|source| self.failed(whole.commit_lsn, is_alone, source))?;
        faults::at("follow.committed").await?;
        self.committed(whole.end, durability).await?;
        faults::at("follow.told").await?;
        self.tell_written(whole.commit_times_us.len() as u64, started);
        for time_us in whole.commit_times_us {
            self.telemetry.observe_end_to_end(seconds_since(time_us));
        }
        Ok(())
    }

    async fn write_and_commit(
        &mut self,
        whole: &WholeBatch,
        durability: Durability,
    ) -> Result<(), ApplyError> {
        if planted(Bug::PositionApart) && !self.state.in_hand.is_part_written() {
            self.applier.commit(whole.end, Durability::Durable).await?;
        }
        if whole.batch.is_empty() {
            return self.applier.commit(whole.end, durability).await;
        }
        let batch = &whole.batch;
        let done = self.applier.write_and_commit(batch, whole.end, durability);
        let written = done.await?;
        self.note(batch, written);
        Ok(())
    }

    async fn write(&mut self, batch: &Batch) -> Result<(), ApplyError> {
        let written = self.applier.write(batch).await?;
        self.note(batch, written);
        Ok(())
    }

    /// What a batch came to, until it is told.
    fn note(&mut self, batch: &Batch, written: Vec<Written>) {
        let in_source_order = self.applier.wrote_in_source_order();
        self.state.batch_size.written(in_source_order);
        self.state.written.extend(written);
        for change in &batch.kept {
            *self.state.kept.entry(change.source_oid).or_default() += 1;
        }
    }

    /// With nothing in hand, all that the source has sent counts as applied. In memory at
    /// once; on the replica (and so for the slot) every now and then.
    async fn advance_idle(&mut self) -> Result<(), PipelineError> {
        let Some(end) = self.state.idle_end.filter(|_| {
            self.state.in_hand.is_empty() || planted(Bug::AcknowledgeWithinTransaction)
        }) else {
            return Ok(());
        };
        let Some(end) = self.state.positions.idle(end) else {
            self.state.idle_end = None;
            self.state.is_awaited = false;
            return Ok(());
        };
        if end <= self.disk.clock.position() {
            // It is stored with the data; the disk is seen to.
            self.state.idle_end = None;
            self.state.is_awaited = false;
            return Ok(());
        }
        let every = match self.state.is_awaited {
            true => AWAITED_ADVANCE_EVERY,
            false => IDLE_ADVANCE_EVERY,
        };
        if self.state.idle_written_at.elapsed() >= every {
            self.commit_position(end).await?;
            self.state.idle_written_at = Instant::now();
            self.state.idle_end = None;
            self.state.is_awaited = false;
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
}

/// A source that has no binary form of a type says so when it comes to a value of it; the column
/// may be one that is none of ours.
fn unless_binary(format: ValueFormat, error: PipelineError) -> PipelineError {
    const UNDEFINED_FUNCTION: &str = "42883";
    match error {
        PipelineError::Replication(error)
            if format == ValueFormat::Binary && error.code() == Some(UNDEFINED_FUNCTION) =>
        {
            PipelineError::TakeText(Chain(&error).to_string())
        }
        error => error,
    }
}
