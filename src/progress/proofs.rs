//! What each comparison of each table found, kept on the replica: the history of its proofs.
//!
//! Old ones go, but never the last that found nothing, nor the last that found something, nor the first that found
//! nothing since: it says since when the table is in step.

use super::store::{ProgressError, Store, count, wide};
use crate::pg::{Lsn, QualifiedName};
use std::time::Duration;
use tokio_postgres::{Client, Row};

/// Comparisons are kept for so many days; of counts the last that found nothing, and the last that
/// found something.
const KEPT_DAYS: i32 = 30;

/// One table, compared once.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// The source table.
    pub source: QualifiedName,
    /// The replica table.
    pub replica: QualifiedName,
    /// Rows were only counted.
    pub counts_only: bool,
    /// Where both sides were.
    pub at: Lsn,
    /// Rows that belong on the replica.
    pub source_rows: u64,
    /// Rows that are there.
    pub replica_rows: u64,
    /// Rows that are missing, extra, different.
    pub drift: [u64; 3],
    /// Nothing was found.
    pub in_sync: bool,
    /// The source's snapshot was a moment before `at`, and rows that differed were looked at again.
    pub rechecked: bool,
    /// How long it took.
    pub took: Duration,
}

/// A proof that was kept, and how long ago it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptProof {
    /// What was found.
    pub proof: Proof,
    /// How long ago.
    pub age: Duration,
}

