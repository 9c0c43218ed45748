//! Rows that refer to rows which are not there, and what would keep it so.

use super::{Rewritable, Survey, Suspects, all_kept_in, count, quoted, rewritable, suspects_of};
use crate::mapping::Reference;
use crate::pg::{QualifiedName, quote_ident};
use crate::pipeline::PlannedTable;
use crate::preflight::{CheckError, Findings, index_columns, rows};
use std::collections::HashMap;
use tokio_postgres::Row;

const RELATIONS: &str = "\
SELECT k.conname::pg_catalog.text, k.conrelid, k.confrelid, rn.nspname::pg_catalog.text, r.relname::pg_catalog.text,
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(attnum, place)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY u.place),
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(attnum, place)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.attnum ORDER BY u.place),
       ARRAY(SELECT pg_catalog.format('OPERATOR(%I.%s)', on_.nspname, o.oprname)
             FROM pg_catalog.unnest(k.conpfeqop) WITH ORDINALITY AS u(oid, place)
             JOIN pg_catalog.pg_operator AS o ON o.oid = u.oid
             JOIN pg_catalog.pg_namespace AS on_ ON on_.oid = o.oprnamespace ORDER BY u.place),
       k.confmatchtype = 'f', cn.nspname::pg_catalog.text, c.relname::pg_catalog.text,
       c.relkind = 'p', r.relkind = 'p'
FROM pg_catalog.pg_constraint AS k
JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace AS cn ON cn.oid = c.relnamespace
JOIN pg_catalog.pg_class AS r ON r.oid = k.confrelid
JOIN pg_catalog.pg_namespace AS rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = ANY ($1)
  OR k.confrelid = ANY ($2) AND NOT c.relispartition
     AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_subscription_rel AS s WHERE s.srrelid = k.conrelid))
ORDER BY 2, 1";

/// A table that refers to another, by the replica's names.
struct Relation {
    name: String,
    child: QualifiedName,
    child_columns: Vec<String>,
    parent: QualifiedName,
    parent_columns: Vec<String>,
    /// What the parent's column `p` and the child's `c` are compared by, column by column; `None`: as
    /// text, since their types have none in common.
    equalities: Vec<Option<String>>,
    /// MATCH FULL: a row with a NULL among its columns refers to nothing only where all are NULL.
    matches_full: bool,
    /// The table that refers is the replica's own: it takes no part.
    own: Option<Rewritable>,
    /// A key of a table that has no partitions says nothing of what inherits from it, on either side.
    only: [bool; 2],
    said_by: SaidBy,
}

/// Whether tables of the replica's own, which refer to those that take part, are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    Included,
    LeftOut,
}

/// Who says that there is a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SaidBy {
    Replica,
    Source,
    Configuration,
}

impl Relation {
    fn is_the_same(&self, other: &Self) -> bool {
        let pairs = |of: &Self| {
            let mut pairs: Vec<(String, String)> = of
                .child_columns
                .iter()
                .cloned()
                .zip(of.parent_columns.iter().cloned())
                .collect();
            pairs.sort_unstable();
            pairs
        };
        self.child == other.child && self.parent == other.parent && pairs(self) == pairs(other)
    }

    fn found(&self, orphans: Option<u64>) -> RelationFound {
        RelationFound {
            child: self.child.clone(),
            parent: self.parent.clone(),
            name: self.name.clone(),
            columns: self.columns(),
            orphans,
        }
    }

    fn columns(&self) -> String {
        let (child, parent) = (&self.child_columns, &self.parent_columns);
        format!("{} -> {}", child.join(", "), parent.join(", "))
    }
}

/// A relation, and how many of its rows refer to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationFound {
    /// The table that refers.
    pub child: QualifiedName,
    /// The table referred to.
    pub parent: QualifiedName,
    /// Its name, or the one that PostgreSQL would give it.
    pub name: String,
    /// `a, b -> c, d`
    pub columns: String,
    /// Rows that refer to rows which are not there; `None`: nobody may look.
    pub orphans: Option<u64>,
}

