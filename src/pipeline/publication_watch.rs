//! Looks what is published while the stream runs.
//!
//! A table that leaves the publication and comes back has changes that never were in the
//! stream; so has one whose columns or filter change. So the stream ends then, and the next start
//! forgets its copy. One that joins is copied by the next start. And a publication that leaves
//! kinds of changes out for a while has left them out of all tables: they are merged anew.

use super::PipelineError;
use super::look::check_publication;
use super::tables::TablePlan;
use crate::catalog::fetch_log_end;
use crate::conn::Pool;
use crate::pg::QualifiedName;
use crate::progress::{Positions, Store};
use crate::replication::{PublishedTable, fetch_published_tables};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

const LOOK_EVERY: Duration = Duration::from_secs(5);
const LET_PASS_MAX: Duration = Duration::from_secs(15);

/// What the looks need.
pub(super) struct PublicationWatch {
    pub(super) source: Pool,
    pub(super) replica: Pool,
    pub(super) pipeline: String,
    pub(super) publication: String,
    pub(super) known: Known,
}

/// What was published when the stream began.
pub(super) struct Known {
    /// Object ids, and what published each.
    tables: HashMap<u32, PublishedTable>,
    unmapped: HashSet<QualifiedName>,
}

impl Known {
    pub(super) fn of(plan: &TablePlan) -> Self {
        let tables = plan.tables.iter();
        Self {
            tables: tables.map(|(oid, t)| (*oid, t.published.clone())).collect(),
            unmapped: plan.unmapped.iter().cloned().collect(),
        }
    }

    /// What the stream that began then cannot bring.
    fn compare(&self, published: &[PublishedTable]) -> Option<PipelineError> {
        let now: HashMap<u32, Option<u32>> =
            published.iter().map(|t| (t.oid, t.published_by)).collect();
        let has_left = |t: &&PublishedTable| now.get(&t.oid) != Some(&t.published_by);
        if let Some(left) = self.tables.values().find(has_left) {
            return Some(PipelineError::TableLeft(left.name.to_string()));
        }
        let is_new = |t: &&PublishedTable| {
            !self.tables.contains_key(&t.oid) && !self.unmapped.contains(&t.name)
        };
        let joined = published.iter().find(is_new)?;
        Some(PipelineError::TableJoined(joined.name.to_string()))
    }
}

impl PublicationWatch {
    /// Ends when something else is published than when the stream began.
    pub(super) async fn run(self, mut positions: watch::Receiver<Positions>) -> PipelineError {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            // A look that fails says nothing: the stream notices a source that is gone.
            if let Ok(Some(ended)) = self.look(&mut positions).await {
                return ended;
            }
        }
    }

    async fn look(
        &self,
        positions: &mut watch::Receiver<Positions>,
    ) -> Result<Option<PipelineError>, PipelineError> {
        let client = self.source.get().await?;
        let checked = check_publication(&client, &self.publication).await;
        if let Err(narrowed @ PipelineError::Narrowed { .. }) = checked {
            let replica = self.replica.get().await?;
            Store::want_all_again(&replica, &self.pipeline).await?;
            return Ok(Some(narrowed));
        }
        let published = fetch_published_tables(&client, &self.publication).await?;
        let ended = self.known.compare(&published);
        if let Some(PipelineError::TableLeft(_)) = ended {
            let seen_at = fetch_log_end(&client).await?;
            drop(client);
            // What it had until it left is in this stream, and would not be in the next one.
            let has_passed = positions.wait_for(|p| p.applied >= Some(seen_at));
            // A replica that takes longer is behind with it, as with a table that left unseen.
            let _ = timeout(LET_PASS_MAX, has_passed).await;
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(oid: u32, name: &str, by: u32) -> PublishedTable {
        PublishedTable {
            oid,
            name: QualifiedName::new("public", name),
            columns: None,
            row_filter: None,
            published_by: Some(by),
        }
    }

    #[test]
    fn what_leaves_and_what_joins_is_noticed() {
        let (a, b) = (published(1, "a", 10), published(2, "b", 10));
        let known = Known {
            tables: HashMap::from([(1, a.clone()), (2, b.clone())]),
            unmapped: HashSet::from([QualifiedName::new("public", "left_alone")]),
        };
        let of = |tables: &[PublishedTable]| known.compare(tables).map(|error| error.to_string());
        let left_alone = published(3, "left_alone", 10);
        assert_eq!(of(&[a.clone(), b.clone(), left_alone]), None);
        assert!(
            of(std::slice::from_ref(&b))
                .unwrap()
                .contains("public.a has left")
        );
        let otherwise = published(2, "b", 11);
        assert!(
            of(&[a.clone(), otherwise])
                .unwrap()
                .contains("public.b has left")
        );
        let joined = published(4, "new", 10);
        assert!(
            of(&[a, b, joined])
                .unwrap()
                .contains("public.new has joined")
        );
    }
}
