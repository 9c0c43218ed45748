//! Moves the position: the last statement before COMMIT in the transaction whose data it speaks of.
//!
//! It names the epoch of the pipeline's owner, and must touch one row. COMMIT goes out at once behind it, so
//! it fails by itself where it does not, and the server rolls back.

use super::{ProgressError, Store};
use crate::faults::{Bug, planted};
use crate::pg::Lsn;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

impl Store {
    /// Prepares [`advance`](Self::advance).
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

    /// Moves the position. Part of the transaction whose data it speaks of; must be its last statement
    /// before COMMIT, which may be sent behind it without a look at its answer.
    ///
    /// # Errors
    /// When the statement fails or the pipeline has another owner.
    pub async fn advance(
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
