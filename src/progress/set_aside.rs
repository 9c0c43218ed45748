//! Indexes and foreign keys that were dropped for the time of a copy, by their definitions.
//!
//! Written down in the transaction that drops them, forgotten in the one that makes them again:
//! whenever the work ends, the replica has each of them, or the books do.

use super::store::{ProgressError, Store};
use crate::pg::QualifiedName;
use tokio_postgres::{Client, GenericClient};

/// What was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The replica table.
    pub table: QualifiedName,
    /// Refers to other tables: made again last.
    pub is_foreign_key: bool,
    /// Its name.
    pub name: String,
    /// The statement that makes it again.
    pub definition: String,
}

impl Store {
    /// Writes down what is about to be dropped; part of the transaction that drops it.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn set_aside(
        &self,
        client: &impl GenericClient,
        dropped: &[SetAside],
    ) -> Result<(), ProgressError> {
        let sql = "INSERT INTO pglockstep.set_aside (pipeline, replica_schema, replica_table, \
                   is_foreign_key, name, definition) SELECT $1, t.* FROM ROWS FROM (unnest($2::text[]), \
                   unnest($3::text[]), unnest($4::bool[]), unnest($5::text[]), unnest($6::text[])) AS t \
                   ON CONFLICT (pipeline, replica_schema, replica_table, is_foreign_key, name) \
                   DO UPDATE SET definition = excluded.definition";
        let column = |value: fn(&SetAside) -> &str| dropped.iter().map(value).collect::<Vec<_>>();
        let are_foreign: Vec<bool> = dropped.iter().map(|one| one.is_foreign_key).collect();
        client
            .execute(
                sql,
                &[
                    &self.pipeline(),
                    &column(|one| &one.table.schema),
                    &column(|one| &one.table.name),
                    &are_foreign,
                    &column(|one| &one.name),
                    &column(|one| &one.definition),
                ],
            )
            .await
            .map_err(ProgressError::doing("set indexes aside"))
            .map(drop)
    }

    /// What is still to be made again, foreign keys last.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn fetch_set_aside(
        client: &Client,
        pipeline: &str,
    ) -> Result<Vec<SetAside>, ProgressError> {
        let sql = "SELECT replica_schema, replica_table, is_foreign_key, name, definition \
                   FROM pglockstep.set_aside WHERE pipeline = $1 ORDER BY is_foreign_key, 1, 2, name";
        let rows = client
            .query(sql, &[&pipeline])
            .await
            .map_err(ProgressError::doing("read what was set aside"))?;
        let of = |row: &tokio_postgres::Row| SetAside {
            table: QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            is_foreign_key: row.get(2),
            name: row.get(3),
            definition: row.get(4),
        };
        Ok(rows.iter().map(of).collect())
    }

    /// It is there again; part of the transaction that made it.
    ///
    /// # Errors
    /// When the statement fails.
    pub async fn forget_set_aside(
        client: &Client,
        pipeline: &str,
        made: &SetAside,
    ) -> Result<(), ProgressError> {
        let sql = "DELETE FROM pglockstep.set_aside WHERE pipeline = $1 AND replica_schema = $2 \
                   AND replica_table = $3 AND is_foreign_key = $4 AND name = $5";
        client
            .execute(
                sql,
                &[
                    &pipeline,
                    &made.table.schema,
                    &made.table.name,
                    &made.is_foreign_key,
                    &made.name,
                ],
            )
            .await
            .map_err(ProgressError::doing("forget what was set aside"))
            .map(drop)
    }
}
