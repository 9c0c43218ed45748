//! A new beginning of a pipeline whose history is over: the slot is gone or was moved, or the
//! source is another one. The rows stay; every table is merged anew under a new slot.
//!
//! ```text
//!  history over ─▶ `rebase` ─▶ no slot, no tables in the books, rebasing
//!      ─▶ next start: new slot, every table merged ─▶ streaming, rebasing no more
//! ```

use super::{ProgressError, Store};
use tokio_postgres::Client;

impl Store {
    /// Notes that the slot is dropped, and why; before it is.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn give_up(&self, client: &Client, why: &str) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.pipelines SET given_up = $2, \
                   updated_at = pg_catalog.now() WHERE name = $1 AND epoch = $3";
        let touched = client
            .execute(sql, &[&self.pipeline(), &why, &self.epoch()])
            .await
            .map_err(ProgressError::doing("note that the slot is given up"))?;
        self.expect_one(touched)
    }

    /// Ends the pipeline's history, in one transaction; what was skipped stays noted. For a
    /// verb that holds the pipeline's lock.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn rebase(client: &mut Client, pipeline: &str) -> Result<(), ProgressError> {
        let doing = || ProgressError::doing("begin anew");
        let transaction = client.transaction().await.map_err(doing())?;
        for sql in [
            "UPDATE pglockstep.pipelines SET system_id = '', database_oid = 0, slot = '', \
             timeline = NULL, slot_born_at = NULL, applied_lsn = NULL, given_up = NULL, \
             rebasing = true, epoch = epoch + 1, updated_at = pg_catalog.now() WHERE name = $1",
            // What was never whole stays what it is, to the operator's rows too.
            "UPDATE pglockstep.tables SET copied_lsn = NULL, state = CASE WHEN state IN \
             ('init', 'copying') THEN state ELSE 'resync' END WHERE pipeline = $1",
            "DELETE FROM pglockstep.kept_changes WHERE pipeline = $1 AND skipped_by IS NULL",
            // They speak of another source.
            "DELETE FROM pglockstep.proofs WHERE pipeline = $1",
            "DELETE FROM pglockstep.proof_parts WHERE pipeline = $1",
            "UPDATE pglockstep.errors SET state = 'resynced', request = NULL, \
             ended_at = pg_catalog.now() \
             WHERE pipeline = $1 AND state IN ('stopped', 'quarantined')",
        ] {
            let done = transaction.execute(sql, &[&pipeline]).await;
            done.map_err(doing())?;
        }
        transaction.commit().await.map_err(doing())
    }

    /// Whether the tables are still being merged under a new history.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_rebasing(client: &Client, pipeline: &str) -> Result<bool, ProgressError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM pglockstep.pipelines WHERE name = $1 AND rebasing)";
        let row = client
            .query_one(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("read"))?;
        Ok(row.get(0))
    }

    /// All tables are merged; tables of the old history that take no part go.
    ///
    /// # Errors
    /// When a statement fails or the pipeline has another owner.
    pub async fn end_rebase(&self, client: &Client, parts: &[u32]) -> Result<(), ProgressError> {
        let parts: Vec<i64> = parts.iter().map(|oid| i64::from(*oid)).collect();
        let stale = "DELETE FROM pglockstep.tables WHERE pipeline = $1 AND state LIKE 'resync%' \
                     AND source_oid <> ALL ($2) AND EXISTS \
                     (SELECT 1 FROM pglockstep.pipelines WHERE name = $1 AND epoch = $3)";
        client
            .execute(stale, &[&self.pipeline(), &parts, &self.epoch()])
            .await
            .map_err(ProgressError::doing("end the new beginning"))?;
        let sql = "UPDATE pglockstep.pipelines SET rebasing = false, \
                   updated_at = pg_catalog.now() WHERE name = $1 AND epoch = $2";
        let touched = client
            .execute(sql, &[&self.pipeline(), &self.epoch()])
            .await
            .map_err(ProgressError::doing("end the new beginning"))?;
        self.expect_one(touched)
    }
}
