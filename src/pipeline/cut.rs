//! A cut: source and replica at one position, each held by a snapshot, while the apply goes on.
//!
//! ```text
//!  asker                                   follower
//!  replica: BEGIN (has not looked yet)
//!  "hold" ────────────────────────────────▶ commits nothing from here on
//!  source: slot, snapshot as of L  ◀──────  held
//!  "at L" ────────────────────────────────▶ commits all before L, nothing from L on
//!                                           replica: pg_export_snapshot()
//!  both snapshots ◀───────────────────────  goes on
//! ```
//!
//! The hold comes first, since the source says where its snapshot is only when it has one: by then
//! the stream might have brought what is beyond. It lasts as long as the slot takes to be made: the
//! source waits for each transaction that runs, so with short ones it is milliseconds. Longer than
//! [`HOLD_MAX`] nobody is held up: then there is no cut, and the asker tries again.
//!
//! Whoever is to write there asks for a cut that holds: the apply writes nothing until the cut is dropped,
//! or for [`WAIT_MAX`], and then until the transaction ends that has proven ownership meanwhile.
//! While transactions in progress are written there is none: what they have done nobody sees.
//!
//! A transaction is before L if its commit record is: that is how the slot tells those that are
//! in its snapshot from those that it would send (snapbuild.c, `SnapBuildXactNeedsSkip`).

use super::PipelineConfig;
use crate::conn::{ConnError, Session};
use crate::pg::{Disposition, Lsn, ServerError};
use crate::progress::Store;
use crate::replication::{
    ReplicationConnection, ReplicationError, SlotName, SlotNameError, SlotOptions, create_slot,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// The apply is held up no longer than this.
pub(super) const HOLD_MAX: Duration = Duration::from_millis(80);
/// The slot waits for each transaction of the source no longer than this.
const SLOT_LOCK_TIMEOUT_MS: u32 = 60;
/// The apply waits for whoever writes at the cut no longer than this.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(1);
/// A follower that is in the middle of something comes to the request within this.
const HELD_WITHIN: Duration = Duration::from_secs(10);
/// What lies before the cut is applied within this.
const REACHED_WITHIN: Duration = Duration::from_secs(60);
/// Tries, and the wait after the first; each of the others is twice as long.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// There is no cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// Nobody takes requests.
    #[error("the pipeline does not stream, or is busy with one large transaction")]
    NotStreaming,
    /// The slot would have had to wait for it, or the replica was in the middle of one.
    #[error(
        "a slot waits for each transaction of the source that is open, and one was open for longer than the apply can be held up, at each of some tries"
    )]
    SourceBusy,
    /// What lies before the cut was not applied in time.
    #[error("the replica was not at {0} within a minute")]
    NotReached(Lsn),
    /// The pipeline's slot has none.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// No session.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// No slot.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The replica gave no snapshot.
    #[error("the replica gives no snapshot")]
    Replica(#[source] ServerError),
}

impl CutError {
    /// Whether another try may do: the source was busy, or the places of the cut before are not free yet.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        const NO_SESSION: &str = "53300";
        const NO_SLOT: &str = "53400";
        match self {
            Self::SourceBusy => true,
            Self::Replication(error) => matches!(error.code(), Some(NO_SESSION | NO_SLOT)),
            Self::Conn(error) => error.disposition() == Disposition::Transient,
            _ => false,
        }
    }
}

/// Both sides at one position, for as long as this is kept.
pub struct Cut {
    /// The position.
    pub at: Lsn,
    /// For `SET TRANSACTION SNAPSHOT` on the source.
    pub source_snapshot: String,
    /// The same on the replica.
    pub replica_snapshot: String,
    _source: ReplicationConnection,
    _replica: Arc<Client>,
}

/// A cut at which the apply waits.
pub struct HeldCut {
    /// Both sides.
    pub cut: Cut,
    /// Who owns the pipeline.
    pub owner: Store,
    hold: oneshot::Sender<()>,
}

impl HeldCut {
    /// Whether the apply still waits.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.hold.is_closed()
    }
}

/// What the replica has at the cut.
#[derive(Debug)]
pub(super) struct Exported {
    pub(super) snapshot: String,
    /// None where nobody keeps books.
    pub(super) owner: Option<Store>,
}

/// Asks the follower for cuts.
#[derive(Clone, Debug)]
pub struct CutAsker(mpsc::Sender<CutRequest>);

/// The follower's end, which outlives its attempts.
#[derive(Debug)]
pub struct Cuts(mpsc::Receiver<CutRequest>);

/// A way to ask, and the end where requests arrive.
#[must_use]
pub fn cuts() -> (CutAsker, Cuts) {
    let (asker, requests) = mpsc::channel(1);
    (CutAsker(asker), Cuts(requests))
}

