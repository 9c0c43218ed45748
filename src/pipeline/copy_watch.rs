//! Looks at what a copy rests on, while it runs: hours of copying are in vain when the slot is
//! lost, and wrong when the publication leaves kinds of changes out for a while.

use super::PipelineError;
use super::look::check_publication;
use super::resume::expect_whole;
use crate::conn::Pool;
use crate::pg::Disposition;
use crate::replication::{SlotName, fetch_slot};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What the looks need.
pub(super) struct CopyWatch {
    pub(super) source: Pool,
    pub(super) publication: String,
    pub(super) slot: SlotName,
}

impl CopyWatch {
    /// Ends when the copy is of no use any more.
    pub(super) async fn run(self) -> PipelineError {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            // Else a look that fails says nothing: the copy notices a source that is gone.
            if let Err(error) = self.look().await
                && error.disposition() == Disposition::Definite
            {
                return error;
            }
        }
    }

    async fn look(&self) -> Result<(), PipelineError> {
        let client = self.source.get().await?;
        expect_whole(
            fetch_slot(&client, &self.slot).await?.as_ref(),
            self.slot.as_str(),
        )?;
        check_publication(&client, &self.publication).await
    }
}
