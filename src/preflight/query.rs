//! The queries that several checks share.

use super::CheckError;
use crate::pg::QualifiedName;
use std::collections::BTreeMap;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

/// Runs a query of a check.
pub(crate) async fn rows(
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

/// Partitions of these tables that log nothing of old rows: the source looks at the partition
/// when it allows an update or delete, and a root's identity is not handed down.
pub(super) async fn partitions_without_identity(
    client: &Client,
    roots: &[u32],
) -> Result<Vec<QualifiedName>, CheckError> {
    let sql = "SELECT DISTINCT n.nspname::pg_catalog.text, c.relname::pg_catalog.text \
        FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS r(oid) \
        CROSS JOIN LATERAL pg_catalog.pg_partition_tree(r.oid::pg_catalog.regclass) AS p \
        JOIN pg_catalog.pg_class AS c ON c.oid = p.relid AND c.oid <> r.oid \
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
        WHERE c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS ( \
          SELECT 1 FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary) \
        ORDER BY 1, 2";
    let found = rows(client, "partitions", sql, &[&roots]).await?;
    let name = |row: &Row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(found.iter().map(name).collect())
}

/// Column lists of the indexes that can find a row, by table.
pub(crate) async fn index_columns(
    client: &Client,
    tables: &[u32],
) -> Result<BTreeMap<u32, Vec<Vec<String>>>, CheckError> {
    let sql = "SELECT i.indrelid, ARRAY(SELECT a.attname::pg_catalog.text \
            FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place) \
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
            WHERE k.place <= i.indnkeyatts ORDER BY k.place) \
        FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid \
        JOIN pg_catalog.pg_am AS m ON m.oid = x.relam \
        WHERE i.indrelid = ANY ($1) AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
          AND m.amname IN ('btree', 'hash')";
    let found = rows(client, "indexes", sql, &[&tables]).await?;
    let mut indexes: BTreeMap<u32, Vec<Vec<String>>> = BTreeMap::new();
    for row in &found {
        indexes.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(indexes)
}
