//! Moves the position: the last statement before COMMIT in the transaction whose data it speaks of.
//!
//! It names the epoch of the pipeline's owner, and must touch one row. Whoever looks at the answer
//! before COMMIT goes out sees that; a COMMIT that goes out at once needs a statement that fails by
//! itself, so that the server rolls back.

use super::{ProgressError, Store};
use crate::faults::{Bug, planted};
use crate::pg::Lsn;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, GenericClient, Statement};

impl Store {
    /// Moves the position. Part of the transaction whose data it speaks of; must be its
    /// last statement before COMMIT, since a failed statement before it makes it fail too.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn advance(
        &self,
        client: &impl GenericClient,
        applied: Lsn,
    ) -> Result<(), ProgressError> {
        let sql = "UPDATE pglockstep.pipelines SET \
                   applied_lsn = GREATEST(applied_lsn, $3), \
                   updated_at = pg_catalog.now() WHERE name = $1 AND epoch = $2";
        let touched = client
            .execute_typed(
                sql,
                &[
                    (&self.pipeline, Type::TEXT),
                    (&self.epoch, Type::INT8),
                    (&applied, Type::PG_LSN),
                ],
            )
            .await
            .map_err(ProgressError::doing("move the position"))?;
        self.expect_one(touched)
    }

    /// Prepares [`advance_prepared`](Self::advance_prepared).
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn prepare_advance(client: &Client) -> Result<Statement, ProgressError> {
        let expect_one = match planted(Bug::SkipEpochCheck) {
            true => "",
            false => "1 / ",
        };
        let sql = format!(
            "WITH moved AS (UPDATE pglockstep.pipelines SET \
             applied_lsn = GREATEST(applied_lsn, $3), \
             updated_at = pg_catalog.now() WHERE name = $1 AND epoch = $2 RETURNING 1) \
             SELECT {expect_one}pg_catalog.count(*) FROM moved"
        );
        let types = [Type::TEXT, Type::INT8, Type::PG_LSN];
        let prepared = client.prepare_typed(&sql, &types).await;
        prepared.map_err(ProgressError::doing("move the position"))
    }

    /// As [`advance`](Self::advance), by a statement that fails where the pipeline has another owner: a
    /// COMMIT may be sent behind it without a look at its answer.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn advance_prepared(
        &self,
        client: &Client,
        prepared: &Statement,
        applied: Lsn,
    ) -> Result<(), ProgressError> {
        let moved = client
            .query(prepared, &[&self.pipeline, &self.epoch, &applied])
            .await;
        match moved {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {
                Err(ProgressError::Superseded { epoch: self.epoch })
            }
            Err(error) => Err(ProgressError::doing("move the position")(error)),
        }
    }
}
