//! The replica's own integrity: what the mapping and both catalogues promise, looked for in its rows.
//!
//! ```text
//!  declared on the replica ─┐
//!  declared on the source ──┴─ through the mapping ─▶ relations, keys ─▶ orphans, duplicates
//!  catalogues of both ────────────────────────────────────────────────▶ what the replica lacks
//! ```
//!
//! Foreign keys keep still while changes are applied, so that one is declared proves nothing of the
//! rows. All is read in one snapshot of the replica, which is a state that the source had.

mod access;
mod keys;
mod relations;

pub use relations::RelationFound;

use crate::apply::take_replica_role;
use crate::conn::Session;
use crate::mapping::{ColumnValue, RowIdentity, TableMapping};
use crate::pg::{QualifiedName, ServerError, quote_ident};
use crate::pipeline::{PipelineConfig, PlannedTable, TablePlan, survey_tables};
use crate::preflight::{self, CheckError, Finding, Findings};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

/// One side each, and what takes part.
struct Survey<'a> {
    source: &'a Client,
    replica: &'a Client,
    /// By the source table's name.
    tables: Vec<&'a PlannedTable>,
}

/// Looks at every table that takes part; changes nothing.
///
/// # Errors
/// [`CheckError`]: one of the sides cannot be read.
pub async fn diagnose(config: &PipelineConfig) -> Result<Diagnosis, CheckError> {
    let source = config.source.connect(Session::SourceRead).await?;
    let replica = config.replica.connect(Session::ReplicaWrite).await?;
    let is_quiet = take_replica_role(&replica).await?;
    let (plan, problems) =
        survey_tables(&source, &replica, &config.publication, &config.mapping).await?;
    let mut findings = Findings::default();
    for problem in problems {
        findings.error(
            "diagnose.mapping",
            problem.object,
            problem.message,
            problem.remedy,
        );
    }
    let mut tables: Vec<&PlannedTable> = plan.tables.values().collect();
    tables.sort_by(|a, b| a.source.name.cmp(&b.source.name));
    let survey = Survey {
        source: &source,
        replica: &replica,
        tables,
    };
    begin(&replica).await?;
    let relations = relations::look(&survey, &mut findings).await?;
    keys::look(&survey, &mut findings).await?;
    access::look(&survey, is_quiet, &mut findings).await?;
    Ok(Diagnosis {
        findings: findings.into_vec(),
        relations,
    })
}

/// What there is to tell of the replica.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// Each with its remedy.
    pub findings: Vec<Finding>,
    /// Every relation, sound or not.
    pub relations: Vec<RelationFound>,
}

/// What is wrong with rows of the replica, by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// They refer to rows that are not there.
    Orphans,
    /// They share a key with others.
    Duplicates,
}

/// Rows of one table that have one flaw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspects {
    /// The source table.
    pub source: QualifiedName,
    /// What they refer to, or the columns of the key.
    pub what: String,
    /// Several of them have the key by which the source's rows are found.
    pub is_by_identity: bool,
    /// How many there are.
    pub rows: u64,
    /// The keys by which the source's rows are found, as texts: as many as were wanted; of a table without such a
    /// key none.
    pub keys: Vec<Vec<String>>,
}

/// Rows with a flaw, table by table and reason by reason; at most `keys_max` keys of each.
///
/// # Errors
/// [`CheckError`]: one of the sides cannot be read.
pub async fn suspects(
    source: &Client,
    replica: &Client,
    plan: &TablePlan,
    flaw: Flaw,
    keys_max: u64,
) -> Result<Vec<Suspects>, CheckError> {
    let survey = Survey {
        source,
        replica,
        tables: plan.tables.values().collect(),
    };
    begin(replica).await?;
    let found = match flaw {
        Flaw::Orphans => relations::suspects(&survey, keys_max).await?,
        Flaw::Duplicates => keys::suspects(&survey, keys_max).await?,
    };
    let ended = replica.batch_execute("COMMIT").await;
    ended.map_err(|error| CheckError::Query {
        what: "the replica",
        source: error.into(),
    })?;
    Ok(found)
}

