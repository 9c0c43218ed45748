//! Replica tables that hold rows before their first copy, and what the rules say of it.

use super::finding::Findings;
use super::query::rows;
use super::replica::Books;
use super::{CheckError, Survey};
use crate::catalog::fetch_hidden_by_row_security;
use crate::mapping::{ExistingRows, RowIdentity};
use crate::pipeline::PlannedTable;
use crate::progress::{Store, TableState};
use std::collections::BTreeSet;

/// Tables looked into by one query.
const TABLES_MAX: usize = 500;

pub(super) async fn check(
    survey: &Survey<'_>,
    books: Books,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let known = match books {
        Books::Readable => Store::fetch_tables(&survey.replica.client, &survey.config.name).await?,
        Books::Missing => Vec::new(),
        Books::Closed => return Ok(()),
    };
    // What an interrupted copy of ours left is not the operator's.
    let is_ours = |table: &PlannedTable| {
        known.iter().any(|record| {
            record.source == table.source.name
                && matches!(
                    record.state,
                    TableState::Copied { .. } | TableState::Copying
                )
        })
    };
    let asks = |table: &&&PlannedTable| {
        table.resolved.rule.existing_rows != ExistingRows::Truncate && !is_ours(table)
    };
    let new: Vec<&PlannedTable> = survey.tables.iter().filter(asks).copied().collect();
    let filled = fetch_filled(survey, &new).await?;
    for table in new.iter().filter(|t| filled.contains(&t.replica.oid)) {
        let name = &table.replica.name;
        match table.resolved.rule.existing_rows {
            ExistingRows::Refuse => findings.error(
                "replica.existing_rows",
                name,
                format!("{name} already holds rows before its first copy"),
                format!(
                    "in the rule of {} set existing_rows = \"merge\" or \"truncate\"; or empty it: TRUNCATE {}",
                    table.source.name,
                    name.quoted()
                ),
            ),
            ExistingRows::Merge if !matches!(table.mapping.identity, RowIdentity::Key(_)) => {
                findings.error(
                    "replica.existing_rows",
                    name,
                    format!("{name} already holds rows and has no key to merge by"),
                    format!(
                        "in the rule of {} name a `key`, or set existing_rows = \"truncate\"",
                        table.source.name
                    ),
                );
            }
            ExistingRows::Merge | ExistingRows::Truncate => {}
        }
    }
    Ok(())
}

/// Which of these tables hold rows; those that the role may not look into are passed over,
/// since that is a finding already.
async fn fetch_filled(
    survey: &Survey<'_>,
    tables: &[&PlannedTable],
) -> Result<BTreeSet<u32>, CheckError> {
    let client = &survey.replica.client;
    let oids: Vec<u32> = tables.iter().map(|t| t.replica.oid).collect();
    let sql = "SELECT c.oid FROM pg_catalog.pg_class AS c WHERE c.oid = ANY ($1) \
               AND pg_catalog.has_table_privilege(c.oid, 'SELECT') \
               AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')";
    let readable = rows(client, "privileges on tables", sql, &[&oids]).await?;
    let mut readable: BTreeSet<u32> = readable.iter().map(|row| row.get(0)).collect();
    let hidden = fetch_hidden_by_row_security(client, &oids).await?;
    readable.retain(|oid| !hidden.contains(oid));

    let mut filled = BTreeSet::new();
    let open: Vec<&&PlannedTable> = tables
        .iter()
        .filter(|t| readable.contains(&t.replica.oid))
        .collect();
    for some in open.chunks(TABLES_MAX) {
        let looks: Vec<String> = some
            .iter()
            .map(|t| {
                format!(
                    "SELECT {}::pg_catalog.oid WHERE EXISTS (SELECT 1 FROM {})",
                    t.replica.oid,
                    t.replica.name.quoted()
                )
            })
            .collect();
        let found = rows(
            client,
            "rows that are there",
            &looks.join(" UNION ALL "),
            &[],
        )
        .await?;
        filled.extend(found.iter().map(|row| row.get::<_, u32>(0)));
    }
    Ok(filled)
}
