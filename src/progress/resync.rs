//! Tables that are to be copied again: an operator's wish, or changes that were in no stream.
//! The latter have no copy from the beginning, and so are no request to be answered.
//!
//! ```text
//!  copied, quarantined ─ wanted ─▶ resync ─ begun to merge ─▶ resync without a copy ─▶ copied
//!           ▲                        │
//!           └──── called off ────────┘   since nothing was merged yet
//! ```

use super::{ProgressError, Store, TableState};
use crate::pg::QualifiedName;
use tokio_postgres::{Client, GenericClient, Row};

impl Store {
    /// Wants a table copied again; false when the books do not know it, or it was never whole.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn request_resync(
        client: &impl GenericClient,
        pipeline: &str,
        source: &QualifiedName,
        keep_extra: bool,
    ) -> Result<bool, ProgressError> {
        let state = TableState::Resync { keep_extra };
        let sql = "UPDATE pglockstep.tables SET state = $4, \
                   updated_at = pg_catalog.clock_timestamp() \
                   WHERE pipeline = $1 AND source_schema = $2 AND source_table = $3 \
                   AND state NOT IN ('init', 'copying')";
        let touched = client
            .execute(
                sql,
                &[&pipeline, &source.schema, &source.name, &state.as_str()],
            )
            .await
            .map_err(ProgressError::doing("leave a request"))?;
        Ok(touched == 1)
    }

    /// Wants these source tables copied again, or all (`None`), as for
    /// [`request_resync`](Self::request_resync): changes of theirs were in no stream.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn want_again(
        client: &Client,
        pipeline: &str,
        source_oids: Option<&[u32]>,
    ) -> Result<(), ProgressError> {
        let state = TableState::Resync { keep_extra: false };
        let source_oids: Option<Vec<i64>> =
            source_oids.map(|oids| oids.iter().copied().map(i64::from).collect());
        // What is wanted again already, and may still be called off, may not be any more.
        let sql = "UPDATE pglockstep.tables SET copied_lsn = NULL, \
                   state = CASE WHEN state LIKE 'resync%' THEN state ELSE $2 END, \
                   updated_at = pg_catalog.clock_timestamp() WHERE pipeline = $1 \
                   AND ($3::bigint[] IS NULL OR source_oid = ANY ($3)) \
                   AND state NOT IN ('init', 'copying') \
                   AND (state NOT LIKE 'resync%' OR copied_lsn IS NOT NULL)";
        client
            .execute(sql, &[&pipeline, &state.as_str(), &source_oids])
            .await
            .map_err(ProgressError::doing("want tables again"))?;
        Ok(())
    }

    /// A table that is being merged again is not what it was any more: that cannot be called off.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn forget_copy_point(
        &self,
        client: &impl GenericClient,
        source_oid: u32,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.tables SET copied_lsn = NULL \
                   WHERE pipeline = $1 AND source_oid = $2 AND state LIKE 'resync%'";
        client
            .execute(sql, &[&self.pipeline(), &i64::from(source_oid)])
            .await
            .map_err(ProgressError::doing("note a merge"))?;
        Ok(())
    }

    /// Takes back what was asked of tables that could not be copied again: they are what they
    /// were. Not under a new history, where they were nothing. Returns their names on the source.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn call_off_resyncs(
        &self,
        client: &Client,
    ) -> Result<Vec<QualifiedName>, ProgressError> {
        let sql = "UPDATE pglockstep.tables AS t SET state = CASE WHEN EXISTS \
                   (SELECT 1 FROM pglockstep.errors AS e WHERE e.pipeline = $1 \
                   AND e.source_oid = t.source_oid AND e.state = 'quarantined') \
                   THEN 'quarantined' ELSE 'copied' END, updated_at = pg_catalog.now() \
                   WHERE t.pipeline = $1 AND t.state LIKE 'resync%' AND t.copied_lsn IS NOT NULL \
                   AND EXISTS (SELECT 1 FROM pglockstep.pipelines WHERE name = $1 AND epoch = $2) \
                   RETURNING t.source_schema, t.source_table";
        let rows = client
            .query(sql, &[&self.pipeline(), &self.epoch()])
            .await
            .map_err(ProgressError::doing("take requests back"))?;
        let name = |row: &Row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        Ok(rows.iter().map(name).collect())
    }
}
