//! A cut: source and replica at one position, each held by a snapshot, while the apply goes on.
//!
//! ```text
//!  asker                                   follower
//!  replica: BEGIN (has not looked yet)
//!  "beyond F" ────────────────────────────▶ takes what is committed beyond F a moment late
//!  source: slot, snapshot as of L  ◀──────  does so
//!  "at L" ────────────────────────────────▶ commits all before L, nothing from L on
//!                                           replica: pg_export_snapshot()
//!  both snapshots ◀───────────────────────  goes on, and is late no more
//! ```
//!
//! The source says where its snapshot is only when it has one: by then the stream might have brought
//! what is beyond. A slot is as long in the making as the transactions that it meets, and so nobody
//! is held up for that time: what may be beyond the cut is taken [`LATE_BY`] late instead, which is longer than
//! it takes to say L. Where it is not, the replica is beyond the cut, there is none, and the asker tries again.
//!
//! Where the slot is not made, since a transaction of the source stays open, there is a cut that is near: the
//! source's snapshot is a session's own, and L is read right after it. What commits between the two is
//! on the replica and not in the snapshot: whoever compares has to look again at what differs.
//!
//! Whoever is to write there asks for a cut that holds: the apply writes nothing until the cut is dropped,
//! or for [`WAIT_MAX`], and then until the transaction ends that has proven ownership meanwhile.
//! While transactions in progress are written there is none: what they have done nobody sees.
//!
//! A transaction is before L if its commit record is: that is how the slot tells those that are
//! in its snapshot from those that it would send (snapbuild.c, `SnapBuildXactNeedsSkip`). F is how
//! far the source's log was before the slot was asked for, so that L is beyond it.

use super::PipelineConfig;
use crate::conn::{ConnError, Session};
use crate::faults;
use crate::pg::{Disposition, Lsn, ServerError};
use crate::progress::Store;
use crate::replication::{
    ExportedSnapshot, ReplicationConnection, ReplicationError, SlotHolder, SlotName, SlotNameError,
    SlotOptions, create_slot, fetch_slot_holder,
};
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// What may be beyond a cut is taken so much later than it came.
pub(super) const LATE_BY: Duration = Duration::from_millis(70);
/// The slot waits for each transaction of the source no longer than this.
const SLOT_LOCK_TIMEOUT_MS: u32 = 5_000;
/// And for all that it needs: a standby's waits for what its primary logs every 15 s.
const MADE_WITHIN: Duration = Duration::from_secs(30);
/// A slot that is made by then is held up by nobody.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The apply waits for whoever writes at the cut no longer than this.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(1);
/// A follower that is in the middle of something comes to the request within this.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// What lies before the cut is applied within this.
const REACHED_WITHIN: Duration = Duration::from_secs(60);
/// Tries, and the wait after the first; each of the others is twice as long.
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// There is no cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// Nobody takes requests.
    #[error("the pipeline does not stream, or is busy with one large transaction")]
    NotStreaming,
    /// The slot would have had to wait for it, or was not made in time.
    #[error(
        "a slot waits for each transaction of the source that is open before it, and did so for too long: {}", told(.holder.as_deref())
    )]
    SourceBusy {
        /// Who was waited for in the end.
        holder: Option<Box<SlotHolder>>,
    },
    /// The replica was beyond it.
    #[error(
        "the replica was beyond the cut before the source had told where it is, at each of some tries"
    )]
    Passed,
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
    /// The source gave no snapshot.
    #[error("the source gives no snapshot")]
    Source(#[source] ServerError),
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
            Self::SourceBusy { .. } | Self::Passed => true,
            Self::Replication(error) => matches!(error.code(), Some(NO_SESSION | NO_SLOT)),
            Self::Conn(error) => error.disposition() == Disposition::Transient,
            _ => false,
        }
    }
}

fn told(holder: Option<&SlotHolder>) -> String {
    holder.map_or_else(|| "whose is not known".to_owned(), ToString::to_string)
}

/// Both sides at one position, for as long as this is kept.
pub struct Cut {
    /// The position.
    pub at: Lsn,
    /// For `SET TRANSACTION SNAPSHOT` on the source.
    pub source_snapshot: String,
    /// The same on the replica.
    pub replica_snapshot: String,
    /// What commits there a moment before `at` may not be in the source's snapshot.
    pub is_near: bool,
    _source: SourceHold,
    _replica: Arc<Client>,
}

/// Whose the source's snapshot is.
#[allow(dead_code, reason = "kept, and not looked at")]
enum SourceHold {
    Slot(Box<ReplicationConnection>),
    Session(Client),
}

/// How the source is held at the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Exactly,
    Nearly,
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
    /// Said once what is committed beyond `floor` is taken late.
    pub(super) is_sought: oneshot::Sender<()>,
    /// The cut is beyond it.
    pub(super) floor: Lsn,
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
                Some(request) if request.is_sought.is_closed() => {}
                Some(request) => return request,
                None => return pending().await,
            }
        }
    }
}

