//! Mends what a comparison found: plans it, carries it out at cuts, and compares again.
//!
//! ```text
//!  compare ─▶ plan ─ within the bounds? ─ no ─▶ refused, nothing changed
//!               │            └ yes, and wanted ─▶ deletions, children first ─▶ the others, parents first
//!               │                                     └ 200 rows a cut                └▶ compare again
//!               └ only to be shown ─▶ told
//! ```
//!
//! Every row that is changed is kept as it was, in `pglockstep.repairs`, by the transaction that
//! changes it. Nothing is deleted unless that is asked for.

mod cleanup;
mod mend;
mod plan;
mod recopy;
mod report;
mod statement;
mod validate;

pub use cleanup::{Cleaned, CleanupReport, CleanupWish, clean};
pub use plan::Bounds;
pub use report::{Deeds, Report, RowToMend, TableRepair, Way};
pub use validate::Validated;

use crate::apply::ApplyError;
use crate::conn::{ConnError, Session};
use crate::mapping::{ConflictPolicy, RowIdentity};
use crate::pg::{Lsn, QualifiedName, ServerError, TypeNames};
use crate::pipeline::{
    CutAsker, CutError, PipelineConfig, PipelineError, PlannedTable, TablePlan, fetch_plan,
};
use crate::preflight::CheckError;
use crate::progress::ProgressError;
use crate::snapshot::SnapshotError;
use crate::telemetry::{Chain, Telemetry};
use crate::verify::{DriftKind, Progress, SliceSize, TableReport, VerifyError, Wanted, verify};
use mend::Mender;
use recopy::Recopy;
use serde::{Deserialize, Serialize};
use statement::{Treatment, is_key_as_it_is};

/// Why a table without a key is not copied again.
const OWN_COLUMNS: &str =
    "the replica's own columns would lose their values; `resync` it if they may";
/// So many rows of a table are shown.
const SHOWN_MAX: usize = 100;

/// What somebody asks for by way of the books, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// [`repair`].
    Repair(Wish),
    /// [`clean`].
    Cleanup(CleanupWish),
}

impl Asked {
    /// The form in the books.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("words and numbers"))
    }
}

/// What a repair works with: the pipeline that runs, and how it compares.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// Where to, and what takes part.
    pub config: &'a PipelineConfig,
    /// Holds both sides at one position.
    pub cuts: &'a CutAsker,
    /// Of the pipeline: whether it runs, and is behind.
    pub telemetry: &'a Telemetry,
    /// Larger tables are compared slice by slice.
    pub slice: SliceSize,
}

impl Means<'_> {
    fn wanted(&self, tables: Vec<QualifiedName>) -> Wanted {
        Wanted {
            tables,
            slice: self.slice,
            gives_way_to: Some(self.telemetry.clone()),
            ..Wanted::default()
        }
    }
}

/// What is to be mended, and how far that may go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// Source tables; empty: all.
    #[serde(skip)]
    pub tables: Vec<QualifiedName>,
    /// Nobody asked: tables whose conflicts others may win are let be.
    #[serde(skip)]
    pub is_by_itself: bool,
    /// Rows are to be changed; otherwise the plan is shown.
    pub apply: bool,
    /// How far.
    pub bounds: Bounds,
}

/// It was not carried out, or not to its end: what was mended by then stays so.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The sides could not be compared.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// No cut.
    #[error("source and replica cannot be held at one position")]
    Cut(#[from] CutError),
    /// No session.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// What takes part could not be learned.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The pipeline has another owner, or the books could not be read.
    #[error(transparent)]
    Books(#[from] ProgressError),
    /// A snapshot, or the staging table.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The session could not be made ready.
    #[error(transparent)]
    Session(#[from] ApplyError),
    /// The apply did not wait so long, or the table was rewritten meanwhile.
    #[error("the rows could not be written in time, at any of some tries")]
    TooLate,
    /// It is being copied.
    #[error("{0} has no whole copy: it is being copied, or set aside")]
    NotWhole(QualifiedName),
    /// The copy could not be made, and the table is what it was.
    #[error("{0} could not be copied again, and is what it was: the daemon's log says why")]
    CalledOff(QualifiedName),
    /// Nobody copied it.
    #[error(
        "{0} is not copied again yet: see `pglockstep status` and the daemon's log, and verify it then"
    )]
    NotCopied(QualifiedName),
    /// It was copied, and the pipeline does not get on.
    #[error("{0} was copied again, and could not be compared yet: the pipeline does not stream")]
    NotStreaming(QualifiedName),
    /// Foreign keys of the replica cannot be looked at.
    #[error("cannot validate the replica's foreign keys")]
    Validating(#[source] ServerError),
    /// Foreign keys fire, and rows may refer to those that are to go.
    #[error(
        "rows of {0} are not deleted: other tables refer to it, and its foreign keys fire; let the role set session_replication_role"
    )]
    ReferredTo(QualifiedName),
    /// A value of the key is another one on the replica.
    #[error("rows of {0} are not deleted: its key is cast on the way, so `resync` it instead")]
    CastKey(QualifiedName),
    /// Its rows cannot be told from each other.
    #[error("{0} has no key of plain columns")]
    NoKey(QualifiedName),
    /// The replica's own integrity cannot be looked at.
    #[error(transparent)]
    Look(#[from] CheckError),
    /// The source refuses.
    #[error("rows of the source table {table} cannot be read")]
    Reading {
        /// The source table.
        table: QualifiedName,
        /// What it says.
        #[source]
        source: ServerError,
    },
    /// The replica refuses.
    #[error("rows of the replica table {table} cannot be mended")]
    Writing {
        /// The replica table.
        table: QualifiedName,
        /// What it says.
        #[source]
        source: ServerError,
    },
}