/// The rows `c` of a table for which this is true; `None` if there are none.
async fn suspects_of(
    replica: &Client,
    table: &PlannedTable,
    is_suspect: &str,
    keys_max: u64,
) -> Result<Option<Suspects>, CheckError> {
    let rows_of = format!("{} AS c WHERE {is_suspect}", table.mapping.replica_rows());
    let count = format!("SELECT pg_catalog.count(*) FROM {rows_of}");
    let found = preflight::rows(replica, "rows", &count, &[]).await?;
    let rows = found
        .first()
        .map_or(0, |row| row.get::<_, i64>(0).unsigned_abs());
    if rows == 0 {
        return Ok(None);
    }
    let mut keys = Vec::new();
    if let RowIdentity::Key(key) = &table.mapping.identity {
        let columns = key.iter().filter_map(|i| table.mapping.columns.get(*i));
        let texts: Vec<String> = columns
            .map(|c| format!("c.{}::pg_catalog.text", quote_ident(&c.name)))
            .collect();
        let sql = format!(
            "SELECT DISTINCT ARRAY[{}] FROM {rows_of} LIMIT {keys_max}",
            texts.join(", ")
        );
        let found = preflight::rows(replica, "keys", &sql, &[]).await?;
        let whole = |row: &tokio_postgres::Row| {
            let key: Vec<Option<String>> = row.get(0);
            // A key with NULL in it finds no row.
            key.into_iter().collect::<Option<Vec<String>>>()
        };
        keys = found.iter().filter_map(whole).collect();
    }
    Ok(Some(Suspects {
        source: table.source.name.clone(),
        what: String::new(),
        is_by_identity: false,
        rows,
        keys,
    }))
}

/// Every relation between tables that take part, with the rows of it that refer to nothing.
///
/// # Errors
/// [`CheckError`]: one of the sides cannot be read.
pub async fn relations_found(
    source: &Client,
    replica: &Client,
    plan: &TablePlan,
) -> Result<Vec<RelationFound>, CheckError> {
    let survey = Survey {
        source,
        replica,
        tables: plan.tables.values().collect(),
    };
    begin(replica).await?;
    relations::found(&survey).await
}

/// What a query counts; or why a server refuses it, which ends nothing else.
async fn count(client: &Client, sql: &str) -> Result<Result<u64, String>, CheckError> {
    let failed = |error: tokio_postgres::Error| CheckError::Query {
        what: "rows",
        source: error.into(),
    };
    client
        .batch_execute("SAVEPOINT counted")
        .await
        .map_err(failed)?;
    match client.query_one(sql, &[]).await {
        Ok(row) => Ok(Ok(row.get::<_, i64>(0).unsigned_abs())),
        Err(error) => {
            let why = ServerError::from(error);
            let undone = client.batch_execute("ROLLBACK TO SAVEPOINT counted").await;
            undone.map_err(failed)?;
            Ok(Err(why.to_string()))
        }
    }
}

/// Has a session of the replica see one state, and only read.
async fn begin(replica: &Client) -> Result<(), CheckError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let begun = replica.batch_execute(begin).await;
    begun.map_err(|error| CheckError::Query {
        what: "the replica",
        source: error.into(),
    })
}

/// The replica's column that holds a source column unchanged.
fn kept_in<'m>(mapping: &'m TableMapping, source_column: &str) -> Option<&'m str> {
    let column = mapping.columns.iter().find(|column| match column.value {
        ColumnValue::Input(input) => mapping
            .inputs
            .get(input)
            .is_some_and(|input| input.name == source_column),
        ColumnValue::Computed(_) => false,
    });
    column.map(|column| column.name.as_str())
}

/// The same of several; `None` where one of them is not there.
fn all_kept_in(mapping: &TableMapping, source_columns: &[String]) -> Option<Vec<String>> {
    let columns = source_columns.iter();
    columns
        .map(|column| kept_in(mapping, column).map(str::to_owned))
        .collect()
}

/// `"a", "b"`
fn quoted(columns: &[String]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| quote_ident(column)).collect();
    columns.join(", ")
}
