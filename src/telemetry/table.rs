//! One table's counters and state, and the metrics made from them.
//!
//! received = applied + filtered + quarantined + discarded, for every table. The ledger's imbalance
//! is what is left over: changes still on their way, or lost by a fault of ours.
//!
//! ```text
//!  received ─┬─▶ settled: applied, filtered, quarantined
//!            ├─▶ discarded with its connection: it arrives again
//!            └─▶ pending ─▶ on its way ─ or is it? ─▶ unaccounted: lasts until the daemon ends
//! ```

use super::family::{Family, Sample};
use super::labels::{Op, TableStateLabel};
use super::progress_clock::ProgressClock;
use super::proof::{Proof, Verified};
use crate::pg::{ConflictKind, QualifiedName};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// A table's counters; cheap to clone and to count with.
#[derive(Clone)]
pub struct TableTelemetry {
    facts: Arc<TableFacts>,
    clock: Arc<ProgressClock>,
}

impl TableTelemetry {
    /// Changes of this table that arrived.
    pub fn received(&self, changes: u64) {
        self.facts.received.fetch_add(changes, Relaxed);
    }

    /// What arrived and was not settled is gone with its connection; it will arrive again, unless
    /// the replica has it.
    pub fn discard_pending(&self) {
        self.facts.discard_pending();
    }

    /// Holds what is pending against what is known to be on its way. What is neither settled nor
    /// on its way (less than 0: settled twice, or never received) is returned if there is any,
    /// and stays in the imbalance from then on.
    #[must_use]
    pub fn reconcile(&self, on_their_way: u64) -> Option<i64> {
        self.facts.reconcile(on_their_way)
    }

    /// Changes that are durable on the replica.
    pub fn applied(&self, op: Op, changes: u64) {
        self.facts.applied[op as usize].fetch_add(changes, Relaxed);
    }

    /// Changes whose rows do not belong on the replica (`where`).
    pub fn filtered(&self, changes: u64) {
        self.facts.filtered.fetch_add(changes, Relaxed);
    }

    /// Changes that were set aside, durably.
    pub fn quarantined(&self, changes: u64) {
        self.facts.quarantined.fetch_add(changes, Relaxed);
    }

    /// Conflicts met, whatever was decided about them.
    pub fn conflict(&self, kind: ConflictKind, conflicts: u64) {
        self.facts.conflicts[kind as usize].fetch_add(conflicts, Relaxed);
    }

    /// Where the table stands.
    pub fn set_state(&self, state: TableStateLabel) {
        self.facts.state.store(state as u8, Relaxed);
    }

    /// Rows the first copy wrote. Counts as progress of the pipeline.
    pub fn copied_rows(&self, rows: u64) {
        self.facts.copied_rows.fetch_add(rows, Relaxed);
        self.clock.mark();
    }

    /// What a comparison found.
    pub fn verified(&self, found: &Verified) {
        let mut proof = self
            .facts
            .proof
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        proof.take(found);
    }

    /// What a comparison found that takes several turns, and how far it is.
    pub fn verified_part(&self, share: f64, drift: [u64; 3]) {
        let mut proof = self
            .facts
            .proof
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        proof.take_part(share, drift);
    }

    /// How far the first copy is, 0 to 1.
    pub fn set_copy_progress(&self, ratio: f64) {
        *self
            .facts
            .copy_progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(ratio.clamp(0.0, 1.0));
    }
}

/// What is known of one table.
#[derive(Default)]
pub(super) struct TableFacts {
    /// The replica's table; another one when the mapping changed.
    replica: Mutex<Option<QualifiedName>>,
    received: AtomicU64,
    applied: [AtomicU64; Op::ALL.len()],
    filtered: AtomicU64,
    quarantined: AtomicU64,
    discarded: AtomicU64,
    /// Of the imbalance, what is not pending.
    left_over: AtomicI64,
    /// The same, lost and made up ones added up.
    unaccounted: AtomicU64,
    conflicts: [AtomicU64; ConflictKind::ALL.len()],
    copied_rows: AtomicU64,
    copy_progress: Mutex<Option<f64>>,
    proof: Mutex<Proof>,
    /// Place in [`TableStateLabel::ALL`].
    state: AtomicU8,
}

