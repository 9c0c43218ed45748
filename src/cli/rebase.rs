//! `rebase`: a new beginning where the history is over, after a look at both sides.
//!
//! The slot is gone, was lost or used by somebody else, or the source is another one than the
//! replica was fed from: restored, upgraded, promoted from a standby that was behind. Nothing
//! can be skipped then, and nothing has to be thrown away either: every table is merged anew.

use super::confirm::confirmed;
use super::{Outcome, human, output, settings};
use crate::catalog::fetch_server;
use crate::config::Config;
use crate::conn::{Endpoint, Session};
use crate::pg::quote_literal;
use crate::pipeline::{
    PipelineConfig, PipelineError, PlannedTable, TablePlan, ask_history, fetch_plan,
    resume_position,
};
use crate::progress::{PipelineIdentity, Store};
use crate::replication::{ReplicationConnection, ReplicationSlot, SlotName, drop_slot, fetch_slot};
use crate::verify::compare_now;
use anyhow::{Context, bail};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ends the old history; the daemon merges every table when it starts next.
    #[arg(long)]
    apply: bool,
    /// Even where the slot and the source are what the replica knows: for a stream that the source
    /// cannot send, or that lacks something.
    #[arg(long)]
    force: bool,
    /// With --apply: do not ask.
    #[arg(long)]
    yes: bool,
    /// Leaves the comparison out, which reads every row of both sides.
    #[arg(long)]
    no_compare: bool,
    /// A JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found and done, as `--json` prints it.
#[derive(Debug, serde::Serialize)]
struct Report {
    /// Why the pipeline cannot go on; `None`: it can.
    over: Option<String>,
    /// Where the replica is in the old history.
    applied_lsn: Option<crate::pg::Lsn>,
    /// Each table, as both sides are now.
    tables: Vec<Compared>,
    /// The old history was ended.
    done: bool,
}

#[derive(Debug, serde::Serialize)]
struct Compared {
    table: String,
    replica_table: String,
    source_rows: u64,
    replica_rows: u64,
    /// All rows, by their hashes.
    same: bool,
}

/// Both sides, looked at.
struct Sides {
    config: PipelineConfig,
    source: Client,
    replica: Client,
    /// The one that the configuration names.
    slot: Option<ReplicationSlot>,
}

/// A daemon that has failed tries again for a moment now and then, and what it had open may
/// linger.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
const LOCK_EVERY: Duration = Duration::from_millis(200);

async fn has_lock(sides: &Sides) -> anyhow::Result<bool> {
    let begun = Instant::now();
    while !Store::try_lock(&sides.replica, &sides.config.name).await? {
        if begun.elapsed() >= LOCK_WITHIN {
            return Ok(false);
        }
        tokio::time::sleep(LOCK_EVERY).await;
    }
    Ok(true)
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let config = settings::pipeline_config(&config)?;
    let slot_name: SlotName = config.slot.parse()?;
    let source = connect(&config.source, Session::SourceRead).await?;
    let replica = connect(&config.replica, Session::ReplicaWrite).await?;
    let slot = fetch_slot(&source, &slot_name).await?;
    let mut sides = Sides {
        config,
        source,
        replica,
        slot,
    };
    if args.apply && !has_lock(&sides).await? {
        bail!(
            "a daemon holds the pipeline {} on the replica: stop it first; nothing was changed",
            sides.config.name
        );
    }
    let (mut report, old_slot) = sides.look(&args).await?;
    let say = |text: &str| {
        if args.json {
            Ok(())
        } else {
            output::line(text)
        }
    };
    say(&render(&report))?;
    if report.over.is_some() && args.apply {
        if args.yes || confirmed()? {
            sides.end_history(old_slot).await?;
            report.done = true;
            say("done: start the daemon; it makes a new slot and merges every table")?;
        } else {
            say("nothing was changed")?;
        }
    }
    if args.json {
        output::line(&serde_json::to_string_pretty(&report)?)?;
    }
    Ok(if report.over.is_none() || report.done {
        Outcome::Fine
    } else {
        Outcome::Found
    })
}

async fn connect(endpoint: &Endpoint, session: Session) -> anyhow::Result<Client> {
    let connected = endpoint.connect(session).await;
    connected.map_err(|error| anyhow::anyhow!("{error}; {}", error.advice()))
}

