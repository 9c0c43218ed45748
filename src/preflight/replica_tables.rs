//! The replica's tables: may they be written, are rows found quickly, and what could refuse one?

use super::finding::Findings;
use super::query::index_columns;
use super::replica::Books;
use super::{CheckError, Survey};
use crate::catalog::{Table, TableKind, UniqueKey, fetch_denied};
use crate::mapping::{ColumnValue, RowIdentity, TableMapping};
use crate::pg::{Side, quote_ident};
use crate::pipeline::{PlannedTable, replica_lacks};
use crate::progress::Store;

pub(super) async fn check(
    survey: &Survey<'_>,
    books: Books,
    is_quiet: bool,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let client = &survey.replica.client;
    let role = &survey.replica.server.role;
    let oids: Vec<u32> = survey.tables.iter().map(|t| t.replica.oid).collect();
    findings.lacks(
        Side::Replica,
        replica_lacks(client, role, &survey.tables).await?,
    );
    let denied = fetch_denied(client, &oids).await?;
    let indexes = index_columns(client, &oids).await?;
    let aside = match books {
        Books::Readable => Store::fetch_set_aside(client, &survey.config.name).await?,
        Books::Missing | Books::Closed => Vec::new(),
    };
    for table in &survey.tables {
        let oid = &table.replica.oid;
        if let Some(missing) = denied.get(oid) {
            check_truncate(survey, table, missing, findings);
        }
        check_triggers(&table.replica, is_quiet, findings);
        let name = &table.replica.name;
        match aside.iter().filter(|one| one.table == *name).count() {
            0 => check_index(table, indexes.get(oid).map_or(&[], Vec::as_slice), findings),
            some => findings.info(
                "replica.index",
                name,
                format!(
                    "{some} indexes and constraints of {name} are set aside until its copy ends"
                ),
                "",
            ),
        }
        check_unique_keys(table, findings);
    }
    if !is_quiet {
        check_foreign_keys(survey, findings);
    }
    Ok(())
}

/// Changes of a table whose triggers fire are not merged.
fn check_triggers(table: &Table, is_quiet: bool, findings: &mut Findings) {
    let name = &table.name;
    if !table.triggers.fire(is_quiet) {
        return;
    }
    let message = format!(
        "triggers of {name} fire for replicated changes, which are therefore written one by one, in their order"
    );
    if is_quiet {
        // ENABLE ALWAYS or REPLICA: somebody wants it so.
        return findings.info("replica.triggers", name, message, "");
    }
    let remedy = format!(
        "ALTER TABLE {} DISABLE TRIGGER USER, or let the role set session_replication_role",
        name.quoted()
    );
    findings.warning("replica.triggers", name, message, remedy);
}

/// A privilege that is missed only when the source is truncated.
fn check_truncate(
    survey: &Survey<'_>,
    table: &PlannedTable,
    missing: &[String],
    findings: &mut Findings,
) {
    let is_missing = missing.iter().any(|privilege| privilege == "TRUNCATE");
    if !is_missing || !survey.publication.truncate {
        return;
    }
    let name = &table.replica.name;
    let role = &survey.replica.server.role;
    findings.warning(
        "replica.privileges",
        name,
        format!(
            "the replica's role {role} may not TRUNCATE {name}: a TRUNCATE on the source will stop the pipeline"
        ),
        format!(
            "GRANT TRUNCATE ON TABLE {} TO {}",
            name.quoted(),
            quote_ident(role)
        ),
    );
}