impl TableFacts {
    pub(super) fn discard_pending(&self) {
        match u64::try_from(self.pending()) {
            Ok(pending) => {
                self.discarded.fetch_add(pending, Relaxed);
            }
            // More was settled than had arrived.
            Err(_) => {
                self.reconcile(0);
            }
        }
    }

    fn reconcile(&self, on_their_way: u64) -> Option<i64> {
        let left = self.pending() - on_their_way.cast_signed();
        self.left_over.fetch_add(left, Relaxed);
        self.unaccounted.fetch_add(left.unsigned_abs(), Relaxed);
        (left != 0).then_some(left)
    }

    pub(super) fn unaccounted(&self) -> u64 {
        self.unaccounted.load(Relaxed)
    }

    pub(super) fn state(&self) -> TableStateLabel {
        let place = usize::from(self.state.load(Relaxed));
        TableStateLabel::ALL
            .get(place)
            .copied()
            .unwrap_or(TableStateLabel::Init)
    }

    pub(super) fn replica(&self) -> Option<QualifiedName> {
        self.replica
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn copied(&self) -> u64 {
        self.copied_rows.load(Relaxed)
    }

    pub(super) fn copy_progress(&self) -> Option<f64> {
        *self
            .copy_progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn proof(&self) -> Proof {
        self.proof
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied.iter().map(|count| count.load(Relaxed)).sum()
    }

    fn settled(&self) -> u64 {
        self.applied() + self.filtered.load(Relaxed) + self.quarantined.load(Relaxed)
    }

    /// Changes on their way.
    pub(super) fn pending(&self) -> i64 {
        self.imbalance() - self.left_over.load(Relaxed)
    }

    fn imbalance(&self) -> i64 {
        // `received` last: a change counted in between reads as on its way, never as negative.
        let gone = self.settled() + self.discarded.load(Relaxed);
        self.received().cast_signed() - gone.cast_signed()
    }
}

/// Every table seen so far, by its name on the source.
#[derive(Clone, Default)]
pub(super) struct Tables(Arc<Mutex<BTreeMap<QualifiedName, Arc<TableFacts>>>>);

impl Tables {
    pub(super) fn open(
        &self,
        source: &QualifiedName,
        replica: &QualifiedName,
        clock: Arc<ProgressClock>,
    ) -> TableTelemetry {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = Arc::clone(tables.entry(source.clone()).or_default());
        *facts.replica.lock().unwrap_or_else(PoisonError::into_inner) = Some(replica.clone());
        TableTelemetry { facts, clock }
    }

    /// The tables as they are now, in order of their names.
    pub(super) fn snapshot(&self) -> Vec<(QualifiedName, Arc<TableFacts>)> {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables
            .iter()
            .map(|(name, facts)| (name.clone(), Arc::clone(facts)))
            .collect()
    }
}

const TABLE: &[&str] = &["table"];
const RECEIVED: Family = Family::counter(
    "pglockstep_changes_received_total",
    TABLE,
    "Changes that arrived from the source.",
);
const APPLIED: Family = Family::counter(
    "pglockstep_changes_applied_total",
    &["table", "op"],
    "Changes that are durable on the replica.",
);
const FILTERED: Family = Family::counter(
    "pglockstep_changes_filtered_total",
    TABLE,
    "Changes whose rows do not belong on the replica.",
);
const QUARANTINED: Family = Family::counter(
    "pglockstep_changes_quarantined_total",
    TABLE,
    "Changes that were set aside.",
);
const DISCARDED: Family = Family::counter(
    "pglockstep_changes_discarded_total",
    TABLE,
    "Changes that arrived and went with their connection before they were applied: they arrive again.",
);
const IMBALANCE: Family = Family::gauge(
    "pglockstep_ledger_imbalance",
    TABLE,
    "Changes received less those applied, filtered, quarantined or discarded; 0 when nothing is on its way.",
);
const UNACCOUNTED: Family = Family::gauge(
    "pglockstep_ledger_unaccounted",
    TABLE,
    "Changes that were neither settled nor on their way when that was looked at, or settled twice.",
);
const CONFLICTS: Family = Family::counter(
    "pglockstep_conflicts_total",
    &["table", "kind"],
    "Changes that met another row than expected, by PostgreSQL's names.",
);
const STATE: Family = Family::gauge(
    "pglockstep_table_state",
    &["table", "state"],
    "1 for the state the table is in, 0 for the others.",
);
const COPY_ROWS: Family = Family::counter(
    "pglockstep_copy_rows_total",
    TABLE,
    "Rows written by the first copy.",
);
const COPY_PROGRESS: Family = Family::gauge(
    "pglockstep_copy_progress_ratio",
    TABLE,
    "How far the first copy is, 0 to 1; absent until it began.",
);
const FAMILIES: [&Family; 11] = [
    &RECEIVED,
    &APPLIED,
    &FILTERED,
    &QUARANTINED,
    &DISCARDED,
    &IMBALANCE,
    &UNACCOUNTED,
    &CONFLICTS,
    &STATE,
    &COPY_ROWS,
    &COPY_PROGRESS,
];

/// Makes every table's metrics at a scrape.
pub(super) struct TableCollector {
    tables: Tables,
    descs: Vec<Desc>,
}

impl TableCollector {
    pub(super) fn new(tables: Tables) -> prometheus::Result<Self> {
        let descs = FAMILIES
            .iter()
            .map(|family| family.desc())
            .collect::<Result<_, _>>()?;
        Ok(Self { tables, descs })
    }
}

impl Collector for TableCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let tables: Vec<(String, Arc<TableFacts>)> = self
            .tables
            .snapshot()
            .into_iter()
            .map(|(name, facts)| (name.to_string(), facts))
            .collect();
        let each = |family: &Family, value: fn(&TableFacts) -> Option<f64>| {
            let sample = |(name, facts): &'_ (String, Arc<TableFacts>)| {
                value(facts).map(|value| (name.clone(), value))
            };
            let values: Vec<(String, f64)> = tables.iter().filter_map(sample).collect();
            family.samples(
                values
                    .iter()
                    .map(|(name, value)| (vec![name.as_str()], *value)),
            )
        };
        let load = |count: &AtomicU64| count.load(Relaxed) as f64;
        let applied = tables.iter().flat_map(|(name, facts)| {
            Op::ALL.iter().map(move |op| -> Sample<'_> {
                (vec![name, op.as_str()], load(&facts.applied[*op as usize]))
            })
        });
        let conflicts = tables.iter().flat_map(|(name, facts)| {
            ConflictKind::ALL.iter().map(move |kind| -> Sample<'_> {
                (
                    vec![name, kind.as_str()],
                    load(&facts.conflicts[*kind as usize]),
                )
            })
        });
        let states = tables.iter().flat_map(|(name, facts)| {
            let all = TableStateLabel::ALL.iter().map(|state| state.as_str());
            Family::one_hot(&[name], all, facts.state().as_str())
        });
        vec![
            each(&RECEIVED, |facts| Some(facts.received() as f64)),
            APPLIED.samples(applied),
            each(&FILTERED, |facts| Some(facts.filtered.load(Relaxed) as f64)),
            each(&QUARANTINED, |facts| {
                Some(facts.quarantined.load(Relaxed) as f64)
            }),
            each(&DISCARDED, |facts| {
                Some(facts.discarded.load(Relaxed) as f64)
            }),
            each(&IMBALANCE, |facts| Some(facts.imbalance() as f64)),
            each(&UNACCOUNTED, |facts| Some(facts.unaccounted() as f64)),
            CONFLICTS.samples(conflicts),
            STATE.samples(states),
            each(&COPY_ROWS, |facts| Some(facts.copied() as f64)),
            each(&COPY_PROGRESS, TableFacts::copy_progress),
        ]
    }
}
