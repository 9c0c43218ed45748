//! What could not be applied, and what an operator wants done about it.
//!
//! ```text
//!  stopped ────── applied    it passed after all
//!     └─ skip ──▶ skipped    its transaction's changes are kept, and passed by
//!  quarantined ── applied    retried, with all changes kept since
//!     ├─ skip ──▶ skipped    the same without its own transaction's
//!     ├────────── resynced   the table was copied again
//!     └────────── forgotten  the table takes no part any more
//! ```
//!
//! Who owns the pipeline writes under its epoch. Requests are the exception: an operator's
//! verb leaves them, whether a daemon runs or not, and the owner carries them out.

use super::store::narrow;
use super::{ProgressError, Store};
use crate::pg::{Lsn, QualifiedName};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, GenericClient, Row};

/// Why a transaction of the source cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The transaction: its commit record on the source.
    pub commit_lsn: Lsn,
    /// The table, where the failure is about one: its object id and name on the source, and
    /// its name on the replica.
    pub table: Option<(u32, QualifiedName, QualifiedName)>,
    /// The replica's code, where a server refused.
    pub sqlstate: Option<String>,
    /// What happened, without any value of a row.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
    /// Tells rows of the table apart without telling their keys.
    pub key_hash: Option<String>,
}

/// What became of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorState {
    /// The pipeline stands before the transaction.
    Stopped,
    /// The table is set aside from the transaction on.
    Quarantined,
    /// Applied after all.
    Applied,
    /// Passed by, on an operator's word.
    Skipped,
    /// The table was copied again.
    Resynced,
    /// The table takes no part any more, and what was kept of it is gone.
    Forgotten,
}

impl ErrorState {
    const ALL: [Self; 6] = [
        Self::Stopped,
        Self::Quarantined,
        Self::Applied,
        Self::Skipped,
        Self::Resynced,
        Self::Forgotten,
    ];

    /// The word that is kept and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Quarantined => "quarantined",
            Self::Applied => "applied",
            Self::Skipped => "skipped",
            Self::Resynced => "resynced",
            Self::Forgotten => "forgotten",
        }
    }

    /// Somebody has to do something.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Stopped | Self::Quarantined)
    }
}

/// What an operator wants done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Apply it now.
    Retry,
    /// Pass it by.
    Skip,
}

impl Request {
    /// The word that is kept and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Skip => "skip",
        }
    }
}

/// An error in the books.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BookedError {
    /// Its number.
    pub id: i64,
    /// What became of it.
    pub state: ErrorState,
    /// The transaction: its commit record on the source.
    pub commit_lsn: Lsn,
    /// The table on the source.
    pub table: Option<String>,
    /// The table on the replica.
    pub replica_table: Option<String>,
    /// The replica's code.
    pub sqlstate: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
    /// Tells rows of the table apart.
    pub key_hash: Option<String>,
    /// What an operator has asked for and was not done yet.
    pub request: Option<Request>,
    /// Why an operator passed it by.
    pub reason: Option<String>,
    /// How often it was tried.
    pub attempts: i64,
    /// Changes that are kept for it: all of a quarantined table, or those passed by.
    pub kept_changes: i64,
    /// When it first happened, in milliseconds since 1970.
    pub first_unix_ms: i64,
    /// When it last happened.
    pub last_unix_ms: i64,
    /// The table's object id on the source.
    #[serde(skip)]
    pub source_oid: Option<u32>,
}

const ERRORS: &str = "
SELECT e.id, e.state, e.commit_lsn, e.source_schema, e.source_table, e.replica_schema,
  e.replica_table, e.sqlstate, e.message, e.advice, e.key_hash, e.request, e.reason, e.attempts,
  CASE e.state WHEN 'quarantined' THEN
    (SELECT pg_catalog.count(*) FROM pglockstep.kept_changes AS k WHERE k.pipeline = e.pipeline
     AND k.source_oid = e.source_oid AND k.skipped_by IS NULL)
  ELSE (SELECT pg_catalog.count(*) FROM pglockstep.kept_changes AS k WHERE k.skipped_by = e.id) END,
  (EXTRACT(EPOCH FROM e.first_at) * 1000)::bigint,
  (EXTRACT(EPOCH FROM e.last_at) * 1000)::bigint,
  e.source_oid
FROM pglockstep.errors AS e WHERE e.pipeline = $1";

