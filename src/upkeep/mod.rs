//! The daemon's proving and mending: carries out what is asked for in the books, and what is due.
//! What comparisons find is kept on the replica, and is known again after a restart.
//!
//! ```text
//!  while the pipeline streams:
//!    requested? ─ yes ─▶ compare, or repair ─▶ report to whoever asked ─┐
//!        └ no ─▶ due? ─▶ compare, or count ──────────┬──────────────────┴─▶ metrics, pglockstep.proofs, log
//!                                                    └ not the same, and `repair = true` ─▶ repair
//! ```

mod schedule;
mod settings;
mod soundness;

pub use settings::Settings;

use crate::conn::Session;
use crate::pg::QualifiedName;
use crate::pipeline::{CutAsker, CutError, PipelineConfig};
use crate::progress::{ProgressError, Store, TableState, VerificationRequest};
use crate::repair::{Asked, Bounds, CleanupWish, Means, RepairError, Wish, clean, repair};
use crate::telemetry::{Chain, PipelineState, Telemetry};
use crate::verify::{Progress, Report, VerifyError, Wanted, verify};
use schedule::{Due, Kind, Schedule};
use soundness::Soundness;
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Which tables take part is looked up this often.
const TABLES_EVERY: Duration = Duration::from_secs(60);
/// All tries of a cut that comes to nothing take less, but for a standby's.
const CUT_WITHIN: Duration = Duration::from_secs(30);
/// What stands in the way is the pipeline's to tell of.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Works while the pipeline streams; never ends.
pub async fn serve(
    configure: impl Fn() -> Option<PipelineConfig>,
    settings: Settings,
    cuts: CutAsker,
    telemetry: Telemetry,
) {
    let mut told = None;
    let mut soundness = Soundness::new(settings.every, Instant::now());
    loop {
        if is_streaming(&telemetry)
            && let Some(config) = configure()
            && let Ok(books) = config.replica.connect(Session::ReplicaWrite).await
        {
            let mut upkeep = Upkeep {
                books: &books,
                config: &config,
                cuts: &cuts,
                telemetry: &telemetry,
                schedule: Schedule::new(settings),
                soundness: &mut soundness,
                settings,
                told: &mut told,
                drift: BTreeMap::new(),
                passed_by: BTreeMap::new(),
            };
            if let Err(error) = upkeep.run().await {
                // The next attempt has another session.
                upkeep.tell_failure(&error);
            }
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
}

/// Another daemon's requests are not ours: this one streams, so it is the pipeline's owner.
fn is_streaming(telemetry: &Telemetry) -> bool {
    matches!(
        telemetry.status().state,
        PipelineState::Streaming | PipelineState::CatchingUp
    )
}

struct Upkeep<'a> {
    books: &'a Client,
    config: &'a PipelineConfig,
    cuts: &'a CutAsker,
    telemetry: &'a Telemetry,
    schedule: Schedule,
    soundness: &'a mut Soundness,
    settings: Settings,
    /// Why what was due could not be done, as the log was told.
    told: &'a mut Option<String>,
    /// The same of tables: how they differ, and why they were not compared.
    drift: BTreeMap<String, [u64; 3]>,
    passed_by: BTreeMap<String, String>,
}

impl Upkeep<'_> {
    async fn run(&mut self) -> Result<(), ProgressError> {
        Store::fail_left_verifications(self.books, &self.config.name).await?;
        self.know_tables().await?;
        self.remember().await?;
        let turns_every = self.settings.look_every();
        let (mut tables_at, mut turns_at) = (Instant::now(), Instant::now());
        while is_streaming(self.telemetry) {
            let request = Store::take_verification(self.books, &self.config.name).await?;
            if let Some(request) = request {
                self.carry_out(&request).await?;
                continue;
            }
            if tables_at.elapsed() >= TABLES_EVERY {
                self.know_tables().await?;
                tables_at = Instant::now();
            }
            // Tables whose turn comes meanwhile share a cut.
            if turns_at.elapsed() >= turns_every {
                if let Some(due) = self.schedule.due(Instant::now()) {
                    let id = Store::begin_turn(self.books, &self.config.name).await?;
                    let (kind, begun) = (due.kind, Instant::now());
                    let spent = self.take_turn(due).await?;
                    // Looking for a moment at which there can be a cut is no load.
                    let in_vain = Some(begun.elapsed()).filter(|spent| *spent > CUT_WITHIN);
                    if let Some(spent) = spent.or(in_vain) {
                        self.schedule.rest(kind, spent, Instant::now());
                    }
                    Store::end_turn(self.books, id).await?;
                }
                turns_at = Instant::now();
            }
            // Only there all tables are at one position.
            let is_in_step = self.telemetry.status().state == PipelineState::Streaming;
            if is_in_step && self.soundness.is_due(Instant::now()) {
                let id = Store::begin_turn(self.books, &self.config.name).await?;
                Box::pin(self.soundness.look(self.config, self.telemetry)).await;
                Store::end_turn(self.books, id).await?;
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn know_tables(&mut self) -> Result<(), ProgressError> {
        let records = Store::fetch_tables(self.books, &self.config.name).await?;
        let copied = records
            .into_iter()
            .filter(|record| matches!(record.state, TableState::Copied { .. }));
        let names: Vec<QualifiedName> = copied.map(|record| record.source).collect();
        self.schedule.know(&names, Instant::now());
        Ok(())
    }

    /// What comparisons before this life have found.
    async fn remember(&mut self) -> Result<(), ProgressError> {
        let now = Instant::now();
        let rules = self.config.mapping.fingerprint();
        let of = (self.config.name.as_str(), rules.as_str());
        for kept in Store::fetch_last_proofs(self.books, of).await? {
            let proof = &kept.proof;
            let kind = match proof.counts_only {
                true => Kind::Counts,
                false => Kind::Rows,
            };
            let was = (kept.age, proof.took);
            self.schedule.remember(&proof.source, kind, was, now);
            let table = self.telemetry.table(&proof.source, &proof.replica);
            table.verified(&proof.verified(kept.age));
        }
        for part in Store::fetch_parts(self.books, of).await? {
            // The rest has its turn as any other table, not at once at each attempt.
            let table = self.telemetry.table(&part.source, &part.replica);
            table.verified_part(part.share, part.drift);
        }
        Ok(())
    }

    /// Somebody waits for it.
    async fn carry_out(&mut self, request: &VerificationRequest) -> Result<(), ProgressError> {
        let books = self.books;
        let (tell, mut told) = watch::channel(String::new());
        let work = async {
            // Gone with the work, so that the listener ends.
            let tell = tell;
            let say = |text: String| drop(tell.send_replace(text));
            self.answer(request, say).await
        };
        let listen = async {
            while told.changed().await.is_ok() {
                let progress = told.borrow_and_update().clone();
                Store::tell_verification(books, request.id, &progress).await?;
            }
            Ok::<_, ProgressError>(())
        };
        let (answer, listened) = tokio::join!(work, listen);
        listened?;
        if let Ok((_, Some(report))) = &answer {
            self.note(report).await?;
        }
        let answer = answer.map(|(json, _)| json);
        let outcome = answer.as_deref().map_err(String::as_str);
        Store::end_verification(books, &self.config.name, request.id, outcome).await
    }

    /// What is told, and what was found; or why nothing was done.
    async fn answer(
        &self,
        request: &VerificationRequest,
        mut say: impl FnMut(String),
    ) -> Result<(String, Option<Report>), String> {
        let Some(wish) = &request.wish else {
            let wanted = Wanted {
                tables: request.tables.clone(),
                counts_only: request.counts_only,
                slice: self.settings.slice,
                gives_way_to: Some(self.telemetry.clone()),
                ..Wanted::default()
            };
            let say = |progress: Progress<'_>| say(format!("comparing {progress}"));
            let compared = verify(self.config, self.cuts, &wanted, say).await;
            let report = compared.map_err(|error| Chain(&error).to_string())?;
            return Ok((report.to_json(), Some(report)));
        };
        let asked: Asked = serde_json::from_str(wish)
            .map_err(|_| "the request is of another version".to_owned())?;
        let failed = |error: RepairError| Chain(&error).to_string();
        let tables = request.tables.clone();
        match asked {
            Asked::Repair(wish) => {
                let wish = Wish { tables, ..wish };
                let repaired = Box::pin(repair(self.means(), &wish, say)).await;
                let report = repaired.map_err(failed)?;
                Ok((report.to_json(), report.verified))
            }
            Asked::Cleanup(wish) => {
                let wish = CleanupWish { tables, ..wish };
                let cleaned = Box::pin(clean(self.config, self.cuts, &wish, say)).await;
                Ok((cleaned.map_err(failed)?.to_json(), None))
            }
        }
    }

    fn means(&self) -> Means<'_> {
        Means {
            config: self.config,
            cuts: self.cuts,
            telemetry: self.telemetry,
            slice: self.settings.slice,
        }
    }

    /// How long tables were compared, if they were.
    async fn take_turn(&mut self, due: Due) -> Result<Option<Duration>, ProgressError> {
        let rules = self.config.mapping.fingerprint();
        let of = (self.config.name.as_str(), rules.as_str());
        let wanted = Wanted {
            tables: due.tables.clone(),
            counts_only: due.kind == Kind::Counts,
            passes_by_unknown: true,
            slice: self.settings.slice,
            budget: Some(self.settings.budget).filter(|budget| !budget.is_zero()),
            parts: Store::fetch_parts(self.books, of).await?,
            gives_way_to: Some(self.telemetry.clone()),
            ..Wanted::default()
        };
        // First of all: what is not compared now, for whatever reason, is tried again later.
        self.schedule.put_off(&due, Instant::now());
        match verify(self.config, self.cuts, &wanted, |_| ()).await {
            Ok(report) => {
                self.note(&report).await?;
                if self.told.take().is_some() {
                    tracing::info!("tables are compared again");
                }
                self.tell_passed_by(&report);
                let begun = Instant::now();
                if self.settings.repair && due.kind == Kind::Rows {
                    Box::pin(self.mend(&report)).await?;
                }
                Ok(Some(report.took + begun.elapsed()))
            }
            Err(error) => {
                self.tell_failure(&error);
                Ok(None)
            }
        }
    }

    /// Once for each reason: a table may be refused at every look.
    fn tell_passed_by(&mut self, report: &Report) {
        for one in &report.not_compared {
            let reason = one.reason.to_string();
            // How many rows it is about is another number each time.
            let kind: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            if self.passed_by.get(&one.table) != Some(&kind) {
                tracing::warn!(
                    table = one.table,
                    reason,
                    "a table whose turn it was is not compared"
                );
                self.passed_by.insert(one.table.clone(), kind);
            }
        }
        for table in &report.tables {
            self.passed_by.remove(&table.table);
        }
    }

    /// What was found, if that is within the bounds.
    async fn mend(&mut self, found: &Report) -> Result<(), ProgressError> {
        // Rows that only the replica has are let be, and so are no reason.
        // A table of which a part is compared is mended once it is whole: mending compares all of it.
        let drifted = found.tables.iter();
        let drifted = drifted.filter(|table| table.missing + table.different > 0);
        let names = drifted.filter_map(|table| Some(table.names.as_ref()?.0.clone()));
        let wish = Wish {
            tables: names.collect(),
            is_by_itself: true,
            apply: true,
            bounds: Bounds::default(),
        };
        if wish.tables.is_empty() {
            return Ok(());
        }
        match repair(self.means(), &wish, |_| ()).await {
            Ok(report) => {
                for table in &report.tables {
                    let done = table.done.unwrap_or_default();
                    tracing::warn!(
                        table = table.table,
                        inserted = done.inserted,
                        updated = done.updated,
                        deleted = done.deleted,
                        refused = report.refused.as_deref(),
                        error = table.error.as_deref(),
                        way = ?table.way,
                        "mending by itself: what was before is in pglockstep.repairs"
                    );
                }
                if let Some(verified) = &report.verified {
                    self.note(verified).await?;
                }
            }
            Err(error) => {
                let why = Chain(&error).to_string();
                tracing::error!(%why, "what is not the same could not be mended");
            }
        }
        Ok(())
    }

    /// Once for each reason: a source that is busy may be so for hours, by one session or another.
    fn tell_failure(&mut self, error: &(dyn Error + 'static)) {
        let why = Chain(error).to_string();
        let reason = match error.downcast_ref() {
            Some(VerifyError::Cut(CutError::SourceBusy { .. })) => "the source is busy".to_owned(),
            _ => why.clone(),
        };
        if self.told.as_ref() != Some(&reason) {
            tracing::warn!(%why, "tables whose turn it is cannot be compared: trying again");
            *self.told = Some(reason);
        }
    }

    /// What was found, for all who look: metrics, history, log, and the next turns.
    async fn note(&mut self, report: &Report) -> Result<(), ProgressError> {
        report.tell(self.telemetry);
        let now = Instant::now();
        for table in &report.tables {
            let kind = match table.counts_only {
                true => Kind::Counts,
                false => Kind::Rows,
            };
            if let Some((source, _)) = &table.names {
                self.schedule.done(source, kind, table.took, now);
            }
            let found = [table.missing, table.extra, table.different];
            let is_news = match table.in_sync {
                true => self.drift.remove(&table.table).is_some(),
                false => self.drift.insert(table.table.clone(), found) != Some(found),
            };
            if is_news && !table.in_sync {
                tracing::error!(
                    table = table.table,
                    replica = table.replica_table,
                    at = %report.lsn,
                    source_rows = table.source_rows,
                    replica_rows = table.replica_rows,
                    missing = table.missing,
                    extra = table.extra,
                    different = table.different,
                    "the replica table is not what the source has"
                );
            }
        }
        let rules = self.config.mapping.fingerprint();
        let of = (self.config.name.as_str(), rules.as_str());
        Store::keep_proofs(self.books, of, &report.proofs()).await?;
        for part in &report.parts {
            let name = part.source.to_string();
            // What is in the way of the rest may be so for long.
            if !report.not_compared.iter().any(|one| one.table == name) {
                self.schedule.go_on(&part.source, now);
            }
            let table = self.telemetry.table(&part.source, &part.replica);
            table.verified_part(part.share, part.drift);
            let [missing, extra, different] = part.drift;
            let is_news =
                part.drift != [0; 3] && self.drift.insert(name, part.drift) != Some(part.drift);
            if is_news {
                tracing::error!(
                    table = %part.source,
                    replica = %part.replica,
                    since = %part.since,
                    percent = part.share * 100.0,
                    missing,
                    extra,
                    different,
                    "a part of the replica table is not what the source has"
                );
            }
        }
        Store::keep_parts(self.books, of, &report.parts).await
    }
}