pub(super) async fn found(survey: &Survey<'_>) -> Result<Vec<RelationFound>, CheckError> {
    let mut found = Vec::new();
    for relation in relations(survey, Own::LeftOut).await? {
        let orphans = count_orphans(survey, &relation).await?.ok();
        found.push(relation.found(orphans));
    }
    Ok(found)
}

pub(super) async fn look(
    survey: &Survey<'_>,
    own: Own,
    findings: &mut Findings,
) -> Result<Vec<RelationFound>, CheckError> {
    let tables = survey.tables.iter();
    let oids: HashMap<&QualifiedName, u32> =
        tables.map(|t| (&t.replica.name, t.replica.oid)).collect();
    let all: Vec<u32> = oids.values().copied().collect();
    let indexes = index_columns(survey.replica, &all).await?;
    let mut found = Vec::new();
    for relation in relations(survey, own).await? {
        let orphans = count_orphans(survey, &relation).await?;
        found.push(relation.found(orphans.as_ref().ok().copied()));
        tell_orphans(&relation, orphans, findings);
        if let Some(child) = oids.get(&relation.child) {
            let of_child = indexes.get(child).map_or(&[][..], Vec::as_slice);
            tell_what_it_lacks(&relation, of_child, findings);
        }
    }
    Ok(found)
}

/// Where the table that refers takes no part, what the source deletes may leave its rows behind: foreign
/// keys keep still meanwhile.
fn tell_orphans(relation: &Relation, orphans: Result<u64, String>, findings: &mut Findings) {
    let Relation {
        name,
        child,
        parent,
        own,
        ..
    } = relation;
    let (whose, remedy) = match own {
        None => (
            "",
            "`pglockstep cleanup orphans` takes away those that only the replica has",
        ),
        Some(_) => (
            ", which is not replicated,",
            "where the source has them no more, the rows that refer are yours to mend",
        ),
    };
    match orphans {
        Ok(0) => {}
        Ok(orphans) => findings.error(
            "diagnose.orphans",
            child,
            format!(
                "{orphans} rows of {child}{whose} refer to rows of {parent} that are not there ({}, {name})",
                relation.columns()
            ),
            format!("`pglockstep repair` brings those that are missing in {parent}; {remedy}"),
        ),
        Err(why) => {
            let message = format!(
                "rows of {child}{whose} that refer to {parent} ({name}) cannot be looked at: {why}"
            );
            let (of_child, of_parent) = (child.quoted(), parent.quoted());
            let remedy = format!("let the role SELECT from {of_child} and {of_parent}");
            match own {
                None => findings.warning("diagnose.unreadable", child, message, remedy),
                Some(_) => findings.info("diagnose.unreadable", child, message, remedy),
            }
        }
    }
}

/// The key itself, and an index for it.
fn tell_what_it_lacks(relation: &Relation, indexes: &[Vec<String>], findings: &mut Findings) {
    let Relation {
        name,
        child,
        child_columns,
        parent,
        ..
    } = relation;
    let of = match relation.said_by {
        SaidBy::Replica => None,
        SaidBy::Source => Some("the source's foreign key"),
        SaidBy::Configuration => Some("the configuration's reference"),
    };
    if let Some(of) = of {
        findings.info(
            "diagnose.foreign_key",
            child,
            format!(
                "{of} {name} ({}) is not declared on the replica",
                relation.columns()
            ),
            format!(
                "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}){} NOT VALID",
                child.quoted(),
                quote_ident(name),
                quoted(child_columns),
                parent.quoted(),
                quoted(&relation.parent_columns),
                if relation.matches_full {
                    " MATCH FULL"
                } else {
                    ""
                }
            ),
        );
    }
    let begins_with_them = |index: &Vec<String>| {
        let head = index.get(..child_columns.len());
        head.is_some_and(|head| head.iter().all(|column| child_columns.contains(column)))
    };
    if !indexes.iter().any(begins_with_them) {
        findings.warning(
            "diagnose.foreign_key_index",
            child,
            format!(
                "no index of {child} begins with the columns of {name}: whoever deletes from {parent}, or joins, scans it"
            ),
            format!(
                "CREATE INDEX CONCURRENTLY ON {} ({})",
                child.quoted(),
                quoted(child_columns)
            ),
        );
    }
}

