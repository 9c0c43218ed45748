//! Looks whether every table is still published while the stream runs.
//!
//! A table that leaves the publication and comes back has changes that never were in the
//! stream; so has one whose columns or filter change. So the stream ends then, and the next start
//! forgets its copy.

use super::PipelineError;
use crate::conn::Pool;
use crate::pg::QualifiedName;
use crate::replication::{PublishedTable, fetch_published_tables};
use std::time::Duration;
use tokio::sync::mpsc;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks until dropped.
pub(crate) struct PublicationWatch {
    task: tokio::task::JoinHandle<()>,
    left: mpsc::Receiver<QualifiedName>,
}

impl PublicationWatch {
    pub(crate) fn start(source: Pool, publication: String, tables: Vec<PublishedTable>) -> Self {
        let (tell, left) = mpsc::channel(1);
        let task = tokio::spawn(async move {
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
                    let is_it = |t: &PublishedTable| {
                        t.oid == ours.oid && t.published_by == ours.published_by
                    };
                    published.iter().any(is_it)
                };
                if let Some(left) = tables.iter().find(|ours| !is_there(ours)) {
                    // Nobody listens any more once the stream has ended.
                    let _ = tell.send(left.name.clone()).await;
                }
            }
        });
        Self { task, left }
    }

    /// Nothing ever leaves.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        let (tell, left) = mpsc::channel(1);
        Self {
            task: tokio::spawn(async move { tell.closed().await }),
            left,
        }
    }

    /// Resolves when a table is no longer published, or when nobody looks any more.
    pub(crate) async fn ended(&mut self) -> PipelineError {
        match self.left.recv().await {
            Some(name) => PipelineError::TableLeft(name.to_string()),
            None => PipelineError::Waiting(
                "the task that watches the publication ended unexpectedly".to_owned(),
            ),
        }
    }
}

impl Drop for PublicationWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_that_panics_is_an_end() {
        let (tell, left) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let _held = tell;
            panic!("a bug");
        });
        let mut watch = PublicationWatch { task, left };
        let ended = watch.ended().await.to_string();
        assert!(ended.contains("watches the publication"), "{ended}");
    }
}
