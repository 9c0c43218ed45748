//! `[[tables]]`: from what the file says to the mapping's rules.
//!
//! Whether tables and columns exist is found out later, against the live catalogues;
//! here only what is wrong in itself.

use super::problems::Report;
use super::raw::{RawReference, RawTable};
use crate::mapping::{
    ConflictPolicy, ExistingRows, ExtraRows, Reference, Settings, TablePattern, TableRule,
};
use crate::pg::QualifiedName;
use std::collections::BTreeSet;

/// The rules, and what holds for tables without one.
pub(super) fn validate_tables(
    raw: Vec<RawTable>,
    defaults: Settings,
    report: &mut Report,
) -> Settings {
    let mut seen: Vec<TablePattern> = Vec::new();
    let mut rules = Vec::with_capacity(raw.len());
    for table in raw {
        let Some(rule) = validate_table(table, &defaults, &seen, report) else {
            continue;
        };
        seen.push(rule.source.clone());
        rules.push(rule);
    }
    let merges = |rule: &TableRule| rule.existing_rows == ExistingRows::Merge;
    let none_merges = defaults.existing_rows != ExistingRows::Merge && !rules.iter().any(merges);
    if defaults.extra_rows == ExtraRows::Delete && none_merges {
        report.add(
            "copy.extra_rows",
            "delete has no effect unless existing_rows is merge",
        );
    }
    Settings { rules, ..defaults }
}

fn validate_table(
    raw: RawTable,
    defaults: &Settings,
    seen: &[TablePattern],
    report: &mut Report,
) -> Option<TableRule> {
    let key = |key: &str| format!("{}.{key}", raw.path);
    let source = parse_pattern(raw.source.as_deref(), &key("source"), report);
    if raw.source.is_none() && !report.is_broken(&key("source")) {
        report.add(
            &key("source"),
            "missing; expected schema.table or a pattern such as public.*",
        );
    }
    let replica = parse_pattern(raw.replica.as_deref(), &key("replica"), report);
    if let Some(source) = &source {
        if seen.contains(source) {
            report.add(
                &key("source"),
                format!("{source} has a rule already, further up"),
            );
        }
        if let Some(replica) = &replica {
            check_wildcards(source, replica, &key("replica"), report);
        }
    }
    check_columns(&raw, report);
    let existing_rows = raw.existing_rows.unwrap_or(defaults.existing_rows);
    if raw.extra_rows == Some(ExtraRows::Delete) && existing_rows != ExistingRows::Merge {
        report.add(
            &key("extra_rows"),
            "delete has no effect unless existing_rows is merge",
        );
    }
    let on_conflict = parse_policy(raw.on_conflict.as_deref(), &key("on_conflict"), report);
    let priority = raw.priority.map(i32::try_from);
    if let Some(Err(_)) = priority {
        report.add(&key("priority"), "too large a number");
    }
    let references = raw.references.iter();
    let references = references
        .filter_map(|reference| validate_reference(reference, report))
        .collect();
    if raw.unique.iter().any(Vec::is_empty) {
        report.add(&key("unique"), "a key without columns");
    }
    Some(TableRule {
        source: source?,
        replica,
        columns: raw.columns,
        exclude: raw.exclude,
        set: raw.set,
        filter: raw.filter,
        key: raw.key,
        existing_rows,
        extra_rows: raw.extra_rows.unwrap_or(defaults.extra_rows),
        on_conflict: on_conflict.unwrap_or_else(|| defaults.on_conflict.clone()),
        priority: priority.and_then(Result::ok).unwrap_or(0),
        references,
        unique: raw.unique,
    })
}

fn validate_reference(raw: &RawReference, report: &mut Report) -> Option<Reference> {
    let key = |key: &str| format!("{}.{key}", raw.path);
    let table = parse_pattern(raw.table.as_deref(), &key("table"), report);
    if raw.table.is_none() && !report.is_broken(&key("table")) {
        report.add(
            &key("table"),
            "missing; expected schema.table of the replica",
        );
    }
    let is_exact = table.as_ref().is_none_or(TablePattern::is_exact);
    if !is_exact {
        report.add(&key("table"), "expected one table: no * here");
    }
    for (name, columns) in [("columns", &raw.columns), ("to", &raw.to)] {
        if columns.is_empty() && !report.is_broken(&key(name)) {
            report.add(&key(name), "missing; expected a list of replica columns");
        }
    }
    if raw.columns.len() != raw.to.len() && !raw.columns.is_empty() && !raw.to.is_empty() {
        report.add(&key("to"), "expected as many as in columns");
    }
    let table = table?;
    Some(Reference {
        columns: raw.columns.clone(),
        table: QualifiedName::new(table.schema, table.table),
        to: raw.to.clone(),
    })
}

/// A conflict policy; `None` when absent, or wrong, which is then noted.
pub(super) fn parse_policy(
    text: Option<&str>,
    key: &str,
    report: &mut Report,
) -> Option<ConflictPolicy> {
    let policy = text?.parse::<ConflictPolicy>();
    policy
        .map_err(|error| report.add(key, error.to_string()))
        .ok()
}

fn parse_pattern(text: Option<&str>, key: &str, report: &mut Report) -> Option<TablePattern> {
    let pattern = text?.trim().parse::<TablePattern>();
    pattern
        .map_err(|error| report.add(key, error.to_string()))
        .ok()
}

/// A star on the replica's side stands for what the same half matched on the source's.
fn check_wildcards(source: &TablePattern, replica: &TablePattern, key: &str, report: &mut Report) {
    for (half, from, to) in [
        ("schema", &source.schema, &replica.schema),
        ("table", &source.table, &replica.table),
    ] {
        if to.contains('*') && !from.contains('*') {
            let message = format!("* in the {half} stands for nothing: the source has none there");
            report.add(key, message);
        }
    }
    if source.table.contains('*') && !replica.table.contains('*') {
        let message =
            format!("every table that {source} matches would become {replica}; keep the *");
        report.add(key, message);
    }
}

/// Each replica column has one origin, and no source column is both sent and left behind.
fn check_columns(raw: &RawTable, report: &mut Report) {
    let key = |key: &str| format!("{}.{key}", raw.path);
    let excluded: BTreeSet<&String> = raw.exclude.iter().collect();
    for column in raw
        .columns
        .keys()
        .filter(|column| excluded.contains(column))
    {
        report.add(
            &key("exclude"),
            format!("{column} is renamed by columns and excluded"),
        );
    }
    let mut taken: BTreeSet<&String> = BTreeSet::new();
    for column in raw.columns.values().filter(|column| !taken.insert(column)) {
        report.add(
            &key("columns"),
            format!("two columns would become {column}"),
        );
    }
    for column in raw.set.keys().filter(|column| taken.contains(column)) {
        report.add(
            &key("set"),
            format!("{column} is filled by columns already"),
        );
    }
    for column in raw
        .set
        .iter()
        .filter(|(_, sql)| sql.trim().is_empty())
        .map(|(name, _)| name)
    {
        report.add(&key("set"), format!("{column} has an empty expression"));
    }
    if raw
        .filter
        .as_deref()
        .is_some_and(|sql| sql.trim().is_empty())
    {
        report.add(&key("where"), "empty; leave it out to replicate every row");
    }
    let identity = raw.key.as_deref().unwrap_or_default();
    if raw.key.is_some() && identity.is_empty() {
        report.add(&key("key"), "empty; leave it out to use the primary key");
    }
    for column in identity.iter().filter(|column| excluded.contains(column)) {
        report.add(
            &key("key"),
            format!("{column} is excluded and so cannot identify a row"),
        );
    }
}
