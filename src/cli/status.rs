//! `status`: asks the running daemon, and says so when there is none.

use super::{Outcome, human, output, settings};
use crate::config::Config;
use crate::http::{FetchStatusError, fetch_status};
use crate::sync_report::Report;
use crate::telemetry::Chain;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const WATCH_PERIOD: Duration = Duration::from_secs(2);
/// Cursor home, clear to the end: redraws in place without flicker.
const REDRAW: &str = "\x1b[H\x1b[2J";

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show it again every 2 seconds, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// One JSON object; with --watch one a line.
    #[arg(long)]
    json: bool,
    /// Writes a report for people, as Markdown, to this file instead. One that is there is read first:
    /// changes are told since then.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["watch", "json"])]
    report: Option<PathBuf>,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    if let Some(path) = &args.report {
        return Box::pin(write_report(&config, path)).await;
    }
    let mut outcome = show(&config, &args, "").await?;
    if !args.watch {
        return Ok(outcome);
    }
    let prefix = if std::io::stdout().is_terminal() && !args.json {
        REDRAW
    } else {
        ""
    };
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("cannot listen for Ctrl-C")?;
                return Ok(outcome);
            }
            () = tokio::time::sleep(WATCH_PERIOD) => outcome = show(&config, &args, prefix).await?,
        }
    }
}

async fn write_report(config: &Config, path: &Path) -> anyhow::Result<Outcome> {
    let daemon = match fetch_status(config.http.listen).await {
        Ok(status) => (
            format!("{}, lag {}", text(&status["state"]), lag(&status)),
            status["state"] == "streaming",
        ),
        Err(_) => ("does not answer".to_owned(), false),
    };
    let before = std::fs::read_to_string(path).ok();
    let pipeline = settings::pipeline_config(config)?;
    let report = Report::gather(&pipeline, daemon, before.as_deref()).await;
    let report = report.context("the report cannot be made")?;
    // Whole, or not at all.
    let beside = PathBuf::from(format!("{}.new", path.display()));
    let written = std::fs::write(&beside, report.markdown());
    written
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    output::line(&format!("written to {}", path.display()))?;
    Ok(match report.is_fine() {
        true => Outcome::Fine,
        false => Outcome::Found,
    })
}

/// Prints the status once.
async fn show(config: &Config, args: &Args, prefix: &str) -> anyhow::Result<Outcome> {
    let listen = config.http.listen;
    let (status, outcome) = match fetch_status(listen).await {
        Ok(status) => {
            let healthy = status["healthy"] == true;
            (
                status,
                if healthy {
                    Outcome::Fine
                } else {
                    Outcome::Found
                },
            )
        }
        Err(error @ FetchStatusError::Stopped { .. }) => (
            stopped(&config.name, listen, &Chain(&error).to_string()),
            Outcome::Unable,
        ),
        Err(error) => return Err(error).context("cannot ask the daemon for its status"),
    };
    let text = match (args.json, args.watch) {
        (false, _) => render(&status),
        (true, false) => serde_json::to_string_pretty(&status)?,
        (true, true) => status.to_string(),
    };
    output::line(&format!("{prefix}{text}")).context("cannot print the status")?;
    Ok(outcome)
}

/// What the status is when nobody is there to tell it; the keys a script relies on are there.
fn stopped(pipeline: &str, listen: SocketAddr, reason: &str) -> Value {
    json!({
        "pipeline": pipeline,
        "state": "stopped",
        "reason": reason,
        "listen": listen,
        "healthy": false,
        "ready": false,
        "lag_bytes": null,
        "lag_seconds": null,
        "received_lsn": null,
        "applied_lsn": null,
        "flushed_lsn": null,
        "tables": [],
    })
}

/// The status for people.
fn render(status: &Value) -> String {
    let mut lines = vec![headline(status)];
    if status["state"] == "stopped" {
        return lines.remove(0);
    }
    for side in ["source", "replica"] {
        lines.push(format!("{side:<12}{}", endpoint(&status[side])));
    }
    lines.push(format!("{:<12}{}", "lag", lag(status)));
    let position = |key: &str| text(&status[key]);
    lines.push(format!(
        "{:<12}received {}, applied {}, confirmed {}",
        "position",
        position("received_lsn"),
        position("applied_lsn"),
        position("flushed_lsn")
    ));
    if let Some(retained) = status["slot"]["retained_bytes"].as_u64() {
        let wal_status = text(&status["slot"]["wal_status"]);
        lines.push(format!(
            "{:<12}{wal_status}, keeps {}",
            "slot",
            human::bytes(retained)
        ));
    }
    if let Some(reason) = status["ready_reason"].as_str() {
        lines.push(format!("{:<12}{reason}", "not ready"));
    }
    if let Some(error) = status["last_error"]["message"].as_str() {
        let advice = status["last_error"]["advice"].as_str();
        let advice = advice
            .map(|advice| format!("; {advice}"))
            .unwrap_or_default();
        lines.push(format!("{:<12}{error}{advice}", "last error"));
    }
    lines.push(String::new());
    lines.push(tables(&status["tables"]));
    lines.join("\n")
}