/// Compares, plans, and mends if that is wished; `tell` hears how far it is.
///
/// # Errors
/// [`RepairError`]; what was mended before stays mended.
pub async fn repair(
    means: Means<'_>,
    wish: &Wish,
    mut tell: impl FnMut(String),
) -> Result<Report, RepairError> {
    let Means { config, cuts, .. } = means;
    let bounds = wish.bounds;
    let wanted = Wanted {
        named_max: usize::try_from(bounds.max_rows).unwrap_or(usize::MAX),
        passes_by_unknown: wish.is_by_itself,
        ..means.wanted(wish.tables.clone())
    };
    let compared = {
        let say = |progress: Progress<'_>| tell(format!("comparing {progress}"));
        verify(config, cuts, &wanted, say).await?
    };
    let drifted: Vec<TableReport> = compared
        .tables
        .into_iter()
        .filter(|table| !table.in_sync)
        .collect();
    let plan = fetch_tables(config).await?;
    let mut work: Vec<Work<'_>> = drifted
        .iter()
        .filter_map(|table| Work::of(&plan, table, wish))
        .collect();
    let places = plan.parents_first();
    work.sort_by_key(|one| places.get(&one.planned.replica.name).copied().unwrap_or(0));
    let changed = work.iter().filter(|one| one.told.way != Way::LetBe);
    let changed: Vec<&TableReport> = changed.map(|one| one.found).collect();
    let refused = bounds.refusal(&changed).filter(|_| wish.apply);
    let mut report = Report {
        applied: wish.apply && refused.is_none() && !work.is_empty(),
        lsn: compared.lsn,
        refused,
        tables: Vec::new(),
        not_compared: compared.not_compared,
        verified: None,
        unverified: None,
        is_whole: work.len() == drifted.len(),
    };
    if report.applied {
        let mender = Mender { config, cuts };
        // What goes makes room, for a unique value as well.
        for one in work.iter_mut().rev() {
            one.delete(&mender, &plan.types, wish).await;
        }
        for one in &mut work {
            tell(format!("mending {}", one.found.table));
            one.restore(&mender, &plan.types).await;
        }
        // The last of all, for the stream begins anew.
        for one in &mut work {
            one.want_copy(means, compared.lsn).await;
        }
        for one in &mut work {
            one.await_copy(means, &mut tell).await;
        }
        let mended = work.iter().filter(|one| one.told.way != Way::LetBe);
        let names = mended.map(|one| one.planned.source.name.clone());
        let again = Wanted {
            passes_by_unknown: true,
            ..means.wanted(names.collect())
        };
        if !again.tables.is_empty() {
            let say = |progress: Progress<'_>| tell(format!("comparing again {progress}"));
            // Without it the report still tells what was done.
            report.verified = match verify(config, cuts, &again, say).await {
                Ok(verified) => Some(verified),
                Err(error) => {
                    report.unverified = Some(Chain(&error).to_string());
                    None
                }
            };
        }
    }
    report.tables = work.into_iter().map(|one| one.told).collect();
    Ok(report)
}

/// A table that is not the same.
struct Work<'a> {
    planned: &'a PlannedTable,
    found: &'a TableReport,
    told: TableRepair,
    /// It is to be copied again.
    requested: Option<Recopy>,
}

