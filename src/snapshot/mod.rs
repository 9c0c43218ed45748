//! The first copy: every table as of one consistent point, in parallel.
//!
//! ```text
//!  exported snapshot ──▶ worker 1: BEGIN; SET TRANSACTION SNAPSHOT ┐
//!                    ──▶ worker 2: …                               ├─ pieces from one queue
//!                                                                  ┘
//!  table: init ─(emptied, marked)─▶ copying ─(all pieces in)─▶ [merged] ─▶ copied at LSN
//! ```
//!
//! Invariants: nothing is changed before every table was looked at; a table is marked
//! `copying` in the transaction that empties it, and `copied` only after its last piece,
//! by a commit that waits for the disk, and only with all its indexes. Interrupted, whole tables stay; the others begin
//! again, under a new snapshot with an LSN of their own.

mod copy;
mod error;
mod existing;
mod indexes;
mod plan;
mod settings;
mod statement;

pub(crate) use copy::{enter_snapshot, rewritten_sql};
pub use error::SnapshotError;
pub(crate) use existing::{create_staging, drop_staging_sql, same_key, upsert_sql};
pub use indexes::{make_constraints_again, make_left_overs};
pub use settings::{Indexes, Settings};
pub use statement::{CopyFormat, CopyStatements, CtidRange, copy_statements};
pub(crate) use statement::{copy_statements_where, source_rows};

use crate::catalog::TableKind;
use crate::conn::Pool;
use crate::faults;
use crate::mapping::{ConflictPolicy, ExistingRows, ExtraRows, RowIdentity, TableMapping};
use crate::pg::{Lsn, QualifiedName, TypeNames};
use crate::progress::{Store, TableRecord, TableState};
use crate::reactor::Reactor;
use crate::telemetry::{TableStateLabel, TableTelemetry};
use copy::{Pipe, while_it_works};
use existing::Destination;
use futures_util::future::try_join_all;
use plan::{Piece, Size};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// One table to be copied.
#[derive(Clone)]
pub struct CopyTable {
    /// Its mapping.
    pub mapping: Arc<TableMapping>,
    /// The source's types by object id.
    pub types: Arc<TypeNames>,
    /// What kind of relation it is on the source.
    pub source_kind: TableKind,
    /// The publication's row filter.
    pub row_filter: Option<String>,
    /// What publishes it on the source.
    pub published_by: Option<u32>,
    /// What to do with rows that are there.
    pub existing_rows: ExistingRows,
    /// What to do with rows that only the replica has.
    pub extra_rows: ExtraRows,
    /// What to do with rows that both have, and differ.
    pub on_conflict: ConflictPolicy,
    /// Higher is earlier.
    pub priority: i32,
    /// Place when tables referred to come first.
    pub place: u32,
    /// Size on the source in bytes.
    pub bytes: u64,
    /// Its state before.
    pub state: TableState,
    /// Where to tell of progress.
    pub telemetry: TableTelemetry,
}

impl CopyTable {
    /// Whether rows of both sides can be told to be one.
    fn has_key(&self) -> bool {
        matches!(self.mapping.identity, RowIdentity::Key(_))
    }
}

/// Looks at the replica tables before anything is changed on either side.
///
/// # Errors
/// [`SnapshotError::HasRows`] and its like; or the look itself failed.
pub async fn check_existing_rows(
    client: &Client,
    tables: &[CopyTable],
    pipeline: &str,
) -> Result<(), SnapshotError> {
    existing::check(client, tables, pipeline).await.map(|_| ())
}

/// A first copy under way.
pub struct SnapshotCopy<'a> {
    /// `[copy]`.
    pub settings: &'a Settings,
    /// Sessions of the source.
    pub source: &'a Pool,
    /// Sessions of the replica.
    pub replica: &'a Pool,
    /// The session that keeps the books.
    pub control: &'a Client,
    /// The books.
    pub store: &'a Store,
    /// The exported snapshot's name, valid as long as its exporter stays.
    pub snapshot: &'a str,
    /// What the snapshot contains.
    pub consistent_point: Lsn,
    /// Whether foreign keys keep still.
    pub is_replica_role: bool,
}

/// Each is locked with its indexes until all these are marked: a server has room for some 6,000
/// locks where nothing else is set.
const BEGUN_AT_ONCE: usize = 500;

/// Small tables come faster than the disk takes note of them: so many may wait to be marked together.
const FINISHED_AT_ONCE: usize = 100;

