//! The queries that several checks share.

use super::CheckError;
use std::collections::BTreeSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

/// Runs a query of a check.
pub(super) async fn rows(
    client: &Client,
    what: &'static str,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, CheckError> {
    let rows = client.query(sql, parameters).await;
    rows.map_err(|error| CheckError::Query {
        what,
        source: error.into(),
    })
}

/// Tables of these in which row security hides rows from the session's role.
pub(super) async fn hidden_by_row_security(
    client: &Client,
    tables: &[u32],
) -> Result<BTreeSet<u32>, CheckError> {
    let sql = "SELECT c.oid FROM pg_catalog.pg_class AS c \
               WHERE c.oid = ANY ($1) AND pg_catalog.row_security_active(c.oid)";
    let found = rows(client, "row security", sql, &[&tables]).await?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// Schemas of these tables that the session's role may not use.
pub(super) async fn closed_schemas(
    client: &Client,
    tables: &[u32],
) -> Result<Vec<String>, CheckError> {
    let sql = "SELECT DISTINCT n.nspname::pg_catalog.text FROM pg_catalog.pg_class AS c \
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
               WHERE c.oid = ANY ($1) \
                 AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE') ORDER BY 1";
    let found = rows(client, "privileges on schemas", sql, &[&tables]).await?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}
