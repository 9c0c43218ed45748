//! What ends a stream from outside of it: tasks that look beside it, so that no look holds the
//! apply up.

use super::PipelineError;
use tokio::task::JoinSet;

/// Tasks that each end with the reason why the stream must. They end with it.
pub(crate) struct Watch {
    tasks: JoinSet<PipelineError>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
        }
    }

    pub(crate) fn and(
        mut self,
        look: impl Future<Output = PipelineError> + Send + 'static,
    ) -> Self {
        self.tasks.spawn(look);
        self
    }

    /// Resolves when a task has found a reason, or is itself none any more; without any, never.
    pub(crate) async fn ended(&mut self) -> PipelineError {
        match self.tasks.join_next().await {
            Some(Ok(reason)) => reason,
            Some(Err(_)) => PipelineError::Waiting(
                "a task that watches beside the stream ended unexpectedly".to_owned(),
            ),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts_and_a_panic_is_one() {
        let mut watch = Watch::new()
            .and(std::future::pending())
            .and(async { PipelineError::Requested });
        assert!(matches!(watch.ended().await, PipelineError::Requested));

        let mut watch = Watch::new().and(async { panic!("a bug") });
        let ended = watch.ended().await.to_string();
        assert!(ended.contains("watches"), "{ended}");
    }
}