impl Store {
    /// Keeps what was found under these rules of the mapping; forgets what is old.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn keep_proofs(
        client: &Client,
        (pipeline, rules): (&str, &str),
        proofs: &[Proof],
    ) -> Result<(), ProgressError> {
        let sql = "INSERT INTO pglockstep.proofs (pipeline, source_schema, source_table, replica_schema, \
                   replica_table, counts_only, lsn, source_rows, replica_rows, missing, extra, different, \
                   in_sync, seconds, rechecked, rules) SELECT $1, p.*, $16 FROM ROWS FROM (unnest($2::text[]), unnest($3::text[]), \
                   unnest($4::text[]), unnest($5::text[]), unnest($6::bool[]), unnest($7::pg_lsn[]), \
                   unnest($8::int8[]), unnest($9::int8[]), unnest($10::int8[]), unnest($11::int8[]), \
                   unnest($12::int8[]), unnest($13::bool[]), unnest($14::float8[]), unnest($15::bool[])) AS p";
        let text = |of: fn(&Proof) -> &str| proofs.iter().map(of).collect::<Vec<_>>();
        let count = |of: fn(&Proof) -> u64| proofs.iter().map(|p| wide(of(p))).collect::<Vec<_>>();
        let truth = |of: fn(&Proof) -> bool| proofs.iter().map(of).collect::<Vec<_>>();
        let positions: Vec<Lsn> = proofs.iter().map(|proof| proof.at).collect();
        let seconds: Vec<f64> = proofs.iter().map(|p| p.took.as_secs_f64()).collect();
        let (schemas, tables) = (text(|p| &p.source.schema), text(|p| &p.source.name));
        let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[
            &pipeline,
            &schemas,
            &tables,
            &text(|p| &p.replica.schema),
            &text(|p| &p.replica.name),
            &truth(|p| p.counts_only),
            &positions,
            &count(|p| p.source_rows),
            &count(|p| p.replica_rows),
            &count(|p| p.drift[0]),
            &count(|p| p.drift[1]),
            &count(|p| p.drift[2]),
            &truth(|p| p.in_sync),
            &seconds,
            &truth(|p| p.rechecked),
            &rules,
        ];
        let doing = || ProgressError::doing("keep what a comparison found");
        client.execute(sql, values).await.map_err(doing())?;
        let whole = "DELETE FROM pglockstep.proof_parts AS p \
                   USING ROWS FROM (unnest($2::text[]), unnest($3::text[]), unnest($4::bool[])) \
                     AS t (schema, name, counts_only) \
                   WHERE p.pipeline = $1 AND p.source_schema = t.schema AND p.source_table = t.name \
                   AND NOT t.counts_only";
        let counted = truth(|p| p.counts_only);
        let ended = client
            .execute(whole, &[&pipeline, &schemas, &tables, &counted])
            .await;
        ended.map_err(doing())?;
        let old = "DELETE FROM pglockstep.proofs AS p \
                   USING ROWS FROM (unnest($2::text[]), unnest($3::text[])) AS t (schema, name) \
                   WHERE p.pipeline = $1 AND p.source_schema = t.schema AND p.source_table = t.name \
                   AND (p.counts_only \
                     OR p.compared_at < pg_catalog.now() - pg_catalog.make_interval(days => $4)) \
                   AND EXISTS (SELECT 1 FROM pglockstep.proofs AS n WHERE n.pipeline = p.pipeline \
                     AND n.source_schema = p.source_schema AND n.source_table = p.source_table \
                     AND n.counts_only = p.counts_only AND n.id > p.id AND n.in_sync = p.in_sync) \
                   AND (p.counts_only OR NOT p.in_sync OR EXISTS (SELECT 1 FROM pglockstep.proofs AS e \
                     WHERE e.pipeline = p.pipeline AND e.source_schema = p.source_schema \
                     AND e.source_table = p.source_table AND e.id <> p.id \
                     AND (e.id > p.id AND NOT e.in_sync OR e.id < p.id AND e.in_sync AND NOT e.counts_only \
                       AND NOT EXISTS (SELECT 1 FROM pglockstep.proofs AS b WHERE b.pipeline = p.pipeline \
                         AND b.source_schema = p.source_schema AND b.source_table = p.source_table \
                         AND NOT b.in_sync AND b.id > e.id AND b.id < p.id))))";
        let forgotten = client
            .execute(old, &[&pipeline, &schemas, &tables, &KEPT_DAYS])
            .await;
        forgotten.map(drop).map_err(doing())
    }

    /// Of each table that takes part the last comparison and the last count that found nothing, and
    /// the last that found something; oldest first.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_last_proofs(
        client: &Client,
        (pipeline, rules): (&str, &str),
    ) -> Result<Vec<KeptProof>, ProgressError> {
        let sql = "WITH ours AS (SELECT p.* FROM pglockstep.proofs AS p JOIN pglockstep.tables AS t \
                     ON t.pipeline = p.pipeline AND t.source_schema = p.source_schema \
                     AND t.source_table = p.source_table AND t.replica_schema = p.replica_schema \
                     AND t.replica_table = p.replica_table AND p.lsn >= t.copied_lsn \
                   WHERE p.pipeline = $1 AND p.rules = $2 AND t.state = 'copied'), \
                   last AS (\
                     SELECT DISTINCT ON (source_schema, source_table, counts_only, in_sync) id FROM ours \
                     ORDER BY source_schema, source_table, counts_only, in_sync, id DESC) \
                   SELECT source_schema, source_table, replica_schema, replica_table, counts_only, lsn, \
                     source_rows, replica_rows, missing, extra, different, in_sync, seconds, rechecked, \
                     EXTRACT(EPOCH FROM pg_catalog.now() - compared_at)::float8 \
                   FROM ours WHERE id IN (SELECT id FROM last) ORDER BY id";
        let rows = client.query(sql, &[&pipeline, &rules]).await;
        let rows = rows.map_err(ProgressError::doing("read what comparisons found"))?;
        Ok(rows.iter().map(kept).collect())
    }
}

/// What the books know of one table's proofs, for people: times as text, of the replica's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableHistory {
    /// Rows of source and replica when they were last counted or compared.
    pub rows: Option<(u64, u64)>,
    /// When that was.
    pub rows_at: Option<String>,
    /// Rows that the last comparison found missing, extra, different.
    pub drift: Option<[u64; 3]>,
    /// When that was.
    pub compared_at: Option<String>,
    /// The last look found nothing, and so did all since then.
    pub in_step_since: Option<String>,
    /// Its copy is whole, and it is followed.
    pub is_followed: bool,
    /// It was compared in the last two days.
    pub is_recent: bool,
}

