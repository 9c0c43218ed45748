//! Comparisons that were asked for, and what they came to.
//!
//! ```text
//!  requested ─▶ running ─▶ done      with a report
//!                   └────▶ failed    with the reason; so is one whose daemon ended meanwhile
//! ```

use super::store::{ProgressError, Store};
use crate::pg::QualifiedName;
use tokio_postgres::Client;

/// So many are remembered of each pipeline.
const REMEMBERED: i64 = 1_000;

/// A comparison to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerificationRequest {
    /// Its number.
    pub id: i64,
    /// Source tables; empty: all.
    pub tables: Vec<QualifiedName>,
    /// Rows are only counted.
    pub counts_only: bool,
    /// What is found is to be mended, or a plan of that made: how, as JSON.
    pub wish: Option<String>,
}

/// How far one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Nobody has begun; another one may run meanwhile.
    Requested {
        /// It does.
        is_behind: bool,
    },
    /// Which table is compared now.
    Running(Option<String>),
    /// The report, as JSON.
    Done(String),
    /// Why there is none.
    Failed(String),
}

impl Store {
    /// Asks for a comparison; returns its number.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn request_verification(
        client: &Client,
        pipeline: &str,
        tables: &[QualifiedName],
        counts_only: bool,
        wish: Option<&str>,
    ) -> Result<i64, ProgressError> {
        let sql = "INSERT INTO pglockstep.verifications \
                   (pipeline, source_schemas, source_tables, counts_only, wish) \
                   VALUES ($1, $2, $3, $4, $5) RETURNING id";
        let schemas: Vec<&str> = tables.iter().map(|name| name.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|name| name.name.as_str()).collect();
        let row = client
            .query_one(sql, &[&pipeline, &schemas, &names, &counts_only, &wish])
            .await
            .map_err(ProgressError::doing("ask for a comparison"))?;
        Ok(row.get(0))
    }

    /// Those that are said to run were left by a daemon that has ended.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn fail_left_verifications(
        client: &Client,
        pipeline: &str,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.verifications SET state = 'failed', ended_at = pg_catalog.now(), \
                   error = 'the daemon ended meanwhile' WHERE pipeline = $1 AND state = 'running'";
        let done = client.execute(sql, &[&pipeline]).await;
        done.map(drop)
            .map_err(ProgressError::doing("look for comparisons"))
    }

    /// The oldest one that nobody has begun; begun from now on.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn take_verification(
        client: &Client,
        pipeline: &str,
    ) -> Result<Option<VerificationRequest>, ProgressError> {
        let sql = "UPDATE pglockstep.verifications SET state = 'running' WHERE id = (\
                   SELECT min(id) FROM pglockstep.verifications WHERE pipeline = $1 AND state = 'requested') \
                   AND state = 'requested' RETURNING id, source_schemas, source_tables, counts_only, wish";
        let row = client
            .query_opt(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("look for comparisons"))?;
        Ok(row.map(|row| VerificationRequest {
            id: row.get(0),
            tables: row
                .get::<_, Vec<String>>(1)
                .into_iter()
                .zip(row.get::<_, Vec<String>>(2))
                .map(|(schema, name)| QualifiedName::new(schema, name))
                .collect(),
            counts_only: row.get(3),
            wish: row.get(4),
        }))
    }

    /// Notes that something is compared that nobody has asked for, so that those who ask meanwhile
    /// know that they are behind it.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn begin_turn(client: &Client, pipeline: &str) -> Result<i64, ProgressError> {
        let sql = "INSERT INTO pglockstep.verifications \
                   (pipeline, source_schemas, source_tables, counts_only, state) \
                   VALUES ($1, '{}', '{}', false, 'running') RETURNING id";
        let row = client.query_one(sql, &[&pipeline]).await;
        Ok(row
            .map_err(ProgressError::doing("note a comparison"))?
            .get(0))
    }

    /// It is over.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn end_turn(client: &Client, id: i64) -> Result<(), ProgressError> {
        let sql = "DELETE FROM pglockstep.verifications WHERE id = $1";
        let done = client.execute(sql, &[&id]).await;
        done.map(drop)
            .map_err(ProgressError::doing("note a comparison"))
    }

    /// Tells what is compared now.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn tell_verification(
        client: &Client,
        id: i64,
        progress: &str,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.verifications SET progress = $2 WHERE id = $1";
        let done = client.execute(sql, &[&id, &progress]).await;
        done.map(drop)
            .map_err(ProgressError::doing("tell of a comparison"))
    }

    /// One is over: its report as JSON, or why there is none. Very old ones are forgotten.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn end_verification(
        client: &Client,
        pipeline: &str,
        id: i64,
        outcome: Result<&str, &str>,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.verifications SET state = $2, report = $3, error = $4, \
                   ended_at = pg_catalog.now() WHERE id = $1 AND state = 'running'";
        let state = if outcome.is_ok() { "done" } else { "failed" };
        let ended = client
            .execute(sql, &[&id, &state, &outcome.ok(), &outcome.err()])
            .await;
        ended.map_err(ProgressError::doing("end a comparison"))?;
        let old = "DELETE FROM pglockstep.verifications WHERE pipeline = $1 AND id <= (\
                   SELECT id FROM pglockstep.verifications WHERE pipeline = $1 \
                   ORDER BY id DESC OFFSET $2 LIMIT 1)";
        let forgotten = client.execute(old, &[&pipeline, &REMEMBERED]).await;
        forgotten
            .map(drop)
            .map_err(ProgressError::doing("forget old comparisons"))
    }

    /// Nobody waits for it any more, if it has not begun.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn withdraw_verification(client: &Client, id: i64) -> Result<(), ProgressError> {
        let sql = "DELETE FROM pglockstep.verifications WHERE id = $1 AND state = 'requested'";
        let done = client.execute(sql, &[&id]).await;
        done.map(drop)
            .map_err(ProgressError::doing("withdraw a comparison"))
    }

    /// How far one is; `None` where there is none of that number.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_verification(
        client: &Client,
        id: i64,
    ) -> Result<Option<Verification>, ProgressError> {
        let sql = "SELECT v.state, v.progress, v.report, v.error, EXISTS (SELECT 1 FROM \
                   pglockstep.verifications AS o WHERE o.pipeline = v.pipeline AND o.state = 'running') \
                   FROM pglockstep.verifications AS v WHERE v.id = $1";
        let row = client
            .query_opt(sql, &[&id])
            .await
            .map_err(ProgressError::doing("look for a comparison"))?;
        Ok(row.map(|row| match row.get(0) {
            "requested" => Verification::Requested {
                is_behind: row.get(4),
            },
            "running" => Verification::Running(row.get(1)),
            "done" => Verification::Done(row.get::<_, Option<String>>(2).unwrap_or_default()),
            _ => Verification::Failed(row.get::<_, Option<String>>(3).unwrap_or_default()),
        }))
    }
}