fn headline(status: &Value) -> String {
    let mut line = format!("{}: {}", text(&status["pipeline"]), text(&status["state"]));
    if let Some(seconds) = status["state_since_seconds"].as_f64() {
        line += &format!(" for {}", human::duration(seconds));
    }
    if let Some(reason) = status["reason"].as_str() {
        line += &format!(": {reason}");
    }
    line
}

fn endpoint(side: &Value) -> String {
    let connection = text(&side["connection"]);
    if side["host"].is_null() {
        return connection;
    }
    let environment = side["environment"]
        .as_str()
        .map(|label| format!(" ({label})"));
    let environment = environment.unwrap_or_default();
    format!(
        "{} on {}{environment}, {connection}",
        text(&side["database"]),
        text(&side["host"])
    )
}

fn lag(status: &Value) -> String {
    let seconds = status["lag_seconds"].as_f64().map(human::duration);
    let bytes = status["lag_bytes"].as_u64().map(human::bytes);
    match (seconds, bytes) {
        (None, None) => "not measured yet".to_owned(),
        (Some(seconds), Some(bytes)) => format!("{seconds}, {bytes}"),
        (seconds, bytes) => seconds.or(bytes).unwrap_or_default(),
    }
}

fn tables(tables: &Value) -> String {
    let row = |table: &Value| {
        let state = match (table["state"].as_str(), table["copy_progress"].as_f64()) {
            (Some("copying"), Some(ratio)) => format!("copying {:.0} %", ratio * 100.0),
            _ => text(&table["state"]),
        };
        let mut cells = vec![text(&table["table"]), text(&table["replica_table"]), state];
        cells.extend(["copied_rows", "received", "applied"].map(|key| text(&table[key])));
        cells
    };
    let rows: Vec<Vec<String>> = tables.as_array().into_iter().flatten().map(row).collect();
    human::table(
        &["TABLE", "REPLICA", "STATE", "COPIED", "RECEIVED", "APPLIED"],
        &rows,
    )
}

/// A value without quotes; what is absent is a dash.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_daemon() {
        let status = json!({
            "pipeline": "crm", "state": "streaming", "state_since_seconds": 200.5,
            "source": {"host": "a:5432", "database": "app", "environment": "production", "connection": "connected"},
            "replica": {"connection": "connecting"},
            "lag_seconds": 0.25, "lag_bytes": 2048,
            "received_lsn": "0/3", "applied_lsn": "0/2", "flushed_lsn": null,
            "slot": {"retained_bytes": 16_777_216, "wal_status": "reserved"},
            "last_error": {"message": "connection reset", "advice": "nothing to do"},
            "tables": [{"table": "public.leads", "replica_table": "crm.leads", "state": "copying",
                "copy_progress": 0.5, "copied_rows": 7, "received": 0, "applied": 0}],
        });
        let expected = "\
crm: streaming for 3 min
source      app on a:5432 (production), connected
replica     connecting
lag         250 ms, 2.0 KiB
position    received 0/3, applied 0/2, confirmed -
slot        reserved, keeps 16.0 MiB
last error  connection reset; nothing to do

TABLE         REPLICA    STATE         COPIED  RECEIVED  APPLIED
public.leads  crm.leads  copying 50 %  7       0         0";
        assert_eq!(render(&status), expected);
    }

    #[test]
    fn a_stopped_daemon_has_every_key() {
        let listen = "127.0.0.1:9808".parse().unwrap();
        let status = stopped("crm", listen, "no daemon listens on 127.0.0.1:9808");
        assert_eq!(
            render(&status),
            "crm: stopped: no daemon listens on 127.0.0.1:9808"
        );
        for key in [
            "lag_bytes",
            "lag_seconds",
            "received_lsn",
            "applied_lsn",
            "flushed_lsn",
        ] {
            assert!(status.get(key).is_some(), "{key}");
        }
    }
}
