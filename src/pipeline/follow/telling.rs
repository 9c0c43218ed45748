//! What a follower tells: its positions, what it has written, and whether that is all it received.

use super::{Follower, ReplicaWriter};
use crate::pg::RelationId;
use crate::telemetry::{ErrorCategory, PipelineState, Severity};
use foldhash::HashMap;
use tokio::time::Instant;

impl<W: ReplicaWriter> Follower<'_, W> {
    pub(super) fn tell_positions(&mut self) {
        let positions = self.state.positions;
        self.inbox.positions.send_replace(positions);
        if let Some(applied) = positions.applied {
            self.telemetry.set_applied(applied);
            if self.trouble.is_some_and(|trouble| trouble.is_over(applied)) {
                self.trouble = None;
                self.telemetry.set_state(PipelineState::CatchingUp, None);
            }
            if !self.is_streaming && self.trouble.is_none() && self.relations.tell_ready(applied) {
                self.is_streaming = true;
                self.telemetry.set_state(PipelineState::Streaming, None);
                match self.relations.quarantined() {
                    0 => tracing::info!(%applied, "every table is in step: streaming"),
                    set_aside => {
                        tracing::warn!(%applied, set_aside, "all other tables are in step: streaming")
                    }
                }
            }
        }
        if let Some(flushed) = positions.flushed {
            self.telemetry.set_flushed(flushed);
        }
    }

    pub(super) fn tell_written(&mut self, transactions: u64, started: Instant) {
        self.telemetry.transaction_applied(transactions);
        self.telemetry
            .observe_batch(started.elapsed().as_secs_f64());
        for written in self.state.written.drain(..) {
            self.relations.tell_written(&written);
        }
        for (relation, changes) in std::mem::take(&mut self.state.kept) {
            self.relations.tell_kept(relation, changes);
        }
    }

    /// Between two batches what was received is told, or in hand, or written and not yet committed.
    pub(super) fn reconcile(&self) {
        let kept = self.state.kept.iter();
        let mut on_their_way: HashMap<RelationId, u64> = kept.map(|(id, n)| (*id, *n)).collect();
        for written in &self.state.written {
            let id = written.mapping.relation.id;
            *on_their_way.entry(id).or_default() += written.changes();
        }
        self.state.in_hand.count(&mut on_their_way);
        for (table, changes) in self.relations.reconcile(&on_their_way) {
            let advice = "a defect of pglockstep: report it, then `pglockstep verify` and `repair`";
            tracing::error!(%table, changes, advice, "changes that were received are accounted for nowhere");
            self.telemetry
                .error(ErrorCategory::System, Severity::Critical);
        }
    }
}
