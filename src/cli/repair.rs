//! `repair`: shows how what is not the same would be mended; with `--apply` does it.

use super::asking::Asking;
use super::work_bar::WorkBar;
use super::{Misuse, Outcome, output, settings, verify};
use crate::config::Config;
use crate::pg::QualifiedName;
use crate::pipeline::{CutAsker, PipelineConfig};
use crate::repair::{Asked, Bounds, Means, Report, RowToMend, TableRepair, Way, Wish, repair};
use crate::telemetry::Telemetry;
use crate::verify::DriftKind;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Source tables: schema.table; all without any.
    #[arg(value_name = "TABLE")]
    tables: Vec<String>,
    /// Changes the rows; without it they are only shown.
    #[arg(long)]
    apply: bool,
    /// Rows that only the replica has go; without it they stay.
    #[arg(long)]
    delete_extra: bool,
    /// Nothing is changed if more rows would have to be.
    #[arg(long, value_name = "N", default_value_t = Bounds::default().max_rows)]
    max_rows: u64,
    /// Nothing is changed if of one table more would have to be, in per cent of its rows.
    #[arg(long, value_name = "P", default_value_t = Bounds::default().max_percent)]
    max_percent: f64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    if !(0.0..=100.0).contains(&args.max_percent) {
        return Err(Misuse("--max-percent: expected 0 to 100".to_owned()).into());
    }
    let names = args.tables.iter().map(|table| settings::table_name(table));
    let wish = Wish {
        tables: names.collect::<Result<Vec<QualifiedName>, _>>()?,
        is_by_itself: false,
        apply: args.apply,
        bounds: Bounds {
            delete_extra: args.delete_extra,
            max_rows: args.max_rows,
            max_percent: args.max_percent,
        },
    };
    let asking = Asking::open(&config).await?;
    let report = match asking.has_daemon().await? {
        true => {
            let asked = Asked::Repair(wish.clone()).to_json();
            asking.daemon(&wish.tables, false, Some(&asked)).await?
        }
        false => {
            let slice = config.upkeep.slice;
            let mend = async |config: &PipelineConfig, cuts: &CutAsker, telemetry: &Telemetry| {
                let mut bar = WorkBar::new();
                let say = |text: String| bar.tell(&text);
                let means = Means {
                    config,
                    cuts,
                    telemetry,
                    slice,
                };
                Ok(Box::pin(repair(means, &wish, say)).await?)
            };
            let report: Report = Box::pin(asking.here(mend)).await?;
            if let Some(verified) = &report.verified {
                asking.keep(verified).await?;
            }
            report
        }
    };
    if args.json {
        output::line(&report.to_json())?;
    } else {
        output::line(&text(&report, &wish))?;
    }
    Ok(match report.is_in_sync() {
        true => Outcome::Fine,
        false => Outcome::Found,
    })
}

fn text(report: &Report, wish: &Wish) -> String {
    let mut lines = Vec::new();
    for table in &report.tables {
        lines.push(format!(
            "{} -> {}: {} missing, {} extra, {} different; {} rows on the source; {:.2} % {}",
            table.table,
            table.replica_table,
            table.missing,
            table.extra,
            table.different,
            table.source_rows,
            table.percent,
            match (table.way, table.done) {
                (Way::LetBe, _) => "differ, and are let be",
                (_, Some(_)) => "were to be changed",
                (_, None) => "to be changed",
            },
        ));
        lines.extend(table.rows.iter().map(|row| row_text(table, row, wish)));
        let all = table.missing + table.extra + table.different;
        let more = all.saturating_sub(table.rows.len() as u64);
        if more > 0 {
            lines.push(format!("  … and {more} more"));
        }
        lines.extend(way_text(table).map(|text| format!("  {text}")));
        let error = table.error.iter();
        lines.extend(error.map(|why| format!("  not done, or not to its end: {why}")));
    }
    let passed_by = report.not_compared.iter();
    lines.extend(passed_by.map(|one| format!("{}: not compared: {}", one.table, one.reason)));
    match (&report.refused, &report.verified) {
        (Some(why), _) => lines.push(format!("refused, nothing was changed: {why}")),
        (None, Some(verified)) => {
            lines.push(format!("afterwards:\n{}", verify::text(verified, false)))
        }
        (None, None) if report.tables.is_empty() && report.not_compared.is_empty() => {
            lines.push(format!("nothing to mend: in sync at {}", report.lsn));
        }
        (None, None) if report.applied => {
            let why = report.unverified.as_deref();
            lines.extend(why.map(|why| format!("not compared afterwards: {why}")));
        }
        (None, None) => lines.push("nothing was changed; --apply does it".to_owned()),
    }
    lines.join("\n")
}

fn row_text(table: &TableRepair, row: &RowToMend, wish: &Wish) -> String {
    let deed = match row.kind {
        DriftKind::Missing => "insert",
        DriftKind::Different => "update",
        DriftKind::Extra if wish.bounds.delete_extra => "delete",
        DriftKind::Extra => "leave ",
    };
    let values = row
        .key
        .iter()
        .map(|value| value.as_deref().unwrap_or("NULL"));
    let key: Vec<String> = match table.key.is_empty() {
        true => values
            .map(|hash| format!("a row with hash {hash}"))
            .collect(),
        false => table
            .key
            .iter()
            .zip(values)
            .map(|(name, value)| format!("{name} = {value}"))
            .collect(),
    };
    format!("  {deed} {}", key.join(", "))
}

fn way_text(table: &TableRepair) -> Option<String> {
    match (table.way, table.done) {
        (Way::Rows, Some(done)) => Some(format!(
            "{} inserted, {} updated, {} deleted; what was before is in pglockstep.repairs",
            done.inserted, done.updated, done.deleted
        )),
        (Way::Rows, None) => None,
        (Way::Resync, Some(done)) if table.error.is_none() => Some(format!(
            "it has no key, and was copied again: {} came, {} went; what went is in pglockstep.repairs",
            done.inserted, done.deleted
        )),
        (Way::Resync, _) => Some("it has no key: it would be copied again".to_owned()),
        (Way::LetBe, _) if table.error.is_some() => None,
        (Way::LetBe, _) => Some(
            "it has no key, and would be copied again: --delete-extra, since rows that only the replica has go with that"
                .to_owned(),
        ),
    }
}
