//! The replica's server, and a session of it: commits that are visible, commits that are
//! durable or become so when asked, and everything that can go wrong between a statement and its answer.

use super::effects::Effects;
use super::tables::kind;
use super::world::Shared;
use crate::apply::model::{self, ModelTables, Row, Taken};
use crate::apply::{ApplyError, Batch, ReplicaWriter, Written};
use crate::faults::random::Random;
use crate::faults::{Bug, planted};
use crate::pg::{Lsn, Refusal, RelationId, ServerError};
use crate::progress::{Durability, ProgressError};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::Duration;

/// What one commit left: rows, and the progress row.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) tables: ModelTables,
    pub(super) applied: Lsn,
    pub(super) epoch: i64,
}

/// The server.
pub(super) struct Replica {
    /// What a reader sees.
    pub(super) visible: Snapshot,
    /// What a crash leaves at least.
    pub(super) durable: Snapshot,
    /// Commits since, in order, each with its number.
    unflushed: Vec<(u64, Snapshot)>,
    pub(super) is_up: bool,
    /// Sessions that have not ended.
    sessions: BTreeSet<u64>,
    next_session: u64,
    /// Who holds the lock on the progress row.
    pub(super) row_lock: Option<u64>,
    /// Rows somebody took away behind our back: table, key, and the position then.
    pub(super) taken_away: Vec<(RelationId, Row, Lsn)>,
    pub(super) ways: BTreeMap<Taken, u64>,
    pub(super) commits: u64,
    /// Flushes that made something durable.
    pub(super) flushes: u64,
    /// Writes into a transaction that was open already.
    pub(super) parts: u64,
    /// Transactions that were written while they ran, and parts of such that rolled back.
    pub(super) streamed: u64,
    pub(super) undone: u64,
    pub(super) random: Random,
    /// How likely things fail: once in so many.
    pub(super) fails_once_in: usize,
}

impl Replica {
    pub(super) fn new(start: Snapshot, random: Random, fails_once_in: usize) -> Self {
        Self {
            visible: start.clone(),
            durable: start,
            unflushed: Vec::new(),
            is_up: true,
            sessions: BTreeSet::new(),
            next_session: 1,
            row_lock: None,
            taken_away: Vec::new(),
            ways: BTreeMap::new(),
            commits: 0,
            flushes: 0,
            parts: 0,
            streamed: 0,
            undone: 0,
            random,
            fails_once_in,
        }
    }

    fn commit(&mut self, snapshot: Snapshot, durability: Durability) {
        self.visible = snapshot;
        self.commits += 1;
        match durability {
            Durability::Durable => {
                self.durable = self.visible.clone();
                self.unflushed.clear();
            }
            Durability::Later => self.unflushed.push((self.commits, self.visible.clone())),
        }
    }

    /// The disk has all commits up to this one.
    fn flushed(&mut self, commit: u64) {
        let flushed = self
            .unflushed
            .partition_point(|(number, _)| *number <= commit);
        if let Some((_, last)) = self.unflushed.drain(..flushed).next_back() {
            self.durable = last;
            self.flushes += 1;
        }
    }

    /// Loses some of the commits that are not durable, and every session.
    pub(super) fn crash(&mut self) {
        let lost_from = self.random.below(self.unflushed.len() + 1);
        if let Some(last) = lost_from.checked_sub(1) {
            self.durable = self.unflushed[last].1.clone();
        }
        self.unflushed.clear();
        self.visible = self.durable.clone();
        self.sessions.clear();
        self.row_lock = None;
        self.is_up = false;
    }

    fn open_session(&mut self) -> u64 {
        let id = self.next_session;
        self.next_session += 1;
        self.sessions.insert(id);
        id
    }

    pub(super) fn end_session(&mut self, id: u64) {
        self.sessions.remove(&id);
        if self.row_lock == Some(id) {
            self.row_lock = None;
        }
    }

    /// Somebody deletes a row on the replica itself, of a table that was copied at this position.
    pub(super) fn take_row_away(&mut self, id: RelationId, copied_at: Lsn) {
        let rows = &self.visible.tables[&id].rows;
        if rows.is_empty() || self.row_lock.is_some() {
            return;
        }
        let row = rows[self.random.below(rows.len())].clone();
        let key: Row = kind(id).key.iter().map(|p| row[*p].clone()).collect();
        let snapshots = [&mut self.visible, &mut self.durable];
        let unflushed = self.unflushed.iter_mut().map(|(_, snapshot)| snapshot);
        for snapshot in snapshots.into_iter().chain(unflushed) {
            let is_other = |row: &Row| !has_key(id, row, &key);
            snapshot.tables.get_mut(&id).unwrap().rows.retain(is_other);
        }
        let since = self.visible.applied.max(copied_at);
        self.taken_away.push((id, key, since));
    }
}

pub(super) fn has_key(id: RelationId, row: &Row, key: &Row) -> bool {
    kind(id)
        .key
        .iter()
        .zip(key)
        .all(|(p, value)| row[*p] == *value)
}

