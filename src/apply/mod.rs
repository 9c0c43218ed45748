//! The replica side: a batch becomes one transaction.
//!
//! ```text
//!  Batch ─▶ sets of rows ─▶ position ─▶ COMMIT
//!           (or a dearer way: ways.rs)
//! ```
//!
//! A transaction too large to be held arrives in parts: each part is a batch behind a
//! savepoint, and COMMIT comes with the last.
//!
//! Nothing is committed unless every statement touched the rows it had to, and the position
//! moved under the own epoch. `COMMIT` of a failed transaction answers like a success through
//! tokio-postgres; here it is sent after all else was checked but the position, whose statement
//! fails by itself where it moves none.

mod array;
mod batch;
mod error;
mod full_rows;
mod full_statement;
mod keyed_rows;
#[cfg(test)]
pub(crate) mod model;
mod moving;
mod net_effect;
mod one_go;
mod plan;
mod preview;
mod ready;
mod resolve;
mod row;
mod rows;
mod session;
mod settings;
mod sibling;
mod stage;
mod statement;
mod tally;
mod ways;
mod witness;
mod writer;

pub use batch::{Batch, BatchItem, Cut, RowChange};
pub use error::ApplyError;
pub use preview::{TableStatement, table_statements, try_statements};
pub use settings::{ChangesMax, OnError, Settings};
pub use statement::ShapeError;
pub use witness::{ConnectingWitness, Flush, connecting_witness};
pub(crate) use writer::ReplicaWriter;

use crate::conn::Endpoint;
use crate::faults::{self, Fault};
use crate::mapping::TableMapping;
use crate::pg::{ConflictKind, Lsn, QualifiedName, ValueFormat};
use crate::progress::{Durability, Store};
use moving::MovingValues;
use resolve::Conflicts;
use session::{Failed, Flight, ReplicaSession, poll_once};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tally::tell;
use tokio_postgres::{Client, Statement};

/// What applying a batch came to for one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The table, in the version that was written.
    pub mapping: Arc<TableMapping>,
    /// Changes of the source that are done, by kind.
    pub inserts: u64,
    /// Changes of the source, by kind.
    pub updates: u64,
    /// Changes of the source, by kind.
    pub deletes: u64,
    /// Statements of the source that emptied the table.
    pub truncates: u64,
    /// Of all those, rows that the filter kept out.
    pub filtered: u64,
    /// Conflicts met and resolved.
    pub conflicts: BTreeMap<ConflictKind, u64>,
}

/// What became of a batch.
struct Outcome {
    /// By place in the batch: see `tally.rs`.
    is_settled: Vec<bool>,
    /// By number of the batch's table, as all that follows.
    conflicts: Conflicts,
    filtered: BTreeMap<u32, u64>,
}

/// Owns the one connection that writes changes to the replica.
pub struct Applier {
    session: ReplicaSession,
    store: Store,
    /// Moves the position.
    advance: Statement,
    /// Foreign keys do not fire: any order of tables will do.
    is_replica_role: bool,
    moving: MovingValues,
    parents_first: HashMap<QualifiedName, u32>,
    transaction: Transaction,
    /// Of the change at which the last batch failed, where it was found.
    failed_key: Option<String>,
    /// Where a second session is opened.
    siblings: Option<Endpoint>,
    /// Makes durable what this one commits.
    witness: Option<Arc<Client>>,
    /// Until there have been so many, no batch goes in one go.
    usual_until: u64,
}

