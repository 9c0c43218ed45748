//! The follower's part of a cut: holds still, commits what is before it, has the replica exported.
//!
//! ```text
//!  request ─▶ hold ─ at L ─▶ pending ─ a transaction from L on, or all before L applied ─▶ exported
//!                └ nothing said in time ─▶ gone
//! ```

use super::{Follower, ReplicaWriter};
use crate::pg::{Lsn, ServerError};
use crate::pgoutput::Message;
use crate::pipeline::PipelineError;
use crate::pipeline::cut::{CutRequest, HOLD_MAX};
use crate::pipeline::receive::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::Client;

/// One statement that looks at nothing.
const EXPORTED_WITHIN: Duration = Duration::from_secs(1);

/// A cut that is to be made, and is not yet.
pub(super) struct PendingCut {
    at: Lsn,
    replica: Arc<Client>,
    done: oneshot::Sender<Result<String, ServerError>>,
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
        if let Ok(Ok(at)) = timeout(HOLD_MAX, request.at).await {
            self.cut = Some(PendingCut {
                at,
                replica: request.replica,
                done: request.done,
            });
        }
        self.cut_where_all_is_applied().await;
        Ok(())
    }

    /// Before an event is taken: the first one beyond the cut makes it.
    pub(super) async fn cut_before(&mut self, event: &Event) -> Result<(), PipelineError> {
        if self.cut.as_ref().is_some_and(|cut| cut.is_before(event)) {
            self.commit_whole().await?;
            self.export().await;
        }
        Ok(())
    }

    /// Where nothing comes from beyond the cut, it is made when nothing before it is left.
    pub(super) async fn cut_where_all_is_applied(&mut self) {
        let applied = self.state.positions.applied;
        if self.cut.as_ref().is_some_and(|cut| applied >= Some(cut.at)) {
            self.export().await;
        }
    }

    async fn export(&mut self) {
        let Some(cut) = self.cut.take() else {
            return;
        };
        let export = cut
            .replica
            .query_one("SELECT pg_catalog.pg_export_snapshot()", &[]);
        // A session that does not answer is not waited for: `done` goes unsaid.
        let Ok(exported) = timeout(EXPORTED_WITHIN, export).await else {
            return;
        };
        let exported = exported.map(|row| row.get(0)).map_err(ServerError::from);
        // Whoever asked may have given up.
        let _ = cut.done.send(exported);
    }
}
