//! Who compares and mends: a daemon that runs, asked by way of the books; where none runs, the
//! pipeline is run here until the work is done.

use super::work_bar::WorkBar;
use super::{output, settings};
use crate::config::Config;
use crate::conn::Session;
use crate::pg::QualifiedName;
use crate::pipeline::{CutAsker, PipelineConfig, cuts, supervise};
use crate::progress::{Store, Verification};
use crate::telemetry::{PipelineState, Telemetry};
use crate::verify;
use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A daemon that streams takes a request sooner.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
const ENDED_AFTER: Duration = Duration::from_secs(15);

/// A pipeline whose books are at hand.
pub(super) struct Asking<'a> {
    config: &'a Config,
    pipeline: PipelineConfig,
    books: Client,
}

impl<'a> Asking<'a> {
    pub(super) async fn open(config: &'a Config) -> anyhow::Result<Self> {
        let pipeline = settings::pipeline_config(config)?;
        let books = pipeline.replica.connect(Session::ReplicaWrite).await;
        let books = books.map_err(|error| anyhow!("{error}; {}", error.advice()))?;
        if !Store::has_books(&books).await? {
            bail!(
                "the replica has no schema pglockstep with all its tables: no daemon of this version has run yet"
            );
        }
        Ok(Self {
            config,
            pipeline,
            books,
        })
    }

    /// Whether one runs.
    pub(super) async fn has_daemon(&self) -> anyhow::Result<bool> {
        let holder = Store::fetch_holder(&self.books, &self.pipeline.name).await?;
        Ok(holder.is_some())
    }

    /// What was found here, for the daemons to come.
    pub(super) async fn keep(&self, report: &verify::Report) -> anyhow::Result<()> {
        let proofs = report.proofs();
        let rules = self.pipeline.mapping.fingerprint();
        let of = (self.pipeline.name.as_str(), rules.as_str());
        Ok(Store::keep_proofs(&self.books, of, &proofs).await?)
    }

    /// Has the daemon do it; returns its report.
    pub(super) async fn daemon<Report: DeserializeOwned>(
        &self,
        tables: &[QualifiedName],
        counts_only: bool,
        wish: Option<&str>,
    ) -> anyhow::Result<Report> {
        let name = &self.pipeline.name;
        let id = Store::request_verification(&self.books, name, tables, counts_only, wish).await?;
        let waited = self.wait_for(id).await;
        if waited.is_err() {
            Store::withdraw_verification(&self.books, id).await?;
        }
        serde_json::from_str(&waited?).context("the daemon is of another version")
    }

    async fn wait_for(&self, id: i64) -> anyhow::Result<String> {
        let books = &self.books;
        let (mut asked, mut held) = (Instant::now(), Instant::now());
        let mut told = None;
        let mut bar = WorkBar::new();
        loop {
            match Store::fetch_verification(books, id).await? {
                Some(Verification::Done(report)) => return Ok(report),
                Some(Verification::Failed(why)) => bail!("it was not done: {why}"),
                Some(Verification::Running(progress)) => {
                    if progress != told
                        && let Some(progress) = &progress
                    {
                        bar.tell(progress);
                    }
                    told = progress;
                }
                Some(Verification::Requested { is_behind: true }) => asked = Instant::now(),
                Some(Verification::Requested { .. }) if asked.elapsed() < TAKEN_WITHIN => {}
                Some(Verification::Requested { .. }) => {
                    bail!("the daemon does not stream: see `pglockstep status`");
                }
                None => bail!("the request is gone from the books"),
            }
            // Between two attempts of a daemon nobody holds the pipeline.
            if Store::fetch_holder(books, &self.pipeline.name)
                .await?
                .is_some()
            {
                held = Instant::now();
            } else if held.elapsed() >= ENDED_AFTER + self.config.retry.delay_max {
                bail!("the daemon has ended meanwhile");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Catches up with the source as the daemon would, and does the work there.
    pub(super) async fn here<T>(
        &self,
        work: impl AsyncFnOnce(&PipelineConfig, &CutAsker, &Telemetry) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        output::complain(
            "no daemon runs: applying what the source has sent meanwhile, then comparing",
        );
        let (asker, cuts) = cuts();
        let telemetry = Telemetry::new(&self.config.name);
        let shutdown = CancellationToken::new();
        super::run::cancel_on_signal(shutdown.clone())?;
        let configure = || crate::daemon::pipeline_config(self.config);
        let retry = self.config.retry;
        let mut running = pin!(supervise(configure, retry, &telemetry, &shutdown, cuts));
        let mut working = pin!(async {
            loop {
                let status = telemetry.status();
                match status.state {
                    PipelineState::Streaming => break,
                    PipelineState::Failed | PipelineState::Standby => {
                        bail!(
                            "the pipeline does not run: {}",
                            status.reason.unwrap_or_default()
                        );
                    }
                    _ => sleep(LOOK_EVERY).await,
                }
            }
            work(&self.pipeline, &asker, &telemetry).await
        });
        tokio::select! {
            ended = &mut running => {
                ended.context("the pipeline does not run")?;
                bail!("broken off: the work was not done, or not to its end");
            }
            done = &mut working => {
                shutdown.cancel();
                // What was done stands, however the pipeline ends.
                let _ = running.await;
                done
            }
        }
    }
}
