//! Looks at the slot for as long as there is a pipeline, whatever state it is in: the log that
//! a slot keeps grows most when nobody streams, and it is the master's disk.

use super::exhaustion::Exhaustion;
use super::{PipelineConfig, PipelineError};
use crate::conn::Session;
use crate::replication::{ReplicationSlot, SlotWalStatus, fetch_slot};
use crate::telemetry::{SlotHealth, Telemetry};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_postgres::Client;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Later than a start that is refused.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(1);

/// Never ends. It has a session of its own; what keeps it from looking is told by the attempts
/// of the pipeline, and the last look stands.
pub(super) async fn watch_slot(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    telemetry: &Telemetry,
) -> Infallible {
    let mut looks = interval_at(Instant::now() + FIRST_LOOK_AFTER, LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session = None;
    let mut exhaustion = Exhaustion::default();
    loop {
        looks.tick().await;
        match look(configure, &mut session).await {
            Ok(slot) => telemetry.set_slot(slot.map(|slot| {
                let safe_bytes = slot.safe_wal_bytes;
                health(&slot, exhaustion.look(Instant::now(), safe_bytes))
            })),
            Err(_) => session = None,
        }
    }
}

async fn look(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    session: &mut Option<Client>,
) -> Result<Option<ReplicationSlot>, PipelineError> {
    let config = configure()?;
    let client = match session {
        Some(client) => client,
        None => session.insert(config.source.connect(Session::SourceRead).await?),
    };
    Ok(fetch_slot(client, &config.slot.parse()?).await?)
}

fn health(slot: &ReplicationSlot, exhaustion_seconds: Option<f64>) -> SlotHealth {
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
        exhaustion_seconds,
    }
}