impl Store {
    /// The history of each table that takes part, by source and replica table.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_history(
        client: &Client,
        (pipeline, rules): (&str, &str),
    ) -> Result<Vec<(QualifiedName, QualifiedName, TableHistory)>, ProgressError> {
        let sql = "WITH ours AS (SELECT p.*, t.source_oid, pg_catalog.to_char(p.compared_at AT TIME ZONE 'UTC', \
                       'YYYY-MM-DD HH24:MI:SS \"UTC\"') AS told \
                     FROM pglockstep.proofs AS p JOIN pglockstep.tables AS t \
                     ON t.pipeline = p.pipeline AND t.source_schema = p.source_schema \
                     AND t.source_table = p.source_table AND t.replica_schema = p.replica_schema \
                     AND t.replica_table = p.replica_table AND p.lsn >= t.copied_lsn \
                   WHERE p.pipeline = $1 AND p.rules = $2), \
                   last AS (SELECT DISTINCT ON (source_oid) * FROM ours ORDER BY source_oid, id DESC), \
                   compared AS (SELECT DISTINCT ON (source_oid) * FROM ours WHERE NOT counts_only \
                     ORDER BY source_oid, id DESC), \
                   broken AS (SELECT source_oid, pg_catalog.max(id) AS id FROM ours WHERE NOT in_sync GROUP BY source_oid), \
                   since AS (SELECT DISTINCT ON (o.source_oid) o.* FROM ours AS o LEFT JOIN broken AS b USING (source_oid) \
                     WHERE o.in_sync AND NOT o.counts_only AND o.id > COALESCE(b.id, 0) ORDER BY o.source_oid, o.id) \
                   SELECT t.source_schema, t.source_table, t.replica_schema, t.replica_table, \
                     l.source_rows, l.replica_rows, l.told, c.missing, c.extra, c.different, c.told, s.told, \
                     t.state = 'copied', COALESCE(c.compared_at > pg_catalog.now() - interval '2 days', false) \
                   FROM pglockstep.tables AS t LEFT JOIN last AS l USING (source_oid) \
                   LEFT JOIN compared AS c USING (source_oid) LEFT JOIN since AS s USING (source_oid) \
                   WHERE t.pipeline = $1 ORDER BY 1, 2";
        let rows = client.query(sql, &[&pipeline, &rules]).await;
        let rows = rows.map_err(ProgressError::doing("read what comparisons found"))?;
        let history = |row: &Row| {
            let name =
                |at| QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
            let count = |at| row.get::<_, Option<i64>>(at).map(i64::unsigned_abs);
            let history = TableHistory {
                rows: count(4).zip(count(5)),
                rows_at: row.get(6),
                drift: count(7)
                    .zip(count(8))
                    .zip(count(9))
                    .map(|((missing, extra), different)| [missing, extra, different]),
                compared_at: row.get(10),
                in_step_since: row.get(11),
                is_followed: row.get(12),
                is_recent: row.get(13),
            };
            (name(0), name(2), history)
        };
        Ok(rows.iter().map(history).collect())
    }
}

fn kept(row: &Row) -> KeptProof {
    let name = |at| QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
    let count = |at| count(row.get(at));
    // Clocks are set back now and then.
    let seconds = |at| Duration::try_from_secs_f64(row.get(at)).unwrap_or_default();
    KeptProof {
        proof: Proof {
            source: name(0),
            replica: name(2),
            counts_only: row.get(4),
            at: row.get(5),
            source_rows: count(6),
            replica_rows: count(7),
            drift: [count(8), count(9), count(10)],
            in_sync: row.get(11),
            took: seconds(12),
            rechecked: row.get(13),
        },
        age: seconds(14),
    }
}
