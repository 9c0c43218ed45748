//! Keys: rows that share one, keys and indexes that the source has and the replica lacks, and what is
//! there and does not hold.

use super::{Survey, Suspects, all_kept_in, count, kept_in, quoted, rewritable, suspects_of};
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
        look_at_names(table, findings);
    }
    what_does_not_hold(survey, findings).await
}

/// Columns of the replica that no two rows are to share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PromisedKey {
    columns: Vec<String>,
    /// The source keeps it; otherwise the configuration says so.
    is_of_source: bool,
}

/// The key by which rows are found, the source's own unique keys, and natural ones of the
/// configuration.
fn promised_keys(table: &PlannedTable) -> Vec<PromisedKey> {
    let mut keys: Vec<Vec<String>> = Vec::new();
    if let RowIdentity::Key(key) = &table.mapping.identity {
        let columns = key.iter().filter_map(|i| table.mapping.columns.get(*i));
        keys.push(columns.map(|column| column.name.clone()).collect());
    }
    let of_source = table.source.unique_keys.iter();
    keys.extend(of_source.filter_map(|key| all_kept_in(&table.mapping, &key.columns)));
    let has_columns = |key: &&Vec<String>| key.iter().all(|c| table.replica.column(c).is_some());
    let said = table.resolved.rule.unique.iter().filter(has_columns);
    let of_source = keys.into_iter().map(|columns| (columns, true));
    let mut promised: Vec<PromisedKey> = of_source
        .chain(said.map(|columns| (columns.clone(), false)))
        .map(|(mut columns, is_of_source)| {
            columns.sort_unstable();
            PromisedKey {
                columns,
                is_of_source,
            }
        })
        .collect();
    // What both say the source says.
    promised.sort_unstable_by_key(|key| (key.columns.clone(), !key.is_of_source));
    promised.dedup_by(|later, first| later.columns == first.columns);
    promised
}

/// Whether the columns are the key by which rows are found.
fn is_identity(table: &PlannedTable, columns: &[String]) -> bool {
    let RowIdentity::Key(key) = &table.mapping.identity else {
        return false;
    };
    let name = |place: &usize| table.mapping.columns.get(*place).map(|c| &c.name);
    key.len() == columns.len()
        && key
            .iter()
            .filter_map(name)
            .all(|name| columns.contains(name))
}

/// A unique key of the replica that holds proves it.
fn is_kept(table: &PlannedTable, columns: &[String]) -> bool {
    table.replica.unique_keys.iter().any(|unique| {
        unique.is_immediate && unique.columns.iter().all(|column| columns.contains(column))
    })
}

/// Rows that share a promised key with others, of each key that is shared.
pub(super) async fn suspects(
    survey: &Survey<'_>,
    wanted: &[QualifiedName],
    keys_max: u64,
) -> Result<Vec<Suspects>, CheckError> {
    let is_wanted = |t: &&&PlannedTable| wanted.is_empty() || wanted.contains(&t.source.name);
    let mut all = Vec::new();
    for table in survey.tables.iter().filter(is_wanted) {
        for PromisedKey { columns, .. } in promised_keys(table) {
            if is_kept(table, &columns) {
                continue;
            }
            // By each type's own equality, as they are grouped.
            let same: Vec<String> = columns
                .iter()
                .filter_map(|name| {
                    let equals = table.replica.column(name)?.equality.written();
                    let name = quote_ident(name);
                    Some(format!("d.{name} {equals} c.{name}"))
                })
                .collect();
            let is_double = format!(
                "EXISTS (SELECT 1 FROM ({}) AS d WHERE {})",
                doubles_sql(table, &columns),
                same.join(" AND ")
            );
            let of = [rewritable(table)];
            let found = suspects_of(survey.replica, table, (&is_double, &of), keys_max).await?;
            all.extend(found.map(|found| Suspects {
                what: format!("({})", columns.join(", ")),
                is_by_identity: is_identity(table, &columns),
                ..found
            }));
        }
    }
    Ok(all)
}

/// Values of these columns that several rows have.
fn doubles_sql(table: &PlannedTable, columns: &[String]) -> String {
    let not_null: Vec<String> = columns
        .iter()
        .map(|column| format!("{} IS NOT NULL", quote_ident(column)))
        .collect();
    let columns = quoted(columns);
    format!(
        "SELECT {columns} FROM {} WHERE {} GROUP BY {columns} HAVING pg_catalog.count(*) > 1",
        table.mapping.replica_rows(),
        not_null.join(" AND ")
    )
}

/// Where nothing keeps a key, its rows are looked at.
async fn look_at_key(
    survey: &Survey<'_>,
    table: &PlannedTable,
    PromisedKey {
        columns: key,
        is_of_source,
    }: &PromisedKey,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let name = &table.replica.name;
    if is_kept(table, key) {
        return Ok(());
    }
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM ({}) AS d",
        doubles_sql(table, key)
    );
    let doubles = match count(survey.replica, &sql, &[rewritable(table)]).await? {
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
            format!(
                "{doubles} values of ({columns}) are held by more than one row of {name}, {}",
                match is_of_source {
                    true => "and by one on the source",
                    false => "which [[tables]] unique says is never so",
                }
            ),
            format!(
                "`pglockstep cleanup duplicates {}` takes away what the source has not",
                table.source.name
            ),
        );
    } else {
        findings.warning(
            "diagnose.unique",
            name,
            format!(
                "({columns}) is unique {}, and nothing of {name} keeps it so",
                match is_of_source {
                    true => "on the source",
                    false => "by [[tables]] unique",
                }
            ),
            format!(
                "CREATE UNIQUE INDEX CONCURRENTLY ON {} ({})",
                name.quoted(),
                quoted(key)
            ),
        );
    }
    Ok(())
}

/// Columns that the configuration names, and the replica has not; a pattern's rule may name such.
fn look_at_names(table: &PlannedTable, findings: &mut Findings) {
    let rule = &table.resolved.rule;
    let name = &table.replica.name;
    let of_references = rule.references.iter().flat_map(|to| &to.columns);
    let named = of_references.chain(rule.unique.iter().flatten());
    for column in named.filter(|column| table.replica.column(column).is_none()) {
        if rule.source.is_exact() {
            findings.warning(
                "diagnose.configuration",
                name,
                format!("[[tables]] names the column {column} of {name}, which is not there"),
                format!(
                    "mend references and unique in the rule of {}",
                    table.source.name
                ),
            );
        }
    }
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
