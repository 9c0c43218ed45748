//! The task that listens to the source. It decodes, hands on, and answers; it never waits
//! on the replica, so however long a batch takes, the walsender hears from us.
//!
//! ```text
//!  socket ─▶ frames ─▶ messages ─▶ Chunk ─▶ (bounded in bytes) ─▶ follow
//!     ▲                                                             │
//!     └──────── status every second, soon when asked ◀─ positions ┘
//! ```
//!
//! When the bound is reached it stops reading, and goes on answering. A source that says
//! nothing for a while is asked for a sign of life; one that gives none is given up.

use super::PipelineError;
use super::lag::Unapplied;
use super::pace::Pace;
use super::rhythm::Rhythm;
use crate::faults;
use crate::pg::Lsn;
use crate::pgoutput::{Decoder, Message};
use crate::progress::{Holdback, Positions};
use crate::reactor::Reactor;
use crate::replication::{
    ReplicationError, ReplicationMessage, ReplicationStream, StandbyStatusUpdate,
};
use crate::telemetry::Telemetry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

/// A chunk is handed on when it holds this much.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_EVENTS: usize = 16_384;
/// Chunks in the queue; the bound that matters is the one in bytes.
const CHUNKS_QUEUED: usize = 1_024;

/// One thing the source said.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message of the stream.
    Message(Message),
    /// Everything before `end` has been sent.
    SentUpTo {
        end: Lsn,
        /// The source waits to hear that it is durable here: it wants to end.
        is_awaited: bool,
    },
}

/// Consecutive events, and the room in the queue that they take.
pub(crate) struct Chunk {
    pub(crate) events: Vec<Event>,
    /// Bytes that its events hold on to.
    pub(crate) bytes: usize,
    /// When the last of them had come.
    pub(crate) arrived: Instant,
    /// None in a simulation, whose queue has no bound.
    _room: Option<OwnedSemaphorePermit>,
}

/// What an operator sets of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes at most that wait to be applied.
    pub(crate) queue_bytes_max: usize,
    /// How long the slot stays behind the replica.
    pub(crate) holdback: Duration,
}

/// The receiving task's other end.
pub(crate) struct Inbox {
    pub(crate) chunks: mpsc::Receiver<Chunk>,
    pub(crate) positions: watch::Sender<Positions>,
    pub(crate) task: tokio::task::JoinHandle<Result<(), PipelineError>>,
    stop: CancellationToken,
    _listener: Option<Reactor>,
}

#[cfg(test)]
impl Chunk {
    pub(crate) fn unbounded(events: Vec<Event>, bytes: usize) -> Self {
        Self {
            events,
            bytes,
            arrived: Instant::now(),
            _room: None,
        }
    }
}

#[cfg(test)]
impl Inbox {
    /// The other end of a simulated receiver, which ends when told to stop.
    pub(crate) fn of_channels(
        chunks: mpsc::Receiver<Chunk>,
        positions: watch::Sender<Positions>,
        task: tokio::task::JoinHandle<Result<(), PipelineError>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            chunks,
            positions,
            task,
            stop,
            _listener: None,
        }
    }
}

impl Inbox {
    /// Starts to listen, on the thread the stream was opened on.
    pub(crate) fn open(
        listener: Reactor,
        stream: ReplicationStream,
        decoder: Decoder,
        resumed_at: Lsn,
        bounds: Bounds,
        telemetry: Telemetry,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED);
        let (positions, heard) = watch::channel(Positions::resumed_at(resumed_at));
        let stop = CancellationToken::new();
        let room_max = bounds
            .queue_bytes_max
            .clamp(CHUNK_BYTES, Semaphore::MAX_PERMITS);
        let rhythm = Rhythm::of(stream.wal_sender_timeout());
        let receiver = Receiver {
            stream,
            decoder,
            chunks: sender,
            positions: heard,
            received: resumed_at,
            rhythm,
            room: Arc::new(Semaphore::new(room_max)),
            room_max,
            unapplied: Unapplied::default(),
            source_clock: None,
            source_end: resumed_at,
            last_heard: Instant::now(),
            bytes_read: 0,
            last_status: Instant::now(),
            is_asked: false,
            pace: Pace::new(Instant::now()),
            holdback: Holdback::new(bounds.holdback),
            telemetry,
        };
        let task = listener.spawn(receiver.run(stop.clone()));
        Self {
            chunks,
            positions,
            task,
            stop,
            _listener: Some(listener),
        }
    }

    /// Ends the stream, in order, when it is cancelled: what has arrived by then is still handed on.
    pub(crate) fn stopper(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells the source where we are, and says good-bye.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        drop(self.chunks);
        // Whatever it answers: the position is safe on the replica.
        let _ = self.task.await;
    }

    /// Why the task ended.
    pub(crate) async fn reason(self) -> PipelineError {
        match self.task.await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => PipelineError::ReceiverGone,
        }
    }
}

