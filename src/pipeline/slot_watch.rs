//! Looks after the slot while the stream runs: how much WAL it holds back on the source.

use crate::conn::Pool;
use crate::replication::{ReplicationSlot, SlotName, SlotWalStatus, fetch_slot};
use crate::telemetry::{SlotHealth, Telemetry};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks until dropped.
pub(crate) struct SlotWatch(tokio::task::JoinHandle<()>);

impl SlotWatch {
    pub(crate) fn start(source: Pool, slot: SlotName, telemetry: Telemetry) -> Self {
        Self(tokio::spawn(async move {
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
            }
        }))
    }
}

impl Drop for SlotWatch {
    fn drop(&mut self) {
        self.0.abort();
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
