//! `check`: everything that a start needs, looked at; nothing is changed.

use super::{Outcome, output, settings};
use crate::config::Config;
use crate::preflight::{self, Finding, Severity};
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
    let findings = Box::pin(preflight::check(&config))
        .await
        .context("a check could not run")?;
    let text = if args.json {
        serde_json::to_string_pretty(&findings)?
    } else {
        render(&findings, summary)
    };
    output::line(&text).context("cannot print the findings")?;
    let has_errors = findings.iter().any(|f| f.severity == Severity::Error);
    Ok(if has_errors {
        Outcome::Found
    } else {
        Outcome::Fine
    })
}

/// A paragraph for each finding: severity and object, message, remedy.
pub(super) fn render(findings: &[Finding], summary: impl Fn(&[Finding]) -> String) -> String {
    let objects = findings.iter().map(|f| f.object.chars().count());
    let width = objects.max().unwrap_or(0).min(40);
    let mut lines: Vec<String> = Vec::new();
    for finding in findings {
        lines.push(format!(
            "{:<8} {:<width$}  {}",
            finding.severity.as_str(),
            finding.object,
            finding.message
        ));
        let indent = " ".repeat(9 + width + 2);
        if !finding.remedy.is_empty() {
            lines.push(format!("{indent}remedy: {}", finding.remedy));
        }
    }
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines.push(summary(findings));
    lines.join("\n")
}

fn summary(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let errors = count(Severity::Error);
    let more = [(Severity::Warning, "warning"), (Severity::Info, "note")]
        .map(|(severity, noun)| plural(count(severity), noun))
        .join(", ");
    if errors == 0 {
        format!("ready to run ({more})")
    } else {
        format!("not ready: {} ({more})", plural(errors, "error"))
    }
}

pub(super) fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_verdict_is_last() {
        let finding = |severity, object: &str, remedy: &str| Finding {
            check: "c".into(),
            severity,
            object: object.into(),
            message: "what".into(),
            remedy: remedy.into(),
        };
        let findings = [
            finding(Severity::Error, "public.leads", "DO IT"),
            finding(Severity::Info, "x", ""),
        ];
        let expected = "\
error    public.leads  what
                       remedy: DO IT
info     x             what

not ready: 1 error (0 warnings, 1 note)";
        assert_eq!(render(&findings, summary), expected);
        assert_eq!(render(&[], summary), "ready to run (0 warnings, 0 notes)");
    }
}