impl Store {
    /// Notes that the pipeline stands before a transaction, or that it does again.
    ///
    /// # Errors
    /// When a statement fails or the pipeline has another owner.
    pub async fn note_stopped(
        &self,
        client: &impl GenericClient,
        failure: &Failure,
    ) -> Result<(), ProgressError> {
        self.prove_ownership(client).await?;
        self.note(client, failure, ErrorState::Stopped).await
    }

    /// Sets the table aside that a failure is about; false when it is set aside already, or is
    /// to be copied again. To be called in a transaction.
    ///
    /// # Errors
    /// When a statement fails or the pipeline has another owner.
    pub async fn quarantine(
        &self,
        client: &impl GenericClient,
        failure: &Failure,
        source_oid: u32,
    ) -> Result<bool, ProgressError> {
        self.prove_ownership(client).await?;
        let sql = "UPDATE pglockstep.tables SET state = 'quarantined', \
                   updated_at = pg_catalog.now() \
                   WHERE pipeline = $1 AND source_oid = $2 AND state = 'copied'";
        let touched = client
            .execute(sql, &[&self.pipeline(), &i64::from(source_oid)])
            .await
            .map_err(ProgressError::doing("set a table aside"))?;
        if touched == 1 {
            self.note(client, failure, ErrorState::Quarantined).await?;
        }
        Ok(touched == 1)
    }

    /// Notes that the changes kept of a table still cannot be applied. To be called in a
    /// transaction.
    ///
    /// # Errors
    /// When a statement fails or the pipeline has another owner.
    pub async fn note_quarantined(
        &self,
        client: &impl GenericClient,
        failure: &Failure,
    ) -> Result<(), ProgressError> {
        self.prove_ownership(client).await?;
        // One that was to be passed by has been; this is another.
        let passed = "UPDATE pglockstep.errors SET state = 'skipped', request = NULL, \
                      ended_at = pg_catalog.now() WHERE pipeline = $1 AND state = 'quarantined' \
                      AND source_oid = $2 AND request = 'skip' AND commit_lsn <> $3";
        let oid = failure.table.as_ref().map(|(oid, ..)| i64::from(*oid));
        client
            .execute(passed, &[&self.pipeline(), &oid, &failure.commit_lsn])
            .await
            .map_err(ProgressError::doing("end errors"))?;
        self.note(client, failure, ErrorState::Quarantined).await
    }

    async fn note(
        &self,
        client: &impl GenericClient,
        failure: &Failure,
        state: ErrorState,
    ) -> Result<(), ProgressError> {
        let (oid, source, replica) = match &failure.table {
            Some((oid, source, replica)) => (Some(i64::from(*oid)), Some(source), Some(replica)),
            None => (None, None, None),
        };
        // One that stopped the pipeline and now sets its table aside is the same one, and a
        // table that is set aside has one at a time.
        let again = "UPDATE pglockstep.errors SET state = $4, sqlstate = $5, message = $6, \
                     advice = $7, key_hash = $8, attempts = attempts + 1, commit_lsn = $2, \
                     last_at = pg_catalog.clock_timestamp(), \
                     request = CASE commit_lsn WHEN $2 THEN NULLIF(request, 'retry') END \
                     WHERE pipeline = $1 AND source_oid IS NOT DISTINCT FROM $3 \
                     AND (state = 'stopped' AND commit_lsn = $2 \
                     OR state = 'quarantined' AND $4 = 'quarantined')";
        let (pipeline, state) = (self.pipeline(), state.as_str());
        let said: [&(dyn ToSql + Sync); 8] = [
            &pipeline,
            &failure.commit_lsn,
            &oid,
            &state,
            &failure.sqlstate,
            &failure.message,
            &failure.advice,
            &failure.key_hash,
        ];
        let touched = client
            .execute(again, &said)
            .await
            .map_err(ProgressError::doing("note an error"))?;
        if touched > 0 {
            return Ok(());
        }
        let new = "INSERT INTO pglockstep.errors (pipeline, commit_lsn, source_oid, state, \
                   sqlstate, message, advice, key_hash, source_schema, source_table, \
                   replica_schema, replica_table) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
        let names = [source, replica]
            .map(|name| (name.map(|name| &name.schema), name.map(|name| &name.name)));
        let mut all = said.to_vec();
        for (schema, name) in &names {
            all.extend([schema as &(dyn ToSql + Sync), name]);
        }
        client
            .execute(new, &all)
            .await
            .map_err(ProgressError::doing("note an error"))?;
        Ok(())
    }

