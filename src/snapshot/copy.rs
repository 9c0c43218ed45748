//! The pipe of one worker: COPY out of the source's snapshot into the replica.
//!
//! Both ends speak the same format, so bytes are passed on as they come, heads of messages
//! included (see [`RawSession`]). A piece is one transaction on the replica, which proves its owner
//! before its first row, and one on the source: a table's lock goes with its last piece, and
//! nobody's ALTER TABLE waits for the others.
//!
//! ```text
//!  replica: BEGIN, owner? ─▶              COPY ◀─ rows ─┐      ─▶ owner? ─▶ COMMIT
//!  source:                  BEGIN, SNAPSHOT, COPY ──────┘, rewritten?, COMMIT
//! ```
//!
//! The source is asked everything at once: nothing that it says later depends on us.

use super::statement::copy_statements;
use super::{CopyTable, SnapshotError};
use crate::catalog::TableKind;
use crate::conn::{ForwardError, Pool, RawSession};
use crate::faults;
use crate::pg::{QualifiedName, quote_literal};
use crate::progress::{ProgressError, Store};
use crate::snapshot::statement::CtidRange;
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::Client;

const TELL_EVERY: Duration = Duration::from_secs(5);

/// Asks whether the rows of a table, or of a part of it, have moved since the snapshot: what it now finds there is
/// nothing. `pg_class` is read as of the snapshot, the function as of now. The COPY's lock, held
/// to the end of the transaction, lets nobody move them from here on.
/// (Manual, 13.6 "Caveats": a rewriting ALTER TABLE and TRUNCATE are not MVCC-safe.)
pub(crate) fn rewritten_sql(table_oid: u32, has_parts: bool) -> String {
    format!(
        "WITH RECURSIVE parts AS (
  SELECT {}::pg_catalog.oid AS oid
  UNION ALL
  SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i
  JOIN parts AS p ON i.inhparent = p.oid WHERE {has_parts})
SELECT 1 FROM parts AS p JOIN pg_catalog.pg_class AS c ON c.oid = p.oid
WHERE NULLIF(c.relfilenode, 0::pg_catalog.oid)
  IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)",
        table_oid
    )
}

/// Two messages: within one, the first statement has taken a snapshot already.
fn enter_sql(snapshot: &str) -> [String; 2] {
    [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned(),
        format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot)),
    ]
}

/// Lets a session of the source see what `snapshot` saw, until its transaction ends.
pub(crate) async fn enter_snapshot(source: &Client, snapshot: &str) -> Result<(), SnapshotError> {
    for sql in enter_sql(snapshot) {
        let done = source.batch_execute(&sql).await;
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

/// One worker's two connections: after an error both are dropped, with what they have begun.
pub(crate) struct Pipe {
    source: RawSession,
    replica: RawSession,
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
        Ok(Self {
            source: source.raw().await?,
            replica: replica.raw().await?,
            snapshot: snapshot.to_owned(),
            is_replica_role,
        })
    }

    /// Ends both in good order.
    pub(crate) async fn close(self) {
        self.source.close().await;
        self.replica.close().await;
    }

    /// Copies one piece.
    pub(crate) async fn copy(
        &mut self,
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
        // The commit that marks the table as copied waits for the disk, and for all before it.
        let role = if self.is_replica_role {
            "; SET LOCAL session_replication_role = replica"
        } else {
            ""
        };
        let begin = format!("BEGIN; SET LOCAL synchronous_commit = off{role}");
        let lost = SnapshotError::on(name, "begin to copy into");
        self.replica.ask(&begin).map_err(lost)?;
        self.ask_owner(store)?;
        let begun = self.replica.answer().await;
        begun.map_err(SnapshotError::on(name, "begin to copy into"))?;
        self.judge_owner(store).await?;
        faults::at("copy.range_begun").await?;
        self.ask_source(table, &statements.copy_out)?;
        self.pump(table, &statements.copy_in).await?;
        self.expect_not_rewritten(table).await?;
        faults::at("copy.range_written").await?;
        // Again, now that the table is locked: whoever took over since cannot have emptied it.
        self.ask_owner(store)?;
        self.judge_owner(store).await?;
        let committed = while_it_works(table, self.replica.run("COMMIT")).await;
        committed.map_err(SnapshotError::on(name, "copy into"))?;
        Ok(faults::at("copy.range_committed").await?)
    }

    fn ask_owner(&mut self, store: &Store) -> Result<(), SnapshotError> {
        let asked = self.replica.ask(&store.ownership_sql());
        Ok(asked.map_err(ProgressError::doing("prove ownership"))?)
    }

    async fn judge_owner(&mut self, store: &Store) -> Result<(), SnapshotError> {
        let rows = self.replica.answer().await;
        let rows = rows.map_err(ProgressError::doing("prove ownership"))?;
        Ok(store.judge_ownership(rows.len())?)
    }

    fn ask_source(&mut self, table: &CopyTable, copy_out: &str) -> Result<(), SnapshotError> {
        let [begin, import] = enter_sql(&self.snapshot);
        let has_parts = table.source_kind == TableKind::Partitioned;
        let rewritten = rewritten_sql(table.mapping.relation.id, has_parts);
        for sql in [&begin, &import, copy_out, &rewritten, "COMMIT"] {
            let asked = self.source.ask(sql);
            asked.map_err(SnapshotError::copy_out(&table.mapping.relation.name))?;
        }
        Ok(())
    }

    async fn expect_not_rewritten(&mut self, table: &CopyTable) -> Result<(), SnapshotError> {
        let name = &table.mapping.relation.name;
        let found = self.source.answer().await;
        let is_rewritten = !found.map_err(SnapshotError::copy_out(name))?.is_empty();
        let left = self.source.answer().await;
        left.map_err(SnapshotError::copy_out(name))?;
        if is_rewritten {
            return Err(SnapshotError::Rewritten {
                table: name.clone(),
            });
        }
        Ok(())
    }

    async fn pump(&mut self, table: &CopyTable, copy_in: &str) -> Result<(), SnapshotError> {
        let from = &table.mapping.relation.name;
        let to = &table.mapping.replica;
        for _ in enter_sql("") {
            let entered = self.source.answer().await;
            entered.map_err(SnapshotError::Snapshot)?;
        }
        let begun = self.source.copy_out_begun().await;
        begun.map_err(SnapshotError::copy_out(from))?;
        let asked = self.replica.ask(copy_in);
        asked.map_err(SnapshotError::on(to, "copy into"))?;
        let begun = self.replica.copy_in_begun().await;
        begun.map_err(SnapshotError::on(to, "copy into"))?;
        // Each message holds a row, but the last one of the binary format, which only ends it. So
        // one is always held back.
        let (mut messages, mut told) = (0u64, 0u64);
        let forwarded = self.source.forward(&mut self.replica, |begun| {
            messages += begun;
            let rows = messages.saturating_sub(1);
            table.telemetry.copied_rows(rows - told);
            told = rows;
        });
        forwarded.await.map_err(|error| match error {
            ForwardError::From(source) => SnapshotError::copy_out(from)(source),
            ForwardError::Into(source) => SnapshotError::on(to, "copy into")(source),
        })?;
        let rest = self.source.answer().await;
        rest.map_err(SnapshotError::copy_out(from))?;
        let finished = while_it_works(table, self.replica.end_copy_in()).await;
        let rows = finished.map_err(SnapshotError::on(to, "copy into"))?;
        table.telemetry.copied_rows(rows.saturating_sub(told));
        Ok(())
    }
}