fn check_index(table: &PlannedTable, indexes: &[Vec<String>], findings: &mut Findings) {
    let name = &table.replica.name;
    match &table.mapping.identity {
        RowIdentity::InsertsOnly => {}
        RowIdentity::FullRow => findings.warning(
            "replica.index",
            name,
            format!(
                "{name} has no key: each batch with updates or deletes of it scans it for the whole old rows"
            ),
            format!(
                "give it a primary key on both sides, or name a `key` in the rule of {}",
                table.source.name
            ),
        ),
        RowIdentity::Key(key) => {
            let key = key_columns(&table.mapping, key);
            if indexes.iter().any(|index| finds_by(index, &key)) {
                return;
            }
            let columns: Vec<String> = key.iter().map(|c| quote_ident(c)).collect();
            findings.warning(
                "replica.index",
                name,
                format!(
                    "{name} has no index on its key ({}): each update or delete scans it",
                    key.join(", ")
                ),
                format!(
                    "CREATE INDEX CONCURRENTLY ON {} ({})",
                    name.quoted(),
                    columns.join(", ")
                ),
            );
        }
    }
}

fn key_columns<'a>(mapping: &'a TableMapping, key: &[usize]) -> Vec<&'a str> {
    key.iter()
        .filter_map(|column| mapping.columns.get(*column))
        .map(|column| column.name.as_str())
        .collect()
}

/// Whether the index begins with the key's columns, in any order, or holds nothing else.
fn finds_by(index: &[String], key: &[&str]) -> bool {
    let head = &index[..index.len().min(key.len())];
    !head.is_empty()
        && head.iter().all(|column| key.contains(&column.as_str()))
        && (head.len() == key.len() || head.len() == index.len())
}

/// Unique keys of the replica that the source does not promise to respect.
fn check_unique_keys(table: &PlannedTable, findings: &mut Findings) {
    for key in &table.replica.unique_keys {
        let Some(from) = source_columns(&table.mapping, key) else {
            continue;
        };
        let is_promised = table.source.unique_keys.iter().any(|own| {
            own.columns
                .iter()
                .all(|column| from.contains(&column.as_str()))
        });
        // Each partition's keys hold for it alone; the root's were looked at above.
        if is_promised || table.source.kind == TableKind::Other {
            continue;
        }
        findings.warning(
            "replica.unique",
            &table.replica.name,
            format!(
                "the replica's unique key {} ({}) is not unique on the source: a row may be refused",
                key.name,
                key.columns.join(", ")
            ),
            format!(
                "drop it on the replica, or on the source: ALTER TABLE {} ADD UNIQUE ({})",
                table.source.name.quoted(),
                from.iter().map(|c| quote_ident(c)).collect::<Vec<_>>().join(", ")
            ),
        );
    }
}

/// The source columns behind a key; `None` when one of its columns is computed or the replica's own.
fn source_columns<'a>(mapping: &'a TableMapping, key: &UniqueKey) -> Option<Vec<&'a str>> {
    let source_column = |name: &String| {
        let column = mapping.columns.iter().find(|c| c.name == *name)?;
        match column.value {
            ColumnValue::Input(input) => Some(mapping.inputs.get(input)?.name.as_str()),
            ColumnValue::Computed(_) => None,
        }
    };
    key.columns.iter().map(source_column).collect()
}

fn check_foreign_keys(survey: &Survey<'_>, findings: &mut Findings) {
    for key in survey
        .plan
        .foreign_keys
        .iter()
        .filter(|key| !key.is_deferrable)
    {
        findings.warning(
            "replica.foreign_keys",
            &key.table,
            format!(
                "the foreign key {} from {} to {} is not DEFERRABLE and is checked in the middle of a transaction",
                key.name, key.table, key.referenced
            ),
            format!(
                "ALTER TABLE {} ALTER CONSTRAINT {} DEFERRABLE",
                key.table.quoted(),
                quote_ident(&key.name)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_finds_a_row() {
        let index = |columns: &[&str]| columns.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        for (columns, key, expected) in [
            (&["id"][..], &["id"][..], true),
            (&["id", "x"], &["id"], true),
            (&["x", "id"], &["id"], false),
            (&["b", "a"], &["a", "b"], true),
            // Alone it is selective enough only if it is all of an index, as a unique one.
            (&["a"], &["a", "b"], true),
            (&["a", "x"], &["a", "b"], false),
            (&[], &["a"], false),
        ] {
            assert_eq!(
                finds_by(&index(columns), key),
                expected,
                "{columns:?} {key:?}"
            );
        }
    }
}
