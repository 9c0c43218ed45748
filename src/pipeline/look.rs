//! Looks at both sides before anything is changed on either: what would stop the pipeline in the
//! middle, or let the replica drift unseen, is said now, with its remedy.

use super::lacks::{replica_lacks, source_lacks};
use super::tables::{PlanProblem, PlannedTable, TablePlan, relation_of};
use super::{PipelineConfig, PipelineError};
use crate::apply::try_statements;
use crate::catalog::{Server, Table, fetch_tables};
use crate::conn::Session;
use crate::pg::{QualifiedName, RelationId, quote_ident};
use crate::replication::{Publication, PublishedTable, fetch_publication, fetch_published_tables};
use crate::snapshot::{CopyTable, enter_snapshot};
use std::collections::HashMap;
use tokio_postgres::Client;

/// The first version whose slots can be kept on standbys.
const FAILOVER_SINCE: u32 = 170_000;
pub(super) fn check_servers(
    source: &Server,
    replica: &Server,
    config: &PipelineConfig,
) -> Result<(), PipelineError> {
    if source.is_same_database(replica) {
        return Err(PipelineError::Definite {
            message: format!(
                "source and replica are one and the same database ({} on system {})",
                source.database, source.system_id
            ),
            advice: "point [replica] url at the database that is to be kept in step".into(),
        });
    }
    if source.in_recovery {
        return Err(PipelineError::Waiting(format!(
            "the source {} is a standby; waiting for the primary",
            config.source.describe()
        )));
    }
    if source.wal_level != "logical" {
        return Err(PipelineError::Definite {
            message: format!(
                "the source's wal_level is {}, not logical",
                source.wal_level
            ),
            advice: "ALTER SYSTEM SET wal_level = 'logical', then restart the source server".into(),
        });
    }
    if config.failover && source.version_num < FAILOVER_SINCE {
        return Err(PipelineError::Definite {
            message: "[source] failover = true, and the source is older than PostgreSQL 17".into(),
            advice: "leave failover out, or upgrade the source".into(),
        });
    }
    if !source.may_replicate {
        return Err(PipelineError::Lacking {
            messages: vec![format!(
                "the source's role {} may not replicate",
                source.role
            )],
            advice: format!(
                "ALTER ROLE {} REPLICATION (on managed services: grant the provider's replication role)",
                quote_ident(&source.role)
            ),
        });
    }
    Ok(())
}

pub(super) async fn check_publication(source: &Client, name: &str) -> Result<(), PipelineError> {
    let Some(publication) = fetch_publication(source, name).await? else {
        return Err(no_publication(name));
    };
    match partial_publication(&publication) {
        None => Ok(()),
        Some(PlanProblem {
            message, remedy, ..
        }) => Err(PipelineError::Narrowed {
            message,
            advice: format!("{remedy}; all tables are then merged anew, for what was left out"),
        }),
    }
}

/// A publication that does not let every kind of change through.
#[must_use]
pub fn partial_publication(publication: &Publication) -> Option<PlanProblem> {
    let (name, left_out) = (&publication.name, publication.left_out());
    let message = || {
        format!(
            "the publication {name} leaves out {}: the replica would drift, and nothing would say so",
            left_out.join(", ")
        )
    };
    let remedy = || {
        format!(
            "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
            quote_ident(name)
        )
    };
    (!left_out.is_empty()).then(|| PlanProblem::new(name, message(), remedy()))
}

fn no_publication(name: &str) -> PipelineError {
    PipelineError::Definite {
        message: format!("the source has no publication {name}"),
        advice: format!(
            "as the tables' owner: CREATE PUBLICATION {} FOR TABLE …; `pglockstep setup` prints it in full",
            quote_ident(name)
        ),
    }
}

/// Has both servers look at every expression, filter and cast before anything is changed.
pub(super) async fn check_mappings(
    source: &Client,
    replica: &Client,
    plan: &TablePlan,
) -> Result<(), PipelineError> {
    let unusual = plan.tables.values().filter(|t| !t.mapping.is_plain());
    for table in unusual {
        table.try_select(source, &plan.types).await?;
        try_statements(replica, &table.mapping)
            .await
            .map_err(PipelineError::Prepare)?;
    }
    Ok(())
}

/// What a role may not do is said now, and not in the middle of the copy.
pub(super) async fn check_privileges(
    (source, source_server): (&Client, &Server),
    (replica, replica_server): (&Client, &Server),
    plan: &TablePlan,
) -> Result<(), PipelineError> {
    let tables: Vec<&PlannedTable> = plan.tables.values().collect();
    let (mut lacks, of_replica) = tokio::try_join!(
        source_lacks(source, &source_server.role, &tables),
        replica_lacks(replica, &replica_server.role, &tables),
    )?;
    lacks.extend(of_replica);
    if lacks.is_empty() {
        return Ok(());
    }
    let (messages, remedies): (Vec<String>, Vec<String>) = lacks
        .into_iter()
        .map(|lack| (lack.problem.message, lack.problem.remedy))
        .unzip();
    Err(PipelineError::Lacking {
        messages,
        advice: remedies.join("; "),
    })
}

/// The slot may have waited for transactions that changed a table's form since it was read;
/// what they wrote is in the snapshot and will not be in the stream.
pub(super) async fn check_forms(
    config: &PipelineConfig,
    tables: &[CopyTable],
    snapshot: &str,
) -> Result<(), PipelineError> {
    let session = config.source.connect(Session::SourceRead).await?;
    enter_snapshot(&session, snapshot).await?;
    let published = fetch_published_tables(&session, &config.publication).await?;
    let names: Vec<QualifiedName> = published.iter().map(|p| p.name.clone()).collect();
    let now = fetch_tables(&session, &names).await?;
    // By their numbers: there may be thousands.
    let published: HashMap<RelationId, &PublishedTable> =
        published.iter().map(|p| (p.oid, p)).collect();
    let now: HashMap<RelationId, &Table> = now.iter().map(|t| (t.oid, t)).collect();
    for table in tables {
        let relation = &table.mapping.relation;
        let form = published.get(&relation.id).and_then(|p| {
            let found = now.get(&relation.id)?;
            Some((relation_of(found, p.columns.as_deref()), &p.row_filter))
        });
        if form.is_none_or(|(now, filter)| now != *relation || *filter != table.row_filter) {
            return Err(PipelineError::Waiting(format!(
                "{} has changed its form while the slot was made: looking again",
                relation.name
            )));
        }
    }
    Ok(())
}