/// Why nothing is committed.
enum Uncommitted {
    /// A statement failed that was sent before. The transaction is over or to be rolled back.
    Before(Failed),
    /// The position or the COMMIT.
    At(ApplyError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transaction {
    None,
    /// Open; the parts before are behind a released savepoint.
    Open,
}

/// Plans are for nested loops into the replica's indexes, whatever the number of rows:
/// the planner would guess, and a wrong guess is a scan of the table for each batch. Rows
/// without a key are found by a scan whatever is set here: `full_statement.rs`.
///
/// Only transactions that are begun by [`BEGIN`] may write.
const APPLY_SETTINGS: &str = "SET enable_hashjoin = off; SET enable_mergejoin = off; \
     SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan; SET jit = off; \
     SET default_transaction_read_only = on";

/// Statements are on the wire behind it before it is answered. Where it fails, cancelled by somebody, each of
/// them is a transaction of its own, which the session's default keeps from writing. A server in recovery
/// would refuse it as a feature that it lacks; the session has written before, so this one is none.
const BEGIN: &str = "BEGIN READ WRITE";

impl Applier {
    /// Prepares a fresh session of the replica for writing.
    ///
    /// `parents_first` gives each replica table its place when tables that are referred to
    /// by foreign keys come before those that refer; used where the role may not switch
    /// foreign keys off.
    ///
    /// # Errors
    /// When the session refuses its settings.
    pub async fn new(
        client: Client,
        store: Store,
        parents_first: HashMap<QualifiedName, u32>,
    ) -> Result<Self, ApplyError> {
        let set = client.batch_execute(APPLY_SETTINGS).await;
        set.map_err(ApplyError::transaction("set up the apply session"))?;
        let is_replica_role = take_replica_role(&client).await?;
        Ok(Self {
            advance: Store::prepare_advance(&client).await?,
            session: ReplicaSession::new(client),
            store,
            is_replica_role,
            moving: MovingValues::default(),
            parents_first,
            transaction: Transaction::None,
            failed_key: None,
            siblings: None,
            witness: None,
            usual_until: 0,
        })
    }

    /// Tells the row at which the last batch failed from others of its table.
    #[must_use]
    pub fn failed_key(&self) -> Option<&str> {
        self.failed_key.as_deref()
    }

    /// From here on the values of batches are of this format.
    pub fn expect(&mut self, format: ValueFormat) {
        self.session.expect(format);
    }

    /// Whether triggers and foreign keys keep still for this session.
    #[must_use]
    pub fn is_replica_role(&self) -> bool {
        self.is_replica_role
    }

    /// Writes a batch into the open transaction, opening one if there is none.
    ///
    /// # Errors
    /// The transaction is then rolled back whole.
    pub async fn write(&mut self, batch: &Batch) -> Result<Vec<Written>, ApplyError> {
        match self.write_in_order_of_cost(batch).await {
            Ok(outcome) => {
                self.transaction = Transaction::Open;
                is_written().await?;
                Ok(tell(batch, &outcome))
            }
            Err(error) => {
                self.rollback().await;
                Err(error)
            }
        }
    }

    /// Another batch is to be written.
    async fn begin_batch(&mut self) -> Result<(), Fault> {
        faults::at("apply.begun").await?;
        self.failed_key = None;
        self.session.begin_batch();
        Ok(())
    }

    /// Has the constraints that wait for COMMIT looked at now, where they fire.
    ///
    /// # Errors
    /// One is violated; the transaction is then rolled back whole.
    pub async fn check_constraints(&mut self) -> Result<(), ApplyError> {
        let now = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED";
        let checked = self.session.client.batch_execute(now).await;
        if checked.is_err() {
            self.rollback().await;
        }
        checked.map_err(ApplyError::transaction("check the constraints"))
    }

    /// Whether the session has ended, or its witness's.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let mut sessions = self.witness.iter().chain([&self.session.client]);
        sessions.any(|client| client.is_closed())
    }

    /// A table that was set aside goes on like the others, in the open transaction; then as
    /// [`commit`](Self::commit).
    ///
    /// # Errors
    /// As of `commit`.
    pub async fn release(
        &mut self,
        source_oid: u32,
        skipped: bool,
        applied: Lsn,
    ) -> Result<(), ApplyError> {
        self.begin().await?;
        if let Err(error) = self
            .store
            .release(&*self.session.client, source_oid, skipped)
            .await
        {
            self.rollback().await;
            return Err(error.into());
        }
        self.commit(applied, Durability::Durable).await
    }

    /// Opens a transaction, if there is none.
    async fn begin(&mut self) -> Result<(), ApplyError> {
        if self.transaction == Transaction::None {
            let begun = self.session.client.batch_execute(BEGIN).await;
            begun.map_err(ApplyError::transaction("begin a transaction"))?;
            self.transaction = Transaction::Open;
        }
        Ok(())
    }

    /// Moves the position and commits.
    ///
    /// A position that moves without data always waits for the disk.
    ///
    /// # Errors
    /// The transaction is then rolled back whole, or its outcome is unknown: whoever
    /// connects next reads the position to learn it.
    pub async fn commit(&mut self, applied: Lsn, durability: Durability) -> Result<(), ApplyError> {
        let durability = match self.transaction {
            Transaction::None => Durability::Durable,
            Transaction::Open => durability,
        };
        self.begin().await?;
        let committed = self.commit_behind(None, applied, durability).await;
        committed.map_err(|uncommitted| match uncommitted {
            Uncommitted::Before((_, error)) => ApplyError::transaction("write")(error),
            Uncommitted::At(error) => error,
        })
    }

    /// Commits an open transaction, some of whose statements may be under way.
    async fn commit_behind(
        &mut self,
        statements: Option<Flight>,
        applied: Lsn,
        durability: Durability,
    ) -> Result<(), Uncommitted> {
        let sql = match durability {
            Durability::Durable => "COMMIT",
            Durability::Later => "SET LOCAL synchronous_commit = off; COMMIT",
        };
        let client = Arc::clone(&self.session.client);
        // One round trip: where the position cannot be moved, the server has rolled back by the
        // time it comes to COMMIT. Answers are taken in their order: one that nobody takes holds
        // up those behind it.
        let mut moving = Box::pin(self.store.advance(&client, &self.advance, applied));
        let moved = poll_once(&mut moving).await;
        let fault = |fault| Uncommitted::At(ApplyError::from(fault));
        faults::at("apply.position_moved").await.map_err(fault)?;
        if let Some(Err(error)) = moved {
            // It never went out.
            drop(moving);
            self.rollback().await;
            return Err(Uncommitted::At(error.into()));
        }
        self.transaction = Transaction::None;
        let mut committing = Box::pin(client.batch_execute(sql));
        let committed = poll_once(&mut committing).await;
        faults::at("apply.commit_sent").await.map_err(fault)?;
        if let Some(mut statements) = statements {
            statements.land().await.map_err(Uncommitted::Before)?;
        }
        if moved.is_none() {
            let moved = moving.await;
            moved.map_err(|error| Uncommitted::At(error.into()))?;
        }
        let committed = match committed {
            Some(committed) => committed,
            None => committing.await,
        };
        committed.map_err(|error| Uncommitted::At(ApplyError::transaction("commit")(error)))
    }

    /// Ends an open transaction without a trace.
    pub async fn rollback(&mut self) {
        // A connection that cannot roll back is gone, and its transaction with it.
        let _ = self.session.client.batch_execute("ROLLBACK").await;
        self.transaction = Transaction::None;
    }
}

impl Written {
    /// What another batch came to for the same table.
    pub fn add(&mut self, other: &Self) {
        self.inserts += other.inserts;
        self.updates += other.updates;
        self.deletes += other.deletes;
        self.truncates += other.truncates;
        self.filtered += other.filtered;
        for (kind, conflicts) in &other.conflicts {
            *self.conflicts.entry(*kind).or_default() += conflicts;
        }
    }

    /// Changes of every kind.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.truncates
    }

    pub(crate) fn nothing(mapping: &Arc<TableMapping>) -> Self {
        Self {
            mapping: Arc::clone(mapping),
            inserts: 0,
            updates: 0,
            deletes: 0,
            truncates: 0,
            filtered: 0,
            conflicts: BTreeMap::new(),
        }
    }
}

/// Nothing is left to write of a batch.
async fn is_written() -> Result<(), Fault> {
    faults::at("apply.written").await
}

/// Tries to make triggers and foreign keys keep still, as PostgreSQL's own subscriber does.
/// False where the role may not.
pub(crate) async fn take_replica_role(client: &Client) -> Result<bool, ApplyError> {
    match client
        .batch_execute("SET session_replication_role = replica")
        .await
    {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => Ok(false),
        Err(error) => Err(ApplyError::transaction("set session_replication_role")(
            error,
        )),
    }
}
