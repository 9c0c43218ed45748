//! The source's history: random transactions, the rows after each, and its log's positions.
//!
//! Transactions are in commit order, as the stream has them; where they overlapped, one's commit
//! record begins where the one's before ends. Long ones run beside the others (`long.rs`).

use super::effects::Effects;
use super::long::{Long, Record};
use super::tables::{JOURNAL, KINDS, Kind, LEADS, PAIRS, TICKETS, empty, kind};
use crate::apply::model::{ModelTables, Row};
use crate::faults::random::Random;
use crate::pg::{Change, Lsn, OldTuple, RelationId, Tuple};
use crate::pgoutput::encode::{Value, tuple};

/// Keys and values come from so few that they meet again.
const IDS: usize = 12;

/// A committed transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) xid: u32,
    /// Where its commit record begins.
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) changes: Vec<Change>,
    /// Rows that it wrote: table and row before or after; `None`: all of the table.
    pub(super) wrote: Vec<(RelationId, Option<Row>)>,
    /// All rows after it.
    pub(super) after: ModelTables,
}

/// Everything that was ever committed.
pub(super) struct History {
    pub(super) random: Random,
    pub(super) transactions: Vec<Transaction>,
    /// What the log holds, in its order.
    pub(super) log: Vec<(Lsn, Record)>,
    /// Transactions that run.
    pub(super) running: Vec<Long>,
    /// Before all of them.
    first: ModelTables,
    pub(super) now: ModelTables,
    /// Where the log ends.
    wal_end: u64,
    values: usize,
    xids: u32,
}

pub(super) fn lsn(raw: u64) -> Lsn {
    Lsn::from_wire(raw).unwrap()
}

impl History {
    pub(super) fn new(random: Random) -> Self {
        Self {
            random,
            transactions: Vec::new(),
            log: Vec::new(),
            running: Vec::new(),
            first: empty(),
            now: empty(),
            wal_end: 1_000,
            values: 0,
            xids: 700,
        }
    }

    pub(super) fn wal_end(&self) -> Lsn {
        lsn(self.wal_end)
    }

    /// What others write to the log, and what is rolled back.
    pub(super) fn write_other(&mut self) {
        self.wal_end += 1 + self.random.below(300) as u64;
    }

    /// Commits one more transaction.
    pub(super) fn commit(&mut self) {
        let before = self.now.clone();
        let statements = match self.random.below(10) {
            0 => 0,
            1 => 8 + self.random.below(20),
            _ => 1 + self.random.below(5),
        };
        let mut work = Work::default();
        for _ in 0..statements {
            self.try_statement(&mut work, None);
        }
        let xid = self.new_xid();
        self.has_committed(xid, work, &before);
    }

    /// One statement, unless it would have to wait for a transaction that runs.
    pub(super) fn try_statement(&mut self, work: &mut Work, by: Option<u32>) {
        let before = self.now.clone();
        let (changes, wrote) = (work.changes.len(), work.wrote.len());
        self.statement(work);
        let mut others = self.running.iter().filter(|long| Some(long.xid) != by);
        if others.any(|long| long.is_in_the_way(&work.wrote[wrote..])) {
            self.now = before;
            work.changes.truncate(changes);
            work.wrote.truncate(wrote);
        }
    }

    pub(super) fn new_xid(&mut self) -> u32 {
        self.xids += 1;
        self.xids
    }

    /// Writes what has just been committed into the log, and lets those that run see it.
    pub(super) fn has_committed(&mut self, xid: u32, work: Work, before: &ModelTables) {
        let effects = Effects::between(before, &self.now);
        for long in &mut self.running {
            long.sees(&effects);
        }
        if self.random.once_in(2) {
            self.write_other();
        }
        let begin = self.wal_end;
        self.wal_end += 40 + self.random.below(20) as u64;
        let Work { changes, wrote } = work;
        let record = Record::Commit(self.transactions.len());
        self.log.push((lsn(begin), record));
        self.transactions.push(Transaction {
            xid,
            commit_lsn: lsn(begin),
            end_lsn: lsn(self.wal_end),
            changes,
            wrote,
            after: self.now.clone(),
        });
    }

    /// Another record.
    pub(super) fn write(&mut self, record: Record) {
        self.log.push((lsn(self.wal_end), record));
        self.wal_end += 8;
    }

    /// The rows after all transactions that end at or before a position.
    pub(super) fn at(&self, position: Lsn) -> &ModelTables {
        let count = self.transactions.partition_point(|t| t.end_lsn <= position);
        match count.checked_sub(1) {
            Some(last) => &self.transactions[last].after,
            None => &self.first,
        }
    }

    fn statement(&mut self, work: &mut Work) {
        let kind = &KINDS[self.random.below(KINDS.len())];
        let rows = self.now[&kind.id].rows.len();
        match self.random.below(24) {
            0 => self.truncate(work),
            1..=8 => self.insert(kind, work),
            _ if rows == 0 => self.insert(kind, work),
            9..=11 => self.delete(kind, work),
            12..=13 if kind.id == TICKETS && rows > 1 => self.swap_codes(work),
            14..=17 if !kind.key.is_empty() => self.update(kind, true, work),
            _ => self.update(kind, false, work),
        }
    }

    fn new_value(&mut self) -> Option<Vec<u8>> {
        self.values += 1;
        let is_null = self.random.once_in(8);
        (!is_null).then(|| format!("value {}", self.values).into_bytes())
    }

    fn new_id(&mut self) -> Option<Vec<u8>> {
        Some(self.random.below(IDS).to_string().into_bytes())
    }