/// What the follower is asked.
#[derive(Debug)]
pub(super) struct CutRequest {
    pub(super) held: oneshot::Sender<()>,
    /// Where the cut is to be; closed: there is none.
    pub(super) at: oneshot::Receiver<Lsn>,
    /// In a transaction that has not looked yet.
    pub(super) replica: Arc<Client>,
    pub(super) done: oneshot::Sender<Result<Exported, ServerError>>,
    /// Ends when the apply may go on; none: at once.
    pub(super) hold: Option<oneshot::Receiver<()>>,
}

impl Cuts {
    /// The next request that somebody still waits for; without askers, never.
    pub(super) async fn next(&mut self) -> CutRequest {
        loop {
            match self.0.recv().await {
                Some(request) if request.held.is_closed() => {}
                Some(request) => return request,
                None => return std::future::pending().await,
            }
        }
    }
}

impl CutAsker {
    /// Makes a cut; tries again for some seconds where the source's transactions are in the way.
    ///
    /// # Errors
    /// [`CutError`].
    pub async fn cut(&self, config: &PipelineConfig) -> Result<Cut, CutError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match self.try_cut(config, None).await {
                Err(CutError::SourceBusy) => sleep(wait).await,
                done => return Ok(done?.0),
            }
            wait *= 2;
        }
        Ok(self.try_cut(config, None).await?.0)
    }

    /// Makes a cut at which the apply waits; one try.
    ///
    /// # Errors
    /// [`CutError`].
    pub async fn hold(&self, config: &PipelineConfig) -> Result<HeldCut, CutError> {
        let (hold, is_over) = oneshot::channel();
        let (cut, owner) = self.try_cut(config, Some(is_over)).await?;
        let owner = owner.ok_or(CutError::NotStreaming)?;
        Ok(HeldCut { cut, owner, hold })
    }

    async fn try_cut(
        &self,
        config: &PipelineConfig,
        hold: Option<oneshot::Receiver<()>>,
    ) -> Result<(Cut, Option<Store>), CutError> {
        // All that takes long comes before the hold.
        let refused = |error: tokio_postgres::Error| CutError::Replica(error.into());
        let replica = Arc::new(config.replica.connect(Session::ReplicaWrite).await?);
        let pid = replica
            .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
            .await;
        let name = slot_name(&config.slot.parse()?, pid.map_err(refused)?.get(0))?;
        let begun = replica.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        begun.await.map_err(refused)?;
        let mut source = ReplicationConnection::connect(&config.source).await?;
        let options = SlotOptions {
            temporary: true,
            failover: false,
            lock_timeout_ms: SLOT_LOCK_TIMEOUT_MS,
        };

        let (held, is_held) = oneshot::channel();
        let (tell, at) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let request = CutRequest {
            held,
            at,
            replica: Arc::clone(&replica),
            done,
            hold,
        };
        let asked = async {
            let sent = self.0.send(request).await;
            sent.map_err(|_| CutError::NotStreaming)?;
            is_held.await.map_err(|_| CutError::NotStreaming)
        };
        let asked = timeout(HELD_WITHIN, asked).await;
        asked.map_err(|_| CutError::NotStreaming)??;
        let made = timeout(HOLD_MAX, create_slot(&mut source, &name, options)).await;
        let made = match made {
            Ok(Err(error)) if error.code() == Some("55P03") => return Err(CutError::SourceBusy),
            Err(_) => return Err(CutError::SourceBusy),
            Ok(made) => made?,
        };
        let at = made.consistent_point;
        // Closed where the hold was over before: the follower may be beyond.
        tell.send(at).map_err(|_| CutError::SourceBusy)?;
        let exported = match timeout(REACHED_WITHIN, is_done).await {
            Ok(Ok(exported)) => exported.map_err(CutError::Replica)?,
            // The hold was over in the same moment; or the pipeline is, and the next try says so.
            Ok(Err(_)) => return Err(CutError::SourceBusy),
            Err(_) => return Err(CutError::NotReached(at)),
        };
        let cut = Cut {
            at,
            source_snapshot: made.name,
            replica_snapshot: exported.snapshot,
            _source: source,
            _replica: replica,
        };
        Ok((cut, exported.owner))
    }
}

/// A name of its own, by the session of the replica that the cut has, so that two cuts are not in
/// each other's way.
fn slot_name(slot: &SlotName, replica_pid: i32) -> Result<SlotName, SlotNameError> {
    let own = format!("_cut_{replica_pid}");
    let kept = slot.as_str();
    let kept = kept.get(..63 - own.len()).unwrap_or(kept);
    format!("{kept}{own}").parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_for_a_cut_has_a_name_whatever_the_pipelines_is() {
        let name = |slot: &str| slot_name(&slot.parse().unwrap(), i32::MAX).unwrap();
        assert_eq!(name("crm").as_str(), "crm_cut_2147483647");
        let long = "a".repeat(63);
        assert_eq!(
            name(&long).as_str(),
            format!("{}_cut_2147483647", &long[..48])
        );
    }
}
