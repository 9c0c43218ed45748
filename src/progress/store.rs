//! The only statements that touch the bookkeeping schema on the replica.
//!
//! Ownership: `claim` raises the epoch; every later write names the epoch it was made
//! under and must touch exactly one row. A daemon that was frozen and wakes after
//! another took over touches none, and stops. The advisory lock is only the queue at
//! the door: it may be lost without notice, the epoch may not.

use super::schema::{BOOKKEEPING, BOOKKEEPING_TABLES, LAST_ADDITION, bookkeeping_sql};
use super::{TableRecord, TableState};
use crate::faults::{Bug, Fault, planted};
use crate::pg::{Disposition, Lsn, QualifiedName, ServerError, quote_literal};
use tokio_postgres::{Client, GenericClient};

/// Reading or writing the bookkeeping failed.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// A statement failed.
    #[error("cannot {what} in the replica's schema pglockstep")]
    Statement {
        /// What was being done.
        what: &'static str,
        /// The server's or the connection's error.
        #[source]
        source: ServerError,
    },
    /// Schema or tables are not there or of an older version, and the role may not make them, or
    /// may not look.
    #[error(
        "this role may not make or use the schema pglockstep, or its tables, on the replica: run the SQL that `pglockstep setup` prints"
    )]
    NoSchema(#[source] ServerError),
    /// Another daemon has claimed the pipeline since.
    #[error("another daemon has taken over this pipeline (its epoch is no longer {epoch})")]
    Superseded {
        /// The epoch this daemon had claimed.
        epoch: i64,
    },
    /// A row holds something that was never written there.
    #[error("the replica's pglockstep.errors holds the unknown state {state:?} for error {id}")]
    UnknownErrorState {
        /// The error.
        id: i64,
        /// The word found.
        state: String,
    },
    /// A row holds something that was never written there.
    #[error("the replica's pglockstep.tables holds the unknown state {state:?} for {table}")]
    UnknownState {
        /// The source table.
        table: QualifiedName,
        /// The word found.
        state: String,
    },
}

impl From<Fault> for ProgressError {
    fn from(fault: Fault) -> Self {
        Self::Statement {
            what: "go on",
            source: fault.into(),
        }
    }
}

impl ProgressError {
    pub(crate) fn doing<E: Into<ServerError>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Statement {
            what,
            source: error.into(),
        }
    }

    /// Whether the session is gone.
    #[must_use]
    pub fn is_session_lost(&self) -> bool {
        matches!(self, Self::Statement { source, .. } if source.is_session_lost())
    }

    /// Whether to try again.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Statement { source, .. } => source.disposition(),
            // Whoever was superseded queues again at the door.
            Self::Superseded { .. } => Disposition::Transient,
            Self::NoSchema(_) | Self::UnknownState { .. } | Self::UnknownErrorState { .. } => {
                Disposition::Definite
            }
        }
    }
}

/// What ties a position to one history of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineIdentity {
    /// The source's system identifier.
    pub system_id: String,
    /// The source database's object id.
    pub database_oid: u32,
    /// The slot.
    pub slot: String,
}

/// A pipeline as the store remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineRecord {
    /// Whose position it is.
    pub identity: PipelineIdentity,
    /// The source's timeline when its history was last looked at.
    pub timeline: Option<u32>,
    /// The slot's consistent point; `None` while the slot is being created.
    pub slot_born_at: Option<Lsn>,
    /// Everything before it is on the replica.
    pub applied: Option<Lsn>,
    /// Why this daemon dropped the slot, if it did.
    pub given_up: Option<String>,
}

/// One pipeline's bookkeeping, written under one epoch.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) pipeline: String,
    pub(super) epoch: i64,
    is_rebasing: bool,
}

const CLAIM: &str = "
INSERT INTO pglockstep.pipelines AS p (name, system_id, database_oid, slot, epoch)
VALUES ($1, '', 0, '', 1)
ON CONFLICT (name) DO UPDATE SET epoch = p.epoch + 1, updated_at = pg_catalog.now()
RETURNING epoch, rebasing";

