//! The pipe of one worker: COPY out of the source's snapshot into the replica.
//!
//! Both ends speak the same format, so bytes are passed on as they come. A piece is one
//! transaction on the replica, which proves its owner before its first row.

use super::statement::copy_statements;
use super::{CopyTable, SnapshotError};
use crate::catalog::TableKind;
use crate::conn::Pool;
use crate::pg::{QualifiedName, quote_literal};
use crate::progress::Store;
use crate::snapshot::statement::CtidRange;
use bytes::{Bytes, BytesMut};
use deadpool_postgres::{ClientWrapper, Object};
use futures_util::{SinkExt, StreamExt};
use std::pin::pin;
use tokio_postgres::Client;

/// Bytes gathered before they are handed to the replica's connection.
const CHUNK_BYTES: usize = 64 * 1024;

/// One worker's two connections. They are taken out of their pools: each may be dropped with
/// a transaction open, and must not be handed to anybody else then.
pub(crate) struct Pipe {
    source: ClientWrapper,
    replica: ClientWrapper,
    ignores_foreign_keys: bool,
}

impl Pipe {
    /// Opens both ends; the source's sees what `snapshot` saw.
    pub(crate) async fn open(
        source: &Pool,
        replica: &Pool,
        snapshot: &str,
        ignores_foreign_keys: bool,
    ) -> Result<Self, SnapshotError> {
        let source = Object::take(source.get().await?);
        // Two messages: within one, the first statement has taken a snapshot already.
        let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot));
        for sql in ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &import] {
            source
                .batch_execute(sql)
                .await
                .map_err(|e| SnapshotError::Snapshot(e.into()))?;
        }
        let replica = Object::take(replica.get().await?);
        Ok(Self {
            source,
            replica,
            ignores_foreign_keys,
        })
    }

    /// Copies one piece and returns its rows.
    pub(crate) async fn copy(
        &self,
        table: &CopyTable,
        range: Option<CtidRange>,
        into: &QualifiedName,
        store: &Store,
    ) -> Result<u64, SnapshotError> {
        let name = &table.mapping.replica;
        let statements = copy_statements(
            &table.mapping,
            &table.types,
            table.source_kind == TableKind::Partitioned,
            table.row_filter.as_deref(),
            range,
            into,
        );
        let client: &Client = &self.replica;
        // The commit that marks the table as copied waits for the disk, and for all before it.
        let role = if self.ignores_foreign_keys {
            "; SET LOCAL session_replication_role = replica"
        } else {
            ""
        };
        let begin = format!("BEGIN; SET LOCAL synchronous_commit = off{role}");
        client
            .batch_execute(&begin)
            .await
            .map_err(SnapshotError::on(name, "begin to copy into"))?;
        store.prove_ownership(client).await?;
        let rows = self
            .pump(table, &statements.copy_out, &statements.copy_in)
            .await?;
        // Again, now that the table is locked: whoever took over since cannot have emptied it.
        store.prove_ownership(client).await?;
        client
            .batch_execute("COMMIT")
            .await
            .map_err(SnapshotError::on(name, "copy into"))?;
        Ok(rows)
    }

    async fn pump(
        &self,
        table: &CopyTable,
        copy_out: &str,
        copy_in: &str,
    ) -> Result<u64, SnapshotError> {
        let from = &table.mapping.relation.name;
        let to = &table.mapping.replica;
        let source = self.source.copy_out(copy_out).await;
        let mut source = pin!(source.map_err(SnapshotError::on(from, "copy out of"))?);
        let sink = self.replica.copy_in::<_, Bytes>(copy_in).await;
        let mut sink = pin!(sink.map_err(SnapshotError::on(to, "copy into"))?);
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        while let Some(row) = source.next().await {
            let row = row.map_err(SnapshotError::on(from, "copy out of"))?;
            chunk.extend_from_slice(&row);
            if chunk.len() >= CHUNK_BYTES {
                let full = chunk.split().freeze();
                sink.send(full)
                    .await
                    .map_err(SnapshotError::on(to, "copy into"))?;
                chunk.reserve(CHUNK_BYTES + CHUNK_BYTES / 4);
            }
        }
        sink.send(chunk.freeze())
            .await
            .map_err(SnapshotError::on(to, "copy into"))?;
        sink.finish()
            .await
            .map_err(SnapshotError::on(to, "copy into"))
    }
}
