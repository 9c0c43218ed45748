//! Compares one table at the cut.
//!
//! A TRUNCATE or a rewrite that comes after the cut leaves a snapshot nothing to read. So the
//! first query's locks are kept, and then it is asked whether the rows have moved since the cut.

use super::compare::{Block, Blocks, DriftKind, Key, Rows, rows_of, unlike};
use super::report::{NotCompared, TableReport};
use super::slice::Bound;
use super::statement::{SideQueries, TableQueries, table_queries};
use super::{VerifyError, Wanted};
use crate::pg::{ServerError, TypeNames};
use crate::pipeline::PlannedTable;
use crate::snapshot::rewritten_sql;
use crate::telemetry::Chain;
use futures_util::TryStreamExt;
use std::pin::pin;
use tokio_postgres::Client;

/// Rows of one side that are held in memory at once.
const ROWS_MAX: u64 = 100_000;

/// One session on each side, in the snapshots of the cut.
pub(super) struct Sessions {
    pub(super) source: Client,
    pub(super) replica: Client,
}

/// One process for each side, so that a comparison does not take the servers from others. The
/// blocks are few, which the planner cannot know: it would sort all rows to group them. Whoever
/// waits for a table's lock holds up all behind him, and may wait for a session of ours.
const SETTINGS: &str = "SET max_parallel_workers_per_gather = 0; SET jit = off; SET enable_sort = off; \
    SET lock_timeout = '5s'";

/// Makes a session ready to compare.
pub(super) async fn settle(client: &Client) -> Result<(), VerifyError> {
    let set = client.batch_execute(SETTINGS).await;
    set.map_err(VerifyError::reading)
}

pub(super) enum Compared {
    /// And the blocks in which the sides are unlike.
    Fully(Box<TableReport>, Vec<i32>),
    Not(NotCompared),
}

/// Compares one table. What a server refuses of it is its own affair; a lost session is not.
pub(super) async fn compare_table(
    sessions: &Sessions,
    planned: &PlannedTable,
    queries: &TableQueries,
    wanted: &Wanted,
) -> Result<Compared, VerifyError> {
    let compared = aside(sessions, compare(sessions, planned, queries, wanted)).await?;
    Ok(compared.unwrap_or_else(Compared::Not))
}

/// Where a huge table's slices end, by a query of the source's.
pub(super) async fn fetch_bounds(
    sessions: &Sessions,
    sql: &str,
) -> Result<Result<Vec<Bound>, NotCompared>, VerifyError> {
    aside(sessions, async {
        let rows = sessions.source.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    })
    .await
}

/// Has work of one table leave nothing in the sessions, its locks neither.
async fn aside<T>(
    sessions: &Sessions,
    work: impl Future<Output = Result<T, ServerError>>,
) -> Result<Result<T, NotCompared>, VerifyError> {
    let begun = in_both(sessions, "SAVEPOINT before_table").await;
    begun.map_err(VerifyError::Reading)?;
    match work.await {
        Err(error) if error.is_session_lost() => Err(VerifyError::Reading(error)),
        done => {
            let ended = in_both(sessions, "ROLLBACK TO before_table; RELEASE before_table").await;
            ended.map_err(VerifyError::Reading)?;
            Ok(done.map_err(|error| NotCompared::Refused(Chain(&error).to_string())))
        }
    }
}

/// What both sides are asked of the table, or of those rows for which a condition is true.
pub(super) fn queries_of(
    planned: &PlannedTable,
    types: &TypeNames,
    condition: Option<&str>,
) -> TableQueries {
    let filter = planned.published.row_filter.as_deref();
    let has_parts = planned.source_has_parts();
    table_queries(&planned.mapping, types, has_parts, (filter, condition))
}

/// Compares one table as both sides are now, block by block: no cut, and no look at the rows. Of a
/// source in use the sides are never of one position.
///
/// # Errors
/// [`VerifyError`]: one of the sides cannot be read.
pub async fn compare_now(
    source: &Client,
    replica: &Client,
    planned: &PlannedTable,
    types: &TypeNames,
) -> Result<TableReport, VerifyError> {
    let queries = queries_of(planned, types, None);
    let wanted = Wanted::default();
    settle(source).await?;
    settle(replica).await?;
    let (source, replica) = tokio::try_join!(
        fetch_blocks(source, &queries.source, &wanted),
        fetch_blocks(replica, &queries.replica, &wanted)
    )
    .map_err(VerifyError::reading)?;
    Ok(report(
        planned,
        &wanted,
        (&source, &replica),
        Found::default(),
    ))
}

