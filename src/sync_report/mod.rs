//! The report for a person who opens it once a day: is the replica what the source is?
//!
//! ```text
//!  books: last counts, last comparison, in step since ─┐
//!  replica: relations and their orphans ───────────────┼─▶ Report ─▶ Markdown
//!  source: changes of each table, as it counts them ───┘      ▲          └ the counts, in a comment at its end
//!                                       the report before ────┘
//! ```
//!
//! The changes since the report before are told from what that one says at its end: nothing else is kept.

mod markdown;

use crate::conn::{ConnError, Session};
use crate::diagnose::{RelationFound, relations_found};
use crate::pg::{QualifiedName, ServerError};
use crate::pipeline::{PipelineConfig, PipelineError, fetch_plan};
use crate::preflight::CheckError;
use crate::progress::{ProgressError, Store, TableHistory};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio_postgres::Client;

/// What begins the comment with the counts.
const COUNTS: &str = "<!-- pglockstep report: ";
const COUNTS_END: &str = " -->";

/// The report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No session.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// What takes part could not be learned.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The books could not be read.
    #[error(transparent)]
    Books(#[from] ProgressError),
    /// Relations could not be looked at.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A server did not answer.
    #[error("the servers' own counts cannot be read")]
    Reading(#[source] ServerError),
}

/// All that is told.
#[derive(Clone, Debug)]
pub struct Report {
    /// The pipeline.
    pub pipeline: String,
    /// When it was made, by the replica's clock.
    pub made_at: String,
    /// Both databases.
    pub endpoints: [String; 2],
    /// What the daemon says of itself.
    pub daemon: String,
    /// It follows the source.
    pub is_streaming: bool,
    /// Each table.
    pub tables: Vec<TableLine>,
    /// Each foreign key, declared on either side.
    pub relations: Vec<RelationFound>,
    /// When the report before was made.
    pub before: Option<String>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableLine {
    /// The source table.
    pub source: QualifiedName,
    /// The replica table.
    pub replica: QualifiedName,
    /// What comparisons found.
    pub history: TableHistory,
    /// Rows that were inserted, updated, deleted on the source, ever.
    pub counted: Option<[u64; 3]>,
    /// The same since the report before.
    pub changes: Option<[u64; 3]>,
}

/// What a report remembers for the next one.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counted {
    made_at: String,
    tables: BTreeMap<String, [u64; 3]>,
}

impl Report {
    /// Gathers everything; `daemon` is what it says of itself and whether it follows the source, `before`
    /// the text of the report before.
    ///
    /// # Errors
    /// [`ReportError`].
    pub async fn gather(
        config: &PipelineConfig,
        (daemon, is_streaming): (String, bool),
        before: Option<&str>,
    ) -> Result<Self, ReportError> {
        let source = config.source.connect(Session::SourceRead).await?;
        let replica = config.replica.connect(Session::ReplicaWrite).await?;
        let plan = fetch_plan(&source, &replica, &config.publication, &config.mapping).await?;
        let counted = fetch_counts(&source).await?;
        let before = before.and_then(counts_of).unwrap_or_default();
        let rules = config.mapping.fingerprint();
        let history = Store::fetch_history(&replica, (&config.name, &rules)).await?;
        let table = |(source, replica, history): (QualifiedName, QualifiedName, TableHistory)| {
            let now = counted.get(&source.to_string()).copied();
            let then = before.tables.get(&source.to_string());
            TableLine {
                changes: now.zip(then).map(|(now, then)| since(now, *then)),
                counted: now,
                source,
                replica,
                history,
            }
        };
        Ok(Self {
            pipeline: config.name.clone(),
            made_at: fetch_time(&replica).await?,
            endpoints: [config.source.describe(), config.replica.describe()],
            daemon,
            is_streaming,
            tables: history.into_iter().map(table).collect(),
            relations: relations_found(&source, &replica, &plan).await?,
            before: Some(before.made_at).filter(|made_at| !made_at.is_empty()),
        })
    }

    /// Nothing is wrong, as far as is known.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.is_streaming
            && self.tables.iter().all(TableLine::is_in_step)
            && self
                .relations
                .iter()
                .all(|relation| relation.orphans == Some(0))
    }
}

impl TableLine {
    /// Followed, proven not long ago, and nothing found since.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        let history = &self.history;
        history.is_followed && history.is_recent && history.in_step_since.is_some()
    }
}

/// Counters begin anew with a crash or a reset.
fn since(now: [u64; 3], then: [u64; 3]) -> [u64; 3] {
    let is_anew = now.iter().zip(&then).any(|(now, then)| now < then);
    if is_anew {
        return now;
    }
    let mut changes = now;
    for (change, then) in changes.iter_mut().zip(then) {
        *change -= then;
    }
    changes
}

fn counts_of(report: &str) -> Option<Counted> {
    let (_, rest) = report.rsplit_once(COUNTS)?;
    let (json, _) = rest.split_once(COUNTS_END)?;
    serde_json::from_str(json).ok()
}

/// By the source table's name.
async fn fetch_counts(source: &Client) -> Result<BTreeMap<String, [u64; 3]>, ReportError> {
    let sql = "SELECT schemaname::pg_catalog.text, relname::pg_catalog.text, n_tup_ins, n_tup_upd, n_tup_del \
               FROM pg_catalog.pg_stat_user_tables";
    let rows = source.query(sql, &[]).await;
    let rows = rows.map_err(|error| ReportError::Reading(error.into()))?;
    let line = |row: &tokio_postgres::Row| {
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let counts = [2, 3, 4].map(|at| row.get::<_, i64>(at).unsigned_abs());
        (name.to_string(), counts)
    };
    Ok(rows.iter().map(line).collect())
}

async fn fetch_time(replica: &Client) -> Result<String, ReportError> {
    let sql = "SELECT pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"')";
    let row = replica.query_one(sql, &[]).await;
    Ok(row
        .map_err(|error| ReportError::Reading(error.into()))?
        .get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_from_the_report_before_and_from_nothing_after_a_reset() {
        assert_eq!(since([5, 7, 1], [3, 7, 0]), [2, 0, 1]);
        assert_eq!(since([5, 1, 1], [3, 7, 0]), [5, 1, 1]);
        let text = format!(
            "# x\n{COUNTS}{{\"made_at\":\"then\",\"tables\":{{\"a.b\":[1,2,3]}}}}{COUNTS_END}\n"
        );
        let counted = counts_of(&text).unwrap();
        assert_eq!(
            (counted.made_at.as_str(), counted.tables["a.b"]),
            ("then", [1, 2, 3])
        );
        assert!(counts_of("nothing").is_none() && counts_of(COUNTS).is_none());
    }
}
