//! The follower's part of a cut: holds still, commits what is before it, has the replica exported.
//!
//! ```text
//!  request ─▶ hold ─ at L ─▶ pending ─ a transaction from L on, or all before L applied ─▶ exported
//!                └ nothing said in time ─▶ gone                                  │
//!                                           waits while somebody writes there ◀─┘
//! ```

use super::{Follower, ReplicaWriter};
use crate::pg::{Lsn, ServerError};
use crate::pgoutput::Message;
use crate::pipeline::PipelineError;
use crate::pipeline::cut::{CutRequest, Exported, HOLD_MAX, WAIT_MAX};
use crate::pipeline::receive::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

/// One statement that looks at nothing.
const EXPORTED_WITHIN: Duration = Duration::from_secs(1);

/// A cut that is to be made, and is not yet.
pub(super) struct PendingCut {
    at: Lsn,
    replica: Arc<Client>,
    done: oneshot::Sender<Result<Exported, ServerError>>,
    hold: Option<oneshot::Receiver<()>>,
    /// How long nothing was committed for it until now.
    held: Duration,
}

impl PendingCut {
    /// Whether this event is of what lies beyond the cut, and is committed.
    fn is_before(&self, event: &Event) -> bool {
        let commit_lsn = match event {
            Event::Message(Message::Begin { final_lsn, .. }) => *final_lsn,
            Event::Message(Message::StreamCommit { commit_lsn, .. }) => *commit_lsn,
            _ => return false,
        };
        commit_lsn >= self.at
    }
}

impl<W: ReplicaWriter> Follower<'_, W> {
    /// Whether nobody waits for a cut.
    pub(super) fn may_cut(&self) -> bool {
        self.cut.as_ref().is_none_or(|cut| cut.done.is_closed())
    }

    /// Between transactions' commits: nothing is committed until it is said where the cut is, or
    /// until that takes too long.
    pub(super) async fn hold(&mut self, request: CutRequest) -> Result<(), PipelineError> {
        if request.held.send(()).is_err() {
            return Ok(());
        }
        let since = Instant::now();
        let said = timeout(HOLD_MAX, request.at).await;
        let held = since.elapsed();
        match said {
            Ok(Ok(at)) => {
                self.cut = Some(PendingCut {
                    at,
                    replica: request.replica,
                    done: request.done,
                    hold: request.hold,
                    held,
                });
            }
            _ => self.telemetry.observe_cut(held),
        }
        self.cut_where_all_is_applied().await
    }

    /// Before an event is taken: the first one beyond the cut makes it.
    pub(super) async fn cut_before(&mut self, event: &Event) -> Result<(), PipelineError> {
        if self.cut.as_ref().is_some_and(|cut| cut.is_before(event)) {
            self.commit_whole().await?;
            self.export().await?;
        }
        Ok(())
    }

    /// Where nothing comes from beyond the cut, it is made when nothing before it is left.
    pub(super) async fn cut_where_all_is_applied(&mut self) -> Result<(), PipelineError> {
        let applied = self.state.positions.applied;
        match self.cut.as_ref().is_some_and(|cut| applied >= Some(cut.at)) {
            true => self.export().await,
            false => Ok(()),
        }
    }

    async fn export(&mut self) -> Result<(), PipelineError> {
        let Some(cut) = self.cut.take() else {
            return Ok(());
        };
        let since = Instant::now();
        let held_before = cut.held;
        let done = self.export_for(cut).await;
        self.telemetry.observe_cut(held_before + since.elapsed());
        done
    }

    async fn export_for(&mut self, cut: PendingCut) -> Result<(), PipelineError> {
        // What these have written is seen by nobody: whoever writes here might undo it.
        if cut.hold.is_some() && self.segments.is_one_open() {
            return Ok(());
        }
        let export = cut
            .replica
            .query_one("SELECT pg_catalog.pg_export_snapshot()", &[]);
        // A session that does not answer is not waited for: `done` goes unsaid.
        let Ok(exported) = timeout(EXPORTED_WITHIN, export).await else {
            return Ok(());
        };
        let owner = self.books.as_ref().map(|books| books.store.clone());
        let exported = exported.map(|row| Exported {
            snapshot: row.get(0),
            owner,
        });
        // Whoever asked may have given up.
        let is_taken = cut.done.send(exported.map_err(ServerError::from)).is_ok();
        if let Some(hold) = cut.hold.filter(|_| is_taken) {
            // Over at the latest now, and closed: from here on nobody begins to write. Who has begun
            // holds the position, and is waited for.
            let _ = timeout(WAIT_MAX, hold).await;
            let free = self.applier.await_position().await;
            free.map_err(|source| self.failed(cut.at, false, source))?;
        }
        Ok(())
    }
}
