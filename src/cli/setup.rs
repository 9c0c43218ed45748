//! `setup`: prints the SQL that a DBA runs once; with `--apply` runs it. The only verb that
//! may write to the source.

use super::{Misuse, Outcome, output, settings};
use crate::config::Config;
use crate::conn::{ConnectionUrl, Endpoint, Session};
use crate::pg::{ServerError, Side};
use crate::preflight::{SetupStep, plan_setup};
use anyhow::Context;
use secrecy::SecretString;
use serde_json::json;
use tokio_postgres::Client;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run it, in one transaction on each side.
    #[arg(long)]
    apply: bool,
    /// Who looks and, with --apply, writes on the source; default: [source] url.
    #[arg(
        long,
        value_name = "URL",
        env = "PGLOCKSTEP_SOURCE_ADMIN_URL",
        hide_env_values = true
    )]
    source_admin_url: Option<SecretString>,
    /// Who looks and, with --apply, writes on the replica; default: [replica] url.
    #[arg(
        long,
        value_name = "URL",
        env = "PGLOCKSTEP_REPLICA_ADMIN_URL",
        hide_env_values = true
    )]
    replica_admin_url: Option<SecretString>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let config = settings::pipeline_config(&config)?;
    let source = administrator(&config.source, args.source_admin_url.as_ref())?;
    let replica = administrator(&config.replica, args.replica_admin_url.as_ref())?;
    // Without --apply both sides are guarded by their servers.
    let session = if args.apply {
        Session::Admin
    } else {
        Session::SourceRead
    };
    let source = connect(&source, session).await?;
    let replica = connect(&replica, session).await?;
    let sql = Box::pin(plan_setup(&config, &source, &replica))
        .await
        .context("cannot find out what is missing")?;
    if args.apply {
        apply(Side::Source, &source, &sql.source).await?;
        apply(Side::Replica, &replica, &sql.replica).await?;
    }
    let sides = [
        (Side::Source, config.source.describe(), &sql.source),
        (Side::Replica, config.replica.describe(), &sql.replica),
    ];
    let text = if args.json {
        let side = |steps: &[SetupStep]| json!({ "sql": statements(steps), "notes": notes(steps) });
        serde_json::to_string_pretty(&json!({
            "applied": args.apply,
            "source": side(&sql.source),
            "replica": side(&sql.replica),
        }))?
    } else {
        sides
            .map(|(side, address, steps)| render(side, &address, steps, args.apply))
            .join("\n\n")
    };
    output::line(&text).context("cannot print the SQL")?;
    Ok(Outcome::Fine)
}

fn administrator(endpoint: &Endpoint, url: Option<&SecretString>) -> Result<Endpoint, Misuse> {
    let side = endpoint.side;
    let Some(url) = url else {
        return Ok(endpoint.clone());
    };
    let url = ConnectionUrl::parse(url)
        .map_err(|error| Misuse(format!("--{side}-admin-url cannot be used: {error}")))?;
    Ok(Endpoint {
        url,
        ..endpoint.clone()
    })
}

async fn connect(endpoint: &Endpoint, session: Session) -> anyhow::Result<Client> {
    let side = endpoint.side;
    endpoint.connect(session).await.map_err(|error| {
        let advice = error.advice();
        anyhow::anyhow!("{error}; {advice} (or name an administrator with --{side}-admin-url)")
    })
}

/// Runs a side's statements: all of them or none.
async fn apply(side: Side, client: &Client, steps: &[SetupStep]) -> anyhow::Result<()> {
    let statements = statements(steps);
    if statements.is_empty() {
        return Ok(());
    }
    client
        .batch_execute("BEGIN")
        .await
        .map_err(ServerError::from)
        .with_context(|| format!("cannot begin on the {side}"))?;
    for sql in statements {
        // An error leaves the transaction open; it ends with the session.
        let done = client.batch_execute(sql).await.map_err(ServerError::from);
        done.with_context(|| format!("the {side} refused, and nothing was changed there: {sql}"))?;
    }
    let done = client
        .batch_execute("COMMIT")
        .await
        .map_err(ServerError::from);
    done.with_context(|| format!("cannot commit on the {side}"))
}

fn statements(steps: &[SetupStep]) -> Vec<&str> {
    let run = |step: &'_ SetupStep| matches!(step, SetupStep::Run(_));
    steps.iter().filter(|step| run(step)).map(text).collect()
}

fn notes(steps: &[SetupStep]) -> Vec<&str> {
    let note = |step: &'_ SetupStep| matches!(step, SetupStep::Note(_));
    steps.iter().filter(|step| note(step)).map(text).collect()
}

fn text(step: &SetupStep) -> &str {
    match step {
        SetupStep::Run(text) | SetupStep::Note(text) => text,
    }
}

/// SQL that can be piped into psql: everything that is not a statement is a comment.
fn render(side: Side, address: &str, steps: &[SetupStep], is_applied: bool) -> String {
    let state = match (statements(steps).is_empty(), is_applied) {
        (true, _) => "nothing to do",
        (false, true) => "done",
        (false, false) => "run as an administrator of this database",
    };
    let mut lines = vec![format!("-- {side}: {address}: {state}")];
    for step in steps {
        match step {
            SetupStep::Run(sql) => lines.push(format!("{sql};")),
            SetupStep::Note(note) => lines.extend(note.lines().map(|line| format!("-- {line}"))),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_sql() {
        let steps = [
            SetupStep::Run("CREATE ROLE \"r\" LOGIN".into()),
            SetupStep::Note("in psql:\n\\password \"r\"".into()),
        ];
        assert_eq!(
            render(Side::Source, "h:1/d", &steps, false),
            "-- source: h:1/d: run as an administrator of this database\n\
             CREATE ROLE \"r\" LOGIN;\n-- in psql:\n-- \\password \"r\""
        );
        assert_eq!(
            render(Side::Replica, "h:1/d", &[], true),
            "-- replica: h:1/d: nothing to do"
        );
    }
}
