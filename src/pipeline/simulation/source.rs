//! The source's server: its slot, and the walsender that reads the history from it.

use super::history::{History, Transaction};
use super::long::Record;
use super::tables::Plan;
use super::world::Shared;
use crate::faults::random::Random;
use crate::pg::{Change, Lsn, RelationId};
use crate::pgoutput::Message;
use crate::pgoutput::encode::encode;
use crate::replication::{
    PrimaryKeepalive, ReplicationMessage, ReplicationSlot, SlotWalStatus, XLogData,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;

/// History and slot.
pub(super) struct Source {
    pub(super) history: History,
    pub(super) confirmed: Lsn,
    /// What a crash of the source leaves of `confirmed`.
    kept: Lsn,
    /// Which stream is the slot's; an older one has lost it.
    stream: u64,
    random: Random,
}

impl Source {
    pub(super) fn new(history: History, born_at: Lsn, random: Random) -> Self {
        Self {
            history,
            confirmed: born_at,
            kept: born_at,
            stream: 0,
            random,
        }
    }

    /// As `pg_replication_slots` shows it.
    pub(super) fn slot(&self) -> ReplicationSlot {
        ReplicationSlot {
            name: "s".into(),
            plugin: None,
            database: None,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: Some(self.confirmed),
            wal_status: Some(SlotWalStatus::Reserved),
            safe_wal_bytes: None,
            retained_bytes: None,
            invalidation_reason: None,
            temporary: false,
            failover: false,
        }
    }

    /// Takes a status in.
    pub(super) fn confirm(&mut self, flush: Lsn) {
        self.confirmed = self.confirmed.max(flush);
        if self.random.once_in(4) {
            self.kept = self.confirmed;
        }
    }

    /// Every stream ends; the slot is where it was last saved.
    pub(super) fn restart(&mut self) {
        self.stream += 1;
        self.confirmed = self.kept;
    }

    /// Takes the slot, from whoever has it.
    fn take_slot(&mut self) -> u64 {
        self.stream += 1;
        self.stream
    }
}

/// START_REPLICATION: frames from `from`, or from where the slot is if that is later; of
/// transactions that run, too, if they are to be streamed.
pub(super) fn start(
    world: &Shared,
    plan: &Plan,
    from: Lsn,
    is_streamed: bool,
) -> mpsc::Receiver<ReplicationMessage> {
    let (sender, frames) = mpsc::channel(8);
    let mut source = world.source.borrow_mut();
    let stream = source.take_slot();
    let random = source.random.branch();
    let start = from.max(source.confirmed);
    drop(source);
    let walsender = Walsender {
        world: world.clone(),
        relations: plan
            .tables
            .values()
            .map(|t| (t.source.oid, t.mapping.relation.clone()))
            .collect(),
        stream,
        random,
        is_streamed,
        start,
        next: 0,
        sent: start,
        described: BTreeSet::new(),
        running: BTreeMap::new(),
        sender,
    };
    tokio::task::spawn_local(walsender.run());
    frames
}

struct Walsender {
    world: Shared,
    relations: BTreeMap<RelationId, crate::pg::Relation>,
    stream: u64,
    random: Random,
    is_streamed: bool,
    /// What was committed before it is not sent.
    start: Lsn,
    /// The record to be read next.
    next: usize,
    /// How far it has read.
    sent: Lsn,
    described: BTreeSet<RelationId>,
    /// Transactions whose end it has not read.
    running: BTreeMap<u32, Running>,
    sender: mpsc::Sender<ReplicationMessage>,
}

/// A transaction of which records were read.
#[derive(Default)]
struct Running {
    /// Not sent yet.
    changes: Vec<(u32, Change)>,
    is_streamed: bool,
    /// (Sub)transactions of which changes were sent.
    sent: BTreeSet<u32>,
    described: BTreeSet<RelationId>,
}

/// The stream is no longer wanted, or no longer the slot's.
struct Gone;

impl Walsender {
    async fn run(mut self) {
        // Whoever listens sees the end of the channel.
        let _ = self.stream().await;
    }

    async fn stream(&mut self) -> Result<(), Gone> {
        loop {
            match self.record() {
                Some((lsn, record)) => {
                    self.next += 1;
                    self.sent = self.sent.max(lsn);
                    self.decode(lsn, record).await?;
                    if lsn >= self.start && self.random.once_in(3) {
                        self.read_on().await?;
                    }
                }
                None => {
                    let pause = Duration::from_millis(20 + self.random.below(400) as u64);
                    tokio::time::sleep(pause).await;
                    self.read_on().await?;
                }
            }
        }
    }

    fn record(&self) -> Option<(Lsn, Record)> {
        let source = self.world.source.borrow();
        source.history.log.get(self.next).cloned()
    }

    async fn decode(&mut self, lsn: Lsn, record: Record) -> Result<(), Gone> {
        match record {
            Record::Change {
                xid,
                subxid,
                change,
            } => {
                let running = self.running.entry(xid).or_default();
                running.changes.push((subxid, change));
                // Its memory is full.
                if self.is_streamed && lsn >= self.start && self.random.once_in(4) {
                    self.send_segment(xid).await?;
                }
                Ok(())
            }
            Record::Undone { xid, subxid } => {
                let running = self.running.entry(xid).or_default();
                running.changes.retain(|(of, _)| *of != subxid);
                match running.sent.remove(&subxid) {
                    true => self.send_abort(xid, subxid).await,
                    false => Ok(()),
                }
            }
            Record::RolledBack { xid } => {
                match self.running.remove(&xid).is_some_and(|r| r.is_streamed) {
                    true => self.send_abort(xid, xid).await,
                    false => Ok(()),
                }
            }
            Record::Commit(place) => {
                let transaction = self.world.source.borrow().history.transactions[place].clone();
                let xid = transaction.xid;
                let is_streamed = self.running.get(&xid).is_some_and(|r| r.is_streamed);
                if is_streamed {
                    self.send_segment(xid).await?;
                    let commit = Message::StreamCommit {
                        xid,
                        commit_lsn: transaction.commit_lsn,
                        end_lsn: transaction.end_lsn,
                        commit_time_us: 0,
                    };
                    self.send(transaction.end_lsn, &commit).await?;
                } else if transaction.commit_lsn >= self.start {
                    self.send_transaction(&transaction).await?;
                }
                self.running.remove(&xid);
                self.sent = self.sent.max(transaction.end_lsn);
                Ok(())
            }
        }
    }

    /// Between transactions and segments: all before the next record, or all there is.
    async fn read_on(&mut self) -> Result<(), Gone> {
        let end = match self.record() {
            Some((next, _)) => next,
            None => self.world.source.borrow().history.wal_end(),
        };
        self.sent = self.sent.max(end);
        self.send_keepalive(self.sent).await
    }

    /// What of a transaction that runs was read and not sent.
    async fn send_segment(&mut self, xid: u32) -> Result<(), Gone> {
        let running = self.running.entry(xid).or_default();
        let changes = std::mem::take(&mut running.changes);
        let first_segment = !std::mem::replace(&mut running.is_streamed, true);
        running
            .sent
            .extend(changes.iter().map(|(subxid, _)| *subxid));
        let at = self.sent;
        self.send(at, &Message::StreamStart { xid, first_segment })
            .await?;
        for (subxid, change) in changes {
            for id in change.relations() {
                let running = self.running.entry(xid).or_default();
                if running.described.insert(*id) {
                    let relation = self.relations[id].clone();
                    let xid = Some(subxid);
                    self.send(at, &Message::Relation { xid, relation }).await?;
                }
            }
            let xid = Some(subxid);
            self.send(at, &Message::Change { xid, change }).await?;
            if self.random.once_in(6) {
                let end = self.world.source.borrow().history.wal_end();
                self.send_keepalive(end).await?;
            }
        }
        self.send(at, &Message::StreamStop).await
    }

    async fn send_abort(&mut self, xid: u32, subxid: u32) -> Result<(), Gone> {
        let abort = Message::StreamAbort {
            xid,
            subxid,
            abort_lsn: None,
            abort_time_us: None,
        };
        self.send(self.sent, &abort).await
    }

    async fn send_transaction(&mut self, transaction: &Transaction) -> Result<(), Gone> {
        let (commit_lsn, end_lsn) = (transaction.commit_lsn, transaction.end_lsn);
        let begin = Message::Begin {
            final_lsn: commit_lsn,
            commit_time_us: 0,
            xid: transaction.xid,
        };
        self.send(commit_lsn, &begin).await?;
        for change in &transaction.changes {
            for id in change.relations() {
                if self.described.insert(*id) {
                    let relation = self.relations[id].clone();
                    let message = Message::Relation {
                        xid: None,
                        relation,
                    };
                    self.send(commit_lsn, &message).await?;
                }
            }
            let message = Message::Change {
                xid: None,
                change: change.clone(),
            };
            self.send(commit_lsn, &message).await?;
            if self.random.once_in(6) {
                // "The current end of WAL on the server", says the manual.
                let end = self.world.source.borrow().history.wal_end();
                self.send_keepalive(end).await?;
            }
        }
        let commit = Message::Commit {
            commit_lsn,
            end_lsn,
            commit_time_us: 0,
        };
        self.send(end_lsn, &commit).await
    }

    async fn send(&mut self, at: Lsn, message: &Message) -> Result<(), Gone> {
        let end = self.world.source.borrow().history.wal_end();
        self.put(ReplicationMessage::XLogData(XLogData {
            wal_start: Some(at),
            wal_end: Some(end),
            server_time_us: 0,
            payload: encode(message),
        }))
        .await
    }

    async fn send_keepalive(&mut self, end: Lsn) -> Result<(), Gone> {
        let reply_requested = self.random.once_in(3);
        self.put(ReplicationMessage::Keepalive(PrimaryKeepalive {
            wal_end: Some(end),
            server_time_us: 0,
            reply_requested,
        }))
        .await
    }

    async fn put(&mut self, frame: ReplicationMessage) -> Result<(), Gone> {
        if self.random.once_in(20) {
            tokio::time::sleep(Duration::from_millis(self.random.below(150) as u64)).await;
        }
        if self.world.source.borrow().stream != self.stream {
            return Err(Gone);
        }
        self.sender.send(frame).await.map_err(|_| Gone)
    }
}
