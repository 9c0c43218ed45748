//! `resync`: has tables copied again, merged into what is there.

use super::{Outcome, output, settings};
use crate::config::Config;
use crate::conn::Session;
use crate::progress::Store;
use anyhow::bail;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Source tables: schema.table.
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<String>,
    /// Leaves rows that only the replica has. A table without a key is put in place whole, and
    /// cannot keep any.
    #[arg(long)]
    keep_extra: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: Config, args: Args) -> anyhow::Result<Outcome> {
    let names = args.tables.iter().map(|table| settings::table_name(table));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let config = settings::pipeline_config(&config)?;
    let replica = config.replica.connect(Session::ReplicaWrite).await;
    let mut replica = replica.map_err(|error| anyhow::anyhow!("{error}; {}", error.advice()))?;
    if !Store::has_books(&replica).await? {
        bail!(
            "the replica has no schema pglockstep with all its tables: no daemon of this version has run yet"
        );
    }
    // All of them or none.
    let transaction = replica.transaction().await?;
    for name in &names {
        if !Store::request_resync(&transaction, &config.name, name, args.keep_extra).await? {
            bail!(
                "the pipeline {} has no whole copy of {name}; nothing was changed",
                config.name
            );
        }
    }
    transaction.commit().await?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    if args.json {
        let said = serde_json::json!({"tables": names, "requested": true});
        output::line(&serde_json::to_string_pretty(&said)?)?;
        return Ok(Outcome::Fine);
    }
    let extra = if args.keep_extra {
        "rows that only the replica has stay"
    } else {
        "rows that only the replica has go"
    };
    output::line(&format!(
        "{} to be copied again, and merged; {extra}: the daemon does it at once, or when it starts",
        names.join(", ")
    ))?;
    Ok(Outcome::Fine)
}
