//! `diagnose`: the replica's own integrity; nothing is changed.

use super::check::{plural, render};
use super::{Outcome, output, settings};
use crate::config::Config;
use crate::diagnose::diagnose;
use crate::preflight::{Finding, Severity};
use anyhow::Context;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A JSON list.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let config = settings::pipeline_config(&config)?;
    let diagnosis = Box::pin(diagnose(&config)).await;
    let findings = diagnosis
        .context("the tables cannot be looked at")?
        .findings;
    let text = if args.json {
        serde_json::to_string_pretty(&findings)?
    } else {
        render(&findings, summary)
    };
    output::line(&text)?;
    Ok(match findings.iter().any(|f| f.severity < Severity::Info) {
        true => Outcome::Found,
        false => Outcome::Fine,
    })
}

fn summary(findings: &[Finding]) -> String {
    let count = |severity, noun| {
        let of = findings.iter().filter(|f| f.severity == severity);
        plural(of.count(), noun)
    };
    let counts = [
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
        count(Severity::Info, "note"),
    ];
    counts.join(", ")
}
