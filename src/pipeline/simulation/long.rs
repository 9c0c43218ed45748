//! Transactions that run beside others, with their subtransactions.
//!
//! What one has written nobody else touches before it ends: a statement that would have to wait
//! does not happen. Others' commits it sees at once.

use super::effects::Effects;
use super::history::{History, Work};
use super::tables::kind;
use crate::apply::model::{ModelTables, Row};
use crate::pg::{Change, RelationId};
use std::collections::BTreeSet;

/// At once, at most.
const RUNNING_MAX: usize = 3;

/// What the log holds.
#[derive(Clone, Debug)]
pub(super) enum Record {
    /// Of a transaction that ran beside others.
    Change {
        xid: u32,
        subxid: u32,
        change: Change,
    },
    /// A subtransaction rolled back.
    Undone { xid: u32, subxid: u32 },
    /// All of it did.
    RolledBack { xid: u32 },
    /// The transaction with this place in the order of commits.
    Commit(usize),
}

/// What others would have to wait for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lock {
    Table(RelationId),
    Row(RelationId, Row),
    Unique(RelationId, Vec<u8>),
}

/// A transaction that runs.
pub(super) struct Long {
    pub(super) xid: u32,
    /// The outermost first.
    levels: Vec<Level>,
}

/// The transaction itself, or a subtransaction.
struct Level {
    /// None before its first change.
    subxid: Option<u32>,
    /// Subtransactions of it that ended well.
    children: Vec<u32>,
    /// The rows as it sees them, and as they are again when what is in it rolls back.
    view: ModelTables,
    work: Work,
    locks: BTreeSet<Lock>,
}

impl Level {
    fn new(subxid: Option<u32>, view: ModelTables) -> Self {
        Self {
            subxid,
            children: Vec::new(),
            view,
            work: Work::default(),
            locks: BTreeSet::new(),
        }
    }

    fn subxids(self) -> impl Iterator<Item = u32> {
        self.children.into_iter().chain(self.subxid)
    }
}

impl Long {
    /// Whether somebody else's statement would have to wait for it.
    pub(super) fn is_in_the_way(&self, wrote: &[(RelationId, Option<Row>)]) -> bool {
        let wanted = locks(wrote);
        let held = || self.levels.iter().flat_map(|level| &level.locks);
        let table = |lock: &Lock| match lock {
            Lock::Table(id) | Lock::Row(id, _) | Lock::Unique(id, _) => *id,
        };
        let is_table = |lock: &Lock| matches!(lock, Lock::Table(_));
        wanted.iter().any(|lock| {
            held().any(|other| {
                lock == other || table(lock) == table(other) && (is_table(lock) || is_table(other))
            })
        })
    }

    /// Somebody else has committed.
    pub(super) fn sees(&mut self, effects: &Effects) {
        for level in &mut self.levels {
            effects.add_to(&mut level.view);
        }
    }
}

/// On what was written: rows as they were and as they are, or whole tables.
fn locks(wrote: &[(RelationId, Option<Row>)]) -> BTreeSet<Lock> {
    let mut locks = BTreeSet::new();
    for (id, row) in wrote {
        let Some(row) = row else {
            locks.insert(Lock::Table(*id));
            continue;
        };
        let kind = kind(*id);
        let key = match kind.key {
            [] => row.clone(),
            key => key.iter().map(|p| row[*p].clone()).collect(),
        };
        locks.insert(Lock::Row(*id, key));
        let unique = kind.unique.and_then(|p| row[p].clone());
        locks.extend(unique.map(|value| Lock::Unique(*id, value)));
    }
    locks
}

impl History {
    /// Something happens in a transaction that runs, or one begins.
    pub(super) fn go_on(&mut self) {
        if self.running.is_empty() || self.running.len() < RUNNING_MAX && self.random.once_in(8) {
            let xid = self.new_xid();
            let level = Level::new(Some(xid), self.now.clone());
            let levels = vec![level];
            self.running.push(Long { xid, levels });
        }
        let place = self.random.below(self.running.len());
        let depth = self.running[place].levels.len();
        match self.random.below(16) {
            0 => self.end(place),
            1..=3 if depth < 4 => {
                let levels = &mut self.running[place].levels;
                let view = levels[depth - 1].view.clone();
                levels.push(Level::new(None, view));
            }
            4..=5 if depth > 1 => self.end_well(place),
            6..=7 if depth > 1 => self.undo(place),
            _ => {
                for _ in 0..=self.random.below(4) {
                    self.change(place);
                }
            }
        }
    }

    /// All that run end.
    pub(super) fn end_all(&mut self) {
        while !self.running.is_empty() {
            self.end(0);
        }
    }

    fn change(&mut self, place: usize) {
        let xid = self.running[place].xid;
        let level = self.running[place].levels.last_mut().unwrap();
        let mut work = Work::default();
        std::mem::swap(&mut self.now, &mut level.view);
        self.try_statement(&mut work, Some(xid));
        let level = self.running[place].levels.last_mut().unwrap();
        std::mem::swap(&mut self.now, &mut level.view);
        if work.changes.is_empty() {
            return;
        }
        level.locks.extend(locks(&work.wrote));
        let subxid = self.number(place);
        for change in &work.changes {
            let change = change.clone();
            self.write(Record::Change {
                xid,
                subxid,
                change,
            });
        }
        let level = self.running[place].levels.last_mut().unwrap();
        level.work.changes.extend(work.changes);
        level.work.wrote.extend(work.wrote);
    }

    /// The number of the innermost one: the outer ones have theirs before.
    fn number(&mut self, place: usize) -> u32 {
        for depth in 0..self.running[place].levels.len() {
            if self.running[place].levels[depth].subxid.is_none() {
                let subxid = self.new_xid();
                self.running[place].levels[depth].subxid = Some(subxid);
            }
        }
        let level = self.running[place].levels.last().unwrap();
        level.subxid.unwrap()
    }

    /// RELEASE.
    fn end_well(&mut self, place: usize) {
        let levels = &mut self.running[place].levels;
        let inner = levels.pop().unwrap();
        let outer = levels.last_mut().unwrap();
        outer.view = inner.view.clone();
        outer.work.changes.extend(inner.work.changes.clone());
        outer.work.wrote.extend(inner.work.wrote.clone());
        outer.locks.extend(inner.locks.clone());
        outer.children.extend(inner.subxids());
    }

    /// ROLLBACK TO, and the savepoint goes.
    fn undo(&mut self, place: usize) {
        let long = &mut self.running[place];
        let (xid, inner) = (long.xid, long.levels.pop().unwrap());
        for subxid in inner.subxids() {
            self.write(Record::Undone { xid, subxid });
        }
    }

    fn end(&mut self, place: usize) {
        if self.random.once_in(3) {
            let long = self.running.remove(place);
            let xid = long.xid;
            for subxid in long.levels.into_iter().flat_map(Level::subxids) {
                if subxid != xid {
                    self.write(Record::Undone { xid, subxid });
                }
            }
            return self.write(Record::RolledBack { xid });
        }
        while self.running[place].levels.len() > 1 {
            self.end_well(place);
        }
        let mut long = self.running.remove(place);
        let all = long.levels.pop().unwrap();
        let before = std::mem::replace(&mut self.now, all.view);
        self.has_committed(long.xid, all.work, &before);
    }
}
