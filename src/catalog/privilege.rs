//! What the session's role may do. Sets of tables at once, like all of the catalogue.

use super::CatalogError;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;

/// Schemas of these tables that the role may not use.
///
/// # Errors
/// When the query fails.
pub async fn fetch_closed_schemas(
    client: &Client,
    tables: &[u32],
) -> Result<Vec<String>, CatalogError> {
    let sql = "SELECT DISTINCT n.nspname::pg_catalog.text FROM pg_catalog.pg_class AS c \
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
               WHERE c.oid = ANY ($1) \
                 AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE') ORDER BY 1";
    let found = client.query(sql, &[&tables]).await;
    let found = found.map_err(CatalogError::reading("privileges on schemas"))?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// Of these columns those that the role may not read, by table.
///
/// # Errors
/// When the query fails.
pub async fn fetch_unreadable(
    client: &Client,
    columns: &[(u32, &str)],
) -> Result<BTreeMap<u32, Vec<String>>, CatalogError> {
    let sql = "SELECT w.oid, pg_catalog.array_agg(w.name ORDER BY w.name) \
        FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.text[])) \
          AS w(oid, name) \
        WHERE NOT pg_catalog.has_column_privilege(w.oid, w.name, 'SELECT') GROUP BY w.oid";
    let (oids, names): (Vec<u32>, Vec<&str>) = columns.iter().copied().unzip();
    let found = client.query(sql, &[&oids, &names]).await;
    let found = found.map_err(CatalogError::reading("privileges on tables"))?;
    Ok(found.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What the role lacks of SELECT, INSERT, UPDATE, DELETE and TRUNCATE, by table.
///
/// # Errors
/// When the query fails.
pub async fn fetch_denied(
    client: &Client,
    tables: &[u32],
) -> Result<BTreeMap<u32, Vec<String>>, CatalogError> {
    let sql = "SELECT c.oid, pg_catalog.array_agg(p.name ORDER BY p.place) FROM pg_catalog.pg_class AS c, \
          (VALUES ('SELECT', 1), ('INSERT', 2), ('UPDATE', 3), ('DELETE', 4), ('TRUNCATE', 5)) AS p(name, place) \
        WHERE c.oid = ANY ($1) AND NOT pg_catalog.has_table_privilege(c.oid, p.name) GROUP BY c.oid";
    let found = client.query(sql, &[&tables]).await;
    let found = found.map_err(CatalogError::reading("privileges on tables"))?;
    Ok(found.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Tables of these in which row security hides rows from the role.
///
/// # Errors
/// When the query fails.
pub async fn fetch_hidden_by_row_security(
    client: &Client,
    tables: &[u32],
) -> Result<BTreeSet<u32>, CatalogError> {
    let sql = "SELECT c.oid FROM pg_catalog.pg_class AS c \
               WHERE c.oid = ANY ($1) AND pg_catalog.row_security_active(c.oid)";
    let found = client.query(sql, &[&tables]).await;
    let found = found.map_err(CatalogError::reading("row security"))?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}
