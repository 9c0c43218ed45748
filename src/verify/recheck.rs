//! Looks again at rows that differ where source and replica could be held at one position only nearly.
//!
//! ```text
//!  source:   S ─────────── L ──────── S'          the same at S and S': so it was at L
//!  replica:                L                      and the replica has to have it so
//! ```
//!
//! What the source changes between its two snapshots says nothing, and is looked at again at another cut.
//! A row that differs while the source leaves it alone differs; nothing else is told to. A commit that is in
//! the log already, and seen by nobody yet, since the source's backend takes its time, would look like one: so a
//! row has to differ at each of some looks, a second apart; and while commits wait for a synchronous standby
//! none counts.

use super::compare::{DriftKind, Key};
use super::report::{NotCompared, TableReport, keep_named};
use super::statement::TableQueries;
use super::table::{Compared, Sessions, fetch_rows, is_rewritten, settle};
use super::{VerifyError, Wanted, enter, obstacle};
use crate::conn::Session;
use crate::pg::ServerError;
use crate::pipeline::{CutAsker, PipelineConfig, PlannedTable};
use crate::progress::Store;
use crate::telemetry::Chain;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::Client;

/// Rows that are looked at again at most, of a table.
pub(super) const ROWS_MAX: usize = 100_000;
/// Looks, the wait between them, and at how many in a row a row has to differ.
const ROUNDS_MAX: u32 = 10;
const ROUND_EVERY: Duration = Duration::from_secs(1);
const CONFIRMED: u32 = 5;
/// Whether a commit may be in the log and seen by nobody for long, since it waits for a standby. Asked
/// between the cut and the second snapshot: what hangs at both hangs here.
const MAY_HANG: &str = "SELECT pg_catalog.current_setting('synchronous_standby_names') <> '' AND ( \
     NOT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') OR EXISTS ( \
     SELECT 1 FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep' \
     AND query_start < pg_catalog.clock_timestamp() - interval '1 s'))";

/// Makes the cuts for further looks.
pub(super) struct Again<'a> {
    pub(super) config: &'a PipelineConfig,
    pub(super) cuts: &'a CutAsker,
}

/// The hashes of one key's rows: on the source before and after the cut, on the replica at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    before: Vec<i64>,
    after: Vec<i64>,
    there: Vec<i64>,
    /// Looks until now at which it differed, in a row.
    differed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Drift(DriftKind),
    /// The source has changed it meanwhile.
    Unknown,
}

impl Seen {
    fn verdict(mut self) -> Verdict {
        for hashes in [&mut self.before, &mut self.after, &mut self.there] {
            hashes.sort_unstable();
        }
        match (self.before.len(), self.there.len()) {
            _ if self.before != self.after => Verdict::Unknown,
            _ if self.before == self.there => Verdict::Same,
            (here, there) if here < there => Verdict::Drift(DriftKind::Extra),
            (here, there) if here > there => Verdict::Drift(DriftKind::Missing),
            _ => Verdict::Drift(DriftKind::Different),
        }
    }
}

