//! The replica's part of the set-up.

use super::{SetupStep, SourceTable, fetch_lacks, fetch_role, role_steps};
use crate::catalog::{fetch_server, fetch_tables};
use crate::pg::{QualifiedName, quote_ident};
use crate::pipeline::PipelineConfig;
use crate::preflight::CheckError;
use crate::preflight::query::rows;
use crate::progress::{BOOKKEEPING_SCHEMA, BOOKKEEPING_TABLES, LAST_ADDITION, bookkeeping_sql};
use std::collections::BTreeSet;
use tokio_postgres::Client;

const PRIVILEGES: [&str; 5] = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];
/// The first version that lets others than superusers set it.
const SET_PARAMETER_SINCE: u32 = 15;

pub(super) async fn plan(
    config: &PipelineConfig,
    client: &Client,
    tables: &[SourceTable],
) -> Result<Vec<SetupStep>, CheckError> {
    let role_name = config.replica.url.user();
    let role = fetch_role(client, role_name).await?;
    let is_superuser = role.as_ref().is_some_and(|role| role.is_superuser);
    let wanted: BTreeSet<QualifiedName> = tables.iter().map(|t| t.replica.clone()).collect();
    let wanted: Vec<QualifiedName> = wanted.into_iter().collect();
    let there = fetch_tables(client, &wanted).await?;
    let mut steps = Vec::new();
    role_steps(role_name, role.as_ref(), false, &mut steps);
    for name in wanted
        .iter()
        .filter(|name| there.iter().all(|t| t.name != **name))
    {
        steps.push(SetupStep::Note(format!(
            "the replica has no table {name}: create it, then run `pglockstep setup` again for its grants"
        )));
    }
    let lacks = fetch_lacks(client, role_name, &wanted, &PRIVILEGES).await?;
    lacks.steps(
        config.replica.url.database(),
        role_name,
        role.as_ref(),
        &mut steps,
    );
    let to = quote_ident(role_name);
    let oids: Vec<u32> = there.iter().map(|t| t.oid).collect();
    for sequence in fetch_closed_sequences(client, role_name, &oids).await? {
        steps.push(SetupStep::Run(format!(
            "GRANT USAGE, SELECT ON SEQUENCE {} TO {to}",
            sequence.quoted()
        )));
    }
    let major = fetch_server(client).await?.major();
    if !is_superuser {
        steps.extend(replica_role_step(client, role_name, major).await?);
    }
    if !are_books_open(client, role_name).await? {
        steps.push(SetupStep::Run(
            bookkeeping_sql(Some(role_name))
                .trim()
                .trim_end_matches(';')
                .to_owned(),
        ));
    }
    Ok(steps)
}

/// Sequences behind defaults of the tables' own columns, which the role may not use.
async fn fetch_closed_sequences(
    client: &Client,
    role: &str,
    tables: &[u32],
) -> Result<Vec<QualifiedName>, CheckError> {
    let sql = "SELECT n.nspname::pg_catalog.text, s.relname::pg_catalog.text \
        FROM pg_catalog.pg_depend AS d \
        JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S' \
        JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace \
        LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = $1::text \
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'a' \
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = ANY ($2) \
          AND NOT COALESCE(pg_catalog.has_sequence_privilege(r.oid, s.oid, 'USAGE') \
            AND pg_catalog.has_sequence_privilege(r.oid, s.oid, 'SELECT'), false) \
        ORDER BY 1, 2";
    let found = rows(client, "sequences", sql, &[&role, &tables]).await?;
    let name = |row: &tokio_postgres::Row| {
        QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))
    };
    Ok(found.iter().map(name).collect())
}

async fn replica_role_step(
    client: &Client,
    role: &str,
    major: u32,
) -> Result<Option<SetupStep>, CheckError> {
    let to = quote_ident(role);
    if major < SET_PARAMETER_SINCE {
        return Ok(Some(SetupStep::Note(
            "before PostgreSQL 15 only a superuser may set session_replication_role: triggers and foreign keys of the replica act on replicated changes".to_owned(),
        )));
    }
    let sql = "SELECT 1 FROM pg_catalog.pg_roles AS r WHERE r.rolname = $1::text \
        AND pg_catalog.has_parameter_privilege(r.oid, 'session_replication_role', 'SET')";
    let may_set = rows(client, "privileges on settings", sql, &[&role]).await?;
    let grant = format!("GRANT SET ON PARAMETER session_replication_role TO {to}");
    Ok(may_set.is_empty().then_some(SetupStep::Run(grant)))
}

/// Whether the books are there and the role may use them, and bring them up where an older
/// version has made them.
async fn are_books_open(client: &Client, role: &str) -> Result<bool, CheckError> {
    let sql = "SELECT pg_catalog.count(*) = pg_catalog.cardinality($3::pg_catalog.text[]) AND EXISTS ( \
            SELECT 1 FROM pg_catalog.pg_attribute AS a \
            WHERE a.attname = $5::text AND a.attrelid = ANY (pg_catalog.array_agg(c.oid) \
              FILTER (WHERE c.relname = $4::text))), \
          pg_catalog.bool_and(pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')), \
          pg_catalog.bool_and(pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE') \
            AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE') \
            AND pg_catalog.has_table_privilege(r.oid, c.oid, 'SELECT') \
            AND pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT') \
            AND pg_catalog.has_table_privilege(r.oid, c.oid, 'UPDATE') \
            AND pg_catalog.has_table_privilege(r.oid, c.oid, 'DELETE')) \
        FROM pg_catalog.pg_class AS c \
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
        JOIN pg_catalog.pg_roles AS r ON r.rolname = $1::text \
        WHERE n.nspname = $2::text AND c.relname = ANY ($3::pg_catalog.text[])";
    let tables = BOOKKEEPING_TABLES.as_slice();
    let (newest, column) = LAST_ADDITION;
    let found = rows(
        client,
        "the schema pglockstep",
        sql,
        &[&role, &BOOKKEEPING_SCHEMA, &tables, &newest, &column],
    )
    .await?;
    Ok(found.first().is_some_and(|row| {
        let is = |at| row.get::<_, Option<bool>>(at).unwrap_or_default();
        let (are_whole, are_own, are_open) = (is(0), is(1), is(2));
        are_open && (are_whole || are_own)
    }))
}