impl SnapshotCopy<'_> {
    /// Copies all tables. Dropping the future interrupts it; what was whole stays.
    ///
    /// # Errors
    /// The first failure; whole tables stay marked as copied.
    pub async fn run(&self, tables: &[CopyTable]) -> Result<(), SnapshotError> {
        let destinations = existing::check(self.control, tables, self.store.pipeline()).await?;
        self.begin(tables, &destinations).await?;
        faults::at("copy.begun").await?;
        let sizes: Vec<Size> = tables.iter().map(size_of_table).collect();
        // Parents first means one after the other.
        let workers = if self.is_replica_role {
            self.settings.workers.max(1)
        } else {
            1
        };
        let pieces = plan::plan(
            &sizes,
            self.settings.split_from,
            workers,
            self.is_replica_role,
        );
        let mut left = vec![0usize; tables.len()];
        for piece in &pieces {
            left[piece.table] += 1;
        }
        let totals = left.clone();
        let queue = Arc::new(Mutex::new(pieces));
        let (done, mut finished) = mpsc::channel(FINISHED_AT_ONCE);
        let mut tasks = JoinSet::new();
        let mut threads = Vec::new();
        for (thread, pipe) in self.open_pipes(workers).await? {
            let worker = Worker {
                pipe,
                queue: Arc::clone(&queue),
                tables: tables.to_vec(),
                destinations: destinations.clone(),
                store: self.store.clone(),
                is_one_by_one: !self.is_replica_role,
                done: done.clone(),
            };
            thread.spawn_in(&mut tasks, worker.run());
            threads.push(thread);
        }
        drop(done);
        loop {
            tokio::select! {
                biased;
                Some(first) = finished.recv() => {
                    // More may have come while the last ones were marked.
                    let mut pieces = vec![first];
                    pieces.extend(std::iter::from_fn(|| finished.try_recv().ok()));
                    let mut whole = Vec::new();
                    for Finished { table, .. } in &pieces {
                        left[*table] -= 1;
                        note_piece(&tables[*table], left[*table], totals[*table]);
                        if left[*table] == 0 {
                            whole.push((&tables[*table], &destinations[*table]));
                        }
                    }
                    self.finish_all(&whole).await?;
                    for Finished { go_on, .. } in pieces {
                        // A worker that has ended does not wait.
                        let _ = go_on.send(());
                    }
                }
                Some(worker) = tasks.join_next() => worker.map_err(|_| SnapshotError::Worker)??,
                else => break,
            }
        }
        if !self.is_replica_role {
            self.delete_extra(tables, &destinations).await?;
        }
        Ok(())
    }

    /// All at once, each on a thread of its own.
    async fn open_pipes(&self, count: usize) -> Result<Vec<(Reactor, Pipe)>, SnapshotError> {
        let open = async || {
            let thread = Reactor::start("copy").map_err(SnapshotError::Thread)?;
            let (source, replica) = (self.source.clone(), self.replica.clone());
            let (snapshot, is_replica_role) = (self.snapshot.to_owned(), self.is_replica_role);
            let opening =
                async move { Pipe::open(&source, &replica, &snapshot, is_replica_role).await };
            let pipe = thread.spawn(opening).await;
            Ok((thread, pipe.map_err(|_| SnapshotError::Worker)??))
        };
        try_join_all((0..count).map(|_| open())).await
    }

    /// Empties and marks, each table in one transaction: from here on partial rows are known as
    /// ours.
    async fn begin(
        &self,
        tables: &[CopyTable],
        destinations: &[Destination],
    ) -> Result<(), SnapshotError> {
        let mut children_first: Vec<(&CopyTable, &Destination)> =
            tables.iter().zip(destinations).collect();
        children_first.sort_by_key(|(table, _)| std::cmp::Reverse(table.place));
        for tables in children_first.chunks(BEGUN_AT_ONCE) {
            self.begin_some(tables).await?;
        }
        Ok(())
    }

    async fn begin_some(&self, tables: &[(&CopyTable, &Destination)]) -> Result<(), SnapshotError> {
        let Some((first, _)) = tables.first() else {
            return Ok(());
        };
        let name = &first.mapping.replica;
        // Emptying must neither fire triggers nor reach beyond the mapping by a cascade.
        let role = if self.is_replica_role {
            "; SET LOCAL session_replication_role = replica"
        } else {
            ""
        };
        let begun = self.control.batch_execute(&format!("BEGIN{role}")).await;
        begun.map_err(SnapshotError::on(name, "begin to copy into"))?;
        let emptied: Vec<&TableMapping> = tables
            .iter()
            .rev()
            .filter(|(_, destination)| **destination == Destination::Table)
            .map(|(table, _)| table.mapping.as_ref())
            .collect();
        existing::empty(self.control, &emptied).await?;
        let emptied: Vec<&CopyTable> = tables
            .iter()
            .filter(|(_, destination)| **destination == Destination::Table)
            .map(|(table, _)| *table)
            .collect();
        match self.settings.indexes {
            Indexes::After => {
                let with_foreign_keys = !self.is_replica_role;
                indexes::set_aside(self.control, self.store, &emptied, with_foreign_keys).await?;
            }
            // An interrupted copy may have dropped them.
            Indexes::Keep => {
                indexes::make_again(self.control, self.store.pipeline(), &emptied).await?;
            }
        }
        for (table, destination) in tables {
            if let Destination::Staging(staging) = destination {
                create_staging(self.control, &table.mapping, staging).await?;
            }
            table.telemetry.set_state(TableStateLabel::Copying);
        }
        // A table that is merged into keeps the operator's rows: it never counts as partly ours.
        let state = |table: &CopyTable, destination: &Destination| match (table.state, destination)
        {
            (_, Destination::Table) => TableState::Copying,
            // Interrupted, it is still wanted.
            (resync @ TableState::Resync { .. }, Destination::Staging(_)) => resync,
            (_, Destination::Staging(_)) => TableState::Init,
        };
        let records: Vec<TableRecord> = tables
            .iter()
            .map(|(table, destination)| record(table, state(table, destination)))
            .collect();
        self.store.record_tables(self.control, &records).await?;
        let committed = self.control.batch_execute("COMMIT").await;
        committed.map_err(SnapshotError::on(name, "begin to copy into"))
    }

    /// Marks the tables as copied, which are whole now: those to be merged one by one, the others
    /// together, for each such commit waits for the disk.
    async fn finish_all(&self, tables: &[(&CopyTable, &Destination)]) -> Result<(), SnapshotError> {
        let mut whole: Vec<&CopyTable> = Vec::new();
        for (table, destination) in tables {
            match destination {
                Destination::Table => whole.push(table),
                Destination::Staging(staging) => self.merge(table, staging).await?,
            }
        }
        let Some(first) = whole.first() else {
            return Ok(());
        };
        self.begin_finish(&first.mapping).await?;
        self.mark_copied(&whole).await
    }

    /// Merges, and marks the table as copied.
    async fn merge(&self, table: &CopyTable, staging: &QualifiedName) -> Result<(), SnapshotError> {
        let mapping = &table.mapping;
        let merge = if !table.has_key() {
            existing::replace_sql(mapping, staging) + &drop_staging_sql(staging)
        } else if self.is_replica_role {
            existing::delete_extra_sql(mapping, staging, table.extra_rows)
                + &upsert_sql(mapping, staging, &table.on_conflict)
                + &drop_staging_sql(staging)
        } else {
            // Superfluous rows have to wait until nothing refers to them any more.
            return self.upsert(table, staging).await;
        };
        self.begin_finish(mapping).await?;
        let merged = while_it_works(table, self.control.batch_execute(&merge)).await;
        merged.map_err(SnapshotError::on(&mapping.replica, "merge into"))?;
        self.mark_copied(&[table]).await
    }

    async fn upsert(
        &self,
        table: &CopyTable,
        staging: &QualifiedName,
    ) -> Result<(), SnapshotError> {
        let name = &table.mapping.replica;
        self.begin_finish(&table.mapping).await?;
        let sql = upsert_sql(&table.mapping, staging, &table.on_conflict);
        let merged = while_it_works(table, self.control.batch_execute(&sql)).await;
        merged.map_err(SnapshotError::on(name, "merge into"))?;
        // It is as of the snapshot now, and no longer what it was before.
        let oid = table.mapping.relation.id;
        self.store.forget_copy_point(self.control, oid).await?;
        self.store.prove_ownership(self.control).await?;
        let committed = while_it_works(table, self.control.batch_execute("COMMIT")).await;
        committed.map_err(SnapshotError::on(name, "merge into"))
    }

    /// Where foreign keys fire: ends all merges, children first.
    async fn delete_extra(
        &self,
        tables: &[CopyTable],
        destinations: &[Destination],
    ) -> Result<(), SnapshotError> {
        let staged = tables.iter().zip(destinations);
        let mut staged: Vec<(&CopyTable, &QualifiedName)> = staged
            .filter_map(|(table, destination)| match destination {
                Destination::Staging(staging) if table.has_key() => Some((table, staging)),
                Destination::Staging(_) | Destination::Table => None,
            })
            .collect();
        staged.sort_by_key(|(table, _)| std::cmp::Reverse(table.place));
        let Some((first, _)) = staged.first() else {
            return Ok(());
        };
        self.begin_finish(&first.mapping).await?;
        for (table, staging) in &staged {
            let sql = existing::delete_extra_sql(&table.mapping, staging, table.extra_rows)
                + &drop_staging_sql(staging);
            let deleted = while_it_works(table, self.control.batch_execute(&sql)).await;
            deleted.map_err(SnapshotError::on(&table.mapping.replica, "merge into"))?;
        }
        let merged: Vec<&CopyTable> = staged.iter().map(|(table, _)| *table).collect();
        self.mark_copied(&merged).await
    }

    async fn begin_finish(&self, mapping: &TableMapping) -> Result<(), SnapshotError> {
        let role = if self.is_replica_role {
            "; SET LOCAL session_replication_role = replica"
        } else {
            "; SET CONSTRAINTS ALL DEFERRED"
        };
        let begun = self.control.batch_execute(&format!("BEGIN{role}")).await;
        begun.map_err(SnapshotError::on(&mapping.replica, "finish"))
    }

    /// Ends the transaction.
    async fn mark_copied(&self, tables: &[&CopyTable]) -> Result<(), SnapshotError> {
        let Some(first) = tables.first() else {
            return Ok(());
        };
        indexes::make_again(self.control, self.store.pipeline(), tables).await?;
        let state = TableState::Copied {
            at: self.consistent_point,
        };
        let records: Vec<TableRecord> = tables.iter().map(|table| record(table, state)).collect();
        self.store.record_tables(self.control, &records).await?;
        for _ in tables {
            faults::at("copy.table_finishing").await?;
        }
        let committed = self.control.batch_execute("COMMIT").await;
        committed.map_err(SnapshotError::on(&first.mapping.replica, "finish"))?;
        for table in tables {
            faults::at("copy.table_marked").await?;
            table.telemetry.set_copy_progress(1.0);
            table.telemetry.set_state(TableStateLabel::CatchingUp);
            let (source, replica) = (&table.mapping.relation.name, &table.mapping.replica);
            tracing::info!(table = %source, %replica, "table copied");
        }
        Ok(())
    }
}

