//! Makes a slot, and tells who holds it up: it waits for every transaction of the server, of other
//! databases too, that was open before it, and one forgotten session is enough.

use super::PipelineError;
use super::start::Start;
use crate::replication::{
    ExportedSnapshot, ReplicationConnection, SlotHolder, SlotName, SlotOptions, create_slot,
    fetch_slot_holder,
};
use crate::telemetry::PipelineState;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, interval_at};

/// Most slots are there long before anybody looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A lock was waited for too long (`lock_not_available`).
const WAITED_TOO_LONG: &str = "55P03";

impl Start<'_> {
    /// Makes a slot of this attempt's database; a temporary one goes with the connection.
    pub(super) async fn make_slot(
        &self,
        connection: &mut ReplicationConnection,
        name: &SlotName,
        temporary: bool,
    ) -> Result<ExportedSnapshot, PipelineError> {
        let options = SlotOptions {
            temporary,
            failover: self.config.failover && !temporary,
            lock_timeout_ms: self.config.slot_lock_timeout_ms,
        };
        let mut holder = None;
        let made = tokio::select! {
            made = create_slot(connection, name, options) => made,
            never = self.look_for_holder(name, &mut holder) => match never {},
        };
        made.map_err(|error| match holder {
            Some(holder) if error.code() == Some(WAITED_TOO_LONG) => PipelineError::SlotHeld {
                holder: Box::new(holder),
                source: error,
            },
            _ => error.into(),
        })
    }

    /// The session that looks has nothing else to do meanwhile.
    async fn look_for_holder(
        &self,
        name: &SlotName,
        holder: &mut Option<SlotHolder>,
    ) -> Infallible {
        let mut looks = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        loop {
            looks.tick().await;
            // A look that fails says nothing: a source that is gone is noticed by who makes the slot.
            let Ok(found) = fetch_slot_holder(&self.source, name).await else {
                continue;
            };
            self.tell_holder(name, found.as_ref(), holder.as_ref());
            *holder = found;
        }
    }

    fn tell_holder(&self, name: &SlotName, found: Option<&SlotHolder>, told: Option<&SlotHolder>) {
        let reason = match found {
            None => format!("the source is making the slot {name}"),
            Some(holder) => {
                let open_for = holder.open_for.map_or_else(String::new, |open_for| {
                    format!(", open for {} s", open_for.as_secs())
                });
                format!("the slot {name} waits until {holder} has ended{open_for}")
            }
        };
        if let Some(holder) = found
            && told.is_none_or(|told| told.session != holder.session)
        {
            tracing::warn!(
                slot = %name,
                %holder,
                open_for_seconds = holder.open_for.map(|open_for| open_for.as_secs()),
                "the slot waits for a transaction that was open before it"
            );
        }
        // What has failed has failed for another reason than this.
        if self.telemetry.status().state != PipelineState::Failed {
            self.telemetry
                .set_state(PipelineState::Starting, Some(reason));
        }
    }
}
