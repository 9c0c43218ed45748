//! The source's part of the set-up.

use super::{
    SetupStep, SourceTable, create_publication_sql, fetch_lacks, fetch_role, fetch_source_tables,
    identity_sql, partition_identity_sql, partitions_without_identity, quoted_list, role_steps,
};
use crate::catalog::{TableKind, fetch_tables};
use crate::pg::{QualifiedName, quote_ident};
use crate::pipeline::PipelineConfig;
use crate::preflight::CheckError;
use crate::preflight::query::rows;
use crate::replication::{Publication, fetch_publication};
use tokio_postgres::Client;

/// The steps, and the tables that take part.
pub(super) async fn plan(
    config: &PipelineConfig,
    client: &Client,
) -> Result<(Vec<SetupStep>, Vec<SourceTable>), CheckError> {
    let role_name = config.source.url.user();
    let role = fetch_role(client, role_name).await?;
    let publication = fetch_publication(client, &config.publication).await?;
    let members = fetch_members(client, &config.publication).await?;
    let mut tables = fetch_source_tables(client, &config.mapping).await?;
    if publication.is_some() {
        // Which tables a publication has is its owner's choice; what a rule names must be there.
        tables.retain(|table| table.is_named || members.contains(&table.name));
    }
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.name.clone()).collect();

    let mut steps = Vec::new();
    role_steps(role_name, role.as_ref(), true, &mut steps);
    let lacks = fetch_lacks(client, role_name, &names, &["SELECT"]).await?;
    let database = config.source.url.database();
    lacks.steps(database, role_name, role.as_ref(), &mut steps);
    let described = fetch_tables(client, &names).await?;
    for table in &described {
        if table.identity_columns().is_empty() && table.columns.iter().any(|c| !c.is_generated) {
            steps.push(SetupStep::Run(identity_sql(table)));
        }
    }
    let roots: Vec<u32> = described
        .iter()
        .filter(|table| table.kind == TableKind::Partitioned)
        .map(|table| table.oid)
        .collect();
    for partition in partitions_without_identity(client, &roots).await? {
        steps.push(SetupStep::Run(partition_identity_sql(&partition)));
    }
    publication_steps(config, publication.as_ref(), &members, &tables, &mut steps);
    let rules = config.mapping.rules.iter();
    for rule in rules.filter(|rule| rule.source.is_exact()) {
        let name = QualifiedName::new(&rule.source.schema, &rule.source.table);
        if !names.contains(&name) {
            steps.push(SetupStep::Note(format!(
                "a rule names {name}, which is no table of the source that can be published"
            )));
        }
    }
    Ok((steps, tables))
}

fn publication_steps(
    config: &PipelineConfig,
    publication: Option<&Publication>,
    members: &[QualifiedName],
    tables: &[SourceTable],
    steps: &mut Vec<SetupStep>,
) {
    let name = quote_ident(&config.publication);
    let Some(publication) = publication else {
        steps.push(if tables.is_empty() {
            SetupStep::Note(
                "no table of the source goes with the rules in [[tables]]: nothing to publish"
                    .to_owned(),
            )
        } else {
            SetupStep::Run(create_publication_sql(&config.publication, tables))
        });
        return;
    };
    let missing: Vec<&SourceTable> = tables
        .iter()
        .filter(|table| !publication.all_tables && !members.contains(&table.name))
        .collect();
    if !missing.is_empty() {
        steps.push(SetupStep::Run(format!(
            "ALTER PUBLICATION {name} ADD TABLE {}",
            quoted_list(missing.iter().map(|table| &table.name))
        )));
    }
    let publishes_all =
        publication.insert && publication.update && publication.delete && publication.truncate;
    if !publishes_all {
        steps.push(SetupStep::Run(format!(
            "ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        )));
    }
    let has_root = tables.iter().any(|t| t.is_partitioned && t.is_named);
    if has_root && !publication.via_root {
        steps.push(SetupStep::Run(format!(
            "ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"
        )));
    }
}

/// Tables of a publication: those that were added, and those that are sent.
async fn fetch_members(client: &Client, name: &str) -> Result<Vec<QualifiedName>, CheckError> {
    let sql = "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text \
        FROM pg_catalog.pg_publication AS p \
        JOIN pg_catalog.pg_publication_rel AS m ON m.prpubid = p.oid \
        JOIN pg_catalog.pg_class AS c ON c.oid = m.prrelid \
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE p.pubname = $1::text \
        UNION SELECT t.schemaname::pg_catalog.text, t.tablename::pg_catalog.text \
        FROM pg_catalog.pg_publication_tables AS t WHERE t.pubname = $1::text";
    let found = rows(client, "the publication", sql, &[&name]).await?;
    let member = |row: &tokio_postgres::Row| {
        QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))
    };
    Ok(found.iter().map(member).collect())
}