impl Again<'_> {
    /// What of a report stands.
    pub(super) async fn recheck(
        &self,
        planned: &PlannedTable,
        queries: &TableQueries,
        wanted: &Wanted,
        (report, blocks): (TableReport, Vec<i32>),
    ) -> Result<Compared, VerifyError> {
        if report.in_sync {
            let report = TableReport {
                rechecked: true,
                ..report
            };
            return Ok(Compared::Fully(Box::new(report), blocks));
        }
        let differ = report.missing + report.extra + report.different;
        if wanted.counts_only {
            return Ok(Compared::Not(NotCompared::Uncertain));
        }
        if report.rows.len() as u64 != differ {
            return Ok(Compared::Not(NotCompared::TooMany(differ)));
        }
        if planned.mapping.key_positions().is_empty() {
            return Ok(Compared::Not(NotCompared::NoKey));
        }
        let mut open: HashMap<Key, Seen> = report
            .rows
            .iter()
            .map(|(_, key)| (key.clone(), Seen::default()))
            .collect();
        let mut drift = Vec::new();
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                sleep(ROUND_EVERY).await;
            }
            match self.look(planned, queries, &blocks, &mut open).await? {
                Ok(found) => drift.extend(found),
                Err(reason) => return Ok(Compared::Not(reason)),
            }
            if open.is_empty() {
                return Ok(Compared::Fully(
                    Box::new(stands(report, drift, wanted)),
                    blocks,
                ));
            }
        }
        Ok(Compared::Not(NotCompared::Changing(open.len() as u64)))
    }

    /// One look at the keys that are open: those that differ; what is decided is open no more.
    async fn look(
        &self,
        planned: &PlannedTable,
        queries: &TableQueries,
        blocks: &[i32],
        open: &mut HashMap<Key, Seen>,
    ) -> Result<Result<Vec<(DriftKind, Key)>, NotCompared>, VerifyError> {
        let cut = match self.cuts.cut_nearly(self.config).await {
            Ok(cut) => cut,
            // What was found of other tables stands.
            Err(error) => return Ok(Err(NotCompared::Refused(Chain(&error).to_string()))),
        };
        let at = cut.at;
        let after = self.config.source.connect(Session::SourceRead).await?;
        settle(&after).await?;
        let row = after.query_one(MAY_HANG, &[]).await;
        let may_hang: bool = row.map_err(VerifyError::reading)?.get(0);
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        for sql in [begin, "SELECT 1"] {
            let done = after.batch_execute(sql).await;
            done.map_err(VerifyError::reading)?;
        }
        let source = self.config.source.connect(Session::SourceRead).await?;
        let replica = self.config.replica.connect(Session::ReplicaWrite).await?;
        let sessions = enter(source, replica, cut).await?;
        let records = Store::fetch_tables(&sessions.replica, &self.config.name).await?;
        if let Err(reason) = obstacle(planned, &records, at) {
            return Ok(Err(reason));
        }
        let read = async {
            see(&sessions, &after, queries, blocks, open).await?;
            is_rewritten(&sessions, planned).await
        };
        match read.await {
            Ok(false) => {}
            Ok(true) => return Ok(Err(NotCompared::Rewritten)),
            Err(error) if error.is_session_lost() => return Err(VerifyError::Reading(error)),
            Err(error) => return Ok(Err(NotCompared::Refused(Chain(&error).to_string()))),
        }
        let mut found = Vec::new();
        open.retain(|key, seen| {
            let differed = seen.differed;
            match std::mem::take(seen).verdict() {
                Verdict::Same => false,
                Verdict::Unknown => true,
                Verdict::Drift(_) if may_hang => true,
                Verdict::Drift(kind) => {
                    seen.differed = differed + 1;
                    let is_confirmed = seen.differed >= CONFIRMED;
                    if is_confirmed {
                        found.push((kind, key.clone()));
                    }
                    !is_confirmed
                }
            }
        });
        Ok(Ok(found))
    }
}

async fn see(
    sessions: &Sessions,
    after: &Client,
    queries: &TableQueries,
    blocks: &[i32],
    open: &mut HashMap<Key, Seen>,
) -> Result<(), ServerError> {
    type Of = fn(&mut Seen) -> &mut Vec<i64>;
    let looks: [(&Client, _, Of); 3] = [
        (&sessions.source, &queries.source, |seen| &mut seen.before),
        (&sessions.replica, &queries.replica, |seen| &mut seen.there),
        (after, &queries.source, |seen| &mut seen.after),
    ];
    for (client, side, of) in looks {
        let add = |key: Key, hash| {
            if let Some(seen) = open.get_mut(&key) {
                of(seen).push(hash);
            }
        };
        fetch_rows(client, side, blocks, add).await?;
    }
    Ok(())
}

/// The report with what has turned out to differ.
fn stands(report: TableReport, mut drift: Vec<(DriftKind, Key)>, wanted: &Wanted) -> TableReport {
    drift.sort_unstable();
    let count = |kind| drift.iter().filter(|(other, _)| *other == kind).count() as u64;
    let (missing, extra, different) = (
        count(DriftKind::Missing),
        count(DriftKind::Extra),
        count(DriftKind::Different),
    );
    keep_named(&mut drift, wanted.named_max);
    TableReport {
        in_sync: missing + extra + different == 0,
        rechecked: true,
        // Counted a moment before.
        source_rows: (report.replica_rows + missing).saturating_sub(extra),
        missing,
        extra,
        different,
        rows: drift,
        ..report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_source_leaves_alone_is_drift() {
        let drift = Verdict::Drift;
        for (before, after, there, verdict) in [
            (&[1][..], &[1][..], &[1][..], Verdict::Same),
            (&[], &[], &[], Verdict::Same),
            (&[1], &[2], &[1], Verdict::Unknown),
            (&[1], &[2], &[2], Verdict::Unknown),
            (&[], &[2], &[], Verdict::Unknown),
            (&[1], &[], &[3], Verdict::Unknown),
            (&[1], &[1], &[2], drift(DriftKind::Different)),
            (&[1], &[1], &[], drift(DriftKind::Missing)),
            (&[], &[], &[1], drift(DriftKind::Extra)),
            (&[1], &[1], &[1, 1], drift(DriftKind::Extra)),
            (&[1, 2], &[2, 1], &[2, 1], Verdict::Same),
        ] {
            let seen = Seen {
                before: before.to_vec(),
                after: after.to_vec(),
                there: there.to_vec(),
                differed: 0,
            };
            assert_eq!(seen.clone().verdict(), verdict, "{seen:?}");
        }
    }
}
