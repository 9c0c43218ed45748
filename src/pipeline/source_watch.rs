//! Looks after the source while the stream runs: how much WAL the slot holds back, and
//! whether every table is still published.
//!
//! A table that leaves the publication and comes back has changes that never were in the
//! stream. So the stream ends when one leaves: the next start forgets its copy.

use crate::conn::Pool;
use crate::pg::QualifiedName;
use crate::replication::{
    ReplicationSlot, SlotName, SlotWalStatus, fetch_published_tables, fetch_slot,
};
use crate::telemetry::{SlotHealth, Telemetry};
use std::time::Duration;
use tokio::sync::mpsc;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks until dropped.
pub(crate) struct SourceWatch {
    task: tokio::task::JoinHandle<()>,
    left: mpsc::Receiver<QualifiedName>,
}

impl SourceWatch {
    pub(crate) fn start(
        source: Pool,
        slot: SlotName,
        publication: String,
        tables: Vec<(u32, QualifiedName)>,
        telemetry: Telemetry,
    ) -> Self {
        let (tell, left) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            loop {
                looks.tick().await;
                // A look that fails says nothing: the stream notices a source that is gone.
                let Ok(client) = source.get().await else {
                    continue;
                };
                if let Ok(Some(found)) = fetch_slot(&client, &slot).await {
                    telemetry.set_slot(&health(&found));
                }
                let Ok(published) = fetch_published_tables(&client, &publication).await else {
                    continue;
                };
                let is_there = |oid: u32| published.iter().any(|table| table.oid == oid);
                if let Some((_, name)) = tables.iter().find(|(oid, _)| !is_there(*oid)) {
                    // Nobody listens any more once the stream has ended.
                    let _ = tell.send(name.clone()).await;
                }
            }
        });
        Self { task, left }
    }

    /// Resolves when a table is no longer published.
    pub(crate) async fn table_left(&mut self) -> QualifiedName {
        match self.left.recv().await {
            Some(name) => name,
            None => std::future::pending().await,
        }
    }
}

impl Drop for SourceWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn health(slot: &ReplicationSlot) -> SlotHealth {
    SlotHealth {
        retained_bytes: slot.retained_bytes.unwrap_or_default(),
        safe_bytes: slot.safe_wal_bytes,
        wal_status: slot.wal_status.map(|status| {
            match status {
                SlotWalStatus::Reserved => "reserved",
                SlotWalStatus::Extended => "extended",
                SlotWalStatus::Unreserved => "unreserved",
                SlotWalStatus::Lost => "lost",
            }
            .to_owned()
        }),
        exhaustion_seconds: None,
    }
}