impl<'a> Work<'a> {
    /// `None` where it does not take part any more.
    fn of(plan: &'a TablePlan, found: &'a TableReport, wish: &Wish) -> Option<Self> {
        let (source, _) = found.names.as_ref()?;
        let planned = plan.tables.values();
        let planned = planned
            .into_iter()
            .find(|planned| planned.source.name == *source)?;
        Some(Self {
            planned,
            found,
            told: told(planned, found, wish),
            requested: None,
        })
    }

    /// Takes away what only the replica has, if that is wished.
    async fn delete(&mut self, mender: &Mender<'_>, types: &TypeNames, wish: &Wish) {
        let keys = plan::keys(self.found, |kind| kind == DriftKind::Extra);
        if self.told.way != Way::Rows || !wish.bounds.delete_extra || keys.is_empty() {
            return;
        }
        let planned = self.planned;
        let deleted = match is_key_as_it_is(&planned.mapping, &planned.source) {
            true => mender.mend(planned, types, &keys, Treatment::Delete).await,
            false => {
                let name = planned.mapping.replica.clone();
                (Deeds::default(), Some(RepairError::CastKey(name)))
            }
        };
        self.note(deleted);
    }

    /// Brings and mends what the source has.
    async fn restore(&mut self, mender: &Mender<'_>, types: &TypeNames) {
        if self.told.way == Way::Rows {
            let keys = plan::keys(self.found, |kind| kind != DriftKind::Extra);
            let done = mender
                .mend(self.planned, types, &keys, Treatment::Restore)
                .await;
            self.note(done);
        }
    }

    /// Has it copied again, where that is how it is mended.
    async fn want_copy(&mut self, means: Means<'_>, at: Lsn) {
        if self.told.way == Way::Resync {
            match Recopy::request(means, self.planned, self.found, at).await {
                Ok(requested) => self.requested = Some(requested),
                Err(error) => self.note((Deeds::default(), Some(error))),
            }
        }
    }

    async fn await_copy(&mut self, means: Means<'_>, tell: &mut impl FnMut(String)) {
        if let Some(requested) = self.requested.take() {
            let done = requested.done(means, self.planned, tell).await;
            self.note(match done {
                Ok(deeds) => (deeds, None),
                Err(error) => (Deeds::default(), Some(error)),
            });
        }
    }

    /// One table's trouble is no other's.
    fn note(&mut self, (deeds, error): (Deeds, Option<RepairError>)) {
        self.told.done.get_or_insert_default().add(&deeds);
        if let Some(error) = error {
            self.told.error = Some(Chain(&error).to_string());
        }
    }
}

async fn fetch_tables(config: &PipelineConfig) -> Result<TablePlan, RepairError> {
    let source = config.source.connect(Session::SourceRead).await?;
    let replica = config.replica.connect(Session::ReplicaWrite).await?;
    Ok(fetch_plan(&source, &replica, &config.publication, &config.mapping).await?)
}

fn told(planned: &PlannedTable, table: &TableReport, wish: &Wish) -> TableRepair {
    let bounds = wish.bounds;
    let is_keyless = !matches!(planned.mapping.identity, RowIdentity::Key(_));
    let key: Vec<String> = match &planned.mapping.identity {
        RowIdentity::Key(key) => key
            .iter()
            .filter_map(|i| Some(planned.mapping.columns.get(*i)?.name.clone()))
            .collect(),
        RowIdentity::FullRow | RowIdentity::InsertsOnly => Vec::new(),
    };
    let is_ours = planned.mapping.on_conflict == ConflictPolicy::SourceWins;
    let keeps_own = planned.replica_has_own_columns();
    let way = match key.is_empty() {
        _ if wish.is_by_itself && (!is_ours || key.is_empty()) => Way::LetBe,
        false => Way::Rows,
        // What only the replica knows of its rows would be lost.
        true if keeps_own => Way::LetBe,
        // All its rows are put in the place of all that are there.
        true if table.extra == 0 || bounds.delete_extra => Way::Resync,
        true => Way::LetBe,
    };
    let rows = table.rows.iter().take(SHOWN_MAX);
    TableRepair {
        table: table.table.clone(),
        replica_table: table.replica_table.clone(),
        source_rows: table.source_rows,
        missing: table.missing,
        extra: table.extra,
        different: table.different,
        percent: bounds.percent(table),
        way,
        key,
        rows: rows
            .map(|(kind, key)| RowToMend {
                kind: *kind,
                key: key.clone(),
            })
            .collect(),
        done: None,
        error: (is_keyless && keeps_own).then(|| OWN_COLUMNS.to_owned()),
    }
}