/// Those that the replica declares of or to replicated tables, those that only the source declares
/// between them, and those of the configuration.
async fn relations(survey: &Survey<'_>, own: Own) -> Result<Vec<Relation>, CheckError> {
    let by_source: HashMap<u32, &PlannedTable> =
        survey.tables.iter().map(|t| (t.source.oid, *t)).collect();
    let oids: Vec<u32> = survey.tables.iter().map(|t| t.replica.oid).collect();
    let parents = match own {
        Own::Included => oids.as_slice(),
        Own::LeftOut => &[],
    };
    let declared = rows(
        survey.replica,
        "foreign keys",
        RELATIONS,
        &[&oids, &parents],
    )
    .await?;
    let mut relations: Vec<Relation> = declared
        .iter()
        .map(|row| declared_relation(row, &oids))
        .collect();
    let oids: Vec<u32> = by_source.keys().copied().collect();
    let none: &[u32] = &[];
    let of_source = rows(survey.source, "foreign keys", RELATIONS, &[&oids, &none]).await?;
    for row in &of_source {
        let mapped = mapped_relation(row, &by_source);
        if let Some(relation) = mapped
            && !relations.iter().any(|known| known.is_the_same(&relation))
        {
            relations.push(relation);
        }
    }
    let by_name: HashMap<&QualifiedName, &PlannedTable> = survey
        .tables
        .iter()
        .map(|t| (&t.replica.name, *t))
        .collect();
    for child in &survey.tables {
        for reference in &child.resolved.rule.references {
            let relation = configured_relation(child, reference, &by_name);
            if let Some(relation) = relation
                && !relations.iter().any(|known| known.is_the_same(&relation))
            {
                relations.push(relation);
            }
        }
    }
    Ok(relations)
}

/// `None` where a pattern's rule names columns that this table has not.
fn configured_relation(
    child: &PlannedTable,
    reference: &Reference,
    by_name: &HashMap<&QualifiedName, &PlannedTable>,
) -> Option<Relation> {
    let parent = by_name.get(&reference.table);
    let pairs = reference.columns.iter().zip(&reference.to);
    let equality = |(of_child, of_parent): (&String, &String)| {
        let of_child = child.replica.column(of_child)?;
        // Of a table that takes no part nothing is known.
        let of_parent = parent.and_then(|parent| parent.replica.column(of_parent));
        let of_parent = of_parent.filter(|column| column.base_type == of_child.base_type);
        Some(of_parent.map(|column| column.equality.written()))
    };
    let equalities: Option<Vec<Option<String>>> = pairs.map(equality).collect();
    Some(Relation {
        name: format!(
            "{}_{}_fkey",
            child.replica.name.name,
            reference.columns.join("_")
        ),
        child: child.replica.name.clone(),
        child_columns: reference.columns.clone(),
        parent: reference.table.clone(),
        parent_columns: reference.to.clone(),
        equalities: equalities?,
        matches_full: false,
        own: None,
        // Of a table that takes no part nothing is known.
        only: [Some(child), parent.copied()]
            .map(|table| table.is_some_and(|table| !table.replica_has_parts())),
        said_by: SaidBy::Configuration,
    })
}

fn declared_relation(row: &Row, taking_part: &[u32]) -> Relation {
    let name =
        |schema, name| QualifiedName::new(row.get::<_, String>(schema), row.get::<_, String>(name));
    let (child, has_parts): (u32, [bool; 2]) = (row.get(1), [row.get(11), row.get(12)]);
    let is_own = !taking_part.contains(&child);
    Relation {
        name: row.get(0),
        child: name(9, 10),
        child_columns: row.get(5),
        parent: name(3, 4),
        parent_columns: row.get(6),
        equalities: row.get::<_, Vec<String>>(7).into_iter().map(Some).collect(),
        matches_full: row.get(8),
        own: is_own.then_some((child, has_parts[0])),
        only: has_parts.map(|has_parts| !has_parts),
        said_by: SaidBy::Replica,
    }
}

