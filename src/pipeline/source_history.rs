//! Asks the source for its past.

use super::PipelineError;
use super::resume::SourceHistory;
use crate::replication::ReplicationConnection;

/// What the source says of its past; `fed_from` is the timeline that the replica knows.
///
/// # Errors
/// The source cannot be asked.
pub async fn ask_history(
    connection: &mut ReplicationConnection,
    fed_from: Option<u32>,
) -> Result<SourceHistory, PipelineError> {
    let system = connection.identify_system().await?;
    let left_at = match fed_from.filter(|fed_from| *fed_from < system.timeline) {
        Some(fed_from) => {
            connection
                .timeline_left_at(fed_from, system.timeline)
                .await?
        }
        None => None,
    };
    Ok(SourceHistory {
        end: system.wal_position,
        timeline: system.timeline,
        left_at,
    })
}
