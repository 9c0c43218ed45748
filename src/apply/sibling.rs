//! Transactions beside the main one: a second session that moves the same position, and savepoints
//! in its transaction.

use super::{Applier, ApplyError, BEGIN, Transaction};
use crate::conn::{Endpoint, Session};
use crate::faults;
use crate::pg::ServerError;
use crate::telemetry::Chain;
use tokio_postgres::Client;

/// How long a session waits for a lock while others of ours have transactions open: it may be one
/// of those that it waits for.
const LOCK_WAIT_MAX_MS: u32 = 5_000;

fn lock_wait_max_ms() -> u32 {
    faults::limit("apply.lock_wait_ms", LOCK_WAIT_MAX_MS)
}

impl Applier {
    /// Says where siblings are opened.
    #[must_use]
    pub fn with_siblings(self, replica: &Endpoint) -> Self {
        let endpoint = Endpoint {
            lock_timeout_ms: lock_wait_max_ms(),
            ..replica.clone()
        };
        Self {
            siblings: Some(endpoint),
            ..self
        }
    }

    /// A second session with the same replica, with a transaction of its own.
    ///
    /// # Errors
    /// It cannot be opened, or is with another server.
    pub async fn sibling(&self) -> Result<Self, ApplyError> {
        let not = |why: String| ApplyError::Transaction {
            what: "open a second session",
            source: ServerError::Lost(why),
        };
        let endpoint = self.siblings.as_ref();
        let endpoint = endpoint.ok_or_else(|| not("nobody said where".into()))?;
        let client = endpoint.connect(Session::ReplicaWrite).await;
        let client = client.map_err(|error| not(Chain(&error).to_string()))?;
        // Of several hosts another one may have answered.
        if server_start(&self.session.client).await? != server_start(&client).await? {
            return Err(not("it is with another server".into()));
        }
        let mut sibling = Self::new(client, self.store.clone(), self.parents_first.clone()).await?;
        sibling.expect(self.session.format());
        Ok(sibling)
    }

    /// Whether this session waits for locks for a while only.
    ///
    /// # Errors
    /// When the session refuses the setting.
    pub async fn limit_lock_waits(&mut self, is_limited: bool) -> Result<(), ApplyError> {
        let ms = if is_limited { lock_wait_max_ms() } else { 0 };
        let set = format!("SET lock_timeout = {ms}");
        let set = self.session.client.batch_execute(&set).await;
        set.map_err(ApplyError::transaction("set lock_timeout"))
    }

    /// Sets a savepoint of this number, opening a transaction if there is none.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn savepoint(&mut self, number: u32) -> Result<(), ApplyError> {
        let begin = match (self.transaction, self.is_replica_role) {
            (Transaction::Open, _) => String::new(),
            (Transaction::None, true) => format!("{BEGIN}; "),
            (Transaction::None, false) => format!("{BEGIN}; SET CONSTRAINTS ALL DEFERRED; "),
        };
        let set = format!("{begin}SAVEPOINT s{number}");
        let set = self.session.client.batch_execute(&set).await;
        set.map_err(ApplyError::transaction("set a savepoint"))?;
        self.transaction = Transaction::Open;
        Ok(())
    }

    /// Lets what came since the savepoint stand, whatever becomes of it.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn release_savepoint(&mut self, number: u32) -> Result<(), ApplyError> {
        let released = format!("RELEASE SAVEPOINT s{number}");
        let released = self.session.client.batch_execute(&released).await;
        released.map_err(ApplyError::transaction("release a savepoint"))
    }

    /// Undoes what came since the savepoint, and forgets it.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn rollback_to(&mut self, number: u32) -> Result<(), ApplyError> {
        let undo = format!("ROLLBACK TO SAVEPOINT s{number}; RELEASE SAVEPOINT s{number}");
        let undone = self.session.client.batch_execute(&undo).await;
        undone.map_err(ApplyError::transaction("roll back to a savepoint"))
    }
}

/// Tells servers apart.
pub(super) async fn server_start(client: &Client) -> Result<String, ApplyError> {
    let sql = "SELECT pg_catalog.pg_postmaster_start_time()::pg_catalog.text";
    let row = client.query_one(sql, &[]).await;
    Ok(row
        .map_err(ApplyError::transaction("ask since when it runs"))?
        .get(0))
}
