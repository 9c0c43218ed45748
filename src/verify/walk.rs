//! Compares one table: at once, or where it is huge slice by slice.
//!
//! ```text
//!  what was compared in turns before ─▶ slice ─▶ rest ─▶ slice ─▶ … ─▶ all of it
//!                                          └ the time is up ─▶ broken off: known up to a key
//! ```
//!
//! Between two slices nothing of the table is locked.

use super::recheck::{self, Again};
use super::report::{NotCompared, TableReport};
use super::slice::{Bound, Slice, Slicing};
use super::statement::TableQueries;
use super::table::{Compared, Sessions, compare_table, fetch_bounds, queries_of};
use super::throttle::Throttle;
use super::{VerifyError, Wanted};
use crate::pg::{Lsn, TypeNames};
use crate::pipeline::PlannedTable;
use crate::progress::Part;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Who is further behind is given way to.
const BEHIND_SECONDS: f64 = 1.0;

/// What all tables have in common.
pub(super) struct Walk<'a> {
    pub(super) sessions: &'a Sessions,
    pub(super) types: &'a TypeNames,
    pub(super) wanted: &'a Wanted,
    /// Where the position is only nearly the source's.
    pub(super) again: Option<Again<'a>>,
    pub(super) at: Lsn,
    /// Then a table is broken off at the end of a slice.
    pub(super) until: Option<Instant>,
}

pub(super) enum Walked {
    Whole(Box<TableReport>),
    /// And why, where it was not for the time.
    BrokenOff(Box<Part>, Option<NotCompared>),
    Not(NotCompared),
}

impl Walk<'_> {
    /// Compares what is left of a table that was copied at a position, and how long that was work; `tell` hears
    /// what share of it is done.
    pub(super) async fn table(
        &self,
        planned: &PlannedTable,
        copied_at: Lsn,
        tell: impl FnMut(f64),
    ) -> Result<(Walked, Duration), VerifyError> {
        let queries = queries_of(planned, self.types, None);
        let slicing = Slicing::of(planned, self.wanted.slice);
        let mut worked = Duration::ZERO;
        if let Some(slicing) = slicing.filter(|_| !self.wanted.counts_only) {
            let form = slicing.form(&queries);
            let known = self.wanted.parts.iter().find(|part| {
                part.source == planned.source.name
                    && part.replica == planned.replica.name
                    && part.form == form
                    && part.since >= copied_at
            });
            let cut = (slicing, form, known);
            let mut walked = self.by_slices(planned, cut, &mut worked, tell).await?;
            match &mut walked {
                Walked::Whole(report) => report.took += worked,
                Walked::BrokenOff(part, _) => part.took += worked,
                Walked::Not(_) => {}
            }
            return Ok((walked, worked));
        }
        let begun = Instant::now();
        let compared = self.compare(planned, &queries).await?;
        worked = begun.elapsed();
        let walked = match compared {
            Compared::Fully(mut report, _) => {
                report.took = worked;
                Walked::Whole(report)
            }
            Compared::Not(reason) => Walked::Not(reason),
        };
        Ok((walked, worked))
    }

    async fn by_slices(
        &self,
        planned: &PlannedTable,
        (slicing, form, known): (Slicing, String, Option<&Part>),
        worked: &mut Duration,
        mut tell: impl FnMut(f64),
    ) -> Result<Walked, VerifyError> {
        let begun = Instant::now();
        let mut found = TableReport::begun(planned, known);
        let before = known.map_or(0.0, |part| part.share);
        let after = known.map(|part| part.to.clone());
        let slices = match self.slices(planned, &slicing, after).await? {
            Ok(slices) => slices,
            Err(reason) => return Ok(Walked::Not(reason)),
        };
        *worked += begun.elapsed();
        let share = |done: u32| before + (1.0 - before) * f64::from(done) / slices.len() as f64;
        let part = |found: &TableReport, to: &Bound, done| {
            Box::new(found.part(planned, self.at, (form.clone(), to.clone(), share(done))))
        };
        let mut throttle = Throttle::default();
        for (number, slice) in (1_u32..).zip(&slices) {
            let slice_begun = Instant::now();
            let queries = queries_of(planned, self.types, slicing.condition(slice).as_deref());
            let compared = self.compare(planned, &queries).await?;
            // What is rested is no work.
            let took = slice_begun.elapsed();
            *worked += took;
            let report = match (compared, &slice.after) {
                (Compared::Fully(report, _), _) => *report,
                // The rows before it are as they were found.
                (Compared::Not(reason), Some(after)) if reason.is_of_the_moment() => {
                    return Ok(Walked::BrokenOff(
                        part(&found, after, number - 1),
                        Some(reason),
                    ));
                }
                (Compared::Not(reason), _) => return Ok(Walked::Not(reason)),
            };
            let rows = (!self.reads_more(planned)).then_some(report.source_rows);
            found.add(report, self.wanted.named_max);
            tell(share(number));
            let Some(to) = &slice.to else { break };
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Walked::BrokenOff(part(&found, to, number), None));
            }
            sleep(throttle.rest_after(rows, took, self.is_behind())).await;
        }
        Ok(Walked::Whole(Box::new(found)))
    }

    /// Whether a slice may take longer for other reasons than that the server is busy: rows that are left
    /// out are read as well, and those that differ again.
    fn reads_more(&self, planned: &PlannedTable) -> bool {
        planned.mapping.filter.is_some()
            || planned.published.row_filter.is_some()
            || self.again.is_some()
    }

    async fn compare(
        &self,
        planned: &PlannedTable,
        queries: &TableQueries,
    ) -> Result<Compared, VerifyError> {
        let Some(again) = &self.again else {
            return compare_table(self.sessions, planned, queries, self.wanted).await;
        };
        // All rows that differ are looked at again.
        let first = Wanted {
            named_max: recheck::ROWS_MAX,
            ..self.wanted.clone()
        };
        match compare_table(self.sessions, planned, queries, &first).await? {
            Compared::Fully(report, blocks) => {
                let found = (*report, blocks);
                Box::pin(again.recheck(planned, queries, self.wanted, found)).await
            }
            not => Ok(not),
        }
    }

    async fn slices(
        &self,
        planned: &PlannedTable,
        slicing: &Slicing,
        after: Option<Bound>,
    ) -> Result<Result<Vec<Slice>, NotCompared>, VerifyError> {
        let sql = slicing.bounds_sql(planned, after.as_ref());
        let bounds = fetch_bounds(self.sessions, &sql).await?;
        Ok(bounds.map(|bounds| Slicing::slices(after, bounds)))
    }

    fn is_behind(&self) -> bool {
        let telemetry = self.wanted.gives_way_to.as_ref();
        telemetry.is_some_and(|telemetry| {
            let lag = telemetry.status().lag_seconds;
            lag.is_some_and(|seconds| seconds > BEHIND_SECONDS)
        })
    }
}
