//! Compares source and replica at one position, while the apply goes on.
//!
//! ```text
//!  cut at L ─▶ table by table: blocks of both sides ─ alike ─▶ in sync at L
//!                                     └ unlike ─▶ their rows ─▶ missing, extra, different
//! ```
//!
//! Huge tables are compared slice by slice (`walk.rs`), if need be in several turns, each at a position of its own.
//!
//! Both snapshots are of the same position, so that a difference is one: there is no waiting for
//! quiet and no second look; but where a transaction of the source is in the way (`recheck.rs`). A table that cannot be compared is said to be so, and never to be in
//! sync.

mod compare;
mod error;
mod recheck;
mod report;
mod slice;
mod statement;
mod table;
mod throttle;
mod walk;

pub use compare::{DriftKind, Key};
pub use error::VerifyError;
pub use report::{NotCompared, PassedBy, Report, TableReport};
pub use slice::SliceSize;
pub use table::compare_now;

pub(crate) use statement::replica_row_hash;

use crate::catalog::TableKind;
use crate::conn::Session;
use crate::pg::{Lsn, QualifiedName};
use crate::pipeline::{
    Cut, CutAsker, CutError, PipelineConfig, PlannedTable, TablePlan, fetch_plan,
};
use crate::progress::{Part, Store, TableRecord, TableState};
use crate::snapshot::enter_snapshot;
use crate::telemetry::Telemetry;
use recheck::Again;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use table::{Sessions, settle};
use tokio_postgres::Client;
use walk::{Walk, Walked};

/// What is to be compared.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Source tables; empty: all.
    pub tables: Vec<QualifiedName>,
    /// Rows are counted, and not compared.
    pub counts_only: bool,
    /// So many rows at most of each kind are named, of each table.
    pub named_max: usize,
    /// A table that does not take part any more is passed by and told, and no error.
    pub passes_by_unknown: bool,
    /// Larger tables are compared in slices of this size, where they can be.
    pub slice: SliceSize,
    /// Once tables were compared for so long, no other slice is begun, nor another table.
    pub budget: Option<Duration>,
    /// What such times before have left.
    pub parts: Vec<Part>,
    /// Between slices it is given way to this pipeline, while it is behind.
    pub gives_way_to: Option<Telemetry>,
}

/// Makes a cut and compares the tables there, one after the other; `tell` hears of each.
///
/// # Errors
/// [`VerifyError`]: no cut, or none of the sides can be read. What concerns one table is in the
/// report.
pub async fn verify(
    config: &PipelineConfig,
    cuts: &CutAsker,
    wanted: &Wanted,
    mut tell: impl FnMut(Progress<'_>),
) -> Result<Report, VerifyError> {
    let (cut, near) = match cuts.cut(config).await {
        Err(error @ CutError::SourceBusy { .. }) => {
            (cuts.cut_nearly(config).await?, Some(error.to_string()))
        }
        cut => (cut?, None),
    };
    let source = config.source.connect(Session::SourceRead).await?;
    let replica = config.replica.connect(Session::ReplicaWrite).await?;
    let plan = fetch_plan(&source, &replica, &config.publication, &config.mapping).await?;
    let at = cut.at;
    // The slot that was made for it would hold the source's log.
    let sessions = enter(source, replica, cut).await?;
    let again = near.is_some().then_some(Again { config, cuts });
    // How far each table was at the cut.
    let records = Store::fetch_tables(&sessions.replica, &config.name).await?;
    let mut report = Report::new(at, near);
    let (tables, unknown) = named(&plan, wanted)?;
    unknown
        .iter()
        .for_each(|name| report.pass_by(name, NotCompared::Gone));
    let until = wanted.budget.map(|budget| Instant::now() + budget);
    let walk = Walk {
        sessions: &sessions,
        types: &plan.types,
        wanted,
        again,
        at,
        until,
    };
    let size = |table: &PlannedTable| table.bytes.max(1) as f64;
    let all: f64 = tables.iter().map(|table| size(table)).sum();
    let mut before = 0.0;
    for (number, planned) in tables.iter().enumerate() {
        if number > 0 && until.is_some_and(|until| Instant::now() >= until) {
            report.in_sync = false;
            break;
        }
        let (at_begin, its) = (before, size(planned));
        before += its;
        let mut tell = |share: f64| {
            tell(Progress {
                table: &planned.source.name,
                number,
                of: tables.len(),
                share: (at_begin + its * share) / all,
            });
        };
        tell(0.0);
        let copied_at = match obstacle(planned, &records, at) {
            Ok(copied_at) => copied_at,
            Err(reason) => {
                report.pass_by(&planned.source.name, reason);
                continue;
            }
        };
        let (walked, worked) = walk.table(planned, copied_at, tell).await?;
        report.took += worked;
        match walked {
            Walked::Whole(table) => report.add(*table),
            Walked::BrokenOff(part, reason) => report.break_off(*part, reason),
            Walked::Not(reason) => report.pass_by(&planned.source.name, reason),
        }
    }
    Ok(report)
}

/// Which table is compared now.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The source table.
    pub table: &'a QualifiedName,
    /// How many were before it.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// What share of all is done, by size.
    pub share: f64,
}

impl std::fmt::Display for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = self.share * 100.0;
        write!(
            f,
            "{}, {} of {}, {percent:.0} %",
            self.table,
            self.number + 1,
            self.of
        )
    }
}

impl Progress<'_> {
    /// The share that a text which ends with one's tells, in per cent.
    #[must_use]
    pub fn percent_told(text: &str) -> Option<u64> {
        let told = text.strip_suffix(" %")?;
        told.rsplit(' ').next()?.parse().ok()
    }
}

async fn enter(source: Client, replica: Client, cut: Cut) -> Result<Sessions, VerifyError> {
    for (client, snapshot) in [
        (&source, &cut.source_snapshot),
        (&replica, &cut.replica_snapshot),
    ] {
        settle(client).await?;
        enter_snapshot(client, snapshot).await?;
    }
    Ok(Sessions { source, replica })
}

/// The tables that are wanted, and the names of those that do not take part.
fn named<'p>(
    plan: &'p TablePlan,
    wanted: &Wanted,
) -> Result<(Vec<&'p PlannedTable>, Vec<QualifiedName>), VerifyError> {
    if wanted.tables.is_empty() {
        return Ok((plan.tables.values().collect(), Vec::new()));
    }
    let by_name: HashMap<&QualifiedName, &PlannedTable> =
        plan.tables.values().map(|t| (&t.source.name, t)).collect();
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for name in &wanted.tables {
        match by_name.get(name) {
            Some(planned) => found.push(*planned),
            None if wanted.passes_by_unknown => unknown.push(name.clone()),
            None => return Err(VerifyError::UnknownTable(name.clone())),
        }
    }
    Ok((found, unknown))
}

/// Where a table was copied; or why it is not to be compared at `at`.
fn obstacle(planned: &PlannedTable, records: &[TableRecord], at: Lsn) -> Result<Lsn, NotCompared> {
    let record = records.iter().find(|record| planned.is_of(record));
    match record.map(|record| record.state) {
        Some(TableState::Copied { at: copied }) if copied <= at => Ok(copied),
        Some(TableState::Quarantined { .. }) => Err(NotCompared::Quarantined),
        _ => Err(NotCompared::NotCopied),
    }
}

impl PlannedTable {
    pub(crate) fn source_has_parts(&self) -> bool {
        self.source.kind == TableKind::Partitioned
    }

    pub(crate) fn replica_has_parts(&self) -> bool {
        self.replica.kind == TableKind::Partitioned
    }
}
