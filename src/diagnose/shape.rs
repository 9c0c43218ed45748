//! What the source has of a table beside its keys, and the replica lacks: checks, exclusions, indexes.
//!
//! The source has checked its rows, and the replica's are the same; so what is missing here is missed by
//! those who read, and by whoever writes here after a cutover.

use super::{Survey, all_kept_in};
use crate::pg::quote_ident;
use crate::pipeline::PlannedTable;
use crate::preflight::{CheckError, Findings, rows};
use std::collections::HashMap;
use tokio_postgres::Client;

pub(super) async fn look(survey: &Survey<'_>, findings: &mut Findings) -> Result<(), CheckError> {
    let source: Vec<u32> = survey.tables.iter().map(|t| t.source.oid).collect();
    let replica: Vec<u32> = survey.tables.iter().map(|t| t.replica.oid).collect();
    let source = fetch(survey.source, &source).await?;
    let replica = fetch(survey.replica, &replica).await?;
    for table in &survey.tables {
        let (here, there) = (
            source.get(&table.source.oid),
            replica.get(&table.replica.oid),
        );
        let there = there.map_or(&[][..], Vec::as_slice);
        for part in here.into_iter().flatten() {
            if !part.is_unique_key() && is_lacking(table, part, there) {
                tell(table, part, findings);
            }
        }
    }
    Ok(())
}

/// A check, an exclusion or an index of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    kind: Kind,
    name: String,
    /// Those of an index in its order, of a constraint by name; expressions left out.
    columns: Vec<String>,
    /// What else an index is of, and for which rows; as the server writes it.
    expressions: String,
    predicate: String,
    is_unique: bool,
    /// As the server writes it.
    definition: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Check,
    Exclusion,
    Index,
}

impl Part {
    /// Of whole columns and all rows: those are told with the keys.
    fn is_unique_key(&self) -> bool {
        self.is_unique && self.expressions.is_empty() && self.predicate.is_empty()
    }
}

/// By table.
async fn fetch(client: &Client, tables: &[u32]) -> Result<HashMap<u32, Vec<Part>>, CheckError> {
    let sql = "SELECT k.conrelid, k.contype::pg_catalog.text, k.conname::pg_catalog.text, \
          ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute AS a \
            WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) ORDER BY 1), \
          '', '', false, pg_catalog.pg_get_constraintdef(k.oid) \
        FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = ANY ($1) AND k.contype IN ('c', 'x') \
        UNION ALL SELECT i.indrelid, 'i', x.relname::pg_catalog.text, \
          ARRAY(SELECT a.attname::pg_catalog.text \
            FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (number, place) \
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number \
            WHERE k.place <= i.indnkeyatts AND k.number > 0 ORDER BY k.place), \
          COALESCE(pg_catalog.pg_get_expr(i.indexprs, i.indrelid), ''), \
          COALESCE(pg_catalog.pg_get_expr(i.indpred, i.indrelid), ''), i.indisunique, \
          pg_catalog.pg_get_indexdef(i.indexrelid) \
        FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid \
        WHERE i.indrelid = ANY ($1) AND i.indisvalid AND NOT i.indisexclusion ORDER BY 1, 3";
    let mut parts: HashMap<u32, Vec<Part>> = HashMap::new();
    for row in &rows(client, "constraints and indexes", sql, &[&tables]).await? {
        let kind = match row.get(1) {
            "c" => Kind::Check,
            "x" => Kind::Exclusion,
            _ => Kind::Index,
        };
        parts.entry(row.get(0)).or_default().push(Part {
            kind,
            name: row.get(2),
            columns: row.get(3),
            expressions: row.get(4),
            predicate: row.get(5),
            is_unique: row.get(6),
            definition: row.get(7),
        });
    }
    Ok(parts)
}

/// Whether all its columns are mapped, and the replica has nothing like it. Names of columns within an
/// expression are the source's: what is renamed is looked for by its columns alone.
fn is_lacking(table: &PlannedTable, part: &Part, there: &[Part]) -> bool {
    let Some(mut columns) = all_kept_in(&table.mapping, &part.columns) else {
        return false;
    };
    let is_renamed = columns != part.columns;
    if part.kind != Kind::Index {
        columns.sort_unstable();
    }
    !there.iter().any(|other| {
        let is_like = |mine: &str, its: &str| is_renamed || mine == its;
        other.kind == part.kind
            && other.is_unique >= part.is_unique
            && match part.kind {
                Kind::Check | Kind::Exclusion => other.columns == columns,
                Kind::Index => {
                    other.columns.starts_with(&columns)
                        && is_like(&part.expressions, &other.expressions)
                        && (is_like(&part.predicate, &other.predicate)
                            || other.predicate.is_empty() && !part.is_unique)
                }
            }
    })
}

fn tell(table: &PlannedTable, part: &Part, findings: &mut Findings) {
    let name = &table.replica.name;
    let (check, what, remedy) = match part.kind {
        Kind::Check | Kind::Exclusion => (
            "diagnose.constraint",
            "constraint",
            format!(
                "ALTER TABLE {} ADD CONSTRAINT {} {}",
                name.quoted(),
                quote_ident(&part.name),
                part.definition
            ),
        ),
        Kind::Index => (
            "diagnose.index",
            "index",
            format!("as on the source: {}", part.definition),
        ),
    };
    findings.info(
        check,
        name,
        format!(
            "the source's {what} {} of {} has none like it on {name}",
            part.name, table.source.name
        ),
        remedy,
    );
}
