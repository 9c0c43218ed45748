//! The pipe of one worker: COPY out of the source's snapshot into the replica.
//!
//! Both ends speak the same format, so bytes are passed on as they come. A piece is one
//! transaction on the replica, which proves its owner before its first row, and one on the
//! source: a table's lock goes with its last piece, and nobody's ALTER TABLE waits for the others.

use super::statement::copy_statements;
use super::{CopyTable, SnapshotError};
use crate::catalog::TableKind;
use crate::conn::Pool;
use crate::faults;
use crate::pg::{QualifiedName, quote_literal};
use crate::progress::Store;
use crate::snapshot::statement::CtidRange;
use bytes::{Bytes, BytesMut};
use deadpool_postgres::{ClientWrapper, Object};
use futures_util::{SinkExt, StreamExt};
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::Client;

/// Bytes gathered before they are handed to the replica's connection.
const CHUNK_BYTES: usize = 64 * 1024;
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Tables of ours whose rows have moved since the snapshot: what it now finds in them is
/// nothing. `pg_class` is read as of the snapshot, the function as of now.
/// (Manual, 13.6 "Caveats": a rewriting ALTER TABLE and TRUNCATE are not MVCC-safe.)
const REWRITTEN: &str = "
WITH RECURSIVE parts AS (
  SELECT $1::pg_catalog.oid AS oid
  UNION ALL
  SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i
  JOIN parts AS p ON i.inhparent = p.oid WHERE $2::bool)
SELECT pg_catalog.count(*) FROM parts AS p JOIN pg_catalog.pg_class AS c ON c.oid = p.oid
WHERE NULLIF(c.relfilenode, 0::pg_catalog.oid)
  IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)";

/// Lets a session of the source see what `snapshot` saw, until its transaction ends.
pub(crate) async fn enter_snapshot(source: &Client, snapshot: &str) -> Result<(), SnapshotError> {
    // Two messages: within one, the first statement has taken a snapshot already.
    let import = format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot));
    for sql in ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &import] {
        let done = source.batch_execute(sql).await;
        done.map_err(|error| SnapshotError::Snapshot(error.into()))?;
    }
    Ok(())
}

/// Waits for one long statement of the replica: an index that is brought up to date, foreign
/// keys that are looked at, a merge. Nothing is heard of it before its end, and it is no stall.
pub(super) async fn while_it_works<T>(table: &CopyTable, work: impl Future<Output = T>) -> T {
    let mut tick = tokio::time::interval(TELL_EVERY);
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => table.telemetry.copied_rows(0),
        }
    }
}

/// One worker's two connections. They are taken out of their pools: each may be dropped with
/// a transaction open, and must not be handed to anybody else then.
pub(crate) struct Pipe {
    source: ClientWrapper,
    replica: ClientWrapper,
    /// What the source's end is to see.
    snapshot: String,
    is_replica_role: bool,
}

impl Pipe {
    /// Opens both ends; the source's is to see what `snapshot` saw.
    pub(crate) async fn open(
        source: &Pool,
        replica: &Pool,
        snapshot: &str,
        is_replica_role: bool,
    ) -> Result<Self, SnapshotError> {
        let source = Object::take(source.get().await?);
        let replica = Object::take(replica.get().await?);
        Ok(Self {
            source,
            replica,
            snapshot: snapshot.to_owned(),
            is_replica_role,
        })
    }

    /// Copies one piece.
    pub(crate) async fn copy(
        &self,
        table: &CopyTable,
        range: Option<CtidRange>,
        into: &QualifiedName,
        store: &Store,
    ) -> Result<(), SnapshotError> {
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
        let role = if self.is_replica_role {
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
        faults::at("copy.range_begun").await?;
        enter_snapshot(&self.source, &self.snapshot).await?;
        self.pump(table, &statements.copy_out, &statements.copy_in)
            .await?;
        self.expect_not_rewritten(table).await?;
        let left = self.source.batch_execute("COMMIT").await;
        left.map_err(SnapshotError::copy_out(&table.mapping.relation.name))?;
        faults::at("copy.range_written").await?;
        // Again, now that the table is locked: whoever took over since cannot have emptied it.
        store.prove_ownership(client).await?;
        let committed = while_it_works(table, client.batch_execute("COMMIT")).await;
        committed.map_err(SnapshotError::on(name, "copy into"))?;
        Ok(faults::at("copy.range_committed").await?)
    }

    /// The COPY's lock, held to the end of the transaction, lets nobody move them from here on.
    async fn expect_not_rewritten(&self, table: &CopyTable) -> Result<(), SnapshotError> {
        let name = &table.mapping.relation.name;
        let has_parts = table.source_kind == TableKind::Partitioned;
        let found = self
            .source
            .query_one(REWRITTEN, &[&table.mapping.relation.id, &has_parts])
            .await;
        match found.map_err(SnapshotError::copy_out(name))?.get(0) {
            0i64 => Ok(()),
            _ => Err(SnapshotError::Rewritten {
                table: name.clone(),
            }),
        }
    }

    async fn pump(
        &self,
        table: &CopyTable,
        copy_out: &str,
        copy_in: &str,
    ) -> Result<(), SnapshotError> {
        let from = &table.mapping.relation.name;
        let to = &table.mapping.replica;
        let source = self.source.copy_out(copy_out).await;
        let mut source = pin!(source.map_err(SnapshotError::copy_out(from))?);
        let sink = self.replica.copy_in::<_, Bytes>(copy_in).await;
        let mut sink = pin!(sink.map_err(SnapshotError::on(to, "copy into"))?);
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        // Each message holds a row, but the last one of the binary format, which only ends it. So
        // one is always held back.
        let (mut messages, mut told) = (0u64, 0u64);
        while let Some(row) = source.next().await {
            messages += 1;
            let row = row.map_err(SnapshotError::copy_out(from))?;
            chunk.extend_from_slice(&row);
            if chunk.len() >= CHUNK_BYTES {
                let full = chunk.split().freeze();
                sink.send(full)
                    .await
                    .map_err(SnapshotError::on(to, "copy into"))?;
                table.telemetry.copied_rows(messages - 1 - told);
                told = messages - 1;
                chunk.reserve(CHUNK_BYTES + CHUNK_BYTES / 4);
            }
        }
        sink.send(chunk.freeze())
            .await
            .map_err(SnapshotError::on(to, "copy into"))?;
        let finished = while_it_works(table, sink.finish()).await;
        let rows = finished.map_err(SnapshotError::on(to, "copy into"))?;
        table.telemetry.copied_rows(rows.saturating_sub(told));
        Ok(())
    }
}
