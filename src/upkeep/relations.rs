//! Rows that refer to nothing, counted as often as tables are compared, for the metrics and the log.

use crate::conn::Session;
use crate::diagnose::{RelationFound, relations_found};
use crate::pipeline::{PipelineConfig, fetch_plan};
use crate::telemetry::{Chain, Telemetry};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// After a start there is enough to do.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// A count is followed by so many times as long without one.
const REST: u32 = 19;

/// When relations are counted, and what was found.
pub(super) struct Relations {
    /// Zero: never.
    every: Duration,
    due: Instant,
    orphans: BTreeMap<String, u64>,
    /// Why they could not be looked at, as the log was told.
    told: Option<String>,
}

impl Relations {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        Self {
            every,
            due: now + FIRST_AFTER.min(every),
            orphans: BTreeMap::new(),
            told: None,
        }
    }

    pub(super) fn are_due(&self, now: Instant) -> bool {
        !self.every.is_zero() && now >= self.due
    }

    /// Counts them; what cannot be looked at is tried again at the next turn.
    pub(super) async fn count(&mut self, config: &PipelineConfig, telemetry: &Telemetry) {
        let begun = Instant::now();
        match find(config).await {
            Ok(found) => {
                self.told = None;
                let orphans = by_constraint(&found);
                for (constraint, rows) in &orphans {
                    if *rows > 0 && self.orphans.get(constraint) != Some(rows) {
                        tracing::warn!(
                            constraint,
                            rows,
                            "rows refer to rows that are not there: `pglockstep diagnose` says what to do"
                        );
                    }
                }
                telemetry.set_orphans(orphans.clone());
                self.orphans = orphans;
            }
            Err(why) => {
                if self.told.as_ref() != Some(&why) {
                    tracing::warn!(%why, "relations cannot be looked at: trying again");
                    self.told = Some(why);
                }
            }
        }
        self.due = Instant::now() + self.every.max(begun.elapsed() * REST);
    }
}

async fn find(config: &PipelineConfig) -> Result<Vec<RelationFound>, String> {
    let failed = |error: &dyn std::error::Error| Chain(error).to_string();
    let source = config.source.connect(Session::SourceRead).await;
    let source = source.map_err(|error| failed(&error))?;
    let replica = config.replica.connect(Session::ReplicaWrite).await;
    let replica = replica.map_err(|error| failed(&error))?;
    let plan = fetch_plan(&source, &replica, &config.publication, &config.mapping).await;
    let plan = plan.map_err(|error| failed(&error))?;
    let found = relations_found(&source, &replica, &plan).await;
    found.map_err(|error| failed(&error))
}

/// A constraint's name is its table's own.
fn by_constraint(found: &[RelationFound]) -> BTreeMap<String, u64> {
    let named = |one: &RelationFound| Some((format!("{}.{}", one.child, one.name), one.orphans?));
    found.iter().filter_map(named).collect()
}
