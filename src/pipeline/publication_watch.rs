//! Looks what is published while the stream runs.
//!
//! A table that leaves the publication and comes back has changes that never were in the
//! stream; so has one whose columns or filter change. That is noted at once, since by the next
//! look it may be back as if nothing had been: the next start merges it anew then, and forgets what
//! is away or published otherwise. The stream ends when what such a table had until it left is
//! applied. One that joins is copied by the next start. And a publication that leaves kinds of
//! changes out for a while has left them out of all tables: they are merged anew.
//!
//! ```text
//!  all as it was ─ one has left ─▶ noted in the books ─ applied, or three looks ─▶ the stream ends
//! ```

use super::PipelineError;
use super::look::check_publication;
use super::tables::TablePlan;
use crate::catalog::fetch_log_end;
use crate::conn::Pool;
use crate::pg::{Lsn, QualifiedName};
use crate::progress::{Positions, Store};
use crate::replication::{PublishedTable, fetch_published_tables};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOKS_WHILE_IT_PASSES: u32 = 3;

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

/// Tables that were seen to have left.
struct Left {
    names: HashMap<u32, QualifiedName>,
    /// All of them are noted in the books.
    is_noted: bool,
    /// What they had until then is applied when all before this is.
    seen_at: Option<Lsn>,
    looks: u32,
}

impl PublicationWatch {
    /// Ends when something else is published than when the stream began.
    pub(super) async fn run(self, mut positions: watch::Receiver<Positions>) -> PipelineError {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let mut left = Left {
            names: HashMap::new(),
            is_noted: true,
            seen_at: None,
            looks: 0,
        };
        loop {
            match left.seen_at.filter(|_| left.is_noted) {
                None => {
                    looks.tick().await;
                }
                Some(seen_at) => {
                    // A replica that takes longer is behind with it, as with one that left unseen.
                    let has_passed = positions.wait_for(|p| p.applied >= Some(seen_at));
                    let is_passed = timeout(LOOK_EVERY, has_passed).await.is_ok();
                    if is_passed || left.looks >= LOOKS_WHILE_IT_PASSES {
                        return left.ended();
                    }
                }
            }
            // A look that fails says nothing: the stream notices a source that is gone.
            if let Ok(Some(ended)) = self.look(&mut left).await {
                return ended;
            }
        }
    }

    async fn look(&self, left: &mut Left) -> Result<Option<PipelineError>, PipelineError> {
        let client = self.source.get().await?;
        match check_publication(&client, &self.publication).await {
            Err(narrowed @ PipelineError::Narrowed { .. }) => {
                let replica = self.replica.get().await?;
                Store::want_again(&replica, &self.pipeline, None).await?;
                return Ok(Some(narrowed));
            }
            // It is not there: of its tables that says nothing.
            Err(missing @ PipelineError::Definite { .. }) => return Ok(Some(missing)),
            checked => checked?,
        }
        let published = fetch_published_tables(&client, &self.publication).await?;
        let Difference { left: gone, joined } = self.known.compare(&published);
        if !gone.is_empty()
            // It may have been renamed since it was looked for.
            && let Err(missing @ PipelineError::Definite { .. }) =
                check_publication(&client, &self.publication).await
        {
            return Ok(Some(missing));
        }
        for table in gone {
            let is_news = left.names.insert(table.oid, table.name.clone()).is_none();
            left.is_noted &= !is_news;
        }
        if left.names.is_empty() {
            return Ok(joined.map(|name| PipelineError::TableJoined(name.to_string())));
        }
        left.looks += 1;
        if !left.is_noted {
            let replica = self.replica.get().await?;
            let oids: Vec<u32> = left.names.keys().copied().collect();
            Store::want_again(&replica, &self.pipeline, Some(&oids)).await?;
            left.is_noted = true;
        }
        if left.seen_at.is_none() {
            left.seen_at = Some(fetch_log_end(&client).await?);
        }
        Ok(None)
    }
}

impl Left {
    fn ended(&self) -> PipelineError {
        let mut names: Vec<String> = self.names.values().map(ToString::to_string).collect();
        names.sort();
        PipelineError::TableLeft(names.join(", "))
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
