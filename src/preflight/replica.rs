//! The replica's server, role and bookkeeping schema.

use super::finding::Findings;
use super::query::rows;
use super::{CheckError, Reached};
use crate::apply::take_replica_role;
use crate::pg::quote_ident;
use crate::pipeline::PipelineConfig;
use crate::progress::{BOOKKEEPING_SCHEMA, BOOKKEEPING_TABLES, LAST_ADDITION};
use tokio_postgres::Client;

/// What there is of the bookkeeping schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Books {
    /// Its tables are there and open.
    Readable,
    /// They are not there.
    Missing,
    /// They are there, and the role may not read them, or an older version has made them.
    Closed,
}

pub(super) fn check_server(config: &PipelineConfig, replica: &Reached, findings: &mut Findings) {
    if replica.server.in_recovery {
        findings.error(
            "replica.recovery",
            config.replica.describe(),
            "the replica is a standby and cannot be written",
            "connect to its primary: list all hosts in [replica] url, with target_session_attrs=read-write",
        );
    }
}

const BOOKS: &str = "
SELECT n.oid IS NOT NULL,
       n.oid IS NOT NULL AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                         AND pg_catalog.has_schema_privilege(n.oid, 'CREATE'),
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
       c.found, c.open, c.own,
       c.found = pg_catalog.cardinality($2::pg_catalog.text[]) AND EXISTS (
         SELECT 1 FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS t ON t.oid = a.attrelid
         WHERE t.relnamespace = n.oid AND t.relname = $3::text AND a.attname = $4::text)
FROM (SELECT 1) AS one LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = $1::text
CROSS JOIN LATERAL (
  SELECT pg_catalog.count(*) AS found,
         pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_has_role(c.relowner, 'USAGE')) AS own,
         pg_catalog.count(*) FILTER (WHERE pg_catalog.has_table_privilege(c.oid, 'SELECT')
           AND pg_catalog.has_table_privilege(c.oid, 'INSERT')
           AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')
           AND pg_catalog.has_table_privilege(c.oid, 'DELETE')) AS open
  FROM pg_catalog.pg_class AS c
  WHERE c.relnamespace = n.oid AND c.relname = ANY ($2::pg_catalog.text[])) AS c";

/// The bookkeeping schema: there, or may it be made?
pub(super) async fn check_books(
    replica: &Reached,
    findings: &mut Findings,
) -> Result<Books, CheckError> {
    let tables = BOOKKEEPING_TABLES.as_slice();
    let (newest, column) = LAST_ADDITION;
    let found = rows(
        &replica.client,
        "the schema pglockstep",
        BOOKS,
        &[&BOOKKEEPING_SCHEMA, &tables, &newest, &column],
    )
    .await?;
    let Some(row) = found.first() else {
        return Ok(Books::Missing);
    };
    let (has_schema, may_use, may_make) = (
        row.get::<_, bool>(0),
        row.get::<_, bool>(1),
        row.get::<_, bool>(2),
    );
    let (found, open, own): (i64, i64, i64) = (row.get(3), row.get(4), row.get(5));
    let (are_whole, are_own) = (row.get::<_, bool>(6), found == own);
    let role = quote_ident(&replica.server.role);
    let schema = quote_ident(BOOKKEEPING_SCHEMA);
    if found > 0 && !are_whole && !are_own {
        findings.error(
            "replica.bookkeeping",
            BOOKKEEPING_SCHEMA,
            format!(
                "an older version has made the tables in the schema {BOOKKEEPING_SCHEMA}, and the replica's role {role} does not own them all: it may not bring them up"
            ),
            "run the SQL that `pglockstep setup` prints",
        );
    } else if open < found || (has_schema && !may_use) {
        findings.error(
            "replica.bookkeeping",
            BOOKKEEPING_SCHEMA,
            format!("the replica's role {role} may not use the schema {BOOKKEEPING_SCHEMA}"),
            format!(
                "GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
            ),
        );
    } else if !has_schema && !may_make {
        findings.error(
            "replica.bookkeeping",
            BOOKKEEPING_SCHEMA,
            format!(
                "the replica has no schema {BOOKKEEPING_SCHEMA}, and its role {role} may not create it"
            ),
            format!("CREATE SCHEMA {schema} AUTHORIZATION {role} (`pglockstep setup` prints all of it)"),
        );
    } else if found > 0 && !are_whole {
        findings.info(
            "replica.bookkeeping",
            BOOKKEEPING_SCHEMA,
            format!(
                "an older version has made the tables in the schema {BOOKKEEPING_SCHEMA}: the next start brings them up"
            ),
            "",
        );
    } else if found > 0 {
        return Ok(Books::Readable);
    }
    Ok(if found > 0 {
        Books::Closed
    } else {
        Books::Missing
    })
}

/// Whether triggers and foreign keys will keep still; where not, that is a finding.
pub(super) async fn check_role(
    replica: &Reached,
    findings: &mut Findings,
) -> Result<bool, CheckError> {
    let client = &replica.client;
    if take_replica_role(client).await? {
        reset(client).await?;
        return Ok(true);
    }
    let role = quote_ident(&replica.server.role);
    let remedy = if replica.server.major() >= 15 {
        format!("GRANT SET ON PARAMETER session_replication_role TO {role}")
    } else {
        "before PostgreSQL 15 only a superuser may: use one, or make foreign keys DEFERRABLE and triggers not fire".to_owned()
    };
    findings.warning(
        "replica.session_replication_role",
        &replica.server.role,
        "the replica's role may not set session_replication_role: triggers and foreign keys act on replicated changes",
        remedy,
    );
    Ok(false)
}

async fn reset(client: &Client) -> Result<(), CheckError> {
    let done = client.batch_execute("RESET session_replication_role").await;
    done.map_err(|error| CheckError::Query {
        what: "session_replication_role",
        source: error.into(),
    })
}
