//! A second session with the replica, which makes durable what the first one has committed.
//!
//! ```text
//!  apply     COMMIT ── COMMIT ── COMMIT ── COMMIT ── …     none of them waits for the disk
//!                   └▶ asked ──────────▶ answer            this one does: the first is durable
//! ```
//!
//! A commit that waits has the server write out its log up to that commit's record, and so
//! everything before it. One that has written nothing would not wait: a message is the least.
//!
//! A server that crashes may lose what did not wait, and ends every session as it does. So an answer
//! speaks for what was committed while the witness's session was open on that server, and only for
//! that: it is opened before the stream, with the server that applies, and never anew.

use super::sibling::server_start;
use super::{Applier, ApplyError};
use crate::conn::{ConnError, Endpoint, Session};
use crate::telemetry::Chain;
use std::pin::Pin;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Ends when what was committed before it was first polled is durable. `Sync`, for whoever holds it
/// is lent across awaits.
pub type Flush = Pin<Box<dyn Future<Output = Result<(), ApplyError>> + Send + Sync>>;

/// The session waits as `COMMIT` of the apply session does: it has the same settings.
const FLUSH: &str =
    "SELECT pg_catalog.pg_logical_emit_message(true, 'pglockstep', ''::pg_catalog.text)";

/// A session that is being opened.
pub type ConnectingWitness = JoinHandle<Result<Client, ConnError>>;

/// Begins to open the witness's session.
pub fn connecting_witness(replica: &Endpoint) -> ConnectingWitness {
    let replica = replica.clone();
    tokio::spawn(async move { replica.connect(Session::ReplicaWrite).await })
}

impl Applier {
    /// Takes the witness. Where there can be none, commits wait themselves every now and then.
    #[must_use]
    pub async fn with_witness(self, connecting: ConnectingWitness) -> Self {
        match self.introduce_witness(connecting).await {
            Ok(witness) => Self {
                witness: Some(Arc::new(witness)),
                ..self
            },
            Err(why) => {
                tracing::warn!(
                    %why,
                    "no second session makes commits durable: ten a second wait for the replica's disk themselves"
                );
                self
            }
        }
    }

    async fn introduce_witness(&self, connecting: ConnectingWitness) -> Result<Client, String> {
        let witness = connecting.await.map_err(|error| error.to_string())?;
        let witness = witness.map_err(|error| Chain(&error).to_string())?;
        let told = |error: ApplyError| Chain(&error).to_string();
        // Both are open at this time: a crash in between would have ended the older one.
        let theirs = server_start(&witness).await.map_err(told)?;
        let ours = server_start(&self.session.client).await.map_err(told)?;
        // Of several hosts another one may have answered.
        if theirs != ours {
            return Err("it is with another server".to_owned());
        }
        flush(&witness).await.map_err(told)?;
        Ok(witness)
    }

    /// Whether commits need not wait.
    #[must_use]
    pub fn has_witness(&self) -> bool {
        self.witness.is_some()
    }

    /// Has the witness make durable what is committed by now.
    #[must_use]
    pub fn flush(&self) -> Option<Flush> {
        let witness = Arc::clone(self.witness.as_ref()?);
        Some(Box::pin(async move { flush(&witness).await }))
    }
}

async fn flush(witness: &Client) -> Result<(), ApplyError> {
    let flushed = witness.batch_execute(FLUSH).await;
    flushed.map_err(ApplyError::transaction("make commits durable"))
}
