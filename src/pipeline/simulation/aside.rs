//! What is kept and what is applied, over random histories and restarts: together they are all
//! changes, each once, in their order; and what is kept leads to the source's rows in the end.
//!
//! ```text
//!  history ─▶ InHand ─┬▶ applied ───────────────────▶ rows ─┐
//!                     └▶ kept ─▶ bytes ─▶ Decoder ─▶ InHand ─┴▶ = the source's
//! ```

use super::history::{History, Transaction, lsn};
use super::tables::{KINDS, Plan, empty};
use crate::apply::{Batch, BatchItem, ChangesMax, Settings, model};
use crate::faults::random::{Random, for_seeds, is_soak};
use crate::pg::{Change, Lsn, Relation, RelationId};
use crate::pgoutput::{Decoder, Message, Streaming};
use crate::pipeline::in_hand::{Committed, InHand, Received};
use crate::pipeline::relations::Relations;
use crate::progress::{KeptChange, TableState};
use crate::telemetry::Telemetry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECONDS: u64 = 3;
const SOAK_SECONDS: u64 = 300;
const TRANSACTIONS: usize = 25;

/// What the replica has committed.
#[derive(Default)]
struct Replica {
    applied: Vec<Change>,
    kept: Vec<KeptChange>,
    rows: model::ModelTables,
    position: Option<Lsn>,
}

struct Run<'a> {
    plan: &'a Plan,
    random: Random,
    history: History,
    settings: Settings,
    set_aside: BTreeSet<RelationId>,
    /// Transactions that are to be passed by, and the error of each.
    skips: BTreeMap<Lsn, i64>,
    /// From which transaction on a table looks otherwise.
    forms: BTreeMap<(RelationId, usize), Relation>,
    replica: Replica,
    restarts: u64,
}

