//! Takes away rows of the replica that refer to nothing or share a key, where the source has them not.
//!
//! ```text
//!  look ─▶ which of them has the source? ─▶ those stay ─┐
//!    ▲          └ none of it ─▶ within the bound? ─▶ taken away at cuts, noted ─┐
//!    └──────────── until nothing more goes: whoever referred to a row that went ◀─┘
//! ```
//!
//! What is wrong on the source as well is for the source to mend. Whatever the look says, a row goes only
//! if the source has it not at the cut where it goes; each is kept in `pglockstep.repairs` by the
//! transaction that takes it away. Once none is left that refers to nothing, foreign keys that were NOT VALID are validated.

use super::mend::Mender;
use super::report::Deeds;
use super::statement::{Treatment, held_sql, is_key_as_it_is, on_source};
use super::validate::{Validated, validate};
use super::{Bounds, RepairError, fetch_tables};
use crate::conn::Session;
use crate::diagnose::{Flaw, Suspects, suspects};
use crate::mapping::RowIdentity;
use crate::pg::{QualifiedName, TypeNames};
use crate::pipeline::{CutAsker, PipelineConfig, PlannedTable, TablePlan};
use crate::progress::{Store, TableRecord, TableState};
use crate::telemetry::Chain;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use tokio_postgres::Client;

/// So many keys of each reason are shown.
const SHOWN_MAX: usize = 100;
/// So many keys of each reason are looked at, or `max_rows` if that is more.
const LOOKED_MAX: u64 = 100_000;
/// Keys that the source is asked for at once.
const KEYS_AT_ONCE: usize = 1_000;
/// Rows that refer to rows that refer to rows that went.
const ROUNDS_MAX: usize = 16;

/// What is to be taken away, and how far that may go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CleanupWish {
    /// Source tables; empty: all.
    #[serde(skip)]
    pub tables: Vec<QualifiedName>,
    /// What is wrong with the rows.
    pub flaw: Flaw,
    /// Rows are to go; otherwise they are shown.
    pub apply: bool,
    /// Nothing goes if more would.
    pub max_rows: u64,
}

impl CleanupWish {
    /// Without a bound that somebody set.
    #[must_use]
    pub fn new(flaw: Flaw) -> Self {
        Self {
            tables: Vec::new(),
            flaw,
            apply: false,
            max_rows: Bounds::default().max_rows,
        }
    }
}

/// What was found, and what became of it. The JSON form is an interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CleanupReport {
    /// Rows were taken away, as far as there were any.
    pub applied: bool,
    /// Why nothing was, though it was to be; or why not to the end.
    pub refused: Option<String>,
    /// Table by table, and reason by reason.
    pub tables: Vec<Cleaned>,
    /// Foreign keys that were NOT VALID, looked at after.
    #[serde(default)]
    pub validated: Vec<Validated>,
}

/// Rows of one table with one flaw, for one reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cleaned {
    /// The source table.
    pub table: String,
    /// The replica table.
    pub replica_table: String,
    /// What they refer to, or the columns that they share.
    pub what: String,
    /// Rows that were found.
    pub rows: u64,
    /// Keys of which the source has no row, or of which the replica has several.
    pub to_go: u64,
    /// The first of them.
    pub keys: Vec<Vec<String>>,
    /// What was done.
    pub done: Option<Deeds>,
    /// Rows that are left, once something was done.
    pub left: Option<u64>,
    /// Why it was not done, or not to its end.
    pub error: Option<String>,
}

impl CleanupReport {
    /// The form that is an interface.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("names, texts and numbers"))
    }

    /// No row with that flaw is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let is_clean = |one: &Cleaned| one.error.is_none() && one.left.unwrap_or(one.rows) == 0;
        self.refused.is_none()
            && self.tables.iter().all(is_clean)
            && self.validated.iter().all(|one| one.error.is_none())
    }
}

