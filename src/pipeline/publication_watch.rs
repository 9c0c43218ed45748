//! Looks what is published while the stream runs.
//!
//! A table that leaves the publication and comes back has changes that never were in the
//! stream; so has one whose columns or filter change. So the stream ends then, and its copy is
//! forgotten at once: by the next start it may be back as if nothing had been. One that joins is
//! copied by the next start. And a publication that leaves kinds of changes out for a while has
//! left them out of all tables: they are merged anew.

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
use tokio_postgres::Client;

const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOKS_WHILE_IT_PASSES: u32 = 3;

/// What the looks need.
pub(super) struct PublicationWatch {
    pub(super) source: Pool,
    pub(super) replica: Pool,
    pub(super) store: Store,
    pub(super) publication: String,
    pub(super) known: Known,
}

/// What was published when the stream began.
pub(super) struct Known {
    /// Object ids, and what published each.
    tables: HashMap<u32, PublishedTable>,
    unmapped: HashSet<QualifiedName>,
}

/// What is published otherwise than [`Known`].
struct Difference<'k> {
    left: Vec<&'k PublishedTable>,
    joined: Option<QualifiedName>,
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
    fn compare(&self, published: &[PublishedTable]) -> Difference<'_> {
        let now: HashMap<u32, Option<u32>> =
            published.iter().map(|t| (t.oid, t.published_by)).collect();
        let has_left = |t: &&PublishedTable| now.get(&t.oid) != Some(&t.published_by);
        let is_new = |t: &&PublishedTable| {
            !self.tables.contains_key(&t.oid) && !self.unmapped.contains(&t.name)
        };
        Difference {
            left: self.tables.values().filter(has_left).collect(),
            joined: published.iter().find(is_new).map(|t| t.name.clone()),
        }
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
        if let Some(narrowed) = self.look_for_kinds(&client).await? {
            return Ok(Some(narrowed));
        }
        let published = fetch_published_tables(&client, &self.publication).await?;
        let Difference { left, joined } = self.known.compare(&published);
        let Some(first) = left.first() else {
            return Ok(joined.map(|name| PipelineError::TableJoined(name.to_string())));
        };
        let seen_at = fetch_log_end(&client).await?;
        // What it had until it left is in this stream, and would not be in the next one. A
        // replica that takes longer is behind with it, as with a table that left unseen.
        for _ in 0..LOOKS_WHILE_IT_PASSES {
            let has_passed = positions.wait_for(|p| p.applied >= Some(seen_at));
            if timeout(LOOK_EVERY, has_passed).await.is_ok() {
                break;
            }
            if let Some(narrowed) = self.look_for_kinds(&client).await? {
                return Ok(Some(narrowed));
            }
        }
        let oids: Vec<u32> = left.iter().map(|table| table.oid).collect();
        let replica = self.replica.get().await?;
        self.store.forget_copies(&replica, &oids).await?;
        Ok(Some(PipelineError::TableLeft(first.name.to_string())))
    }

    /// Whether kinds of changes are left out.
    async fn look_for_kinds(
        &self,
        client: &Client,
    ) -> Result<Option<PipelineError>, PipelineError> {
        let checked = check_publication(client, &self.publication).await;
        let Err(narrowed @ PipelineError::Narrowed { .. }) = checked else {
            return Ok(None);
        };
        let replica = self.replica.get().await?;
        Store::want_all_again(&replica, self.store.pipeline()).await?;
        Ok(Some(narrowed))
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
        let of = |tables: &[PublishedTable]| {
            let Difference { left, joined } = known.compare(tables);
            let left: Vec<String> = left.iter().map(|t| t.name.to_string()).collect();
            (left.join(" "), joined.map(|name| name.to_string()))
        };
        let gone = |names: &str| (names.to_owned(), None);
        let left_alone = published(3, "left_alone", 10);
        assert_eq!(of(&[a.clone(), b.clone(), left_alone]), gone(""));
        assert_eq!(of(std::slice::from_ref(&b)), gone("public.a"));
        let otherwise = published(2, "b", 11);
        assert_eq!(of(&[a.clone(), otherwise]), gone("public.b"));
        let joined = published(4, "new", 10);
        let new = Some("public.new".to_owned());
        assert_eq!(of(&[a, b, joined]), (String::new(), new));
    }
}
