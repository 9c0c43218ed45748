//! The source's tables: may they be read, and what do they log of old rows?

use super::finding::Findings;
use super::identity::{identity_sql, partition_identity_sql};
use super::query::{closed_schemas, hidden_by_row_security, partitions_without_identity, rows};
use super::{CheckError, Survey};
use crate::catalog::TableKind;
use crate::mapping::RowIdentity;
use crate::pg::{ReplicaIdentity, quote_ident};
use crate::pipeline::PlannedTable;
use std::collections::BTreeMap;

pub(super) async fn check(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    let client = &survey.source.client;
    let role = &survey.source.server.role;
    let oids: Vec<u32> = survey.tables.iter().map(|t| t.source.oid).collect();
    for schema in closed_schemas(client, &oids).await? {
        findings.error(
            "source.privileges",
            &schema,
            format!("the source's role {role} may not use the schema {schema}"),
            format!(
                "GRANT USAGE ON SCHEMA {} TO {}",
                quote_ident(&schema),
                quote_ident(role)
            ),
        );
    }
    let unreadable = fetch_unreadable(survey).await?;
    let hidden = hidden_by_row_security(client, &oids).await?;
    for table in &survey.tables {
        let name = &table.source.name;
        if let Some(columns) = unreadable.get(&table.source.oid) {
            findings.error(
                "source.privileges",
                name,
                format!(
                    "the source's role {role} may not SELECT from {name} ({})",
                    columns.join(", ")
                ),
                format!(
                    "GRANT SELECT ON TABLE {} TO {}",
                    name.quoted(),
                    quote_ident(role)
                ),
            );
        }
        if hidden.contains(&table.source.oid) {
            findings.error(
                "source.row_security",
                name,
                format!("row security of {name} hides rows from the source's role {role}"),
                format!("ALTER ROLE {} BYPASSRLS", quote_ident(role)),
            );
        }
        check_identity(survey, table, findings);
    }
    check_partitions(survey, findings).await
}

async fn check_partitions(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    if !survey.publication.update && !survey.publication.delete {
        return Ok(());
    }
    let is_root = |table: &&&PlannedTable| table.source.kind == TableKind::Partitioned;
    let roots = survey.tables.iter().filter(is_root);
    let roots: Vec<u32> = roots.map(|table| table.source.oid).collect();
    for name in partitions_without_identity(&survey.source.client, &roots).await? {
        findings.warning(
            "source.replica_identity",
            &name,
            format!(
                "the partition {name} logs nothing of old rows: the SOURCE will refuse UPDATE and DELETE on it while it is published"
            ),
            partition_identity_sql(&name),
        );
    }
    Ok(())
}

/// Columns that the copy reads and the role may not, by table.
async fn fetch_unreadable(survey: &Survey<'_>) -> Result<BTreeMap<u32, Vec<String>>, CheckError> {
    let sql = "SELECT w.oid, pg_catalog.array_agg(w.name ORDER BY w.name) \
        FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.text[])) \
          AS w(oid, name) \
        WHERE NOT pg_catalog.has_column_privilege(w.oid, w.name, 'SELECT') GROUP BY w.oid";
    let (mut oids, mut names) = (Vec::new(), Vec::new());
    for table in &survey.tables {
        let read = table.mapping.inputs.iter().map(|i| i.name.as_str());
        // Large tables are read by ranges of ctid, which has a privilege of its own.
        let ctid = (table.source.kind == TableKind::Ordinary).then_some("ctid");
        for name in read.chain(ctid) {
            oids.push(table.source.oid);
            names.push(name);
        }
    }
    let found = rows(
        &survey.source.client,
        "privileges on tables",
        sql,
        &[&oids, &names],
    )
    .await?;
    Ok(found.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn check_identity(survey: &Survey<'_>, table: &PlannedTable, findings: &mut Findings) {
    let source = &table.source;
    let name = &source.name;
    let is_full = source.replica_identity == ReplicaIdentity::Full;
    if is_full {
        let found_by = match table.mapping.identity {
            RowIdentity::Key(_) => "its key",
            RowIdentity::FullRow | RowIdentity::InsertsOnly => "the whole row",
        };
        findings.info(
            "source.replica_identity",
            name,
            format!(
                "{name} has REPLICA IDENTITY FULL: updates and deletes log the whole old row; on the replica a row is found by {found_by}"
            ),
            "",
        );
    } else if source.identity_columns().is_empty()
        && (survey.publication.update || survey.publication.delete)
    {
        findings.warning(
            "source.replica_identity",
            name,
            format!(
                "{name} logs nothing of old rows: inserts only; the SOURCE will refuse UPDATE and DELETE on it while it is published"
            ),
            identity_sql(source),
        );
    }
}
