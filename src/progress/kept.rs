//! Changes that were received and not applied: of tables set aside, and of transactions that
//! an operator had passed by.
//!
//! They are kept as the source sent them, in the transaction that moves the position beyond
//! them, and read back by the stream's own decoder.

use super::{ErrorState, ProgressError, Store};
use crate::pg::Lsn;
use bytes::Bytes;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient};

/// A change to be kept.
#[derive(Clone, Debug)]
pub struct KeptChange {
    /// The table's object id on the source.
    pub source_oid: u32,
    /// Its transaction: the commit record.
    pub commit_lsn: Lsn,
    /// The Relation message that goes before it; `None`: as the one kept before of the table.
    pub form: Option<Bytes>,
    /// The change's own message.
    pub change: Bytes,
    /// The error by which it is passed by for good; `None`: it waits.
    pub skipped_by: Option<i64>,
}

impl KeptChange {
    /// Bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.change.len() + self.form.as_ref().map_or(0, Bytes::len) + size_of::<Self>()
    }
}

/// A change as it was kept.
#[derive(Clone, Debug)]
pub struct KeptRow {
    /// Its place in the order in which it was received.
    pub id: i64,
    /// Its transaction.
    pub commit_lsn: Lsn,
    /// The Relation message that goes before it.
    pub form: Option<Bytes>,
    /// The change's own message.
    pub change: Bytes,
}