struct Receiver {
    stream: ReplicationStream,
    decoder: Decoder,
    chunks: mpsc::Sender<Chunk>,
    positions: watch::Receiver<Positions>,
    received: Lsn,
    rhythm: Rhythm,
    room: Arc<Semaphore>,
    room_max: usize,
    unapplied: Unapplied,
    /// The source's clock as of an instant of ours, in microseconds since 2000.
    source_clock: Option<(i64, Instant)>,
    source_end: Lsn,
    last_heard: Instant,
    bytes_read: u64,
    last_status: Instant,
    /// The source waits for a status.
    is_asked: bool,
    pace: Pace,
    holdback: Holdback,
    telemetry: Telemetry,
}

/// Events on their way into the queue.
struct Gathered {
    events: Vec<Event>,
    bytes: usize,
    since: Instant,
    /// When they are handed on.
    due: Instant,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.bytes >= CHUNK_BYTES || self.events.len() >= CHUNK_EVENTS
    }

    fn into_chunk(self, room: OwnedSemaphorePermit) -> Chunk {
        Chunk {
            events: self.events,
            bytes: self.bytes,
            arrived: Instant::now(),
            _room: Some(room),
        }
    }
}

impl Receiver {
    async fn run(mut self, stop: CancellationToken) -> Result<(), PipelineError> {
        let mut gathered = None;
        let ended = self.listen(&stop, &mut gathered).await;
        self.hand_on_what_fits(gathered);
        ended?;
        self.send_status(false).await?;
        self.stream.stop().await?.close().await;
        Ok(())
    }