impl Sides {
    /// With the slot of the old history, where the source still has it.
    async fn look(&self, args: &Args) -> anyhow::Result<(Report, Option<ReplicationSlot>)> {
        let pipeline = &self.config.name;
        if !Store::has_books(&self.replica).await? {
            bail!("the replica has no books of this version: there is no history to end");
        }
        let record = Store::fetch_record(&self.replica, pipeline).await?;
        let record = record.with_context(|| {
            format!("the books know no history of the pipeline {pipeline}: start the daemon, it begins one")
        })?;
        if record.slot_born_at.is_none() {
            bail!("the pipeline {pipeline} has not begun: start the daemon, it goes on");
        }
        let server = fetch_server(&self.source).await?;
        let identity = PipelineIdentity {
            system_id: server.system_id,
            database_oid: server.database_oid,
            slot: self.config.slot.clone(),
        };
        // Only a slot that the books name, on the source that they name, is ours to drop.
        let is_same_source = record.identity.system_id == identity.system_id
            && record.identity.database_oid == identity.database_oid;
        let old_slot = if is_same_source {
            fetch_slot(&self.source, &record.identity.slot.parse()?).await?
        } else {
            None
        };
        if let Some(slot) = &self.slot
            && old_slot.as_ref().is_none_or(|old| old.name != slot.name)
        {
            bail!(
                "the source has a slot {} that this replica knows nothing of: choose another [source] slot, or, if it is a left-over, SELECT pg_drop_replication_slot({}); nothing was changed",
                slot.name,
                quote_literal(&slot.name)
            );
        }
        let mut connection = ReplicationConnection::connect(&self.config.source).await?;
        let history = ask_history(&mut connection, record.timeline).await?;
        connection.close().await;
        let over = match resume_position(&record, &identity, self.slot.as_ref(), Some(history)) {
            Ok(_) if args.force => Some("an operator wants it so (--force)".to_owned()),
            Ok(_) => None,
            Err(PipelineError::Definite { message, .. }) => Some(message),
            Err(error) => return Err(error.into()),
        };
        let mut tables = Vec::new();
        if over.is_some() && !args.no_compare {
            let (publication, rules) = (&self.config.publication, &self.config.mapping);
            let plan = fetch_plan(&self.source, &self.replica, publication, rules).await?;
            for table in plan.tables.values() {
                tables.push(self.compare(&plan, table).await?);
            }
            tables.sort_by(|a, b| a.table.cmp(&b.table));
        }
        let report = Report {
            over,
            applied_lsn: record.applied,
            tables,
            done: false,
        };
        Ok((report, old_slot))
    }

    async fn compare(&self, plan: &TablePlan, table: &PlannedTable) -> anyhow::Result<Compared> {
        let compared = compare_now(&self.source, &self.replica, table, &plan.types).await;
        let compared = compared.with_context(|| format!("cannot compare {}", table.source.name))?;
        Ok(Compared {
            table: compared.table,
            replica_table: compared.replica_table,
            source_rows: compared.source_rows,
            replica_rows: compared.replica_rows,
            same: compared.in_sync,
        })
    }

    /// The slot first: interrupted in between, a second `rebase` finds it gone and goes on.
    async fn end_history(&mut self, old_slot: Option<ReplicationSlot>) -> anyhow::Result<()> {
        if let Some(slot) = old_slot {
            if let Some(pid) = slot.active_pid {
                bail!(
                    "the slot {} is in use (walsender {pid} of the source): by another daemon? Nothing was changed",
                    slot.name
                );
            }
            let mut connection = ReplicationConnection::connect(&self.config.source).await?;
            // The comparison was long: is the pipeline still ours alone?
            let is_ours = self.replica.query_one("SELECT 1", &[]).await;
            is_ours.context("the session that holds the pipeline is lost; nothing was changed")?;
            drop_slot(&mut connection, &slot.name.parse()?).await?;
            connection.close().await;
        }
        let pipeline = self.config.name.clone();
        Store::rebase(&mut self.replica, &pipeline).await?;
        Ok(())
    }
}

fn render(report: &Report) -> String {
    let Some(over) = &report.over else {
        return "the pipeline can go on from where it is: there is nothing to rebase (--force does it all the same)"
            .to_owned();
    };
    let mut lines = vec![format!("the pipeline cannot go on: {over}")];
    if !report.tables.is_empty() {
        let row = |table: &Compared| {
            vec![
                table.table.clone(),
                table.replica_table.clone(),
                table.source_rows.to_string(),
                table.replica_rows.to_string(),
                if table.same { "same" } else { "different" }.to_owned(),
            ]
        };
        let rows: Vec<Vec<String>> = report.tables.iter().map(row).collect();
        let header = ["TABLE", "REPLICA", "SOURCE ROWS", "REPLICA ROWS", "CONTENT"];
        lines.push(human::table(&header, &rows));
        lines.push("as both sides are now; a source in use is ahead".to_owned());
    }
    lines.push(
        "with --apply: drops the slot if it is there, and has every table merged under a new one; \
         rows that only the replica has go, readers see rows all the while"
            .to_owned(),
    );
    lines.join("\n")
}