impl Store {
    /// Keeps changes. Part of the transaction that moves the position beyond them.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn keep(
        &self,
        client: &impl GenericClient,
        changes: &[KeptChange],
    ) -> Result<(), ProgressError> {
        if changes.is_empty() {
            return Ok(());
        }
        let oids: Vec<i64> = changes.iter().map(|c| i64::from(c.source_oid)).collect();
        let commits: Vec<Lsn> = changes.iter().map(|c| c.commit_lsn).collect();
        let forms: Vec<Option<&[u8]>> = changes.iter().map(|c| c.form.as_deref()).collect();
        let bytes: Vec<&[u8]> = changes.iter().map(|c| &c.change[..]).collect();
        let skipped: Vec<Option<i64>> = changes.iter().map(|c| c.skipped_by).collect();
        let sql = "INSERT INTO pglockstep.kept_changes \
                   (pipeline, source_oid, commit_lsn, form, change, skipped_by) \
                   SELECT $1, t.* FROM ROWS FROM (unnest($2::bigint[]), unnest($3::pg_lsn[]), \
                   unnest($4::bytea[]), unnest($5::bytea[]), unnest($6::bigint[])) AS t";
        client
            .execute_typed(
                sql,
                &[
                    (&self.pipeline(), Type::TEXT),
                    (&oids, Type::INT8_ARRAY),
                    (&commits, Type::PG_LSN_ARRAY),
                    (&forms, Type::BYTEA_ARRAY),
                    (&bytes, Type::BYTEA_ARRAY),
                    (&skipped, Type::INT8_ARRAY),
                ],
            )
            .await
            .map_err(ProgressError::doing("keep changes"))?;
        let mut ended: Vec<i64> = changes.iter().filter_map(|c| c.skipped_by).collect();
        ended.sort_unstable();
        ended.dedup();
        if !ended.is_empty() {
            self.end_skipped(client, &ended).await?;
        }
        Ok(())
    }

    /// Whatever else stopped the pipeline before the same transactions has passed with them.
    async fn end_skipped(
        &self,
        client: &impl GenericClient,
        errors: &[i64],
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.errors SET state = 'skipped', request = NULL, \
                   ended_at = pg_catalog.now() WHERE pipeline = $1 AND state = 'stopped' \
                   AND commit_lsn IN (SELECT commit_lsn FROM pglockstep.errors \
                   WHERE pipeline = $1 AND id = ANY ($2))";
        client
            .execute_typed(
                sql,
                &[(&self.pipeline(), Type::TEXT), (&errors, Type::INT8_ARRAY)],
            )
            .await
            .map_err(ProgressError::doing("end errors"))?;
        Ok(())
    }

    /// Changes of a table that wait, in their order, after `after`: at most `rows_max`, and no
    /// further one once they hold `bytes_max`.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_waiting(
        client: &Client,
        pipeline: &str,
        source_oid: u32,
        after: i64,
        (rows_max, bytes_max): (i64, i64),
    ) -> Result<Vec<KeptRow>, ProgressError> {
        // Lengths are known without fetching what is long.
        let sql = "WITH page AS MATERIALIZED (SELECT id, pg_catalog.sum(pg_catalog.octet_length(change)) \
                   OVER (ORDER BY id) - pg_catalog.octet_length(change) AS before \
                   FROM pglockstep.kept_changes WHERE pipeline = $1 AND source_oid = $2 \
                   AND skipped_by IS NULL AND id > $3 ORDER BY id LIMIT $4) \
                   SELECT k.id, k.commit_lsn, k.form, k.change FROM page AS p \
                   JOIN pglockstep.kept_changes AS k \
                   ON k.pipeline = $1 AND k.source_oid = $2 AND k.id = p.id \
                   WHERE p.before < $5 ORDER BY k.id";
        let oid = i64::from(source_oid);
        let rows = client
            .query(sql, &[&pipeline, &oid, &after, &rows_max, &bytes_max])
            .await;
        Ok(kept(
            &rows.map_err(ProgressError::doing("read what is kept"))?,
        ))
    }

    /// Changes kept for an error: at most `rows_max`, the first ones.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_kept_for(
        client: &Client,
        pipeline: &str,
        error: i64,
        rows_max: i64,
    ) -> Result<Vec<KeptRow>, ProgressError> {
        let sql = "SELECT k.id, k.commit_lsn, k.form, k.change FROM pglockstep.kept_changes AS k \
                   JOIN pglockstep.errors AS e ON e.pipeline = k.pipeline AND e.id = $2 \
                   WHERE k.pipeline = $1 AND CASE e.state WHEN 'quarantined' \
                   THEN k.source_oid = e.source_oid AND k.skipped_by IS NULL \
                   ELSE k.skipped_by = e.id END ORDER BY k.id LIMIT $3";
        let rows = client.query(sql, &[&pipeline, &error, &rows_max]).await;
        Ok(kept(
            &rows.map_err(ProgressError::doing("read what is kept"))?,
        ))
    }

    /// Passes by what is kept of an error's transaction, for good; done twice, the second time does
    /// nothing. The error ends with the rest of its table's changes, or when another fails. False
    /// when the pipeline has another owner.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn skip_kept(&self, client: &Client, error: i64) -> Result<bool, ProgressError> {
        // What follows must not lose the form that only a skipped change carries.
        let sql = "WITH owner AS MATERIALIZED (SELECT name FROM pglockstep.pipelines \
                   WHERE name = $1 AND epoch = $3 FOR SHARE), \
                   passed AS (UPDATE pglockstep.kept_changes AS k SET skipped_by = e.id \
                   FROM pglockstep.errors AS e, owner WHERE e.pipeline = owner.name AND e.id = $2 \
                   AND k.pipeline = owner.name AND k.source_oid = e.source_oid \
                   AND k.commit_lsn = e.commit_lsn AND k.skipped_by IS NULL \
                   RETURNING k.id, k.source_oid, k.form), \
                   last AS (SELECT source_oid, form FROM passed WHERE form IS NOT NULL \
                   ORDER BY id DESC LIMIT 1), \
                   handed_on AS (UPDATE pglockstep.kept_changes AS k SET form = last.form FROM last \
                   WHERE k.pipeline = $1 AND k.source_oid = last.source_oid AND k.form IS NULL \
                   AND k.id = (SELECT pg_catalog.min(n.id) \
                   FROM pglockstep.kept_changes AS n WHERE n.pipeline = $1 \
                   AND n.source_oid = last.source_oid AND n.skipped_by IS NULL \
                   AND n.id > (SELECT pg_catalog.max(id) FROM passed))) \
                   SELECT pg_catalog.count(*) FROM owner";
        let row = client
            .query_one(sql, &[&self.pipeline(), &error, &self.epoch()])
            .await
            .map_err(ProgressError::doing("pass changes by"))?;
        Ok(row.get::<_, i64>(0) == 1)
    }

    /// A table's kept changes were applied, in this transaction, all or all but those that an
    /// operator has `skipped`: it goes on like the others.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn release(
        &self,
        client: &impl GenericClient,
        source_oid: u32,
        skipped: bool,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.tables SET state = 'copied', updated_at = pg_catalog.now() \
                   WHERE pipeline = $1 AND source_oid = $2 AND state = 'quarantined'";
        client
            .execute(sql, &[&self.pipeline(), &i64::from(source_oid)])
            .await
            .map_err(ProgressError::doing("take a table back"))?;
        let ended = if skipped {
            ErrorState::Skipped
        } else {
            ErrorState::Applied
        };
        self.end_kept(client, source_oid, ended).await
    }

    /// A table was copied again: what is kept of it is in the copy.
    pub(super) async fn end_by_copy(
        &self,
        client: &impl GenericClient,
        source_oid: u32,
    ) -> Result<(), ProgressError> {
        self.end_kept(client, source_oid, ErrorState::Resynced)
            .await
    }

    /// Forgets the copies of these source tables, and what is kept of them.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn forget_copies(
        &self,
        client: &Client,
        source_oids: &[u32],
    ) -> Result<(), ProgressError> {
        let source_oids: Vec<i64> = source_oids.iter().copied().map(i64::from).collect();
        // One statement: all of it or nothing, and only for the owner.
        let sql = "WITH owner AS MATERIALIZED (SELECT name FROM pglockstep.pipelines \
                   WHERE name = $1 AND epoch = $2 FOR SHARE), \
                   gone AS (DELETE FROM pglockstep.tables AS t USING owner \
                   WHERE t.pipeline = owner.name AND t.source_oid = ANY ($3) RETURNING t.source_oid), \
                   kept AS (DELETE FROM pglockstep.kept_changes AS k USING gone \
                   WHERE k.pipeline = $1 AND k.source_oid = gone.source_oid \
                   AND k.skipped_by IS NULL) \
                   UPDATE pglockstep.errors AS e SET state = 'forgotten', request = NULL, \
                   ended_at = pg_catalog.now() FROM gone WHERE e.pipeline = $1 \
                   AND e.source_oid = gone.source_oid AND e.state = 'quarantined'";
        client
            .execute(sql, &[&self.pipeline(), &self.epoch(), &source_oids])
            .await
            .map_err(ProgressError::doing("forget tables"))?;
        Ok(())
    }

    async fn end_kept(
        &self,
        client: &impl GenericClient,
        source_oid: u32,
        ended: ErrorState,
    ) -> Result<(), ProgressError> {
        let delete = "DELETE FROM pglockstep.kept_changes \
                      WHERE pipeline = $1 AND source_oid = $2 AND skipped_by IS NULL";
        let end = "UPDATE pglockstep.errors SET request = NULL, state = $3, \
                   ended_at = pg_catalog.now() \
                   WHERE pipeline = $1 AND source_oid = $2 AND state = 'quarantined'";
        let oid = i64::from(source_oid);
        client
            .execute(delete, &[&self.pipeline(), &oid])
            .await
            .map_err(ProgressError::doing("forget what was kept"))?;
        client
            .execute(end, &[&self.pipeline(), &oid, &ended.as_str()])
            .await
            .map_err(ProgressError::doing("end errors"))?;
        Ok(())
    }
}

fn kept(rows: &[tokio_postgres::Row]) -> Vec<KeptRow> {
    rows.iter()
        .map(|row| KeptRow {
            id: row.get(0),
            commit_lsn: row.get(1),
            form: row.get::<_, Option<Vec<u8>>>(2).map(Bytes::from),
            change: Bytes::from(row.get::<_, Vec<u8>>(3)),
        })
        .collect()
}
