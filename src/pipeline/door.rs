//! Standing by: waits at the door until no other daemon runs this pipeline. What comes after
//! sees the world as it is then.

use super::PipelineError;
use super::memory::Memory;
use crate::progress::Store;
use crate::telemetry::{PipelineState, Telemetry};
use std::time::Duration;
use tokio_postgres::Client;

/// How long another daemon's lock is waited for between looks.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Returns once this session holds the pipeline's lock.
pub(super) async fn queue(
    writer: &Client,
    pipeline: &str,
    telemetry: &Telemetry,
    memory: &Memory,
) -> Result<(), PipelineError> {
    let mut told = None;
    while !Store::try_lock(writer, pipeline).await? {
        let holder = Store::fetch_holder(writer, pipeline).await?;
        let who = holder.as_ref().map_or(String::new(), |h| format!(" ({h})"));
        // The session of an attempt that was broken off may hang for a while, and hold the lock.
        let (state, reason) = match memory.given_up() {
            Some(why) => (PipelineState::Failed, why),
            None => (
                PipelineState::Standby,
                format!("another daemon runs this pipeline{who}; taking over when it ends"),
            ),
        };
        let pid = holder.map(|holder| holder.pid);
        if told != Some(pid) {
            tracing::info!(state = state.as_str(), reason, "waiting at the door");
            told = Some(pid);
        }
        telemetry.set_lag(None, None);
        telemetry.set_state(state, Some(reason));
        telemetry.progressed();
        tokio::time::sleep(LOOKS_EVERY).await;
    }
    if told.is_some() {
        tracing::info!("the door is open: taking over");
    }
    Ok(())
}
