//! Replica rows that are there before the first copy: refuse, empty, or merge into them.
//!
//! A merge copies into an unlogged staging table first, in pieces and in parallel, and
//! then brings the replica table in line with it in one transaction: readers never see
//! it half done, and an interrupted merge leaves nothing behind but the staging table.
//! Where foreign keys fire, rows come in parents first, a table at a time, and superfluous
//! ones go at the very end, children first.

use super::{CopyTable, SnapshotError};
use crate::mapping::{ConflictPolicy, ExistingRows, ExtraRows, RowIdentity, TableMapping};
use crate::pg::{QualifiedName, ServerError, quote_ident};
use crate::progress::{BOOKKEEPING_SCHEMA, TableState};
use tokio_postgres::Client;

/// Where a table's rows are copied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Straight into the replica table, which is empty.
    Table,
    /// Into this table, to be merged.
    Staging(QualifiedName),
}

/// Looks at every table before anything is changed.
pub(crate) async fn check(
    client: &Client,
    tables: &[CopyTable],
    pipeline: &str,
) -> Result<Vec<Destination>, SnapshotError> {
    let mut destinations = Vec::with_capacity(tables.len());
    let mut refused = Vec::new();
    for table in tables {
        let name = &table.mapping.replica;
        let sql = format!("SELECT 1 FROM {} LIMIT 1", table.mapping.replica_rows());
        let row = client.query_opt(&sql, &[]).await;
        let has_rows = row.map_err(SnapshotError::on(name, "look into"))?.is_some();
        let is_resync = matches!(table.state, TableState::Resync { .. });
        destinations.push(match table.existing_rows {
            // What an interrupted copy of ours left is not the operator's, and may be out of date.
            ExistingRows::Merge if has_rows && table.state != TableState::Copying => {
                // Without a key a resync puts all rows in the place of all rows.
                if !is_resync && !matches!(table.mapping.identity, RowIdentity::Key(_)) {
                    return Err(SnapshotError::MergeNeedsKey {
                        table: name.clone(),
                    });
                }
                Destination::Staging(staging_name(pipeline, table.mapping.relation.id))
            }
            ExistingRows::Refuse if has_rows && table.state != TableState::Copying => {
                refused.push(name.to_string());
                Destination::Table
            }
            _ => Destination::Table,
        });
    }
    if refused.is_empty() {
        Ok(destinations)
    } else {
        Err(SnapshotError::HasRows { tables: refused })
    }
}

/// Empties the tables that are copied into directly; part of the transaction that marks them.
///
/// `tables` come with those referred to first.
pub(crate) async fn empty(client: &Client, tables: &[&TableMapping]) -> Result<(), SnapshotError> {
    let Some(first) = tables.first() else {
        return Ok(());
    };
    let names: Vec<String> = tables.iter().map(|table| table.replica_rows()).collect();
    empty_rows(client, &first.replica, &names).await
}

/// The same of FROM items; `first` is what an error names.
pub(super) async fn empty_rows(
    client: &Client,
    first: &QualifiedName,
    names: &[String],
) -> Result<(), SnapshotError> {
    let truncated = async {
        client.batch_execute("SAVEPOINT before_truncate").await?;
        client
            .batch_execute(&format!("TRUNCATE {}", names.join(", ")))
            .await
    };
    match truncated.await.map_err(ServerError::from) {
        Ok(()) => Ok(()),
        // A foreign key from outside, or no TRUNCATE privilege: row by row then.
        Err(error) if matches!(error.sqlstate(), Some("0A000" | "42501")) => {
            let mut sql = "ROLLBACK TO SAVEPOINT before_truncate".to_owned();
            for name in names.iter().rev() {
                sql.push_str("; DELETE FROM ");
                sql.push_str(name);
            }
            let deleted = client.batch_execute(&sql).await;
            deleted.map_err(SnapshotError::on(first, "empty"))
        }
        Err(source) => Err(SnapshotError::Table {
            table: first.clone(),
            what: "empty",
            source,
        }),
    }
}

/// Pipelines of several sources may share a replica, and each source counts its tables anew.
fn staging_name(pipeline: &str, relation: u32) -> QualifiedName {
    QualifiedName::new(BOOKKEEPING_SCHEMA, format!("staging_{relation}_{pipeline}"))
}

/// Makes the staging table anew: the mapped columns, without constraints.
pub(crate) async fn create_staging(
    client: &Client,
    mapping: &TableMapping,
    staging: &QualifiedName,
) -> Result<(), SnapshotError> {
    let staging = staging.quoted();
    let columns: Vec<String> = mapping
        .columns
        .iter()
        .map(|c| quote_ident(&c.name))
        .collect();
    let sql = format!(
        "DROP TABLE IF EXISTS {staging}; CREATE UNLOGGED TABLE {staging} AS \
         SELECT {} FROM {} WHERE false",
        columns.join(", "),
        mapping.replica.quoted()
    );
    let created = client.batch_execute(&sql).await;
    created.map_err(SnapshotError::on(
        &mapping.replica,
        "make a staging table for",
    ))
}