/// A piece is in.
struct Finished {
    table: usize,
    go_on: oneshot::Sender<()>,
}

fn note_piece(table: &CopyTable, left: usize, total: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let ratio = 1.0 - left as f64 / total.max(1) as f64;
    table.telemetry.set_copy_progress(ratio);
}

fn size_of_table(table: &CopyTable) -> Size {
    Size {
        priority: table.priority,
        place: table.place,
        bytes: table.bytes,
        may_split: table.source_kind == TableKind::Ordinary,
    }
}

fn record(table: &CopyTable, state: TableState) -> TableRecord {
    TableRecord {
        source: table.mapping.relation.name.clone(),
        source_oid: table.mapping.relation.id,
        replica: table.mapping.replica.clone(),
        published_by: table.published_by,
        state,
    }
}

struct Worker {
    pipe: Pipe,
    queue: Arc<Mutex<VecDeque<Piece>>>,
    tables: Vec<CopyTable>,
    destinations: Vec<Destination>,
    store: Store,
    is_one_by_one: bool,
    done: mpsc::Sender<Finished>,
}

impl Worker {
    async fn run(mut self) -> Result<(), SnapshotError> {
        loop {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(piece) = next else {
                self.pipe.close().await;
                return Ok(());
            };
            let table = &self.tables[piece.table];
            let into = match &self.destinations[piece.table] {
                Destination::Table => table.mapping.replica.clone(),
                Destination::Staging(staging) => staging.clone(),
            };
            self.pipe
                .copy(table, piece.range, &into, &self.store)
                .await?;
            let (go_on, may_go_on) = oneshot::channel();
            let finished = Finished {
                table: piece.table,
                go_on,
            };
            let is_given_up = self.done.send(finished).await.is_err();
            // The next table may refer to rows that are merged only now.
            if is_given_up || (self.is_one_by_one && may_go_on.await.is_err()) {
                return Ok(());
            }
        }
    }
}