/// Each change by itself: of a table, by a transaction, and the error by which it is passed by.
type One = (RelationId, Lsn, Change, Option<i64>);

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, mut random: Random) -> Self {
        let mut history = History::new(random.branch());
        for _ in 0..TRANSACTIONS {
            history.commit();
        }
        let set_aside: BTreeSet<RelationId> = KINDS
            .iter()
            .map(|kind| kind.id)
            .filter(|_| random.once_in(2))
            .collect();
        let mut skips = BTreeMap::new();
        let mut forms = BTreeMap::new();
        let is_told = random.once_in(2);
        for (number, transaction) in history.transactions.iter().enumerate() {
            if is_told && random.once_in(6) {
                skips.insert(transaction.commit_lsn, 100 + i64::try_from(number).unwrap());
            }
            for id in &set_aside {
                if is_told && random.once_in(8) {
                    let mut form = plan.tables[id].mapping.relation.clone();
                    form.columns[1].name = format!("renamed_{number}");
                    forms.insert((*id, number), form);
                }
            }
        }
        let settings = Settings {
            batch_changes_max: ChangesMax::Exactly([1, 2, 5, 100][random.below(4)]),
            ..Settings::default()
        };
        let replica = Replica {
            rows: empty(),
            ..Replica::default()
        };
        Self {
            plan,
            random,
            history,
            settings,
            set_aside,
            skips,
            forms,
            replica,
            restarts: 0,
        }
    }

    fn form(&self, id: RelationId, number: usize) -> &Relation {
        let told = self.forms.range((id, 0)..=(id, number)).next_back();
        told.map_or(&self.plan.tables[&id].mapping.relation, |(_, form)| form)
    }

    /// To the end, however often an attempt breaks off.
    async fn follow(&mut self) {
        while !self.attempt().await {
            self.restarts += 1;
        }
    }

    /// From the position on; false when it broke off.
    async fn attempt(&mut self) -> bool {
        let telemetry = Telemetry::new("simulated");
        let mut relations = self.plan.relations(lsn(1), |_| lsn(1), &telemetry);
        for id in &self.set_aside {
            relations.set_state(*id, TableState::Quarantined { at: lsn(1) });
        }
        let (mut in_hand, mut parts) = (InHand::default(), Vec::new());
        for number in 0..self.history.transactions.len() {
            let transaction = self.history.transactions[number].clone();
            if Some(transaction.end_lsn) <= self.replica.position {
                continue;
            }
            let received = Received {
                commit_lsn: transaction.commit_lsn,
                xid: transaction.xid,
                skipped_by: self.skips.get(&transaction.commit_lsn).copied(),
            };
            in_hand.begin(received).unwrap();
            for change in &transaction.changes {
                if self.random.once_in(60) {
                    return false;
                }
                self.tell_forms(&mut relations, number, change, received)
                    .await;
                in_hand.change(&relations, change.clone()).unwrap();
                if in_hand.is_full(&self.settings) {
                    if in_hand.has_whole() {
                        self.commit(&mut in_hand, &mut parts);
                    } else {
                        parts.push(in_hand.take_part());
                    }
                }
            }
            let last = Committed {
                commit_lsn: transaction.commit_lsn,
                end: transaction.end_lsn,
                time_us: 0,
            };
            let concerns_us = in_hand.commit(last).unwrap();
            if concerns_us && (in_hand.is_part_written() || self.random.once_in(3)) {
                self.commit(&mut in_hand, &mut parts);
            }
        }
        self.commit(&mut in_hand, &mut parts);
        true
    }

    async fn tell_forms(
        &self,
        relations: &mut Relations,
        number: usize,
        change: &Change,
        received: Received,
    ) {
        for id in change.relations() {
            let form = self.form(*id, number);
            if self.set_aside.contains(id) && relations.is_new(form) {
                relations.learn(form.clone(), Some(received)).await.unwrap();
            }
        }
    }

    fn commit(&mut self, in_hand: &mut InHand, parts: &mut Vec<Batch>) {
        let Some(whole) = in_hand.take_whole() else {
            return;
        };
        parts.push(whole.batch);
        for batch in parts.drain(..) {
            // Where one is passed by, later ones miss its rows.
            if self.skips.is_empty() {
                model::write(&mut self.replica.rows, &batch).unwrap();
            }
            self.replica.applied.extend(changes(&batch));
            self.replica.kept.extend(batch.kept);
        }
        self.replica.position = Some(whole.end);
    }

    /// What must be applied, and what kept.
    fn expected(&self) -> (Vec<Change>, Vec<One>) {
        let (mut applied, mut kept) = (Vec::new(), Vec::new());
        for transaction in &self.history.transactions {
            let skipped_by = self.skips.get(&transaction.commit_lsn).copied();
            for change in &transaction.changes {
                let (aside, others): (Vec<RelationId>, Vec<RelationId>) = change
                    .relations()
                    .iter()
                    .partition(|id| skipped_by.is_some() || self.set_aside.contains(*id));
                for id in aside {
                    let change = of_tables(change, vec![id]);
                    kept.push((id, transaction.commit_lsn, change, skipped_by));
                }
                if !others.is_empty() {
                    applied.push(of_tables(change, others));
                }
            }
        }
        (applied, kept)
    }

    fn check(&self) {
        let (applied, kept) = self.expected();
        assert_eq!(self.replica.applied, applied);
        let number = |at: Lsn| {
            let is_it = |t: &Transaction| t.commit_lsn == at;
            self.history.transactions.iter().position(is_it).unwrap()
        };
        // What waits is read by table, what is passed by by error; each from its first change on.
        let mut readers: BTreeMap<(RelationId, Option<i64>), (Decoder, Option<Relation>)> =
            BTreeMap::new();
        let mut read = Vec::new();
        for one in &self.replica.kept {
            let (decoder, form) = readers
                .entry((one.source_oid, one.skipped_by))
                .or_insert_with(|| (Decoder::new(1, Streaming::Off), None));
            if let Some(bytes) = &one.form {
                let Message::Relation { relation, .. } = decoder.decode(bytes.clone()).unwrap()
                else {
                    panic!("a form is none");
                };
                *form = Some(relation);
            }
            let is_aside = self.set_aside.contains(&one.source_oid);
            let then = if is_aside { number(one.commit_lsn) } else { 0 };
            assert_eq!(form.as_ref(), Some(self.form(one.source_oid, then)));
            let Message::Change { change, .. } = decoder.decode(one.change.clone()).unwrap() else {
                panic!("a change is none");
            };
            read.push((one.source_oid, one.commit_lsn, change, one.skipped_by));
        }
        assert_eq!(read, kept);
    }

    /// Taken back, one table after the other, the replica has the rows of the source.
    fn take_back(&mut self) {
        let telemetry = Telemetry::new("simulated");
        let relations = self.plan.relations(lsn(1), |_| lsn(1), &telemetry);
        let (_, kept) = self.expected();
        for id in &self.set_aside {
            let mut in_hand = InHand::default();
            let mut before = None;
            let mut write = |in_hand: &mut InHand| {
                let batch = in_hand.take_part();
                *in_hand = InHand::default();
                model::write(&mut self.replica.rows, &batch).unwrap();
            };
            for (_, at, change, _) in kept.iter().filter(|one| one.0 == *id) {
                if before.replace(*at) != Some(*at) || in_hand.is_full(&self.settings) {
                    write(&mut in_hand);
                }
                if in_hand.is_between_transactions() {
                    let received = Received {
                        commit_lsn: *at,
                        xid: 0,
                        skipped_by: None,
                    };
                    in_hand.begin(received).unwrap();
                }
                in_hand.change(&relations, change.clone()).unwrap();
            }
            write(&mut in_hand);
        }
        let source = self.history.at(self.history.wal_end());
        for kind in &KINDS {
            let sorted = |tables: &model::ModelTables| {
                let mut rows = tables[&kind.id].rows.clone();
                rows.sort();
                rows
            };
            assert_eq!(sorted(&self.replica.rows), sorted(source), "{}", kind.id);
        }
    }
}

