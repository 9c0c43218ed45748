//! The two servers, and what must hold between them after every step.

use super::history::History;
use super::replica::{Replica, Snapshot, has_key};
use super::source::Source;
use super::tables::{KINDS, kind};
use crate::apply::model::{ModelTables, Row};
use crate::faults::random::Random;
use crate::pg::{Lsn, RelationId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub(super) type Shared = Rc<World>;

pub(super) struct World {
    pub(super) source: RefCell<Source>,
    pub(super) replica: RefCell<Replica>,
    /// Where the pipeline began.
    pub(super) born_at: Lsn,
    /// Where the copies were taken of the tables that joined later.
    joined_at: Lsn,
    /// Lives left that take transactions whole.
    whole: Cell<usize>,
    /// The first thing that was wrong.
    broken: RefCell<Option<String>>,
    /// The most that was ever durable, and that the slot ever confirmed.
    most: RefCell<Most>,
}

struct Most {
    durable: Lsn,
    confirmed: Lsn,
}

impl World {
    pub(super) fn new(random: &mut Random) -> Shared {
        let mut history = History::new(random.branch());
        let mut commit_some = |most| {
            for _ in 0..=random.below(most) {
                history.commit();
            }
            history.wal_end()
        };
        let born_at = commit_some(6);
        let joined_at = commit_some(6);
        commit_some(3);
        let mut tables = history.at(born_at).clone();
        let joined = history.at(joined_at);
        for kind in KINDS.iter().filter(|kind| kind.joins_later) {
            tables.insert(kind.id, joined[&kind.id].clone());
        }
        let start = Snapshot {
            tables,
            applied: born_at,
            epoch: 0,
        };
        let fails_once_in = [0, 15, 60][random.below(3)];
        Rc::new(Self {
            source: RefCell::new(Source::new(history, born_at, random.branch())),
            replica: RefCell::new(Replica::new(start, random.branch(), fails_once_in)),
            born_at,
            joined_at,
            whole: Cell::new(0),
            broken: RefCell::new(None),
            most: RefCell::new(Most {
                durable: born_at,
                confirmed: born_at,
            }),
        })
    }

    pub(super) fn copied_at(&self, id: RelationId) -> Lsn {
        if kind(id).joins_later {
            self.joined_at
        } else {
            self.born_at
        }
    }

    /// So many lives are to take transactions whole.
    pub(super) fn take_whole(&self, lives: usize) {
        self.whole.set(lives);
    }

    /// Whether the life that begins is one of those.
    pub(super) fn takes_whole(&self) -> bool {
        let left = self.whole.get();
        self.whole.set(left.saturating_sub(1));
        left > 0
    }

    pub(super) fn fail(&self, what: String) {
        self.broken.borrow_mut().get_or_insert(what);
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    /// A status of ours arrives at the source.
    pub(super) fn confirm(&self, flush: Lsn) {
        let durable = self.replica.borrow().durable.applied;
        if flush > durable {
            self.fail(format!(
                "the slot is told {flush}, and durable is {durable}"
            ));
        }
        let mut most = self.most.borrow_mut();
        most.confirmed = most.confirmed.max(flush);
        self.source.borrow_mut().confirm(flush);
    }

    /// The replica's server dies.
    pub(super) fn crash_replica(&self) {
        self.replica.borrow_mut().crash();
        let durable = self.replica.borrow().durable.applied;
        let confirmed = self.most.borrow().confirmed;
        if confirmed > durable {
            self.fail(format!(
                "the slot is at {confirmed}, and a crash left {durable}"
            ));
        }
        self.check();
    }

    /// The rows that are visible are the source's at a commit boundary: the one the position says.
    pub(super) fn check(&self) {
        let replica = self.replica.borrow();
        let source = self.source.borrow();
        let applied = replica.visible.applied;
        let mut most = self.most.borrow_mut();
        if replica.durable.applied < most.durable {
            self.fail(format!(
                "durable goes back from {} to {}",
                most.durable, replica.durable.applied
            ));
        }
        most.durable = replica.durable.applied;
        let cuts = |t: &super::history::Transaction| t.commit_lsn < applied && applied < t.end_lsn;
        if source.history.transactions.iter().any(cuts) {
            self.fail(format!("the position {applied} lies within a commit"));
        }
        for kind in &KINDS {
            let at = applied.max(self.copied_at(kind.id));
            let expected = self.rows(source.history.at(at), kind.id, &source, &replica);
            let found = self.rows(&replica.visible.tables, kind.id, &source, &replica);
            if expected != found {
                self.fail(format!(
                    "table {} at {applied}:\n  source  {}\n  replica {}",
                    kind.id,
                    shown(&expected),
                    shown(&found)
                ));
            }
        }
    }

    /// Sorted, and without rows that somebody took away and no change has touched since.
    fn rows(
        &self,
        tables: &ModelTables,
        id: RelationId,
        source: &Source,
        replica: &Replica,
    ) -> Vec<Row> {
        let applied = replica.visible.applied;
        let is_missing = |row: &Row| {
            replica.taken_away.iter().any(|(table, key, since)| {
                let wrote = |(wrote, of): &(RelationId, Option<Row>)| {
                    wrote == table && of.as_ref().is_none_or(|row| has_key(*table, row, key))
                };
                let mut later = source
                    .history
                    .transactions
                    .iter()
                    .filter(|t| t.end_lsn > *since && t.end_lsn <= applied);
                *table == id && has_key(id, row, key) && !later.any(|t| t.wrote.iter().any(wrote))
            })
        };
        let mut rows = tables[&id].rows.clone();
        rows.retain(|row| !is_missing(row));
        rows.sort();
        rows
    }
}

fn shown(rows: &[Row]) -> String {
    let value = |value: &Option<Vec<u8>>| match value {
        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        None => "NULL".to_owned(),
    };
    let row = |row: &Row| row.iter().map(value).collect::<Vec<_>>().join(", ");
    rows.iter().map(row).collect::<Vec<_>>().join(" | ")
}
