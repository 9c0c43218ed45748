//! Mends tables whose rows have no key: has the pipeline copy them again, and waits until it has.
//!
//! ```text
//!  rows that are to go ─▶ noted: to_delete ─┐ one
//!  the table is wanted again ───────────────┘ transaction ─▶ the pipeline copies it ─▶ noted: deleted
//!                                                   └ called off, or it does not run ─▶ told
//! ```
//!
//! The copy replaces all rows at once, and knows nothing of single ones: so what is to go is noted before,
//! by what the comparison has found. What changes until the copy is made is the stream's.

use super::report::Deeds;
use super::statement::note_copy_sql;
use super::{Means, RepairError};
use crate::conn::Session;
use crate::pg::Lsn;
use crate::pipeline::PlannedTable;
use crate::progress::{Store, TableState};
use crate::telemetry::PipelineState;
use crate::verify::{DriftKind, TableReport};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A pipeline that streams takes a request much sooner.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// All attempts to begin the copy, or to go on streaming after it.
const BEGUN_WITHIN: Duration = Duration::from_secs(300);

/// A copy that is asked for.
pub(super) struct Recopy {
    /// As of when it was copied before.
    before: Lsn,
    /// Numbers of the notes.
    notes: Vec<i64>,
}

impl Recopy {
    /// Notes what will be done and asks for it, or neither; the table was `found` to differ `at` this position.
    pub(super) async fn request(
        means: Means<'_>,
        planned: &PlannedTable,
        found: &TableReport,
        at: Lsn,
    ) -> Result<Self, RepairError> {
        let name = &means.config.name;
        let mut books = means.config.replica.connect(Session::ReplicaWrite).await?;
        let state = state(&books, name, planned).await?;
        let Some(TableState::Copied { at: before }) = state else {
            return Err(RepairError::NotWhole(planned.source.name.clone()));
        };
        let (goes, comes) = hashes(found);
        let (from, to) = (&planned.source.name, &planned.mapping.replica);
        let begun = books.transaction().await;
        let books = begun.map_err(RepairError::writing(planned))?;
        let noted = books
            .query(
                &note_copy_sql(&planned.mapping),
                &[
                    &name,
                    &from.schema,
                    &from.name,
                    &to.schema,
                    &to.name,
                    &at.to_string(),
                    &goes,
                    &comes,
                ],
            )
            .await
            .map_err(RepairError::writing(planned))?;
        if !Store::request_resync(&books, name, from, false).await? {
            return Err(RepairError::NotWhole(from.clone()));
        }
        let committed = books.commit().await;
        committed.map_err(RepairError::writing(planned))?;
        Ok(Self {
            before,
            notes: noted.iter().map(|row| row.get(0)).collect(),
        })
    }

    /// Waits until it is made and the pipeline streams from it: what was done.
    pub(super) async fn done(
        &self,
        means: Means<'_>,
        planned: &PlannedTable,
        tell: &mut impl FnMut(String),
    ) -> Result<Deeds, RepairError> {
        let books = means.config.replica.connect(Session::ReplicaWrite).await?;
        let copied = self.wait_until_copied(means, &books, planned, tell).await;
        if let Err(RepairError::CalledOff(_)) = &copied {
            let forget = "DELETE FROM pglockstep.repairs WHERE id = ANY ($1)";
            let forgotten = books.execute(forget, &[&self.notes]).await;
            forgotten.map_err(RepairError::writing(planned))?;
        }
        let at = copied?;
        let settle = "UPDATE pglockstep.repairs SET mended_at = pg_catalog.clock_timestamp(), \
                      deed = CASE deed WHEN 'to_delete' THEN 'deleted' ELSE 'inserted' END \
                      WHERE id = ANY ($1) RETURNING deed";
        let settled = books.query(settle, &[&self.notes]).await;
        let settled = settled.map_err(RepairError::writing(planned))?;
        wait_until_streaming(means, planned, at).await?;
        Ok(settled.iter().map(|row| row.get::<_, String>(0)).collect())
    }

    /// As of when it is copied then.
    async fn wait_until_copied(
        &self,
        means: Means<'_>,
        books: &Client,
        planned: &PlannedTable,
        tell: &mut impl FnMut(String),
    ) -> Result<Lsn, RepairError> {
        let table = || planned.source.name.clone();
        let mut patience = Patience::new();
        loop {
            let state = state(books, &means.config.name, planned).await?;
            match state {
                Some(TableState::Copied { at } | TableState::Quarantined { at })
                    if at != self.before =>
                {
                    return Ok(at);
                }
                Some(TableState::Copied { .. } | TableState::Quarantined { .. }) | None => {
                    return Err(RepairError::CalledOff(table()));
                }
                Some(TableState::Resync { .. } | TableState::Init | TableState::Copying) => {}
            }
            let reason = means.telemetry.status().reason;
            let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
            tell(format!("copying {} again{reason}", table()));
            if patience.ends(means, TAKEN_WITHIN) {
                return Err(RepairError::NotCopied(table()));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Only from there on both sides can be held at one position.
async fn wait_until_streaming(
    means: Means<'_>,
    planned: &PlannedTable,
    at: Lsn,
) -> Result<(), RepairError> {
    let mut patience = Patience::new();
    loop {
        let status = means.telemetry.status();
        // It may not know yet that it is to begin anew.
        let is_beyond = status.applied_lsn.is_some_and(|applied| applied >= at);
        if status.state == PipelineState::Streaming && is_beyond {
            return Ok(());
        }
        if patience.ends(means, BEGUN_WITHIN) {
            let name = planned.source.name.clone();
            return Err(RepairError::NotStreaming(name));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// How long a pipeline is waited for that does not get on.
struct Patience {
    looked_at: Instant,
    /// While it streams, as if nothing were to be copied.
    streaming: Duration,
    /// While it neither streams nor copies.
    beginning: Duration,
}

impl Patience {
    fn new() -> Self {
        Self {
            looked_at: Instant::now(),
            streaming: Duration::ZERO,
            beginning: Duration::ZERO,
        }
    }

    fn ends(&mut self, means: Means<'_>, streaming_max: Duration) -> bool {
        let passed = self.looked_at.elapsed();
        self.looked_at = Instant::now();
        match means.telemetry.status().state {
            PipelineState::Failed | PipelineState::Paused | PipelineState::Standby => return true,
            PipelineState::Streaming => self.streaming += passed,
            PipelineState::Copying | PipelineState::CatchingUp => {}
            PipelineState::Starting => self.beginning += passed,
        }
        self.streaming >= streaming_max || self.beginning >= BEGUN_WITHIN
    }
}

/// What stands for the rows that go and for those that come, of equal ones as many as there are.
fn hashes(found: &TableReport) -> (Vec<String>, Vec<String>) {
    let of = |is_meant: fn(DriftKind) -> bool| {
        let rows = found.rows.iter().filter(|(kind, _)| is_meant(*kind));
        rows.filter_map(|(_, key)| key.first()?.clone()).collect()
    };
    (
        of(|kind| kind == DriftKind::Extra),
        of(|kind| kind != DriftKind::Extra),
    )
}

async fn state(
    books: &Client,
    name: &str,
    planned: &PlannedTable,
) -> Result<Option<TableState>, RepairError> {
    let records = Store::fetch_tables(books, name).await?;
    let record = records.into_iter().find(|record| planned.is_of(record));
    Ok(record.map(|record| record.state))
}
