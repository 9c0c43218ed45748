//! `verify`: compares source and replica at one position.
//!
//! A daemon that runs makes the cut and compares; the request and the report go by way of the
//! books. Where none runs, the pipeline is run here until the comparison is done.

use super::{Outcome, output, settings};
use crate::config::Config;
use crate::conn::Session;
use crate::pg::QualifiedName;
use crate::pipeline::{PipelineConfig, cuts, supervise};
use crate::progress::{Store, Verification};
use crate::telemetry::{PipelineState, Telemetry};
use crate::verify::{Progress, Report, TableReport, Wanted, verify};
use anyhow::{Context, anyhow, bail};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A daemon that streams takes a request sooner.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
const ENDED_AFTER: Duration = Duration::from_secs(15);

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Source tables: schema.table; all without any.
    #[arg(value_name = "TABLE")]
    tables: Vec<String>,
    /// Counts rows only.
    #[arg(long)]
    counts: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let names = args.tables.iter().map(|table| settings::table_name(table));
    let wanted = Wanted {
        tables: names.collect::<Result<Vec<QualifiedName>, _>>()?,
        counts_only: args.counts,
    };
    let pipeline = settings::pipeline_config(&config)?;
    let replica = pipeline.replica.connect(Session::ReplicaWrite).await;
    let replica = replica.map_err(|error| anyhow!("{error}; {}", error.advice()))?;
    if !Store::has_books(&replica).await? {
        bail!(
            "the replica has no schema pglockstep with all its tables: no daemon of this version has run yet"
        );
    }
    let report = match Store::fetch_holder(&replica, &pipeline.name).await? {
        Some(_) => by_the_daemon(&replica, &pipeline, &wanted).await?,
        None => Box::pin(here(&config, &pipeline, &wanted)).await?,
    };
    if args.json {
        output::line(&report.to_json())?;
    } else {
        output::line(&text(&report, args.counts))?;
    }
    Ok(match report.in_sync {
        true => Outcome::Fine,
        false => Outcome::Found,
    })
}

async fn by_the_daemon(
    books: &Client,
    pipeline: &PipelineConfig,
    wanted: &Wanted,
) -> anyhow::Result<Report> {
    let (tables, counts_only) = (&wanted.tables, wanted.counts_only);
    let id = Store::request_verification(books, &pipeline.name, tables, counts_only).await?;
    let waited = wait_for(books, pipeline, id).await;
    if waited.is_err() {
        Store::withdraw_verification(books, id).await?;
    }
    waited
}

async fn wait_for(books: &Client, pipeline: &PipelineConfig, id: i64) -> anyhow::Result<Report> {
    let (mut asked, mut held) = (Instant::now(), Instant::now());
    let mut told = None;
    loop {
        match Store::fetch_verification(books, id).await? {
            Some(Verification::Done(report)) => {
                return Report::from_json(&report).context("the daemon is of another version");
            }
            Some(Verification::Failed(why)) => bail!("nothing was compared: {why}"),
            Some(Verification::Running(progress)) => {
                if progress != told
                    && let Some(progress) = &progress
                {
                    output::complain(&format!("comparing {progress}"));
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
        if Store::fetch_holder(books, &pipeline.name).await?.is_some() {
            held = Instant::now();
        } else if held.elapsed() >= ENDED_AFTER {
            bail!("the daemon has ended meanwhile");
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Catches up with the source as the daemon would, and compares there.
async fn here(
    config: &Config,
    pipeline: &PipelineConfig,
    wanted: &Wanted,
) -> anyhow::Result<Report> {
    output::complain("no daemon runs: applying what the source has sent meanwhile, then comparing");
    let (asker, cuts) = cuts();
    let telemetry = Telemetry::new(&config.name);
    let shutdown = CancellationToken::new();
    super::run::cancel_on_signal(shutdown.clone())?;
    let configure = || crate::daemon::pipeline_config(config);
    let mut running = pin!(supervise(
        configure,
        config.retry,
        &telemetry,
        &shutdown,
        cuts
    ));
    let mut comparing = pin!(async {
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
        let say = |progress: Progress<'_>| output::complain(&format!("comparing {progress}"));
        Ok(verify(pipeline, &asker, wanted, say).await?)
    });
    tokio::select! {
        ended = &mut running => {
            ended.context("the pipeline does not run")?;
            bail!("broken off: nothing was compared");
        }
        compared = &mut comparing => {
            shutdown.cancel();
            // What was compared stands, however the pipeline ends.
            let _ = running.await;
            compared
        }
    }
}

fn text(report: &Report, counts_only: bool) -> String {
    let line = |table: &TableReport| {
        let rows = match table.source_rows == table.replica_rows {
            true => format!("{} rows", table.source_rows),
            false => format!(
                "{} rows on the source, {} on the replica",
                table.source_rows, table.replica_rows
            ),
        };
        let verdict = match (table.in_sync, counts_only) {
            (true, false) => "the same".to_owned(),
            (true, true) => "as many".to_owned(),
            (false, true) => "NOT as many".to_owned(),
            (false, false) => format!(
                "NOT the same: {} missing, {} extra, {} different",
                table.missing, table.extra, table.different
            ),
        };
        format!(
            "{} -> {}: {verdict}; {rows}",
            table.table, table.replica_table
        )
    };
    let mut lines: Vec<String> = report.tables.iter().map(line).collect();
    let passed_by = report.not_compared.iter();
    lines.extend(passed_by.map(|one| format!("{}: not compared: {}", one.table, one.reason)));
    let verdict = if report.in_sync {
        "in sync"
    } else {
        "NOT in sync"
    };
    lines.push(format!("{verdict} at {}", report.lsn));
    lines.join("\n")
}