    /// Errors that stopped the pipeline before transactions that are applied by now.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn pass_errors(&self, client: &Client, applied: Lsn) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.errors SET state = 'applied', request = NULL, \
                   ended_at = pg_catalog.now() \
                   WHERE pipeline = $1 AND state = 'stopped' AND commit_lsn < $2 AND EXISTS \
                   (SELECT 1 FROM pglockstep.pipelines WHERE name = $1 AND epoch = $3)";
        client
            .execute(sql, &[&self.pipeline(), &applied, &self.epoch()])
            .await
            .map_err(ProgressError::doing("end errors"))?;
        Ok(())
    }

    /// The pipeline's errors, the oldest first; all, or those that wait for somebody.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_errors(
        client: &Client,
        pipeline: &str,
        only_open: bool,
    ) -> Result<Vec<BookedError>, ProgressError> {
        let which = if only_open {
            " AND e.state IN ('stopped', 'quarantined')"
        } else {
            ""
        };
        let rows = client
            .query(&format!("{ERRORS}{which} ORDER BY e.id"), &[&pipeline])
            .await
            .map_err(ProgressError::doing("read the errors"))?;
        rows.iter().map(booked).collect()
    }

    /// Leaves an operator's word on an error; false when there is no such one, it has ended, or is
    /// about another transaction by now.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn request(
        client: &Client,
        pipeline: &str,
        error: &BookedError,
        request: Request,
        reason: Option<&str>,
    ) -> Result<bool, ProgressError> {
        let sql = "UPDATE pglockstep.errors SET request = $3, reason = COALESCE($4, reason) \
                   WHERE pipeline = $1 AND id = $2 AND commit_lsn = $5 \
                   AND state IN ('stopped', 'quarantined')";
        let touched = client
            .execute(
                sql,
                &[
                    &pipeline,
                    &error.id,
                    &request.as_str(),
                    &reason,
                    &error.commit_lsn,
                ],
            )
            .await
            .map_err(ProgressError::doing("leave a request"))?;
        Ok(touched == 1)
    }

    /// What operators have left to do, as one word that changes with each; `None`: nothing.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_requests(
        client: &Client,
        pipeline: &str,
    ) -> Result<Option<String>, ProgressError> {
        let sql = "SELECT pg_catalog.string_agg(what, ' ' ORDER BY what) FROM (\
                   SELECT pg_catalog.concat_ws('/', 'error', id, request, commit_lsn) AS what \
                   FROM pglockstep.errors WHERE pipeline = $1 AND request IS NOT NULL \
                   AND state IN ('stopped', 'quarantined') \
                   UNION ALL SELECT pg_catalog.concat_ws('/', 'table', source_oid, state, \
                   EXTRACT(EPOCH FROM updated_at)) FROM pglockstep.tables \
                   WHERE pipeline = $1 AND state LIKE 'resync%' AND copied_lsn IS NOT NULL) AS requests";
        let row = client
            .query_one(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("look for requests"))?;
        Ok(row.get(0))
    }

    /// Takes the requests for another attempt down: this attempt is it.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn take_retries(&self, client: &Client) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.errors SET request = NULL \
                   WHERE pipeline = $1 AND request = 'retry' AND state = 'stopped' AND EXISTS \
                   (SELECT 1 FROM pglockstep.pipelines WHERE name = $1 AND epoch = $2)";
        client
            .execute(sql, &[&self.pipeline(), &self.epoch()])
            .await
            .map_err(ProgressError::doing("take a request"))?;
        Ok(())
    }
}

fn booked(row: &Row) -> Result<BookedError, ProgressError> {
    let table = |schema: usize| {
        let (schema, name): (Option<&str>, Option<&str>) = (row.get(schema), row.get(schema + 1));
        Some(QualifiedName::new(schema?, name?).to_string())
    };
    let word: &str = row.get(1);
    let state = ErrorState::ALL
        .into_iter()
        .find(|state| state.as_str() == word);
    let unknown = || ProgressError::UnknownErrorState {
        id: row.get(0),
        state: word.to_owned(),
    };
    Ok(BookedError {
        id: row.get(0),
        state: state.ok_or_else(unknown)?,
        commit_lsn: row.get(2),
        table: table(3),
        replica_table: table(5),
        sqlstate: row.get(7),
        message: row.get(8),
        advice: row.get(9),
        key_hash: row.get(10),
        request: match row.get(11) {
            Some("retry") => Some(Request::Retry),
            Some("skip") => Some(Request::Skip),
            _ => None,
        },
        reason: row.get(12),
        attempts: row.get(13),
        kept_changes: row.get(14),
        first_unix_ms: row.get(15),
        last_unix_ms: row.get(16),
        source_oid: narrow(row.get(17)),
    })
}
