//! Looks at the slot for as long as there is a pipeline, whatever state it is in: the log that
//! a slot keeps grows most when nobody streams, and it is the master's disk. Where the operator
//! would rather lose the slot than the master, it is dropped beyond a bound, and never made
//! anew by itself: the replica stays as it is, the state says so, `rebase` begins anew.

use super::exhaustion::Exhaustion;
use super::memory::{Memory, Owned};
use super::{PipelineConfig, PipelineError, SlotBudget, Spending};
use crate::catalog::fetch_server;
use crate::conn::Session;
use crate::progress::ProgressError;
use crate::replication::{
    ReplicationConnection, ReplicationSlot, SlotWalStatus, drop_slot, fetch_slot,
};
use crate::telemetry::{Chain, PipelineState, SlotBounds, SlotHealth, Telemetry};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_postgres::Client;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Later than a start that is refused.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(1);

/// Ends only when the slot is to be dropped to save the source. It has a session of its own; what
/// keeps it from looking is told by the attempts of the pipeline, and the last look stands.
pub(super) async fn watch_slot(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    telemetry: &Telemetry,
    memory: &Memory,
) -> GivenUp {
    let mut looks = interval_at(Instant::now() + FIRST_LOOK_AFTER, LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session = None;
    let mut exhaustion = Exhaustion::default();
    let mut stood = Spending::Within;
    loop {
        looks.tick().await;
        let Ok((slot, budget)) = look(configure, &mut session).await else {
            session = None;
            continue;
        };
        telemetry.set_slot_bounds(SlotBounds {
            warning_bytes: budget.warning_bytes,
            critical_bytes: budget.critical_bytes,
            drop_bytes: budget.drop_bytes,
        });
        let retained_bytes = slot.as_ref().and_then(|slot| slot.retained_bytes);
        telemetry.set_slot(slot.map(|slot| {
            let safe_bytes = slot.safe_wal_bytes;
            health(&slot, exhaustion.look(Instant::now(), safe_bytes))
        }));
        let retained_bytes = retained_bytes.unwrap_or_default();
        let stands = budget.judge(retained_bytes);
        if stands != stood {
            tell(stands, retained_bytes);
            stood = stands;
        }
        // Whoever waits at the door leaves that to who is inside; and what this process has
        // neither resumed nor made may be somebody else's.
        let is_standby = telemetry.status().state == PipelineState::Standby;
        if stands == Spending::Exceeded
            && !is_standby
            && let Some(owned) = memory.owned()
        {
            return GivenUp {
                owned,
                retained_bytes,
            };
        }
    }
}

/// The slot keeps more than it may: it is to be dropped.
#[derive(Clone, Debug)]
pub(super) struct GivenUp {
    owned: Owned,
    retained_bytes: u64,
}

impl GivenUp {
    pub(super) fn reason(&self) -> String {
        format!(
            "the slot kept {} bytes of the source's log, more than [slot] drop_beyond: it was dropped to save the source",
            self.retained_bytes
        )
    }

    /// Notes it and drops the slot, as often as it takes; returns what was noted, or nothing
    /// where the slot was not this daemon's to drop any more.
    pub(super) async fn carry_out(
        self,
        configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    ) -> Option<String> {
        let why = self.reason();
        loop {
            match drop_noted(configure, &self.owned, &why).await {
                Ok(was_dropped) => return was_dropped.then_some(why),
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "the slot cannot be dropped yet");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }
}

/// Where the replica cannot be reached, the slot goes all the same: its absence says enough.
/// Where another daemon owns the pipeline by now, or another source is there, it is left to them:
/// false.
async fn drop_noted(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    owned: &Owned,
    why: &str,
) -> Result<bool, PipelineError> {
    let config = configure()?;
    let name = owned.identity.slot.parse()?;
    let source = config.source.connect(Session::SourceRead).await?;
    let server = fetch_server(&source).await?;
    let is_same = server.system_id == owned.identity.system_id
        && server.database_oid == owned.identity.database_oid;
    let Some(slot) = fetch_slot(&source, &name).await?.filter(|_| is_same) else {
        return Ok(false);
    };
    let retained_bytes = slot.retained_bytes.unwrap_or_default();
    if config.slot_budget.judge(retained_bytes) != Spending::Exceeded {
        // Somebody has used it meanwhile.
        return Ok(false);
    }
    let noted = async {
        let replica = config.replica.connect(Session::ReplicaWrite).await?;
        owned.store.give_up(&replica, why).await?;
        Ok::<(), PipelineError>(())
    };
    match noted.await {
        Ok(()) => {}
        Err(PipelineError::Progress(ProgressError::Superseded { .. })) => return Ok(false),
        // Who uses it has the replica, which we cannot reach.
        Err(_) if slot.active_pid.is_some() => return Ok(false),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "that the slot is given up could not be noted");
        }
    }
    let mut connection = ReplicationConnection::connect(&config.source).await?;
    drop_slot(&mut connection, &name).await?;
    connection.close().await;
    Ok(true)
}

fn tell(stands: Spending, retained_bytes: u64) {
    match stands {
        Spending::Within => {
            tracing::info!(retained_bytes, "the slot is within its budget again");
        }
        Spending::Warning => tracing::warn!(
            retained_bytes,
            "the source keeps more log for the slot than [slot] warn_beyond"
        ),
        Spending::Critical => tracing::error!(
            retained_bytes,
            "the source keeps more log for the slot than [slot] critical_beyond"
        ),
        Spending::Exceeded => tracing::error!(
            retained_bytes,
            "the source keeps more log for the slot than [slot] drop_beyond"
        ),
    }
}

async fn look(
    configure: &impl Fn() -> Result<PipelineConfig, PipelineError>,
    session: &mut Option<Client>,
) -> Result<(Option<ReplicationSlot>, SlotBudget), PipelineError> {
    let config = configure()?;
    let client = match session {
        Some(client) => client,
        None => session.insert(config.source.connect(Session::SourceRead).await?),
    };
    let slot = fetch_slot(client, &config.slot.parse()?).await?;
    Ok((slot, config.slot_budget))
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
