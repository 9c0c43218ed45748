//! `teardown`: drops the slot and forgets the pipeline, after asking.
//!
//! The slot goes first: interrupted in between, the books still know that there was one, and
//! a second `teardown` does the rest. A slot that the books do not know is left alone.

use super::confirm::confirmed;
use super::{Outcome, output, settings};
use crate::config::Config;
use crate::conn::Session;
use crate::pg::{ServerError, quote_ident, quote_literal};
use crate::pipeline::PipelineConfig;
use crate::progress::{BOOKKEEPING_SCHEMA, BOOKKEEPING_TABLES, Store};
use crate::replication::{ReplicationConnection, ReplicationSlot, SlotName, drop_slot, fetch_slot};
use crate::snapshot::make_left_overs;
use anyhow::{Context, bail};
use tokio_postgres::Client;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// A JSON object.
    #[arg(long)]
    json: bool,
}

/// What came of it, as `--json` prints it.
#[derive(Debug, serde::Serialize)]
struct Report {
    /// A sentence for everything that goes, and for what stays.
    plan: Vec<String>,
    /// The plan was carried out.
    done: bool,
    /// A slot of the configured name that the replica's books do not know.
    left_alone: Option<String>,
}

/// What there is of the pipeline.
struct Remains {
    slot_name: SlotName,
    slot: Option<ReplicationSlot>,
    /// The replica's books say that the slot is this pipeline's.
    is_slot_ours: bool,
    /// The schema is there.
    has_books: bool,
    /// The pipeline has a row in it.
    is_in_books: bool,
    /// Other pipelines that are kept there.
    others: i64,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let config = settings::pipeline_config(&config)?;
    let source = connect(&config.source, Session::SourceRead).await?;
    let replica = connect(&config.replica, Session::ReplicaWrite).await?;
    let remains = look(&config, &source, &replica).await?;
    refuse_if_running(&config, &replica, &remains).await?;
    let say = |text: &str| {
        if args.json {
            Ok(())
        } else {
            output::line(text)
        }
    };
    let foreign_slot = remains.slot.as_ref().filter(|_| !remains.is_slot_ours);
    let mut report = Report {
        plan: describe(&config, &remains),
        done: false,
        left_alone: foreign_slot.map(|slot| slot.name.clone()),
    };
    if report.plan.is_empty() {
        say(&format!("nothing is left of the pipeline {}", config.name))?;
        report.done = true;
    } else {
        say(&report.plan.join("\n"))?;
        if args.yes || confirmed()? {
            carry_out(&config, &replica, &remains).await?;
            report.done = true;
            say("done")?;
        } else {
            say("nothing was changed")?;
        }
    }
    if let (Some(name), true) = (&report.left_alone, report.done) {
        say(&format!(
            "left alone: the source has a slot {name} that this replica's books do not know; if it is a left-over: SELECT pg_drop_replication_slot({literal})",
            literal = quote_literal(name)
        ))?;
    }
    if args.json {
        output::line(&serde_json::to_string_pretty(&report)?)?;
    }
    Ok(if report.done && report.left_alone.is_none() {
        Outcome::Fine
    } else {
        Outcome::Found
    })
}

async fn connect(endpoint: &crate::conn::Endpoint, session: Session) -> anyhow::Result<Client> {
    endpoint
        .connect(session)
        .await
        .map_err(|error| anyhow::anyhow!("{error}; {}", error.advice()))
}

async fn look(
    config: &PipelineConfig,
    source: &Client,
    replica: &Client,
) -> anyhow::Result<Remains> {
    let slot_name: SlotName = config.slot.parse()?;
    let slot = fetch_slot(source, &slot_name).await?;
    let has_books: bool = replica
        .query_one(
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class AS c \
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1::text AND c.relname = 'pipelines')",
            &[&BOOKKEEPING_SCHEMA],
        )
        .await
        .map_err(ServerError::from)
        .context("cannot look for the schema pglockstep on the replica")?
        .get(0);
    let mut remains = Remains {
        slot_name,
        slot,
        is_slot_ours: false,
        has_books,
        is_in_books: false,
        others: 0,
    };
    if has_books {
        let counts = replica
            .query_one(
                "SELECT pg_catalog.count(*) FILTER (WHERE p.name = $1), \
                 pg_catalog.count(*) FILTER (WHERE p.name <> $1) FROM pglockstep.pipelines AS p",
                &[&config.name],
            )
            .await
            .map_err(ServerError::from)
            .context("cannot read the schema pglockstep on the replica")?;
        remains.is_in_books = counts.get::<_, i64>(0) > 0;
        remains.others = counts.get(1);
        let record = Store::fetch_record(replica, &config.name).await?;
        let server = crate::catalog::fetch_server(source).await?;
        remains.is_slot_ours = record.is_some_and(|record| {
            record.identity.slot == config.slot
                && record.identity.system_id == server.system_id
                && record.identity.database_oid == server.database_oid
        });
    }
    Ok(remains)
}

