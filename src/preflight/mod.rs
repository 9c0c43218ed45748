//! Checks that yield findings with remedies, and the SQL a DBA runs once.
//!
//! ```text
//!  source  ─ reachable? ─▶ server, role, room ─▶ publication ─┐
//!                                                             ├─▶ mapping ─▶ tables, slot
//!  replica ─ reachable? ─▶ server, role, books ───────────────┘
//! ```
//!
//! A check returns findings; an error means that it could not run. Both sessions are
//! read-only, enforced by the servers. Queries are set-based: one for each kind of check,
//! not one for each table.

mod finding;
mod identity;
mod mapping;
mod publication;
mod query;
mod replica;
mod replica_tables;
mod rows;
mod setup;
mod slot;
mod source;
mod source_tables;
mod version;

pub(crate) use finding::Findings;
pub use finding::{Finding, Severity};
pub(crate) use query::{index_columns, rows};
pub use setup::{SetupSql, SetupStep, plan_setup};

use crate::apply::ApplyError;
use crate::catalog::{CatalogError, Server, fetch_server};
use crate::conn::{ConnError, Endpoint, Session};
use crate::pg::ServerError;
use crate::pipeline::{PipelineConfig, PipelineError, PlannedTable, TablePlan, survey_tables};
use crate::progress::ProgressError;
use crate::replication::{Publication, ReplicationError, SlotNameError};
use tokio_postgres::Client;

/// A check could not run.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A catalogue could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// No session.
    #[error(transparent)]
    Conn(#[from] ConnError),
    /// A query of a check failed.
    #[error("cannot look at {what}")]
    Query {
        /// What was being looked at.
        what: &'static str,
        /// The server's or the connection's error.
        #[source]
        source: ServerError,
    },
    /// Publication or slot could not be read.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The slot's name is none.
    #[error(transparent)]
    SlotName(#[from] SlotNameError),
    /// The bookkeeping could not be read.
    #[error(transparent)]
    Progress(#[from] ProgressError),
    /// The tables could not be surveyed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A setting was refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// One side that answered, with who it is.
struct Reached {
    client: Client,
    server: Server,
}

/// Both sides, and all that is known of the tables.
struct Survey<'a> {
    config: &'a PipelineConfig,
    source: &'a Reached,
    replica: &'a Reached,
    publication: &'a Publication,
    plan: &'a TablePlan,
    /// By the source table's name.
    tables: Vec<&'a PlannedTable>,
}

/// Looks at everything that a start needs, and changes nothing.
///
/// # Errors
/// When a check could not run; a server that cannot be reached is a finding.
pub async fn check(config: &PipelineConfig) -> Result<Vec<Finding>, CheckError> {
    let mut findings = Findings::default();
    let source = reach(&config.source, &mut findings).await?;
    let replica = reach(&config.replica, &mut findings).await?;
    if let (Some(source), Some(replica)) = (&source, &replica)
        && source.server.is_same_database(&replica.server)
    {
        findings.error(
            "replica.is_source",
            config.replica.describe(),
            format!(
                "source and replica are one and the same database ({} on system {})",
                source.server.database, source.server.system_id
            ),
            "point [replica] url at the database that is to be kept in step",
        );
        return Ok(findings.into_vec());
    }
    let mut publication = None;
    if let Some(source) = &source {
        source::check(config, source, &mut findings).await?;
        publication = publication::check(config, source, &mut findings).await?;
    }
    let mut books = replica::Books::Missing;
    let mut is_quiet = true;
    if let Some(replica) = &replica {
        replica::check_server(config, replica, &mut findings);
        books = replica::check_books(replica, &mut findings).await?;
        is_quiet = replica::check_role(replica, &mut findings).await?;
    }
    if let (Some(source), Some(replica)) = (&source, &replica) {
        slot::check(config, source, replica, books, &mut findings).await?;
        if let Some(publication) = &publication {
            let (plan, problems) = survey_tables(
                &source.client,
                &replica.client,
                &config.publication,
                &config.mapping,
            )
            .await?;
            let mut tables: Vec<&PlannedTable> = plan.tables.values().collect();
            tables.sort_by(|a, b| a.source.name.cmp(&b.source.name));
            let survey = Survey {
                config,
                source,
                replica,
                publication,
                plan: &plan,
                tables,
            };
            mapping::check(&survey, problems, &mut findings).await?;
            source_tables::check(&survey, &mut findings).await?;
            replica_tables::check(&survey, books, is_quiet, &mut findings).await?;
            rows::check(&survey, books, &mut findings).await?;
        }
    }
    Ok(findings.into_vec())
}

/// Connects, read-only; `None` when that is a finding already.
async fn reach(
    endpoint: &Endpoint,
    findings: &mut Findings,
) -> Result<Option<Reached>, CheckError> {
    let side = endpoint.side;
    let connected = async {
        let client = endpoint.connect(Session::SourceRead).await?;
        let second = endpoint.connect(Session::SourceRead).await?;
        endpoint.refuse_pooler(&client, &second).await?;
        Ok::<_, ConnError>(client)
    };
    let client = match connected.await {
        Ok(client) => client,
        Err(error) => {
            let (message, remedy) = (error.to_string(), error.advice());
            let check = format!("{side}.reachable");
            findings.error(check, endpoint.describe(), message, remedy);
            return Ok(None);
        }
    };
    let server = fetch_server(&client).await?;
    version::check(endpoint, server.version_num, findings);
    let is_known = server.major() >= version::MAJOR_MIN;
    Ok(is_known.then_some(Reached { client, server }))
}
