//! One life of the daemon: claim, resume, follow; the receiver beside it.

use super::replica::{Writer, claim};
use super::source;
use super::tables::Plan;
use super::world::Shared;
use crate::apply::Settings;
use crate::pg::Lsn;
use crate::pgoutput::{Decoder, Streaming};
use crate::pipeline::PipelineError;
use crate::pipeline::delivery::{Delivery, Standing};
use crate::pipeline::follow::{Follower, Streams};
use crate::pipeline::receive::{Chunk, Event, Inbox};
use crate::pipeline::resume::{SourceHistory, resume_position};
use crate::pipeline::watch::Watch;
use crate::progress::{PipelineIdentity, PipelineRecord, Positions, ProgressError};
use crate::replication::{ReplicationError, ReplicationMessage};
use crate::telemetry::Telemetry;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Frames that become one chunk, at most.
const CHUNK_FRAMES: usize = 12;

/// With its owner ends the task.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One life's counters: they balance, however it ends.
struct Ledger {
    telemetry: Telemetry,
    world: Shared,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let unaccounted = self.telemetry.unaccounted();
        if !unaccounted.is_empty() {
            let what = format!("changes are accounted for nowhere: {unaccounted:?}");
            self.world.fail(what);
        }
    }
}

/// Runs until told to stop, or until something fails.
pub(super) async fn live(
    world: Shared,
    plan: Rc<Plan>,
    settings: Settings,
    shutdown: CancellationToken,
) -> Result<(), PipelineError> {
    let (epoch, applied) = claim(&world).await.map_err(PipelineError::Prepare)?;
    let writer = Writer::new(&world, epoch).with_witness();
    let from = resume(&world, applied)?;
    let ledger = Ledger {
        telemetry: Telemetry::new("simulated"),
        world: world.clone(),
    };
    let relations = plan.relations(from, |id| world.copied_at(id), &ledger.telemetry);
    let standing = Standing {
        server_version_num: 180_000,
        are_past_copies: relations.are_past_copies(from),
        has_errors: false,
        keeps_whole: world.takes_whole(),
        takes_binary: false,
        keeps_text: false,
        sessions: 5,
    };
    let Delivery {
        streaming,
        in_progress_max,
        ..
    } = standing.delivery();
    let frames = source::start(&world, &plan, from, streaming == Streaming::On);
    let (sender, chunks) = mpsc::channel(4);
    let (positions, heard) = watch::channel(Positions::resumed_at(from));
    let stop = CancellationToken::new();
    let receiver = Receiver {
        world: world.clone(),
        frames,
        decoder: match streaming {
            Streaming::Off => Decoder::new(1, streaming),
            _ => Decoder::new(2, streaming),
        },
        chunks: sender,
        positions: heard,
        received: from,
    };
    let task = tokio::task::spawn_local(receiver.run(stop.clone()));
    let _ends_with_us = Task(task.abort_handle());
    let streams = Streams {
        inbox: Inbox::of_channels(chunks, positions, task, stop),
        applier: writer,
        relations,
        watch: Watch::new(),
        books: None,
        in_progress_max,
    };
    let follower = Follower::new(streams, from, &settings, &ledger.telemetry);
    let ended = Box::pin(follower.run(&shutdown, &mut crate::pipeline::cuts().1)).await;
    // Whoever was superseded may stumble over rows that another wrote before it learns, at the
    // position, that it was; it wrote nothing.
    if ended.is_err() && world.replica.borrow().visible.epoch != epoch {
        return Err(ProgressError::Superseded { epoch }.into());
    }
    ended
}

/// Where to go on, decided as a start decides it.
fn resume(world: &Shared, applied: Lsn) -> Result<Lsn, PipelineError> {
    let identity = PipelineIdentity {
        system_id: "1".into(),
        database_oid: 5,
        slot: "s".into(),
    };
    let record = PipelineRecord {
        identity: identity.clone(),
        timeline: Some(1),
        slot_born_at: Some(world.born_at),
        applied: Some(applied),
        given_up: None,
    };
    let source = world.source.borrow();
    let history = SourceHistory {
        end: source.history.wal_end(),
        timeline: 1,
        left_at: None,
    };
    resume_position(&record, &identity, Some(&source.slot()), Some(history))
}

/// What `pipeline::receive` does with a socket, with a channel.
struct Receiver {
    world: Shared,
    frames: mpsc::Receiver<ReplicationMessage>,
    decoder: Decoder,
    chunks: mpsc::Sender<Chunk>,
    positions: watch::Receiver<Positions>,
    received: Lsn,
}

impl Receiver {
    async fn run(mut self, stop: CancellationToken) -> Result<(), PipelineError> {
        let mut tick = interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => self.send_status(),
                frame = self.frames.recv() => {
                    let Some(frame) = frame else {
                        return Err(ReplicationError::Ended.into());
                    };
                    let chunk = self.gather(frame)?;
                    let sent = tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        sent = self.chunks.send(chunk) => sent,
                    };
                    if sent.is_err() {
                        break;
                    }
                }
            }
        }
        self.send_status();
        Ok(())
    }

    fn gather(&mut self, first: ReplicationMessage) -> Result<Chunk, PipelineError> {
        let mut events = Vec::new();
        let (mut bytes, mut next, mut wants_reply) = (0, Some(first), false);
        while let Some(frame) = next {
            match frame {
                ReplicationMessage::XLogData(data) => {
                    bytes += data.payload.len();
                    self.received = self.received.max(data.wal_start.unwrap_or(self.received));
                    events.push(Event::Message(self.decoder.decode(data.payload)?));
                }
                ReplicationMessage::Keepalive(keepalive) => {
                    let is_awaited = keepalive.reply_requested;
                    let sent = |end| Event::SentUpTo { end, is_awaited };
                    events.extend(keepalive.wal_end.map(sent));
                    wants_reply |= keepalive.reply_requested;
                }
            }
            next = (events.len() < CHUNK_FRAMES)
                .then(|| self.frames.try_recv().ok())
                .flatten();
        }
        if wants_reply {
            self.send_status();
        }
        Ok(Chunk::unbounded(events, bytes))
    }

    fn send_status(&mut self) {
        let mut positions = *self.positions.borrow_and_update();
        positions.receive(self.received);
        if let Some(flush) = positions.feedback().flush {
            self.world.confirm(flush);
        }
    }
}
