//! Looks whether every table is still published while the stream runs.
//!
//! A table that leaves the publication and comes back has changes that never were in the
//! stream; so has one whose columns or filter change. So the stream ends then, and the next start
//! forgets its copy.

use super::PipelineError;
use crate::conn::Pool;
use crate::replication::{PublishedTable, fetch_published_tables};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Ends when one of the tables is no longer published, or in another way.
pub(super) async fn watch_publication(
    source: Pool,
    publication: String,
    tables: Vec<PublishedTable>,
) -> PipelineError {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        // A look that fails says nothing: the stream notices a source that is gone.
        let Ok(client) = source.get().await else {
            continue;
        };
        let Ok(published) = fetch_published_tables(&client, &publication).await else {
            continue;
        };
        let is_there = |ours: &&PublishedTable| {
            let is_it =
                |t: &PublishedTable| t.oid == ours.oid && t.published_by == ours.published_by;
            published.iter().any(is_it)
        };
        if let Some(left) = tables.iter().find(|ours| !is_there(ours)) {
            return PipelineError::TableLeft(left.name.to_string());
        }
    }
}