async fn in_both(sessions: &Sessions, sql: &str) -> Result<(), ServerError> {
    tokio::try_join!(
        sessions.source.batch_execute(sql),
        sessions.replica.batch_execute(sql)
    )?;
    Ok(())
}

async fn compare(
    sessions: &Sessions,
    planned: &PlannedTable,
    queries: &TableQueries,
    wanted: &Wanted,
) -> Result<Compared, ServerError> {
    let (source, replica) = tokio::try_join!(
        fetch_blocks(&sessions.source, &queries.source, wanted),
        fetch_blocks(&sessions.replica, &queries.replica, wanted)
    )?;
    if is_rewritten(sessions, planned).await? {
        return Ok(Compared::Not(NotCompared::Rewritten));
    }
    let mut found = Found::default();
    let mut groups = Vec::new();
    if !wanted.counts_only {
        groups = unlike(&source, &replica, ROWS_MAX);
        for group in &groups {
            let mut rows = Rows::default();
            let add = |key, hash| rows.source(key, hash);
            fetch_rows(&sessions.source, &queries.source, group, add).await?;
            let add = |key, hash| rows.replica(key, hash);
            fetch_rows(&sessions.replica, &queries.replica, group, add).await?;
            for (kind, key) in rows.differences() {
                found.add(kind, key, wanted.named_max);
            }
        }
    }
    let blocks = (&source, &replica);
    let report = report(planned, wanted, blocks, found);
    Ok(Compared::Fully(Box::new(report), groups.concat()))
}

/// Whether a snapshot has lost a side's rows; asked once they are locked.
pub(super) async fn is_rewritten(
    sessions: &Sessions,
    planned: &PlannedTable,
) -> Result<bool, ServerError> {
    let of_source = rewritten_sql(planned.source.oid, planned.source_has_parts());
    let of_replica = rewritten_sql(planned.replica.oid, planned.replica_has_parts());
    let (source_moved, replica_moved) = tokio::try_join!(
        sessions.source.query_opt(&of_source, &[]),
        sessions.replica.query_opt(&of_replica, &[])
    )?;
    Ok(source_moved.is_some() || replica_moved.is_some())
}

/// Rows that are not the same.
#[derive(Default)]
struct Found {
    /// Missing, extra, different.
    counts: [u64; 3],
    rows: Vec<(DriftKind, Key)>,
}

impl Found {
    fn add(&mut self, kind: DriftKind, key: Key, named_max: usize) {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        if *count <= named_max as u64 {
            self.rows.push((kind, key));
        }
    }
}

fn report(
    planned: &PlannedTable,
    wanted: &Wanted,
    (source, replica): (&Blocks, &Blocks),
    found: Found,
) -> TableReport {
    let [missing, extra, different] = found.counts;
    TableReport {
        in_sync: source == replica,
        source_rows: rows_of(source),
        replica_rows: rows_of(replica),
        missing,
        extra,
        different,
        counts_only: wanted.counts_only,
        rows: found.rows,
        ..TableReport::begun(planned, None)
    }
}

async fn fetch_blocks(
    client: &Client,
    side: &SideQueries,
    wanted: &Wanted,
) -> Result<Blocks, tokio_postgres::Error> {
    let sql = match wanted.counts_only {
        true => &side.count,
        false => &side.blocks,
    };
    let rows = client.query(sql, &[]).await?;
    let block = |row: &tokio_postgres::Row| {
        let rows = u64::try_from(row.get::<_, i64>(1)).unwrap_or_default();
        let sum = row.get(2);
        (row.get(0), Block { rows, sum })
    };
    Ok(rows.iter().map(block).collect())
}

pub(super) async fn fetch_rows(
    client: &Client,
    side: &SideQueries,
    group: &[i32],
    mut add: impl FnMut(Key, i64),
) -> Result<(), tokio_postgres::Error> {
    let mut stream = pin!(client.query_raw(&side.rows, [group]).await?);
    while let Some(row) = stream.try_next().await? {
        add(row.get(0), row.get(1));
    }
    Ok(())
}