/// Claims the pipeline: the epoch, and the position, of a commit that waits.
pub(super) async fn claim(world: &Shared) -> Result<(i64, Lsn), ApplyError> {
    pause(world).await;
    for _ in 0..20 {
        let holder = world.replica.borrow().row_lock;
        if holder.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut replica = world.replica.borrow_mut();
    if !replica.is_up {
        return Err(lost());
    }
    if let Some(holder) = replica.row_lock {
        // Whoever holds it does not answer: its connection is given up in the end.
        replica.end_session(holder);
    }
    let mut claimed = replica.visible.clone();
    claimed.epoch += 1;
    let answer = (claimed.epoch, claimed.applied);
    replica.commit(claimed, Durability::Durable);
    Ok(answer)
}

/// The connection that writes.
pub(super) struct Writer {
    world: Shared,
    id: u64,
    /// The session that makes commits durable.
    witness: Option<u64>,
    epoch: i64,
    is_sibling: bool,
    /// What the open transaction did; others' commits come beneath it.
    open: Option<Vec<Effects>>,
    /// Each with how much had been done before it.
    savepoints: Vec<(u32, usize)>,
    /// A COMMIT whose answer has not come.
    sent: Option<(Snapshot, Durability)>,
}

impl Writer {
    pub(super) fn new(world: &Shared, epoch: i64) -> Self {
        let id = world.replica.borrow_mut().open_session();
        Self {
            world: world.clone(),
            id,
            witness: None,
            epoch,
            is_sibling: false,
            open: None,
            savepoints: Vec::new(),
            sent: None,
        }
    }

    /// One in four has none.
    pub(super) fn with_witness(mut self) -> Self {
        let mut replica = self.world.replica.borrow_mut();
        self.witness = (!replica.random.once_in(4)).then(|| replica.open_session());
        drop(replica);
        self
    }

    /// To the server and back.
    async fn round_trip(&mut self) -> Result<(), ApplyError> {
        pause(&self.world).await;
        let mut replica = self.world.replica.borrow_mut();
        let fails = replica.fails_once_in;
        if fails > 0 && replica.random.once_in(fails) {
            replica.end_session(self.id);
        }
        if !replica.sessions.contains(&self.id) {
            drop(replica);
            self.end();
            return Err(lost());
        }
        Ok(())
    }

    /// The rows as this session sees them.
    fn seen(&self) -> ModelTables {
        let mut tables = self.world.replica.borrow().visible.tables.clone();
        for effects in self.open.iter().flatten() {
            effects.add_to(&mut tables);
        }
        tables
    }

    /// Forgets a savepoint and all later ones; how much was done before it.
    fn forget(&mut self, number: u32) -> usize {
        let is_it = |(known, _): &(u32, usize)| *known == number;
        let place = self.savepoints.iter().position(is_it);
        let place = place.expect("there is no such savepoint");
        self.savepoints.drain(place..).next().unwrap().1
    }

    fn end(&mut self) -> Option<Vec<Effects>> {
        self.savepoints.clear();
        self.open.take()
    }

    fn is_transient_failure(&self) -> bool {
        let mut replica = self.world.replica.borrow_mut();
        let fails = replica.fails_once_in;
        fails > 0 && replica.random.once_in(fails)
    }

    /// The server carries the COMMIT out.
    fn carry_out(&mut self) {
        if let Some((snapshot, durability)) = self.sent.take() {
            let mut replica = self.world.replica.borrow_mut();
            replica.row_lock = None;
            replica.commit(snapshot, durability);
            replica.streamed += u64::from(self.is_sibling);
            drop(replica);
            self.world.check();
        }
    }
}

impl ReplicaWriter for Writer {
    type Flush = Pin<Box<dyn Future<Output = Result<(), ApplyError>>>>;

    async fn write(&mut self, batch: &Batch) -> Result<Vec<Written>, ApplyError> {
        // BEGIN goes with the first statement: without one there would be no transaction.
        assert!(!batch.is_empty(), "an empty batch is written");
        self.round_trip().await?;
        if self.is_transient_failure() {
            self.end();
            let deadlock = model::refused(batch.mapping(0).unwrap(), "write", "40P01");
            return Err(deadlock);
        }
        self.world.replica.borrow_mut().parts += u64::from(self.open.is_some());
        let before = self.seen();
        let mut open = self.open.take().unwrap_or_default();
        let mut after = before.clone();
        let (written, way) = model::write(&mut after, batch)?;
        *self.world.replica.borrow_mut().ways.entry(way).or_default() += 1;
        open.push(Effects::between(&before, &after));
        self.open = Some(open);
        self.round_trip().await?;
        Ok(written)
    }

    async fn await_position(&mut self) -> Result<(), ApplyError> {
        assert!(self.open.is_none(), "it would be committed half written");
        Ok(())
    }

    async fn commit(&mut self, applied: Lsn, durability: Durability) -> Result<(), ApplyError> {
        self.round_trip().await?;
        let is_alone = self.open.is_none();
        let mut snapshot = self.world.replica.borrow().visible.clone();
        snapshot.tables = self.seen();
        self.end();
        let durability = if is_alone {
            Durability::Durable
        } else {
            durability
        };
        {
            // The UPDATE of the progress row: under the own epoch, and locked until COMMIT.
            let mut replica = self.world.replica.borrow_mut();
            let progress = &replica.visible;
            if progress.epoch != self.epoch && !planted(Bug::SkipEpochCheck) {
                return Err(ProgressError::Superseded { epoch: self.epoch }.into());
            }
            snapshot.epoch = progress.epoch;
            snapshot.applied = progress.applied.max(applied);
            replica.row_lock = Some(self.id);
        }
        self.sent = Some((snapshot, durability));
        pause(&self.world).await;
        if !self.world.replica.borrow().sessions.contains(&self.id) {
            self.sent = None;
            return Err(lost());
        }
        if self.is_transient_failure() {
            // The connection broke; the server may have had the COMMIT, or not.
            if self.world.replica.borrow_mut().random.once_in(2) {
                self.carry_out();
            }
            self.sent = None;
            self.world.replica.borrow_mut().end_session(self.id);
            return Err(lost());
        }
        self.carry_out();
        self.round_trip().await
    }

    async fn rollback(&mut self) {
        pause(&self.world).await;
        self.end();
        self.sent = None;
        let mut replica = self.world.replica.borrow_mut();
        if replica.row_lock == Some(self.id) {
            replica.row_lock = None;
        }
    }

    async fn sibling(&self) -> Result<Self, ApplyError> {
        pause(&self.world).await;
        if !self.world.replica.borrow().is_up {
            return Err(lost());
        }
        let mut sibling = Self::new(&self.world, self.epoch);
        sibling.is_sibling = true;
        Ok(sibling)
    }

    async fn limit_lock_waits(&mut self, _: bool) -> Result<(), ApplyError> {
        assert!(
            self.open.is_none(),
            "others write while it has a transaction"
        );
        self.round_trip().await
    }

    async fn savepoint(&mut self, number: u32) -> Result<(), ApplyError> {
        self.round_trip().await?;
        let done = self.open.get_or_insert_default().len();
        self.savepoints.push((number, done));
        Ok(())
    }

    async fn release_savepoint(&mut self, number: u32) -> Result<(), ApplyError> {
        self.round_trip().await?;
        self.forget(number);
        Ok(())
    }

    async fn rollback_to(&mut self, number: u32) -> Result<(), ApplyError> {
        self.round_trip().await?;
        let done = self.forget(number);
        self.open.get_or_insert_default().truncate(done);
        self.world.replica.borrow_mut().undone += 1;
        Ok(())
    }

    fn has_witness(&self) -> bool {
        self.witness.is_some()
    }

    fn flush(&self) -> Option<Self::Flush> {
        let (world, session) = (self.world.clone(), self.witness?);
        Some(Box::pin(async move { flush(&world, session).await }))
    }
}

/// A commit of another session that waits: what was committed when it came becomes durable.
async fn flush(world: &Shared, session: u64) -> Result<(), ApplyError> {
    pause(world).await;
    let arrived = world.replica.borrow().commits;
    let is_open = || match world.replica.borrow().sessions.contains(&session) {
        true => Ok(()),
        false => Err(lost()),
    };
    is_open()?;
    pause(world).await;
    is_open()?;
    {
        let mut replica = world.replica.borrow_mut();
        replica.flushed(arrived);
        let fails = replica.fails_once_in;
        if fails > 0 && replica.random.once_in(fails) {
            replica.end_session(session);
        }
    }
    world.check();
    pause(world).await;
    is_open()
}

impl Drop for Writer {
    /// What was sent when the daemon died is carried out or not.
    fn drop(&mut self) {
        let is_alive = self.world.replica.borrow().sessions.contains(&self.id);
        let arrives = self.world.replica.borrow_mut().random.once_in(2);
        if is_alive && arrives {
            self.carry_out();
        }
        let mut replica = self.world.replica.borrow_mut();
        for session in self.witness.into_iter().chain([self.id]) {
            replica.end_session(session);
        }
    }
}

/// Some time passes, or only others' turns.
async fn pause(world: &Shared) {
    let ms = {
        let mut replica = world.replica.borrow_mut();
        match replica.random.below(4) {
            0 => Some(replica.random.below(60) as u64),
            _ => None,
        }
    };
    match ms {
        Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        None => tokio::task::yield_now().await,
    }
}

fn lost() -> ApplyError {
    ApplyError::Transaction {
        what: "go on",
        source: ServerError::Refused(Box::new(Refusal {
            sqlstate: "57P01".into(),
            message: "simulated".into(),
            constraint: None,
        })),
    }
}
