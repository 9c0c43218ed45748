//! `verify`: compares source and replica at one position; `asking` finds who does it.

use super::asking::Asking;
use super::work_bar::WorkBar;
use super::{Outcome, output, settings};
use crate::config::Config;
use crate::pg::QualifiedName;
use crate::pipeline::{CutAsker, PipelineConfig};
use crate::telemetry::Telemetry;
use crate::verify::{Progress, Report, TableReport, Wanted, verify};

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
        slice: config.upkeep.slice,
        ..Wanted::default()
    };
    let asking = Asking::open(&config).await?;
    let report = match asking.has_daemon().await? {
        true => {
            asking
                .daemon(&wanted.tables, wanted.counts_only, None)
                .await?
        }
        false => {
            let compare = async |pipeline: &PipelineConfig, cuts: &CutAsker, _: &Telemetry| {
                let mut bar = WorkBar::new();
                let say = |progress: Progress<'_>| bar.tell(&format!("comparing {progress}"));
                Ok(verify(pipeline, cuts, &wanted, say).await?)
            };
            let report = Box::pin(asking.here(compare)).await?;
            asking.keep(&report).await?;
            report
        }
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

pub(super) fn text(report: &Report, counts_only: bool) -> String {
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
        let how = if table.rechecked { ", rechecked" } else { "" };
        format!(
            "{} -> {}: {verdict}{how}; {rows}",
            table.table, table.replica_table
        )
    };
    let mut lines: Vec<String> = report.tables.iter().map(line).collect();
    let passed_by = report.not_compared.iter();
    lines.extend(passed_by.map(|one| format!("{}: not compared: {}", one.table, one.reason)));
    lines.extend(report.near.iter().map(|why| {
        format!("{why}; so the position is nearly the source's, and rows that differed were looked at again")
    }));
    let verdict = if report.in_sync {
        "in sync"
    } else {
        "NOT in sync"
    };
    lines.push(format!("{verdict} at {}", report.lsn));
    lines.join("\n")
}