impl CutAsker {
    /// Makes a cut; tries again where the source's transactions are in the way.
    ///
    /// # Errors
    /// [`CutError`].
    pub async fn cut(&self, config: &PipelineConfig) -> Result<Cut, CutError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match self.try_cut(config, Way::Exactly, None).await {
                Err(CutError::SourceBusy { .. } | CutError::Passed) => sleep(wait).await,
                done => return Ok(done?.0),
            }
            wait *= 2;
        }
        Ok(self.try_cut(config, Way::Exactly, None).await?.0)
    }

    /// Makes a cut that is near, and waits for no transaction of the source; tries again as
    /// [`cut`](Self::cut).
    ///
    /// # Errors
    /// [`CutError`].
    pub async fn cut_nearly(&self, config: &PipelineConfig) -> Result<Cut, CutError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            match self.try_cut(config, Way::Nearly, None).await {
                Err(CutError::Passed) => sleep(wait).await,
                done => return Ok(done?.0),
            }
            wait *= 2;
        }
        Ok(self.try_cut(config, Way::Nearly, None).await?.0)
    }

    /// Makes a cut at which the apply waits; one try.
    ///
    /// # Errors
    /// [`CutError`].
    pub async fn hold(&self, config: &PipelineConfig) -> Result<HeldCut, CutError> {
        let (hold, is_over) = oneshot::channel();
        let (cut, owner) = self.try_cut(config, Way::Exactly, Some(is_over)).await?;
        let owner = owner.ok_or(CutError::NotStreaming)?;
        Ok(HeldCut { cut, owner, hold })
    }

    async fn try_cut(
        &self,
        config: &PipelineConfig,
        way: Way,
        hold: Option<oneshot::Receiver<()>>,
    ) -> Result<(Cut, Option<Store>), CutError> {
        let refused = |error: tokio_postgres::Error| CutError::Replica(error.into());
        let replica = Arc::new(config.replica.connect(Session::ReplicaWrite).await?);
        let pid = replica
            .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
            .await;
        let name = slot_name(&config.slot.parse()?, pid.map_err(refused)?.get(0))?;
        let begun = replica.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        begun.await.map_err(refused)?;
        let mut source = ReplicationConnection::connect(&config.source).await?;
        // Opened before anything is late.
        let session = match way {
            Way::Exactly => None,
            Way::Nearly => Some(config.source.connect(Session::SourceRead).await?),
        };
        let floor = source.readable_end().await?;

        let (sought, is_sought) = oneshot::channel();
        let (tell, at) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let request = CutRequest {
            is_sought: sought,
            floor,
            at,
            replica: Arc::clone(&replica),
            done,
            hold,
        };
        let asked = async {
            let sent = self.0.send(request).await;
            sent.map_err(|_| CutError::NotStreaming)?;
            is_sought.await.map_err(|_| CutError::NotStreaming)
        };
        let asked = timeout(HEARD_WITHIN, asked).await;
        asked.map_err(|_| CutError::NotStreaming)??;
        let (at, source_snapshot, held) = match session {
            Some(session) => {
                let (at, snapshot) = export_now(&session).await?;
                (at, snapshot, SourceHold::Session(session))
            }
            None => {
                let made = make_slot(config, &mut source, &name).await?;
                (
                    made.consistent_point,
                    made.name,
                    SourceHold::Slot(Box::new(source)),
                )
            }
        };
        // Closed where the follower is beyond what it could have been told, or gone.
        tell.send(at).map_err(|_| CutError::Passed)?;
        let exported = match timeout(REACHED_WITHIN, is_done).await {
            Ok(Ok(exported)) => exported.map_err(CutError::Replica)?,
            // Or the pipeline is gone, and the next try says so.
            Ok(Err(_)) => return Err(CutError::Passed),
            Err(_) => return Err(CutError::NotReached(at)),
        };
        let cut = Cut {
            at,
            source_snapshot,
            replica_snapshot: exported.snapshot,
            is_near: way == Way::Nearly,
            _source: held,
            _replica: replica,
        };
        Ok((cut, exported.owner))
    }
}

/// A snapshot of the source as it is, and how far its log was right after.
async fn export_now(session: &Client) -> Result<(Lsn, String), CutError> {
    let refused = |error: tokio_postgres::Error| CutError::Source(error.into());
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    session.batch_execute(begin).await.map_err(refused)?;
    // The snapshot is the statement's, and so before what it reads.
    let sql = "SELECT pg_catalog.pg_export_snapshot(), CASE WHEN pg_catalog.pg_is_in_recovery() \
               THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END";
    let row = session.query_one(sql, &[]).await.map_err(refused)?;
    let at: Option<Lsn> = row.get(1);
    Ok((at.ok_or(CutError::Passed)?, row.get(0)))
}

async fn make_slot(
    config: &PipelineConfig,
    source: &mut ReplicationConnection,
    name: &SlotName,
) -> Result<ExportedSnapshot, CutError> {
    let options = SlotOptions {
        temporary: true,
        failover: false,
        lock_timeout_ms: faults::limit("cut.slot_lock_timeout_ms", SLOT_LOCK_TIMEOUT_MS),
    };
    let mut holder = None;
    let made = tokio::select! {
        made = timeout(MADE_WITHIN, create_slot(source, name, options)) => made,
        never = look_for_holder(config, name, &mut holder) => match never {},
    };
    match made {
        Ok(Err(error)) if error.code() == Some("55P03") => Err(CutError::SourceBusy { holder }),
        Err(_) => Err(CutError::SourceBusy { holder }),
        Ok(made) => Ok(made?),
    }
}

/// Who holds up the slot, as it was last seen.
async fn look_for_holder(
    config: &PipelineConfig,
    name: &SlotName,
    holder: &mut Option<Box<SlotHolder>>,
) -> Infallible {
    sleep(LOOK_EVERY).await;
    // Where nobody can look nobody is named; whoever makes the slot notices what is wrong.
    let Ok(session) = config.source.connect(Session::SourceRead).await else {
        return pending().await;
    };
    loop {
        if let Ok(found) = fetch_slot_holder(&session, name).await {
            *holder = found.map(Box::new);
        }
        sleep(LOOK_EVERY).await;
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
