//! `cleanup`: shows rows of the replica that refer to nothing or share a key, and which of them the
//! source has not; with `--apply` takes those away.

use super::asking::Asking;
use super::work_bar::WorkBar;
use super::{Outcome, output, settings};
use crate::config::Config;
use crate::diagnose::Flaw;
use crate::pg::QualifiedName;
use crate::pipeline::{CutAsker, PipelineConfig};
use crate::repair::{Asked, Bounds, Cleaned, CleanupReport, CleanupWish, clean};
use crate::telemetry::Telemetry;
use clap::ValueEnum;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is wrong with the rows.
    #[arg(value_enum, value_name = "WHAT")]
    flaw: FlawArg,
    /// Source tables: schema.table; all without any.
    #[arg(value_name = "TABLE")]
    tables: Vec<String>,
    /// Takes the rows away; without it they are only shown.
    #[arg(long)]
    apply: bool,
    /// Nothing goes if more rows would.
    #[arg(long, value_name = "N", default_value_t = Bounds::default().max_rows)]
    max_rows: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FlawArg {
    /// They refer to rows that are not there.
    Orphans,
    /// They share a key with others.
    Duplicates,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let names = args.tables.iter().map(|table| settings::table_name(table));
    let flaw = match args.flaw {
        FlawArg::Orphans => Flaw::Orphans,
        FlawArg::Duplicates => Flaw::Duplicates,
    };
    let wish = CleanupWish {
        tables: names.collect::<Result<Vec<QualifiedName>, _>>()?,
        apply: args.apply,
        max_rows: args.max_rows,
        ..CleanupWish::new(flaw)
    };
    let asking = Asking::open(&config).await?;
    let report = match asking.has_daemon().await? {
        true => {
            let asked = Asked::Cleanup(wish.clone()).to_json();
            asking.daemon(&wish.tables, false, Some(&asked)).await?
        }
        false => {
            let clean = async |pipeline: &PipelineConfig, cuts: &CutAsker, _: &Telemetry| {
                let mut bar = WorkBar::new();
                let say = |text: String| bar.tell(&text);
                Ok(Box::pin(clean(pipeline, cuts, &wish, say)).await?)
            };
            Box::pin(asking.here(clean)).await?
        }
    };
    output::line(&match args.json {
        true => report.to_json(),
        false => text(&report, flaw),
    })?;
    Ok(match report.is_clean() {
        true => Outcome::Fine,
        false => Outcome::Found,
    })
}

fn text(report: &CleanupReport, flaw: Flaw) -> String {
    let mut lines: Vec<String> = report
        .tables
        .iter()
        .flat_map(|one| table_text(one, flaw))
        .collect();
    lines.extend(report.validated.iter().map(|one| match &one.error {
        None => format!("{}: {} is valid now", one.replica_table, one.constraint),
        Some(why) => format!(
            "{}: {} is NOT VALID yet: {why}",
            one.replica_table, one.constraint
        ),
    }));
    lines.push(match (&report.refused, report.tables.is_empty()) {
        (Some(why), _) if report.applied => {
            format!("not to the end: {why}; what went is in pglockstep.repairs, as it was")
        }
        (Some(why), _) => format!("refused, nothing was changed: {why}"),
        (None, true) => match flaw {
            Flaw::Orphans => "every row refers to one that is there".to_owned(),
            Flaw::Duplicates => "no two rows share a key".to_owned(),
        },
        (None, false) if report.applied => {
            "what went is in pglockstep.repairs, as it was".to_owned()
        }
        (None, false) => "nothing was changed; --apply does it".to_owned(),
    });
    lines.join("\n")
}

fn table_text(one: &Cleaned, flaw: Flaw) -> Vec<String> {
    let Cleaned {
        table,
        replica_table,
        what,
        rows,
        to_go,
        ..
    } = one;
    let is_wrong = match flaw {
        Flaw::Orphans => format!("refer to no row of {what}"),
        Flaw::Duplicates => format!("share a value of {what}"),
    };
    let mut lines = vec![match one.error {
        // The source was not asked, or not to the end.
        Some(_) => format!("{table} -> {replica_table}: {rows} rows {is_wrong}"),
        None => format!(
            "{table} -> {replica_table}: {rows} rows {is_wrong}; {to_go} keys to go, the source has the others"
        ),
    }];
    lines.extend(one.keys.iter().map(|key| format!("  {}", key.join(", "))));
    let more = to_go.saturating_sub(one.keys.len() as u64);
    if more > 0 {
        lines.push(format!("  … and {more} more"));
    }
    if let (Some(done), Some(left)) = (one.done, one.left) {
        lines.push(format!("  {} taken away, {left} left", done.deleted));
    }
    let error = one.error.iter();
    lines.extend(error.map(|why| format!("  not done, or not to its end: {why}")));
    lines
}