/// The same of some of its tables, as it is kept.
fn of_tables(change: &Change, relations: Vec<RelationId>) -> Change {
    match change {
        Change::Truncate {
            restart_identity, ..
        } => Change::Truncate {
            relations,
            cascade: false,
            restart_identity: *restart_identity,
        },
        row => row.clone(),
    }
}

fn changes(batch: &Batch) -> Vec<Change> {
    let id = |table: u32| batch.mapping(table).unwrap().relation.id;
    let change = |item: &BatchItem| match item {
        BatchItem::Row { table, change } => change.clone().into_change(id(*table)),
        BatchItem::Truncate {
            tables,
            restart_identity,
        } => Change::Truncate {
            relations: tables.iter().map(|table| id(*table)).collect(),
            cascade: false,
            restart_identity: *restart_identity,
        },
    };
    batch.items.iter().map(change).collect()
}

#[test]
fn kept_and_applied_are_all_changes_in_their_order() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let plan = Plan::new();
    let time = Duration::from_secs(if is_soak() { SOAK_SECONDS } else { SECONDS });
    let (mut applied, mut kept, mut restarts, mut taken_back) = (0, 0, 0, 0);
    let seeds = for_seeds(time, |random| {
        runtime.block_on(async {
            let mut run = Run::new(&plan, random);
            run.follow().await;
            run.check();
            applied += run.replica.applied.len();
            kept += run.replica.kept.len();
            restarts += run.restarts;
            if run.skips.is_empty() {
                run.take_back();
                taken_back += run.set_aside.len();
            }
        });
    });
    eprintln!(
        "{seeds} seeds: {applied} changes applied, {kept} kept, {restarts} restarts, {taken_back} tables taken back"
    );
    let is_replay = crate::faults::random::seed().is_some();
    assert!(is_replay || [applied, kept, taken_back].iter().all(|n| *n > 0) && restarts > 0);
}
