//! Keys: rows that share one, keys and indexes that the source has and the replica lacks, and what is
//! there and does not hold.

use super::{Survey, all_kept_in, count, kept_in, quoted};
use crate::catalog::TableColumn;
use crate::mapping::RowIdentity;
use crate::pg::{QualifiedName, quote_ident};
use crate::pipeline::PlannedTable;
use crate::preflight::{CheckError, Findings, rows};

pub(super) async fn look(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    for table in &survey.tables {
        for key in promised_keys(table) {
            look_at_key(survey, table, &key, findings).await?;
        }
        look_at_nulls(table, findings);
    }
    what_does_not_hold(survey, findings).await
}

/// Columns of the replica that no two rows share on the source: the key by which rows are found, and
/// the source's own unique keys.
fn promised_keys(table: &PlannedTable) -> Vec<Vec<String>> {
    let mut keys: Vec<Vec<String>> = Vec::new();
    if let RowIdentity::Key(key) = &table.mapping.identity {
        let columns = key.iter().filter_map(|i| table.mapping.columns.get(*i));
        keys.push(columns.map(|column| column.name.clone()).collect());
    }
    let of_source = table.source.unique_keys.iter();
    keys.extend(of_source.filter_map(|key| all_kept_in(&table.mapping, &key.columns)));
    for key in &mut keys {
        key.sort_unstable();
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// A unique key of the replica that holds proves it; otherwise its rows are looked at.
async fn look_at_key(
    survey: &Survey<'_>,
    table: &PlannedTable,
    key: &[String],
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let name = &table.replica.name;
    let has_it = table.replica.unique_keys.iter().any(|unique| {
        unique.is_immediate && unique.columns.iter().all(|column| key.contains(column))
    });
    if has_it {
        return Ok(());
    }
    let not_null: Vec<String> = key
        .iter()
        .map(|column| format!("{} IS NOT NULL", quote_ident(column)))
        .collect();
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM (SELECT 1 FROM {} WHERE {} GROUP BY {} HAVING pg_catalog.count(*) > 1) AS d",
        table.mapping.replica_rows(),
        not_null.join(" AND "),
        quoted(key)
    );
    let doubles = match count(survey.replica, &sql).await? {
        Ok(doubles) => doubles,
        Err(why) => {
            findings.warning(
                "diagnose.unreadable",
                name,
                format!("rows of {name} cannot be looked at: {why}"),
                format!("let the role SELECT from {}", name.quoted()),
            );
            return Ok(());
        }
    };
    let columns = key.join(", ");
    if doubles > 0 {
        findings.error(
            "diagnose.duplicates",
            name,
            format!("{doubles} values of ({columns}) are held by more than one row of {name}, and by one on the source"),
            format!(
                "`pglockstep resync {}` makes it what the source has",
                table.source.name
            ),
        );
    } else {
        findings.warning(
            "diagnose.unique",
            name,
            format!("({columns}) is unique on the source, and nothing of {name} keeps it so"),
            format!(
                "CREATE UNIQUE INDEX CONCURRENTLY ON {} ({})",
                name.quoted(),
                quoted(key)
            ),
        );
    }
    Ok(())
}

/// Columns that are never NULL on the source.
fn look_at_nulls(table: &PlannedTable, findings: &mut Findings) {
    let name = &table.replica.name;
    let of_source = table.source.columns.iter().filter(|column| column.not_null);
    let kept = of_source.filter_map(|column| kept_in(&table.mapping, &column.name));
    let is_open = |column: &&TableColumn| !column.not_null;
    let open: Vec<String> = kept
        .filter_map(|column| table.replica.column(column).filter(is_open))
        .map(|column| column.name.clone())
        .collect();
    if let Some(first) = open.first() {
        findings.info(
            "diagnose.not_null",
            name,
            format!(
                "NOT NULL on the source and not on {name}: {}",
                open.join(", ")
            ),
            format!(
                "ALTER TABLE {} ALTER COLUMN {} SET NOT NULL",
                name.quoted(),
                quote_ident(first)
            ),
        );
    }
}

async fn what_does_not_hold(
    survey: &Survey<'_>,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let oids: Vec<u32> = survey.tables.iter().map(|t| t.replica.oid).collect();
    let sql = "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, k.conname::pg_catalog.text, true \
        FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid \
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
        WHERE k.conrelid = ANY ($1) AND NOT k.convalidated \
        UNION ALL SELECT n.nspname::pg_catalog.text, x.relname::pg_catalog.text, x.relname::pg_catalog.text, false \
        FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid \
        JOIN pg_catalog.pg_namespace AS n ON n.oid = x.relnamespace \
        WHERE i.indrelid = ANY ($1) AND NOT i.indisvalid ORDER BY 1, 2, 3";
    for row in &rows(survey.replica, "constraints", sql, &[&oids]).await? {
        let of = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let name: String = row.get(2);
        if row.get(3) {
            findings.warning(
                "diagnose.not_valid",
                &of,
                format!("the constraint {name} of {of} is NOT VALID: rows that were there before may break it"),
                format!(
                    "ALTER TABLE {} VALIDATE CONSTRAINT {}",
                    of.quoted(),
                    quote_ident(&name)
                ),
            );
        } else {
            findings.warning(
                "diagnose.invalid_index",
                &of,
                format!("the index {of} is invalid: nobody uses it, and it is kept up to date all the same"),
                format!("REINDEX INDEX CONCURRENTLY {}", of.quoted()),
            );
        }
    }
    Ok(())
}
