//! The replica's own integrity, looked at as often as tables are compared, for the metrics and the log.

use crate::diagnose::{Diagnosis, diagnose};
use crate::pipeline::PipelineConfig;
use crate::telemetry::{Chain, Telemetry};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// After a start there is enough to do.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// A look is followed by so many times as long without one.
const REST: u32 = 19;

/// When the next look is, and what the last one has found.
pub(super) struct Soundness {
    /// Zero: never.
    every: Duration,
    due: Instant,
    orphans: BTreeMap<String, u64>,
    /// Why there could be none, as the log was told.
    told: Option<String>,
}

impl Soundness {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        Self {
            every,
            due: now + FIRST_AFTER.min(every),
            orphans: BTreeMap::new(),
            told: None,
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.every.is_zero() && now >= self.due
    }

    /// Looks; what cannot be looked at is tried again at the next turn.
    pub(super) async fn look(&mut self, config: &PipelineConfig, telemetry: &Telemetry) {
        let begun = Instant::now();
        match diagnose(config).await {
            Ok(diagnosis) => {
                self.told = None;
                telemetry.set_findings(by_check(&diagnosis));
                let orphans = by_constraint(&diagnosis);
                self.tell(&orphans);
                telemetry.set_orphans(orphans.clone());
                self.orphans = orphans;
            }
            Err(error) => {
                let why = Chain(&error).to_string();
                if self.told.as_ref() != Some(&why) {
                    tracing::warn!(%why, "the replica's soundness cannot be looked at: trying again");
                    self.told = Some(why);
                }
            }
        }
        self.due = Instant::now() + self.every.max(begun.elapsed() * REST);
    }

    fn tell(&self, orphans: &BTreeMap<String, u64>) {
        for (constraint, rows) in orphans {
            if *rows > 0 && self.orphans.get(constraint) != Some(rows) {
                tracing::warn!(
                    constraint,
                    rows,
                    "rows refer to rows that are not there: `pglockstep diagnose` says what to do"
                );
            }
        }
    }
}

/// A declared constraint's name is its table's own; one that the configuration names may have it too.
fn by_constraint(diagnosis: &Diagnosis) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for one in &diagnosis.relations {
        if let Some(orphans) = one.orphans {
            *all.entry(format!("{}.{}", one.child, one.name))
                .or_default() += orphans;
        }
    }
    all
}

/// How many there are of each check and severity.
fn by_check(diagnosis: &Diagnosis) -> BTreeMap<(String, String), u64> {
    let mut findings = BTreeMap::new();
    for finding in &diagnosis.findings {
        let severity = finding.severity.as_str().to_owned();
        *findings
            .entry((finding.check.to_string(), severity))
            .or_default() += 1;
    }
    findings
}