    /// Until told to stop, or nobody takes chunks any more.
    async fn listen(
        &mut self,
        stop: &CancellationToken,
        gathered: &mut Option<Gathered>,
    ) -> Result<(), PipelineError> {
        let mut tick = interval(self.rhythm.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = gathered.as_ref().map(|gathered| gathered.due);
            let is_due = due.is_some_and(|due| due <= Instant::now());
            if !is_due && let Some(nap) = self.pace.nap() {
                self.stream.unwatch()?;
                std::thread::sleep(nap);
                // What there is, is read without the reactor, which keeps the clock too.
                yield_now().await;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = tick.tick() => self.on_tick(!is_due).await?,
                // Reading stops while a chunk waits for room; answering does not.
                place = place_for(self.chunks.clone(), Arc::clone(&self.room), self.room_for(gathered)), if is_due => {
                    let Some((place, room)) = place else { return Ok(()) };
                    if let Some(gathered) = gathered.take() {
                        place.send(gathered.into_chunk(room));
                    }
                    faults::at("receive.queued").await?;
                }
                heard = self.stream.receive(), if !is_due => {
                    let heard = heard?;
                    faults::at("receive.read").await?;
                    self.gather(heard, gathered).await?;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && !is_due => {}
            }
        }
    }

    /// At the end nothing is waited for: what finds no room is sent again to whoever comes next.
    fn hand_on_what_fits(&mut self, gathered: Option<Gathered>) {
        let permits = self.room_for(&gathered);
        let room = Arc::clone(&self.room).try_acquire_many_owned(permits);
        if let (Some(gathered), Ok(room)) = (gathered, room) {
            // Nobody may be there to take it.
            let _ = self.chunks.try_send(gathered.into_chunk(room));
        }
    }

    /// Takes one frame and all that are already here.
    async fn gather(
        &mut self,
        first: ReplicationMessage,
        gathered: &mut Option<Gathered>,
    ) -> Result<(), PipelineError> {
        let now = Instant::now();
        let gathered = gathered.get_or_insert_with(|| Gathered {
            events: Vec::new(),
            bytes: 0,
            since: now,
            due: now + self.pace.gather_open_for(),
        });
        let before = (gathered.events.len(), gathered.bytes);
        self.last_heard = now;
        let mut next = Some(first);
        while let Some(message) = next {
            self.is_asked |= self.take(message, now, gathered)?;
            faults::at("receive.decoded").await?;
            if gathered.is_full() {
                gathered.due = now;
                break;
            }
            next = self.stream.try_receive()?;
        }
        let frames = gathered.events.len() - before.0;
        self.pace.gathered(now, frames, gathered.bytes - before.1);
        self.telemetry.set_received(self.received);
        // One that wants to end asks again as soon as it has heard.
        if self.is_asked && self.last_status.elapsed() >= self.rhythm.tick {
            self.send_status(false).await?;
        }
        Ok(())
    }

    /// Decodes one frame; true when the source wants an answer at once.
    fn take(
        &mut self,
        message: ReplicationMessage,
        now: Instant,
        gathered: &mut Gathered,
    ) -> Result<bool, PipelineError> {
        match message {
            ReplicationMessage::XLogData(data) => {
                self.source_clock = Some((data.server_time_us, now));
                let end = data.wal_start.max(data.wal_end);
                self.received = Some(self.received).max(end).unwrap_or(self.received);
                self.source_end = self.source_end.max(self.received);
                gathered.bytes += data.payload.len() + size_of::<Event>();
                let message = self.decoder.decode(data.payload)?;
                if let Message::Commit {
                    end_lsn,
                    commit_time_us,
                    ..
                }
                | Message::StreamCommit {
                    end_lsn,
                    commit_time_us,
                    ..
                } = &message
                {
                    self.unapplied.arrived(*end_lsn, *commit_time_us);
                    self.pace
                        .committed(data.server_time_us.saturating_sub(*commit_time_us));
                    self.received = self.received.max(*end_lsn);
                    gathered.due = gathered.due.min(gathered.since + self.pace.gather_for());
                }
                gathered.events.push(Event::Message(message));
                Ok(false)
            }
            ReplicationMessage::Keepalive(keepalive) => {
                self.source_clock = Some((keepalive.server_time_us, now));
                if let Some(end) = keepalive.wal_end {
                    self.source_end = self.source_end.max(end);
                    gathered.bytes += size_of::<Event>();
                    gathered.events.push(Event::SentUpTo {
                        end,
                        is_awaited: keepalive.reply_requested,
                    });
                }
                Ok(keepalive.reply_requested)
            }
        }
    }

    /// What a chunk takes of the queue. One larger than all of it gets all; a small one its
    /// share of the places, so that the bound is the one in bytes.
    fn room_for(&self, gathered: &Option<Gathered>) -> u32 {
        let share = self.room_max.div_ceil(CHUNKS_QUEUED);
        let bytes = gathered.as_ref().map_or(0, |gathered| gathered.bytes);
        u32::try_from(bytes.clamp(share, self.room_max)).unwrap_or(u32::MAX)
    }

    async fn on_tick(&mut self, is_reading: bool) -> Result<(), PipelineError> {
        let bytes_read = self.stream.bytes_read();
        // A large message may take long on a poor line; or it is we who do not listen.
        if bytes_read != self.bytes_read || !is_reading {
            self.bytes_read = bytes_read;
            self.last_heard = Instant::now();
        }
        let silent_for = self.last_heard.elapsed();
        if silent_for >= self.rhythm.give_up_after {
            return Err(PipelineError::SourceSilent(silent_for));
        }
        let ask = silent_for >= self.rhythm.ask_after;
        if self.is_asked
            || self.positions.has_changed().unwrap_or(false)
            || self.last_status.elapsed() >= self.rhythm.status_every
        {
            self.send_status(ask).await?;
        }
        let applied = self.positions.borrow().applied;
        self.unapplied.applied(applied);
        let behind = applied.map(|applied| self.source_end.bytes_since(applied));
        let age = self.source_clock.map(|(clock, at)| {
            let since = i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX);
            self.unapplied.age_seconds(clock.saturating_add(since))
        });
        self.telemetry.set_lag(behind, age);
        Ok(())
    }

    async fn send_status(&mut self, reply_requested: bool) -> Result<(), ReplicationError> {
        let mut positions = *self.positions.borrow_and_update();
        positions.receive(self.received);
        let feedback = positions.feedback();
        self.last_status = Instant::now();
        self.is_asked = false;
        faults::at("receive.status_due").await?;
        let update = StandbyStatusUpdate {
            write: feedback.write,
            flush: self
                .holdback
                .pass(Instant::now().into_std(), feedback.flush),
            apply: feedback.apply,
            reply_requested,
        };
        self.stream.send_status(update).await?;
        Ok(faults::at("receive.status_sent").await?)
    }
}

/// A place in the queue and room for the chunk's bytes; `None` when nobody takes chunks any
/// more.
async fn place_for(
    chunks: mpsc::Sender<Chunk>,
    room: Arc<Semaphore>,
    permits: u32,
) -> Option<(mpsc::OwnedPermit<Chunk>, OwnedSemaphorePermit)> {
    let room = room.acquire_many_owned(permits).await.ok()?;
    Some((chunks.reserve_owned().await.ok()?, room))
}
