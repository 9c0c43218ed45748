//! `errors`: changes that could not be applied, and what becomes of them.
//!
//! The verb reads the books on the replica and leaves requests there; the daemon carries them
//! out, at once where one runs.

use super::{Outcome, human, output, settings};
use crate::config::Config;
use crate::conn::Session;
use crate::pg::{Change, Relation, Tuple, TupleValue};
use crate::pgoutput::{Decoder, Message, Streaming};
use crate::progress::{BookedError, ErrorState, KeptRow, Request, Store};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio_postgres::Client;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Lists the errors that wait for somebody.
    List {
        /// Those that have ended, too.
        #[arg(long)]
        all: bool,
        /// A JSON list.
        #[arg(long)]
        json: bool,
    },
    /// Shows an error and the changes that are kept for it.
    Show {
        /// Its number.
        id: i64,
        /// Kept changes at most.
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
        /// Shows the rows' values, which are secret as the tables themselves are.
        #[arg(long)]
        values: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Has it tried again now: the transaction, or all that is kept of a table set aside.
    Retry {
        /// Its number.
        id: i64,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Passes its transaction by, and keeps the content: the whole transaction where the
    /// pipeline stands before it, the table's part where the table is set aside.
    Skip {
        /// Its number.
        id: i64,
        /// Why; it is kept with the error.
        #[arg(long)]
        reason: String,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let config = settings::pipeline_config(&config)?;
    let replica = config.replica.connect(Session::ReplicaWrite).await;
    let replica = replica.map_err(|error| anyhow::anyhow!("{error}; {}", error.advice()))?;
    if !Store::has_books(&replica).await? {
        bail!(
            "the replica has no schema pglockstep with all its tables: no daemon of this version has run yet"
        );
    }
    let pipeline = config.name.as_str();
    match args.what {
        What::List { all, json } => list(&replica, pipeline, all, json).await,
        What::Show {
            id,
            limit,
            values,
            json,
        } => {
            let error = find(&replica, pipeline, id).await?;
            let rows = Store::fetch_kept_for(&replica, pipeline, id, limit.into()).await?;
            let changes = describe(&rows, values)?;
            if json {
                let mut shown = serde_json::to_value(&error)?;
                shown["changes"] = Value::from(changes);
                output::line(&serde_json::to_string_pretty(&shown)?)?;
            } else {
                output::line(&render(&error, &changes))?;
            }
            Ok(Outcome::Fine)
        }
        What::Retry { id, json } => {
            let error = find(&replica, pipeline, id).await?;
            request(&replica, pipeline, &error, Request::Retry, None).await?;
            let what = format!("error {id} is to be tried again");
            tell(json, id, &what)
        }
        What::Skip { id, reason, json } => {
            let error = find(&replica, pipeline, id).await?;
            request(&replica, pipeline, &error, Request::Skip, Some(&reason)).await?;
            let what = match error.state {
                ErrorState::Quarantined => format!(
                    "what the transaction committed at {} did to {} is to be passed by, and all that is kept after it applied",
                    error.commit_lsn,
                    error.table.as_deref().unwrap_or("its table")
                ),
                _ => format!(
                    "the whole transaction committed at {} is to be passed by; `errors show {id}` shows it then",
                    error.commit_lsn
                ),
            };
            tell(json, id, &what)
        }
    }
}

async fn list(replica: &Client, pipeline: &str, all: bool, json: bool) -> anyhow::Result<Outcome> {
    let errors = Store::fetch_errors(replica, pipeline, !all).await?;
    if json {
        output::line(&serde_json::to_string_pretty(&errors)?)?;
    } else if errors.is_empty() {
        output::line("no errors")?;
    } else {
        let row = |error: &BookedError| {
            vec![
                error.id.to_string(),
                state(error),
                error.table.clone().unwrap_or_else(|| "-".to_owned()),
                error.commit_lsn.to_string(),
                error.kept_changes.to_string(),
                error.message.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = errors.iter().map(row).collect();
        let header = ["ID", "STATE", "TABLE", "COMMIT", "KEPT", "ERROR"];
        output::line(&human::table(&header, &rows))?;
    }
    let is_any_open = errors.iter().any(|error| error.state.is_open());
    Ok(if is_any_open {
        Outcome::Found
    } else {
        Outcome::Fine
    })
}

async fn find(replica: &Client, pipeline: &str, id: i64) -> anyhow::Result<BookedError> {
    let errors = Store::fetch_errors(replica, pipeline, false).await?;
    let found = errors.into_iter().find(|error| error.id == id);
    found.with_context(|| {
        format!("there is no error {id} of the pipeline {pipeline}; see `errors list --all`")
    })
}

async fn request(
    replica: &Client,
    pipeline: &str,
    error: &BookedError,
    request: Request,
    reason: Option<&str>,
) -> anyhow::Result<()> {
    if Store::request(replica, pipeline, error, request, reason).await? {
        return Ok(());
    }
    let error = find(replica, pipeline, error.id).await?;
    if error.state.is_open() {
        bail!(
            "error {} is about the transaction committed at {} by now; nothing was changed: look again",
            error.id,
            error.commit_lsn
        );
    }
    bail!(
        "error {} has ended: it is {}; nothing was changed",
        error.id,
        error.state.as_str()
    )
}

/// Says what is to be done.
fn tell(json: bool, id: i64, what: &str) -> anyhow::Result<Outcome> {
    if json {
        let said = json!({"id": id, "requested": true, "message": what});
        output::line(&serde_json::to_string_pretty(&said)?)?;
    } else {
        output::line(&format!(
            "{what}: the daemon does it at once, or when it starts"
        ))?;
    }
    Ok(Outcome::Fine)
}

fn state(error: &BookedError) -> String {
    match error.request {
        Some(request) => format!("{}, to {}", error.state.as_str(), request.as_str()),
        None => error.state.as_str().to_owned(),
    }
}

/// Each kept change for people and scripts; values only where they are asked for.
fn describe(rows: &[KeptRow], values: bool) -> anyhow::Result<Vec<Value>> {
    let mut decoder = Decoder::new(1, Streaming::Off);
    let mut form: Option<Relation> = None;
    let mut shown = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(bytes) = &row.form
            && let Message::Relation { relation, .. } = decoder.decode(bytes.clone())?
        {
            form = Some(relation);
        }
        let Message::Change { change, .. } = decoder.decode(row.change.clone())? else {
            bail!("a kept change is none: report this");
        };
        let named = |tuple: &Tuple| row_values(form.as_ref(), tuple, values);
        let (op, old, new) = match &change {
            Change::Insert { new, .. } => ("insert", None, Some(new)),
            Change::Update { old, new, .. } => ("update", old.as_ref(), Some(new)),
            Change::Delete { old, .. } => ("delete", Some(old), None),
            Change::Truncate { .. } => ("truncate", None, None),
        };
        shown.push(json!({
            "commit_lsn": row.commit_lsn,
            "op": op,
            "table": form.as_ref().map(|form| form.name.to_string()),
            "old": old.map(|old| named(old.tuple())),
            "new": new.map(named),
        }));
    }
    Ok(shown)
}

/// A row by its columns' names. Without values: how long each is.
fn row_values(form: Option<&Relation>, tuple: &Tuple, values: bool) -> Value {
    let name = |at: usize| {
        let column = form.and_then(|form| form.columns.get(at));
        column.map_or_else(|| (at + 1).to_string(), |column| column.name.clone())
    };
    let shown = tuple.values().enumerate().map(|(at, value)| {
        let value = match value {
            TupleValue::Null => Value::Null,
            TupleValue::UnchangedToast => json!({"unchanged": true}),
            TupleValue::Text(bytes) if values => {
                Value::from(String::from_utf8_lossy(bytes).into_owned())
            }
            TupleValue::Text(bytes) | TupleValue::Binary(bytes) => json!({"bytes": bytes.len()}),
        };
        (name(at), value)
    });
    Value::Object(shown.collect())
}

fn render(error: &BookedError, changes: &[Value]) -> String {
    let mut lines = vec![format!("error {}: {}", error.id, state(error))];
    let mut say = |what: &str, text: Option<String>| {
        if let Some(text) = text {
            lines.push(format!("{what:<12}{text}"));
        }
    };
    say("table", error.table.clone());
    say("replica", error.replica_table.clone());
    say("commit", Some(error.commit_lsn.to_string()));
    say("sqlstate", error.sqlstate.clone());
    say("error", Some(error.message.clone()));
    say("advice", error.advice.clone());
    say("key hash", error.key_hash.clone());
    say("reason", error.reason.clone());
    say("attempts", Some(error.attempts.to_string()));
    say("kept", Some(format!("{} changes", error.kept_changes)));
    for change in changes {
        let text = |key: &str| change[key].as_str().unwrap_or("-").to_owned();
        let mut line = format!("  {} {} {}", text("commit_lsn"), text("op"), text("table"));
        for image in ["old", "new"] {
            if !change[image].is_null() {
                line += &format!(" {image} {}", change[image]);
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}