/// Looks, and takes away what the source has not if that is wished; `tell` hears how far it is.
///
/// # Errors
/// [`RepairError`]; what went before stays gone, and noted.
pub async fn clean(
    config: &PipelineConfig,
    cuts: &CutAsker,
    wish: &CleanupWish,
    mut tell: impl FnMut(String),
) -> Result<CleanupReport, RepairError> {
    let plan = fetch_tables(config).await?;
    if let Some(unknown) = wish
        .tables
        .iter()
        .find(|name| planned(&plan, name).is_none())
    {
        return Err(crate::verify::VerifyError::UnknownTable(unknown.clone()).into());
    }
    let cleaner = Cleaner {
        config,
        mender: Mender { config, cuts },
        plan: &plan,
        wish,
    };
    tell("looking at the replica's rows".to_owned());
    let mut found = cleaner.look().await?;
    let to_go: u64 = found.iter().map(Found::rows_to_go).sum();
    let most = wish.max_rows;
    let beyond = found.iter().find(|one| !one.is_whole);
    let refused = match beyond {
        _ if !wish.apply => None,
        Some(one) => Some(format!(
            "{} rows of {} are more than are looked at: raise --max-rows",
            one.told.rows, one.told.replica_table
        )),
        None => (to_go > most)
            .then(|| format!("{to_go} rows would go, more than --max-rows {most} allows")),
    };
    let applied = wish.apply && refused.is_none();
    let mut report = CleanupReport {
        applied,
        refused,
        tables: found.iter().map(|one| one.told.clone()).collect(),
        validated: Vec::new(),
    };
    let mut left = most;
    let mut has_failed = false;
    for _ in 0..ROUNDS_MAX {
        if !applied || !found.iter().any(|one| one.told.to_go > 0) {
            break;
        }
        for one in &found {
            tell(format!("taking away rows of {}", one.told.replica_table));
            let (deeds, error) = cleaner.take_away(one).await;
            left = left.saturating_sub(deeds.deleted);
            has_failed |= error.is_some();
            report.note(&one.told, &deeds, error);
        }
        found = cleaner.look().await?;
        let is_beyond = found.iter().any(|one| !one.is_whole)
            || found.iter().map(Found::rows_to_go).sum::<u64>() > left;
        if is_beyond {
            let why = format!("more would go than --max-rows {most} allows");
            report.refused = Some(why);
        }
        if has_failed || is_beyond {
            break;
        }
    }
    if applied {
        report.count_what_is_left(&found);
    }
    if applied && report.refused.is_none() && !has_failed && wish.flaw == Flaw::Orphans {
        tell("validating foreign keys".to_owned());
        match validate(&config.replica, &plan, &wish.tables).await {
            Ok(validated) => report.validated = validated,
            // What went is told all the same.
            Err(error) => report.refused = Some(Chain(&error).to_string()),
        }
    }
    Ok(report)
}

fn planned<'p>(plan: &'p TablePlan, source: &QualifiedName) -> Option<&'p PlannedTable> {
    plan.tables.values().find(|t| t.source.name == *source)
}

/// Rows that were found, with their keys that are to be looked at on both sides.
struct Found<'p> {
    planned: &'p PlannedTable,
    is_by_identity: bool,
    /// All of them were looked at.
    is_whole: bool,
    keys: Vec<Vec<String>>,
    told: Cleaned,
}

impl Found<'_> {
    /// At most: where nothing on the replica keeps the key, any number of rows may have one.
    fn rows_to_go(&self) -> u64 {
        let RowIdentity::Key(key) = &self.planned.mapping.identity else {
            return 0;
        };
        let columns = &self.planned.mapping.columns;
        let names: Vec<&String> = key
            .iter()
            .filter_map(|place| Some(&columns.get(*place)?.name))
            .collect();
        let is_kept = self.planned.replica.unique_keys.iter().any(|unique| {
            unique.is_immediate && unique.columns.iter().all(|column| names.contains(&column))
        });
        match self.told.to_go {
            0 => 0,
            to_go if is_kept => to_go,
            _ => self.told.rows,
        }
    }
}

struct Cleaner<'a> {
    config: &'a PipelineConfig,
    mender: Mender<'a>,
    plan: &'a TablePlan,
    wish: &'a CleanupWish,
}