    fn new_row(&mut self, kind: &Kind) -> Row {
        (0..kind.columns.len())
            .map(|position| {
                if kind.key.contains(&position) {
                    self.new_id()
                } else {
                    self.new_value()
                }
            })
            .collect()
    }

    fn has_key(&self, kind: &Kind, row: &Row) -> bool {
        let is_it = |other: &Row| kind.key.iter().all(|p| other[*p] == row[*p]);
        !kind.key.is_empty() && self.now[&kind.id].rows.iter().any(is_it)
    }

    fn insert(&mut self, kind: &Kind, work: &mut Work) {
        let row = if kind.id == JOURNAL
            && !self.now[&JOURNAL].rows.is_empty()
            && self.random.once_in(3)
        {
            // Without a key the same row may be there twice.
            let rows = &self.now[&JOURNAL].rows;
            rows[self.random.below(rows.len())].clone()
        } else {
            self.new_row(kind)
        };
        if self.has_key(kind, &row) {
            return;
        }
        work.changes.push(Change::Insert {
            relation: kind.id,
            new: whole(&row),
        });
        work.wrote.push((kind.id, Some(row.clone())));
        self.now.get_mut(&kind.id).unwrap().rows.push(row);
    }

    fn delete(&mut self, kind: &Kind, work: &mut Work) {
        let place = self.random.below(self.now[&kind.id].rows.len());
        let row = self.now.get_mut(&kind.id).unwrap().rows.remove(place);
        work.changes.push(Change::Delete {
            relation: kind.id,
            old: old(kind, &row),
        });
        work.wrote.push((kind.id, Some(row)));
    }

    fn update(&mut self, kind: &Kind, moves_key: bool, work: &mut Work) {
        let place = self.random.below(self.now[&kind.id].rows.len());
        let before = self.now[&kind.id].rows[place].clone();
        let mut after = before.clone();
        if moves_key {
            let position = kind.key[self.random.below(kind.key.len())];
            after[position] = self.new_id();
            if self.has_key(kind, &after) {
                return;
            }
        }
        for (position, value) in after.iter_mut().enumerate() {
            if !kind.key.contains(&position) && self.random.once_in(2) {
                *value = self.new_value();
            }
        }
        self.change_row(kind, place, after, work);
    }

    fn change_row(&mut self, kind: &Kind, place: usize, after: Row, work: &mut Work) {
        let rows = &mut self.now.get_mut(&kind.id).unwrap().rows;
        let before = std::mem::replace(&mut rows[place], after.clone());
        let is_moved = kind.key.iter().any(|p| before[*p] != after[*p]);
        let is_unsent = |position: usize| {
            kind.toast == Some(position)
                && after[position].is_some()
                && after[position] == before[position]
        };
        let values: Vec<Value> = (0..after.len())
            .map(|p| {
                if is_unsent(p) {
                    Value::UnchangedToast
                } else {
                    sent(after[p].as_ref())
                }
            })
            .collect();
        work.changes.push(Change::Update {
            relation: kind.id,
            old: (is_moved || kind.key.is_empty()).then(|| old(kind, &before)),
            new: tuple(&values),
        });
        work.wrote.push((kind.id, Some(before)));
        work.wrote.push((kind.id, Some(after)));
    }

    /// Two rows exchange a unique value, by way of NULL.
    fn swap_codes(&mut self, work: &mut Work) {
        let kind = kind(TICKETS);
        let rows = self.now[&TICKETS].rows.clone();
        let first = self.random.below(rows.len());
        let second = (first + 1) % rows.len();
        let with_code = |row: &Row, code: Option<Vec<u8>>| {
            let mut row = row.clone();
            row[1] = code;
            row
        };
        self.change_row(kind, first, with_code(&rows[first], None), work);
        self.change_row(
            kind,
            second,
            with_code(&rows[second], rows[first][1].clone()),
            work,
        );
        self.change_row(
            kind,
            first,
            with_code(&rows[first], rows[second][1].clone()),
            work,
        );
    }

    fn truncate(&mut self, work: &mut Work) {
        let all = [LEADS, TICKETS, JOURNAL, PAIRS];
        let first = self.random.below(all.len());
        let count = 1 + self.random.below(2);
        let relations: Vec<RelationId> = all
            .iter()
            .cycle()
            .skip(first)
            .take(count)
            .copied()
            .collect();
        for id in &relations {
            self.now.get_mut(id).unwrap().rows.clear();
            work.wrote.push((*id, None));
        }
        work.changes.push(Change::Truncate {
            relations,
            cascade: self.random.once_in(2),
            restart_identity: self.random.once_in(2),
        });
    }
}

/// A transaction under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    pub(super) changes: Vec<Change>,
    pub(super) wrote: Vec<(RelationId, Option<Row>)>,
}

fn sent(value: Option<&Vec<u8>>) -> Value {
    value.map_or(Value::Null, |bytes| Value::Text(bytes.clone()))
}

fn whole(row: &Row) -> Tuple {
    let values: Vec<Value> = row.iter().map(|value| sent(value.as_ref())).collect();
    tuple(&values)
}

/// The old row as far as the table's replica identity has it logged.
fn old(kind: &Kind, row: &Row) -> OldTuple {
    if kind.key.is_empty() {
        return OldTuple::Full(whole(row));
    }
    let is_key = |position: usize| kind.key.contains(&position);
    let values: Vec<Value> = (0..row.len())
        .map(|p| {
            if is_key(p) {
                sent(row[p].as_ref())
            } else {
                Value::Null
            }
        })
        .collect();
    OldTuple::Key(tuple(&values))
}