/// A daemon that streams or waits at the door would make everything anew.
async fn refuse_if_running(
    config: &PipelineConfig,
    replica: &Client,
    remains: &Remains,
) -> anyhow::Result<()> {
    if let Some(pid) = remains.slot.as_ref().and_then(|slot| slot.active_pid)
        && remains.is_slot_ours
    {
        bail!(
            "a daemon streams from the slot {} (walsender {pid} of the source): stop it first; nothing was changed",
            remains.slot_name
        );
    }
    if !Store::try_lock(replica, &config.name).await? {
        bail!(
            "a daemon holds the pipeline {} on the replica: stop it first; nothing was changed",
            config.name
        );
    }
    Ok(())
}

/// A line for everything that goes; empty when there is nothing.
fn describe(config: &PipelineConfig, remains: &Remains) -> Vec<String> {
    let mut lines = Vec::new();
    if remains.slot.is_some() && remains.is_slot_ours {
        lines.push(format!(
            "drops the replication slot {} on the source {}",
            remains.slot_name,
            config.source.describe()
        ));
    }
    let replica = config.replica.describe();
    match (remains.has_books, remains.others) {
        (true, 0) => lines.push(format!(
            "drops the schema {BOOKKEEPING_SCHEMA} on the replica {replica} (a role that may not create it needs `pglockstep setup` before it starts again)"
        )),
        (true, others) if remains.is_in_books => lines.push(format!(
            "forgets the pipeline {} in the schema {BOOKKEEPING_SCHEMA} of the replica {replica}, which keeps {others} more",
            config.name
        )),
        _ => {}
    }
    if !lines.is_empty() {
        lines.push(
            "keeps all replicated rows, and publication, roles and grants on both sides".to_owned(),
        );
    }
    lines
}

async fn carry_out(
    config: &PipelineConfig,
    replica: &Client,
    remains: &Remains,
) -> anyhow::Result<()> {
    if remains.slot.is_some() && remains.is_slot_ours {
        let failed = |error: crate::replication::ReplicationError| {
            anyhow::anyhow!("{error}; {}", error.advice())
        };
        let mut connection = ReplicationConnection::connect(&config.source)
            .await
            .map_err(failed)?;
        drop_slot(&mut connection, &remains.slot_name)
            .await
            .map_err(failed)?;
        connection.close().await;
    }
    if remains.has_books {
        if remains.is_in_books && Store::has_books(replica).await? {
            // An interrupted copy may have left indexes in the books alone.
            make_left_overs(replica, &config.name, &[]).await?;
        }
        Store::forget(replica, &config.name).await?;
        if remains.others == 0 {
            drop_books(replica).await?;
        }
    }
    Ok(())
}

/// Drops what the daemon made, table by table: what somebody else put there is a reason to stop.
async fn drop_books(replica: &Client) -> anyhow::Result<()> {
    let schema = quote_ident(BOOKKEEPING_SCHEMA);
    let staging = replica
        .query(
            "SELECT c.relname::text FROM pg_catalog.pg_class AS c \
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1::text AND c.relkind = 'r' AND c.relname LIKE 'staging\\_%'",
            &[&BOOKKEEPING_SCHEMA],
        )
        .await
        .map_err(ServerError::from)
        .context("cannot list the schema pglockstep on the replica")?;
    let mut sql = String::from("BEGIN;");
    let own = BOOKKEEPING_TABLES.map(str::to_owned).into_iter();
    for table in staging.iter().map(|row| row.get::<_, String>(0)).chain(own) {
        sql.push_str(&format!(
            "DROP TABLE IF EXISTS {schema}.{};",
            quote_ident(&table)
        ));
    }
    sql.push_str(&format!("DROP SCHEMA {schema}; COMMIT"));
    replica
        .batch_execute(&sql)
        .await
        .map_err(ServerError::from)
        .context("the pipeline is forgotten, but the replica's schema pglockstep cannot be dropped")
}