impl<'a> Cleaner<'a> {
    async fn look(&self) -> Result<Vec<Found<'a>>, RepairError> {
        let source = self.config.source.connect(Session::SourceRead).await?;
        let replica = self.config.replica.connect(Session::ReplicaWrite).await?;
        let most = self.wish.max_rows.max(LOOKED_MAX);
        let what = (self.wish.flaw, self.wish.tables.as_slice());
        let all = suspects(&source, &replica, self.plan, what, most.saturating_add(1)).await?;
        let records = Store::fetch_tables(&replica, &self.config.name).await?;
        let mut found = Vec::new();
        for one in all {
            let Some(planned) = planned(self.plan, &one.source) else {
                continue;
            };
            let mut obstacle = obstacle(planned, &records, &one);
            let mut keys = match obstacle {
                None => one.keys,
                Some(_) => Vec::new(),
            };
            let is_whole = keys.len() as u64 <= most;
            let held = match fetch_held(&source, planned, &self.plan.types, &keys).await {
                Ok(held) => held,
                // A key that is no value of the source's type, say: one table's trouble is no other's.
                Err(RepairError::Reading { source, .. }) if !source.is_session_lost() => {
                    obstacle = Some(format!("the source cannot be asked for them: {source}"));
                    keys.clear();
                    HashSet::new()
                }
                Err(error) => return Err(error),
            };
            let is_to_go = |key: &Vec<String>| one.is_by_identity || !held.contains(key);
            keys.retain(is_to_go);
            keys.sort_unstable();
            found.push(Found {
                planned,
                is_by_identity: one.is_by_identity,
                is_whole,
                told: Cleaned {
                    table: one.source.to_string(),
                    replica_table: planned.mapping.replica.to_string(),
                    what: one.what,
                    rows: one.rows,
                    to_go: keys.len() as u64,
                    keys: keys.iter().take(SHOWN_MAX).cloned().collect(),
                    done: None,
                    left: None,
                    error: obstacle,
                },
                keys,
            });
        }
        Ok(found)
    }

    async fn take_away(&self, found: &Found<'_>) -> (Deeds, Option<RepairError>) {
        let planned = found.planned;
        if found.keys.is_empty() {
            return (Deeds::default(), None);
        }
        let treatment = match found.is_by_identity {
            true => Treatment::Deduplicate,
            false => Treatment::Delete,
        };
        let types = &self.plan.types;
        self.mender
            .mend(planned, types, &found.keys, treatment)
            .await
    }
}

/// Why rows are let be.
fn obstacle(planned: &PlannedTable, records: &[TableRecord], found: &Suspects) -> Option<String> {
    let name = &planned.source.name;
    if let Some(why) = &found.refused {
        return Some(format!("they cannot be looked at: {why}"));
    }
    let record = records.iter().find(|record| planned.is_of(record));
    if !record.is_some_and(|record| matches!(record.state, TableState::Copied { .. })) {
        return Some(RepairError::NotWhole(name.clone()).to_string());
    }
    if planned.mapping.key_positions().is_empty() {
        return Some(format!(
            "they have no key by which they could be told from others: `resync {name}`"
        ));
    }
    match is_key_as_it_is(&planned.mapping, &planned.source) {
        true => None,
        false => Some(RepairError::CastKey(planned.mapping.replica.clone()).to_string()),
    }
}

/// Which of these keys the source has.
async fn fetch_held(
    source: &Client,
    planned: &PlannedTable,
    types: &TypeNames,
    keys: &[Vec<String>],
) -> Result<HashSet<Vec<String>>, RepairError> {
    let mut held = HashSet::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let Some(of_source) = on_source(&planned.mapping, &planned.source, types, keys) else {
            return Err(RepairError::NoKey(planned.source.name.clone()));
        };
        let rows = source
            .query(&held_sql(planned, types, &of_source), &[])
            .await;
        let rows = rows.map_err(RepairError::reading(planned))?;
        held.extend(rows.iter().map(|row| row.get::<_, Vec<String>>(0)));
    }
    Ok(held)
}

impl CleanupReport {
    /// A later round may find rows where there were none before.
    fn note(&mut self, told: &Cleaned, deeds: &Deeds, error: Option<RepairError>) {
        let at = self.place_of(told).unwrap_or_else(|| {
            self.tables.push(told.clone());
            self.tables.len() - 1
        });
        if let Some(one) = self.tables.get_mut(at) {
            one.done.get_or_insert_default().add(deeds);
            if let Some(error) = error {
                one.error = Some(Chain(&error).to_string());
            }
        }
    }

    fn count_what_is_left(&mut self, found: &[Found<'_>]) {
        for one in &mut self.tables {
            one.left = Some(0);
        }
        for found in found {
            self.note(&found.told, &Deeds::default(), None);
            if let Some(at) = self.place_of(&found.told)
                && let Some(one) = self.tables.get_mut(at)
            {
                one.left = Some(found.told.rows);
            }
        }
    }

    fn place_of(&self, told: &Cleaned) -> Option<usize> {
        let is_it = |one: &Cleaned| one.table == told.table && one.what == told.what;
        self.tables.iter().position(is_it)
    }
}