/// `None` where a table or a column of it is not replicated.
fn mapped_relation(row: &Row, by_source: &HashMap<u32, &PlannedTable>) -> Option<Relation> {
    let (child, parent) = (by_source.get(&row.get(1))?, by_source.get(&row.get(2))?);
    let child_columns = all_kept_in(&child.mapping, &row.get::<_, Vec<String>>(5))?;
    let parent_columns = all_kept_in(&parent.mapping, &row.get::<_, Vec<String>>(6))?;
    let equality = |(of_child, of_parent): (&String, &String)| {
        let of_child = child.replica.column(of_child)?;
        let of_parent = parent.replica.column(of_parent)?;
        (of_child.base_type == of_parent.base_type).then(|| of_parent.equality.written())
    };
    Some(Relation {
        name: row.get(0),
        child: child.replica.name.clone(),
        parent: parent.replica.name.clone(),
        equalities: child_columns
            .iter()
            .zip(&parent_columns)
            .map(equality)
            .collect(),
        child_columns,
        parent_columns,
        matches_full: row.get(8),
        own: None,
        only: [child, parent].map(|table| !table.replica_has_parts()),
        said_by: SaidBy::Source,
    })
}

async fn count_orphans(
    survey: &Survey<'_>,
    relation: &Relation,
) -> Result<Result<u64, String>, CheckError> {
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM {} AS c WHERE {}",
        rows_of(&relation.child, relation.only[0]),
        is_orphan(relation)
    );
    count(survey.replica, &sql, &tables_of(survey, relation)).await
}

/// Rows that refer to nothing, of each relation that has some.
pub(super) async fn suspects(
    survey: &Survey<'_>,
    wanted: &[QualifiedName],
    keys_max: u64,
) -> Result<Vec<Suspects>, CheckError> {
    let is_wanted = |t: &PlannedTable| wanted.is_empty() || wanted.contains(&t.source.name);
    let mut all = Vec::new();
    for relation in relations(survey, Own::LeftOut).await? {
        let child = survey
            .tables
            .iter()
            .find(|t| t.replica.name == relation.child);
        let Some(child) = child.filter(|child| is_wanted(child)) else {
            continue;
        };
        let what = format!(
            "{} ({}), {}",
            relation.parent,
            relation.columns(),
            relation.name
        );
        let (is_orphan, of) = (is_orphan(&relation), tables_of(survey, &relation));
        let found = suspects_of(survey.replica, child, (&is_orphan, &of), keys_max).await?;
        all.extend(found.map(|found| Suspects { what, ..found }));
    }
    Ok(all)
}

fn rows_of(table: &QualifiedName, only: bool) -> String {
    let only = if only { "ONLY " } else { "" };
    format!("{only}{}", table.quoted())
}

/// Those of a relation of which is known when they are emptied or rewritten.
fn tables_of(survey: &Survey<'_>, relation: &Relation) -> Vec<Rewritable> {
    let is_one =
        |t: &&&PlannedTable| [&relation.child, &relation.parent].contains(&&t.replica.name);
    let tables = survey.tables.iter().filter(is_one);
    let tables = tables.map(|table| rewritable(table));
    tables.chain(relation.own).collect()
}

/// Whether the row `c` refers to one that is not there.
fn is_orphan(relation: &Relation) -> String {
    let refers: Vec<String> = relation
        .child_columns
        .iter()
        .map(|column| format!("c.{} IS NOT NULL", quote_ident(column)))
        .collect();
    let pairs = relation.child_columns.iter().zip(&relation.parent_columns);
    let same: Vec<String> = pairs
        .zip(&relation.equalities)
        .map(|((child, parent), equality)| {
            let (child, parent) = (quote_ident(child), quote_ident(parent));
            match equality {
                Some(equals) => format!("p.{parent} {equals} c.{child}"),
                None => format!("p.{parent}::pg_catalog.text = c.{child}::pg_catalog.text"),
            }
        })
        .collect();
    let refers = refers.join(if relation.matches_full {
        " OR "
    } else {
        " AND "
    });
    format!(
        "({refers}) AND NOT EXISTS (SELECT 1 FROM {} AS p WHERE {})",
        rows_of(&relation.parent, relation.only[1]),
        same.join(" AND ")
    )
}