fn key_of(mapping: &TableMapping) -> &[usize] {
    match &mapping.identity {
        RowIdentity::Key(key) => key,
        RowIdentity::FullRow | RowIdentity::InsertsOnly => &[],
    }
}

/// The replica's row `t` and the staged row `s` are one.
pub(crate) fn same_key(mapping: &TableMapping) -> String {
    let columns = key_of(mapping)
        .iter()
        .filter_map(|i| mapping.columns.get(*i));
    let same: Vec<String> = columns
        .map(|column| {
            let (name, equals) = (quote_ident(&column.name), column.equality.written());
            format!("t.{name} {equals} s.{name}")
        })
        .collect();
    same.join(" AND ")
}

/// Takes away the rows that only the replica has, if that is wanted.
pub(crate) fn delete_extra_sql(
    mapping: &TableMapping,
    staging: &QualifiedName,
    extra_rows: ExtraRows,
) -> String {
    match extra_rows {
        ExtraRows::Keep => String::new(),
        ExtraRows::Delete => format!(
            "DELETE FROM {} AS t WHERE NOT EXISTS (SELECT 1 FROM {} AS s WHERE {});",
            mapping.replica_rows(),
            staging.quoted(),
            same_key(mapping)
        ),
    }
}

/// The staging table has done its work.
pub(crate) fn drop_staging_sql(staging: &QualifiedName) -> String {
    format!("DROP TABLE {};", staging.quoted())
}

/// Puts all staged rows in the place of all rows: a table without a key has no other way.
pub(crate) fn replace_sql(mapping: &TableMapping, staging: &QualifiedName) -> String {
    let names: Vec<String> = mapping
        .columns
        .iter()
        .map(|c| quote_ident(&c.name))
        .collect();
    format!(
        "DELETE FROM {rows}; INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE \
         SELECT {names} FROM {staging};",
        rows = mapping.replica_rows(),
        table = mapping.replica.quoted(),
        names = names.join(", "),
        staging = staging.quoted()
    )
}

/// Brings the staged rows into the replica table; done twice, the second time does nothing.
///
/// `on_conflict` decides about rows that are on both sides.
pub(crate) fn upsert_sql(
    mapping: &TableMapping,
    staging: &QualifiedName,
    on_conflict: &ConflictPolicy,
) -> String {
    let (table, rows) = (mapping.replica.quoted(), mapping.replica_rows());
    let staging = staging.quoted();
    let key = key_of(mapping);
    let names: Vec<String> = mapping
        .columns
        .iter()
        .map(|c| quote_ident(&c.name))
        .collect();
    let same_key = same_key(mapping);
    let others = || names.iter().enumerate().filter(|(i, _)| !key.contains(i));
    let set: Vec<String> = others()
        .map(|(_, name)| format!("{name} = s.{name}"))
        .collect();
    let row = |alias: &str| {
        let columns: Vec<String> = others()
            .map(|(_, name)| format!("{alias}.{name}"))
            .collect();
        // As text: not every type has an equality, and not every equality is identity.
        format!("ROW({})::pg_catalog.text", columns.join(", "))
    };

    let mut update = String::new();
    let mut after_update = "";
    if !set.is_empty() && *on_conflict != ConflictPolicy::ReplicaWins {
        let newer = match on_conflict {
            ConflictPolicy::NewestWins { column } => {
                let column = quote_ident(column);
                format!(" AND (t.{column} <= s.{column} OR t.{column} IS NULL)")
            }
            _ => String::new(),
        };
        // One statement with the INSERT: foreign keys look when all rows of the table are there.
        // The count makes the INSERT wait, so that values the updates give up are free.
        update = format!(
            "WITH updated AS (UPDATE {rows} AS t SET {} FROM {staging} AS s \
             WHERE {same_key} AND {} <> {}{newer} RETURNING 1), \
             done AS (SELECT pg_catalog.count(*) AS rows FROM updated) ",
            set.join(", "),
            row("t"),
            row("s")
        );
        after_update = " AND (SELECT done.rows FROM done) >= 0";
    }
    format!(
        "ANALYZE {staging}; {update}INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE \
         SELECT {names} FROM {staging} AS s \
         WHERE NOT EXISTS (SELECT 1 FROM {rows} AS t WHERE {same_key}){after_update};",
        names = names.join(", ")
    )
}