impl Store {
    /// Whether the bookkeeping schema is there, with all its tables.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn has_books(client: &Client) -> Result<bool, ProgressError> {
        let known = "SELECT pg_catalog.bool_and(pg_catalog.to_regclass('pglockstep.' || name) \
                     IS NOT NULL) AND EXISTS (SELECT 1 FROM pg_catalog.pg_attribute \
                     WHERE attrelid = pg_catalog.to_regclass('pglockstep.' || $2::text) \
                     AND attname = $3::text) FROM unnest($1::text[]) AS name";
        let (table, column) = LAST_ADDITION;
        let row = client
            .query_one(known, &[&BOOKKEEPING_TABLES.as_slice(), &table, &column])
            .await
            .map_err(refused("look"))?;
        Ok(row.get(0))
    }

    /// Makes the bookkeeping schema where it is missing.
    ///
    /// # Errors
    /// When it is missing and cannot be made.
    pub async fn ensure_schema(client: &Client) -> Result<(), ProgressError> {
        if Self::has_books(client).await? {
            return Ok(());
        }
        // CREATE SCHEMA IF NOT EXISTS asks for the privilege even where the schema exists.
        let has_schema = "SELECT pg_catalog.to_regnamespace('pglockstep') IS NOT NULL";
        let row = client
            .query_one(has_schema, &[])
            .await
            .map_err(ProgressError::doing("look"))?;
        let made = if row.get(0) {
            client.batch_execute(BOOKKEEPING).await
        } else {
            client.batch_execute(&bookkeeping_sql(None)).await
        };
        made.map_err(refused("create the tables"))
    }

    /// Takes the pipeline over: every older owner's writes fail from here on.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn claim(client: &Client, pipeline: &str) -> Result<Self, ProgressError> {
        let row = client
            .query_one(CLAIM, &[&pipeline])
            .await
            .map_err(ProgressError::doing("claim the pipeline"))?;
        Ok(Self {
            pipeline: pipeline.to_owned(),
            epoch: row.get(0),
            is_rebasing: row.get(1),
        })
    }

    /// The pipeline's record; `None` when no slot was ever meant for it.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_record(
        client: &Client,
        pipeline: &str,
    ) -> Result<Option<PipelineRecord>, ProgressError> {
        let sql = "SELECT system_id, database_oid, slot, slot_born_at, applied_lsn, \
                   timeline, given_up FROM pglockstep.pipelines WHERE name = $1 AND slot <> ''";
        let row = client
            .query_opt(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("read"))?;
        Ok(row.map(|row| PipelineRecord {
            identity: PipelineIdentity {
                system_id: row.get(0),
                database_oid: u32::try_from(row.get::<_, i64>(1)).unwrap_or_default(),
                slot: row.get(2),
            },
            timeline: narrow(row.get(5)),
            slot_born_at: row.get(3),
            applied: row.get(4),
            given_up: row.get(6),
        }))
    }

    /// Notes that a slot is about to be created; a slot of that name found later without
    /// a birth is then known to be this pipeline's own orphan.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn intend_slot(
        &self,
        client: &Client,
        identity: &PipelineIdentity,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.pipelines SET system_id = $3, database_oid = $4, slot = $5, \
                   slot_born_at = NULL, applied_lsn = NULL, given_up = NULL, updated_at = pg_catalog.now() \
                   WHERE name = $1 AND epoch = $2";
        let database_oid = i64::from(identity.database_oid);
        let touched = client
            .execute(
                sql,
                &[
                    &self.pipeline,
                    &self.epoch,
                    &identity.system_id,
                    &database_oid,
                    &identity.slot,
                ],
            )
            .await
            .map_err(ProgressError::doing("note the slot"))?;
        self.expect_one(touched)
    }

    /// Notes where the slot was born: the pipeline's first position.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn record_slot(
        &self,
        client: &Client,
        born_at: Lsn,
        timeline: u32,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.pipelines SET slot_born_at = $3, applied_lsn = $3, \
                   timeline = $4, updated_at = pg_catalog.now() WHERE name = $1 AND epoch = $2";
        let timeline = i64::from(timeline);
        let touched = client
            .execute(sql, &[&self.pipeline, &self.epoch, &born_at, &timeline])
            .await
            .map_err(ProgressError::doing("note the slot"))?;
        self.expect_one(touched)
    }

    /// Notes on which timeline the source is, once its history was found to hold the position.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn record_timeline(
        &self,
        client: &Client,
        timeline: u32,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.pipelines SET timeline = $3, given_up = NULL, \
                   updated_at = pg_catalog.now() WHERE name = $1 AND epoch = $2";
        let touched = client
            .execute(sql, &[&self.pipeline, &self.epoch, &i64::from(timeline)])
            .await
            .map_err(ProgressError::doing("note the timeline"))?;
        self.expect_one(touched)
    }

    /// Proves ownership inside a transaction that moves no position (the first copy's).
    ///
    /// # Errors
    /// When the query fails or the pipeline has another owner.
    pub async fn prove_ownership(&self, client: &impl GenericClient) -> Result<(), ProgressError> {
        let sql = "SELECT 1 FROM pglockstep.pipelines WHERE name = $1 AND epoch = $2 FOR SHARE";
        let rows = client
            .query(sql, &[&self.pipeline, &self.epoch])
            .await
            .map_err(ProgressError::doing("prove ownership"))?;
        self.expect_one(rows.len() as u64)
    }

    /// Waits until no other transaction has proven ownership and not ended yet. Outside of a
    /// transaction: one that is open would be committed.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn await_position(&self, client: &Client) -> Result<(), ProgressError> {
        // A lock on a row is a write to the server, and the session may write only so.
        let sql = format!(
            "BEGIN READ WRITE; \
             SELECT 1 FROM pglockstep.pipelines WHERE name = {} FOR UPDATE; COMMIT",
            quote_literal(&self.pipeline)
        );
        let waited = client.batch_execute(&sql).await;
        if waited.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        waited.map_err(ProgressError::doing("wait for the position"))
    }

    /// As [`prove_ownership`](Self::prove_ownership), for sessions that take text: yields a row,
    /// or none.
    pub(crate) fn ownership_sql(&self) -> String {
        format!(
            "SELECT 1 FROM pglockstep.pipelines WHERE name = {} AND epoch = {} FOR SHARE",
            quote_literal(&self.pipeline),
            self.epoch
        )
    }

    /// What its answer proves.
    pub(crate) fn judge_ownership(&self, rows: usize) -> Result<(), ProgressError> {
        self.expect_one(rows as u64)
    }

    /// All tables of the pipeline.
    ///
    /// # Errors
    /// When the query fails or holds an unknown state.
    pub async fn fetch_tables(
        client: &Client,
        pipeline: &str,
    ) -> Result<Vec<TableRecord>, ProgressError> {
        let sql = "SELECT source_schema, source_table, replica_schema, replica_table, state, \
                   copied_lsn, source_oid, publication_oid FROM pglockstep.tables WHERE pipeline = $1 ORDER BY 1, 2";
        let rows = client
            .query(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("read the tables"))?;
        rows.iter()
            .map(|row| {
                let name =
                    |at| QualifiedName::new(row.get::<_, &str>(at), row.get::<_, &str>(at + 1));
                let word: &str = row.get(4);
                let state = TableState::from_kept(word, row.get(5));
                let state = state.ok_or_else(|| ProgressError::UnknownState {
                    table: name(0),
                    state: word.to_owned(),
                })?;
                Ok(TableRecord {
                    source: name(0),
                    source_oid: u32::try_from(row.get::<_, i64>(6)).unwrap_or_default(),
                    replica: name(2),
                    published_by: narrow(row.get(7)),
                    state,
                })
            })
            .collect()
    }

    /// Writes the states of tables, new ones and known ones.
    ///
    /// # Errors
    /// When a statement fails or the pipeline has another owner.
    pub async fn record_tables(
        &self,
        client: &impl GenericClient,
        records: &[TableRecord],
    ) -> Result<(), ProgressError> {
        self.prove_ownership(client).await?;
        let column =
            |value: fn(&TableRecord) -> &str| records.iter().map(value).collect::<Vec<_>>();
        let copied_at: Vec<Option<Lsn>> = records.iter().map(|r| r.state.copied_at()).collect();
        let source_oids: Vec<i64> = records.iter().map(|r| i64::from(r.source_oid)).collect();
        let published_by: Vec<Option<i64>> = records
            .iter()
            .map(|record| record.published_by.map(i64::from))
            .collect();
        let sql = "INSERT INTO pglockstep.tables AS tables (pipeline, source_schema, source_table, \
                   source_oid, replica_schema, replica_table, state, copied_lsn, publication_oid) \
                   SELECT $1, t.* FROM ROWS FROM (unnest($2::text[]), unnest($3::text[]), \
                   unnest($4::bigint[]), unnest($5::text[]), unnest($6::text[]), \
                   unnest($7::text[]), unnest($8::pg_lsn[]), unnest($9::bigint[])) AS t \
                   ON CONFLICT (pipeline, source_oid) DO UPDATE SET \
                   source_schema = excluded.source_schema, source_table = excluded.source_table, \
                   publication_oid = excluded.publication_oid, \
                   replica_schema = excluded.replica_schema, replica_table = excluded.replica_table, \
                   state = excluded.state, copied_lsn = CASE WHEN excluded.state LIKE 'resync%' \
                   THEN tables.copied_lsn ELSE excluded.copied_lsn END, \
                   updated_at = pg_catalog.now()";
        client
            .execute(
                sql,
                &[
                    &self.pipeline,
                    &column(|r| &r.source.schema),
                    &column(|r| &r.source.name),
                    &source_oids,
                    &column(|r| &r.replica.schema),
                    &column(|r| &r.replica.name),
                    &column(|r| r.state.as_str()),
                    &copied_at,
                    &published_by,
                ],
            )
            .await
            .map_err(ProgressError::doing("note the tables"))?;
        let is_copied = |record: &&TableRecord| record.state.copied_at().is_some();
        for record in records.iter().filter(is_copied) {
            self.end_by_copy(client, record.source_oid).await?;
        }
        Ok(())
    }

    /// Forgets everything of a pipeline. For `teardown`.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn forget(client: &Client, pipeline: &str) -> Result<(), ProgressError> {
        let sql = "DELETE FROM pglockstep.pipelines WHERE name = $1";
        client
            .execute(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("forget"))?;
        Ok(())
    }

    /// The pipeline's name.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Whether every table was still to be merged under a new history when it was claimed.
    #[must_use]
    pub fn is_rebasing(&self) -> bool {
        self.is_rebasing
    }

    /// The number of this claim; no other claim of the pipeline has it.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    pub(super) fn expect_one(&self, touched: u64) -> Result<(), ProgressError> {
        if touched == 1 || planted(Bug::SkipEpochCheck) {
            Ok(())
        } else {
            Err(ProgressError::Superseded { epoch: self.epoch })
        }
    }
}

/// A missing privilege is for an administrator to mend.
fn refused(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> ProgressError {
    move |error| match ServerError::from(error) {
        source if source.sqlstate() == Some("42501") => ProgressError::NoSchema(source),
        source => ProgressError::Statement { what, source },
    }
}

/// SQL has no unsigned numbers: they are kept in the next larger type.
pub(super) fn narrow(kept: Option<i64>) -> Option<u32> {
    kept.and_then(|number| u32::try_from(number).ok())
}

/// A count as the books keep it.
pub(super) fn wide(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count that was kept.
pub(super) fn count(kept: i64) -> u64 {
    u64::try_from(kept).unwrap_or_default()
}
