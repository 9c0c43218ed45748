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
mod shape;

use relations::Own;
pub use relations::RelationFound;

use crate::apply::take_replica_role;
use crate::conn::Session;
use crate::mapping::{ColumnValue, RowIdentity, TableMapping};
use crate::pg::{QualifiedName, ServerError, quote_ident};
use crate::pipeline::{PipelineConfig, PlannedTable, TablePlan, survey_tables};
use crate::preflight::{CheckError, Finding, Findings};
use crate::snapshot::rewritten_sql;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Row};

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
    // Where the mapping is wrong, a table that seems to be the replica's own may not be.
    let own = match problems.is_empty() {
        true => Own::Included,
        false => Own::LeftOut,
    };
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
    let relations = relations::look(&survey, own, &mut findings).await?;
    keys::look(&survey, &mut findings).await?;
    shape::look(&survey, &mut findings).await?;
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
    /// Why they could not be looked at.
    pub refused: Option<String>,
}

/// Rows with a flaw, table by table and reason by reason, of these source tables or of all; at most
/// `keys_max` keys of each.
///
/// # Errors
/// [`CheckError`]: one of the sides cannot be read.
pub async fn suspects(
    source: &Client,
    replica: &Client,
    plan: &TablePlan,
    (flaw, wanted): (Flaw, &[QualifiedName]),
    keys_max: u64,
) -> Result<Vec<Suspects>, CheckError> {
    let survey = Survey {
        source,
        replica,
        tables: plan.tables.values().collect(),
    };
    begin(replica).await?;
    let found = match flaw {
        Flaw::Orphans => relations::suspects(&survey, wanted, keys_max).await?,
        Flaw::Duplicates => keys::suspects(&survey, wanted, keys_max).await?,
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
    (is_suspect, of): (&str, &[Rewritable]),
    keys_max: u64,
) -> Result<Option<Suspects>, CheckError> {
    let mut found = Suspects {
        source: table.source.name.clone(),
        what: String::new(),
        is_by_identity: false,
        rows: 0,
        keys: Vec::new(),
        refused: None,
    };
    let rows_of = format!("{} AS c WHERE {is_suspect}", table.mapping.replica_rows());
    let sql = format!("SELECT pg_catalog.count(*) FROM {rows_of}");
    match count(replica, &sql, of).await? {
        Ok(0) => return Ok(None),
        Ok(rows) => found.rows = rows,
        Err(why) => found.refused = Some(why),
    }
    let key: &[usize] = match &table.mapping.identity {
        RowIdentity::Key(key) if found.refused.is_none() => key,
        _ => return Ok(Some(found)),
    };
    let columns = key.iter().filter_map(|i| table.mapping.columns.get(*i));
    let texts: Vec<String> = columns
        .map(|c| format!("c.{}::pg_catalog.text", quote_ident(&c.name)))
        .collect();
    let sql = format!(
        "SELECT DISTINCT ARRAY[{}] FROM {rows_of} LIMIT {keys_max}",
        texts.join(", ")
    );
    match ask(replica, &sql, of).await? {
        Ok(rows) => {
            // A key with NULL in it finds no row.
            let whole = |row: &Row| -> Option<Vec<String>> {
                row.get::<_, Vec<Option<String>>>(0).into_iter().collect()
            };
            found.keys = rows.iter().filter_map(whole).collect();
        }
        Err(why) => found.refused = Some(why),
    }
    Ok(Some(found))
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

/// A replica table, and whether its rows are its partitions'.
type Rewritable = (u32, bool);

fn rewritable(table: &PlannedTable) -> Rewritable {
    (table.replica.oid, table.replica_has_parts())
}

/// What a query counts in these tables; or why it says nothing, which ends nothing else.
async fn count(
    client: &Client,
    sql: &str,
    of: &[Rewritable],
) -> Result<Result<u64, String>, CheckError> {
    let rows = ask(client, sql, of).await?;
    let first = |rows: Vec<Row>| {
        rows.first()
            .map_or(0, |row| row.get::<_, i64>(0).unsigned_abs())
    };
    Ok(rows.map(first))
}

/// The same of a query's rows. Its locks go with it: whoever waits for one holds up all behind him. Of a table
/// that was emptied or rewritten since the look began, there is nothing to be seen any more.
async fn ask(
    client: &Client,
    sql: &str,
    of: &[Rewritable],
) -> Result<Result<Vec<Row>, String>, CheckError> {
    let failed = |error: ServerError| CheckError::Query {
        what: "rows",
        source: error,
    };
    let begun = client.batch_execute("SAVEPOINT asked").await;
    begun.map_err(|error| failed(error.into()))?;
    let answer = async {
        let rows = client.query(sql, &[]).await?;
        for (oid, has_parts) in of {
            let sql = rewritten_sql(*oid, *has_parts);
            if client.query_opt(&sql, &[]).await?.is_some() {
                return Ok(Err("it was emptied or rewritten meanwhile".to_owned()));
            }
        }
        Ok::<_, tokio_postgres::Error>(Ok(rows))
    };
    let answer = match answer.await.map_err(ServerError::from) {
        Ok(answer) => answer,
        Err(error) if error.is_session_lost() => return Err(failed(error)),
        Err(error) => Err(error.to_string()),
    };
    let ended = "ROLLBACK TO SAVEPOINT asked; RELEASE SAVEPOINT asked";
    let ended = client.batch_execute(ended).await;
    ended.map_err(|error| failed(error.into()))?;
    Ok(answer)
}

/// Has a session of the replica see one state, and only read: with one process, and without waiting long
/// for a table's lock.
async fn begin(replica: &Client) -> Result<(), CheckError> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                 SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL lock_timeout = '5s'";
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
