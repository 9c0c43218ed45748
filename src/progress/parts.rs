//! How far a huge table is compared, of which each turn compares a part: kept on the replica, so that
//! a restart goes on there.

use super::store::{ProgressError, Store, count, wide};
use crate::pg::{Lsn, QualifiedName};
use std::time::Duration;
use tokio_postgres::Client;

/// The rows of a table up to a key, compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The source table.
    pub source: QualifiedName,
    /// The replica table.
    pub replica: QualifiedName,
    /// Tells what was compared, and by which key, from all else: what is known of another form says nothing.
    pub form: String,
    /// Rows up to and with these values of the key, as text.
    pub to: Vec<String>,
    /// About what share of the table that is.
    pub share: f64,
    /// Where the first of them were compared; the others were at later positions.
    pub since: Lsn,
    /// Rows that belong on the replica.
    pub source_rows: u64,
    /// Rows that are there.
    pub replica_rows: u64,
    /// Rows that are missing, extra, different.
    pub drift: [u64; 3],
    /// Nothing was found.
    pub in_sync: bool,
    /// Rows were looked at again, beside a transaction that was in the way of an exact position.
    pub rechecked: bool,
    /// How long it took.
    pub took: Duration,
}

impl Store {
    /// Keeps how far tables are compared under these rules of the mapping.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn keep_parts(
        client: &Client,
        (pipeline, rules): (&str, &str),
        parts: &[Part],
    ) -> Result<(), ProgressError> {
        let sql = "INSERT INTO pglockstep.proof_parts (pipeline, source_schema, source_table, replica_schema, \
                     replica_table, rules, form, upto, share, lsn, source_rows, replica_rows, missing, extra, \
                     different, rechecked, seconds, in_sync) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
                   ON CONFLICT (pipeline, source_schema, source_table) DO UPDATE SET \
                     replica_schema = EXCLUDED.replica_schema, replica_table = EXCLUDED.replica_table, \
                     rules = EXCLUDED.rules, form = EXCLUDED.form, upto = EXCLUDED.upto, share = EXCLUDED.share, \
                     lsn = EXCLUDED.lsn, source_rows = EXCLUDED.source_rows, replica_rows = EXCLUDED.replica_rows, \
                     missing = EXCLUDED.missing, extra = EXCLUDED.extra, different = EXCLUDED.different, \
                     rechecked = EXCLUDED.rechecked, seconds = EXCLUDED.seconds, in_sync = EXCLUDED.in_sync, \
                     compared_at = pg_catalog.now()";
        for part in parts {
            let [missing, extra, different] = part.drift.map(wide);
            let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[
                &pipeline,
                &part.source.schema,
                &part.source.name,
                &part.replica.schema,
                &part.replica.name,
                &rules,
                &part.form,
                &part.to,
                &part.share,
                &part.since,
                &wide(part.source_rows),
                &wide(part.replica_rows),
                &missing,
                &extra,
                &different,
                &part.rechecked,
                &part.took.as_secs_f64(),
                &part.in_sync,
            ];
            let kept = client.execute(sql, values).await;
            kept.map_err(ProgressError::doing("keep how far a table is compared"))?;
        }
        Ok(())
    }

    /// How far tables are compared that are followed, and were not copied anew since.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_parts(
        client: &Client,
        (pipeline, rules): (&str, &str),
    ) -> Result<Vec<Part>, ProgressError> {
        let sql = "SELECT p.source_schema, p.source_table, p.replica_schema, p.replica_table, p.form, p.upto, \
                     p.share, p.lsn, p.source_rows, p.replica_rows, p.missing, p.extra, p.different, \
                     p.rechecked, p.seconds, p.in_sync \
                   FROM pglockstep.proof_parts AS p JOIN pglockstep.tables AS t ON t.pipeline = p.pipeline \
                     AND t.source_schema = p.source_schema AND t.source_table = p.source_table \
                     AND t.replica_schema = p.replica_schema AND t.replica_table = p.replica_table \
                     AND p.lsn >= t.copied_lsn \
                   WHERE p.pipeline = $1 AND p.rules = $2 AND t.state = 'copied'";
        let rows = client.query(sql, &[&pipeline, &rules]).await;
        let rows = rows.map_err(ProgressError::doing("read how far tables are compared"))?;
        let part = |row: &tokio_postgres::Row| {
            let name =
                |at| QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
            let count = |at| count(row.get(at));
            Part {
                source: name(0),
                replica: name(2),
                form: row.get(4),
                to: row.get(5),
                share: row.get(6),
                since: row.get(7),
                source_rows: count(8),
                replica_rows: count(9),
                drift: [count(10), count(11), count(12)],
                rechecked: row.get(13),
                took: Duration::try_from_secs_f64(row.get(14)).unwrap_or_default(),
                in_sync: row.get(15),
            }
        };
        Ok(rows.iter().map(part).collect())
    }
}
