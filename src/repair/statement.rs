//! The SQL that mends some rows of one table, of which the source's state is staged; pure.
//!
//! ```text
//!  rows of these keys:  source ─ COPY ─▶ staged
//!    on the replica and not staged ─▶ noted, deleted if that is wanted
//!    both, and not the same        ─▶ noted, updated
//!    staged alone                  ─▶ noted, inserted
//! ```

use crate::catalog::Table;
use crate::mapping::{ColumnValue, ConflictPolicy, RowIdentity, TableMapping};
use crate::pg::{QualifiedName, TypeNames, quote_ident, quote_literal};
use crate::pipeline::PlannedTable;
use crate::snapshot::{drop_staging_sql, same_key, source_rows, upsert_sql};
use crate::verify::replica_row_hash;

/// What is done to the rows of some keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// What the source has is brought and mended.
    Restore,
    /// And what it has not goes.
    Delete,
    /// And of several rows of one key one is left.
    Deduplicate,
}

impl Treatment {
    pub(super) fn deletes(self) -> bool {
        self != Self::Restore
    }

    /// Whether a row `t` of the replica goes though the source has its key: the one that is left is as
    /// staged, if one is.
    fn is_double(self, mapping: &TableMapping, staging: &str) -> String {
        if self != Self::Deduplicate {
            return "false".to_owned();
        }
        let place = |alias: &str| {
            format!(
                "(NOT EXISTS (SELECT 1 FROM {staging} AS r WHERE {} AND {} = {}), {alias}.tableoid, {alias}.ctid)",
                have_one_key(mapping, "r", alias),
                values_text(mapping, "r"),
                values_text(mapping, alias)
            )
        };
        format!(
            "EXISTS (SELECT 1 FROM {} AS o WHERE {} AND {} < {})",
            mapping.replica_rows(),
            have_one_key(mapping, "o", "t"),
            place("o"),
            place("t")
        )
    }
}

/// One side's column of a key: how it is named, its type, its equality.
struct KeyColumn {
    name: String,
    of_type: String,
    equals: String,
    is_array: bool,
}

/// Which rows of the source these are; a condition on its columns.
pub(super) fn on_source(
    mapping: &TableMapping,
    source: &Table,
    types: &TypeNames,
    keys: &[Vec<String>],
) -> Option<String> {
    let column = |place: &usize| {
        let ColumnValue::Input(input) = mapping.columns.get(*place)?.value else {
            return None;
        };
        let input = mapping.inputs.get(input)?;
        let column = source.column(&input.name)?;
        let of_type = types.get(&column.type_oid)?;
        let to = mapping.columns.get(*place)?;
        let name = quote_ident(&input.name);
        // A row that only the replica has may have a number that is none of this type; integers of
        // all sizes are compared by one index.
        let is_wider = *of_type != to.cast_to && integer_size(&to.stored_as).is_some();
        let of_type = match is_wider && integer_size(&column.stored_as).is_some() {
            true => &to.cast_to,
            false => of_type,
        };
        Some(KeyColumn {
            name,
            of_type: of_type.quoted(),
            equals: column.equality.written(),
            is_array: of_type.0.name.starts_with('_'),
        })
    };
    let columns: Option<Vec<KeyColumn>> = key_of(mapping).iter().map(column).collect();
    Some(condition(&columns?, keys))
}

/// Which rows `t` of the replica.
pub(super) fn on_replica(mapping: &TableMapping, keys: &[Vec<String>]) -> String {
    let columns = key_of(mapping)
        .iter()
        .filter_map(|i| mapping.columns.get(*i));
    let columns: Vec<KeyColumn> = columns
        .map(|column| KeyColumn {
            name: format!("t.{}", quote_ident(&column.name)),
            of_type: column.cast_to.quoted(),
            equals: column.equality.written(),
            is_array: column.cast_to.0.name.starts_with('_'),
        })
        .collect();
    condition(&columns, keys)
}

/// Whether the source's key has the very values of the replica's: otherwise a row that is not found by
/// it may be there all the same, under a value that a cast has changed.
pub(super) fn is_key_as_it_is(mapping: &TableMapping, source: &Table) -> bool {
    key_of(mapping).iter().all(|place| {
        let Some(to) = mapping.columns.get(*place) else {
            return false;
        };
        let ColumnValue::Input(input) = to.value else {
            return false;
        };
        let from = mapping.inputs.get(input);
        let from = from.and_then(|input| source.column(&input.name));
        from.is_some_and(|from| keeps_values(&from.stored_as, &to.stored_as))
    })
}

fn integer_size(stored_as: &str) -> Option<usize> {
    let integers = ["smallint", "integer", "bigint"];
    integers.iter().position(|integer| *integer == stored_as)
}

/// Whether a cast from one type to the other leaves each value what it is.
fn keeps_values(from: &str, to: &str) -> bool {
    let size = integer_size;
    let is_text = |name: &str| matches!(name, "text" | "character varying");
    match (size(from), size(to)) {
        _ if from == to => true,
        (Some(from), Some(to)) => from < to,
        (Some(_), None) => is_text(to),
        _ => {
            is_text(to)
                && (from == "uuid" || from == "text" || from.starts_with("character varying"))
        }
    }
}

fn key_of(mapping: &TableMapping) -> &[usize] {
    match &mapping.identity {
        RowIdentity::Key(key) => key,
        RowIdentity::FullRow | RowIdentity::InsertsOnly => &[],
    }
}

fn have_one_key(mapping: &TableMapping, one: &str, other: &str) -> String {
    let columns = key_of(mapping)
        .iter()
        .filter_map(|i| mapping.columns.get(*i));
    let same = columns.map(|c| {
        let (name, equals) = (quote_ident(&c.name), c.equality.written());
        format!("{one}.{name} {equals} {other}.{name}")
    });
    same.collect::<Vec<_>>().join(" AND ")
}

/// All but the key, as text: not every type has an equality, and not every equality is identity.
fn values_text(mapping: &TableMapping, alias: &str) -> String {
    let columns = mapping.columns.iter().enumerate();
    let others = columns.filter(|(place, _)| !key_of(mapping).contains(place));
    let columns = others.map(|(_, c)| format!("{alias}.{}", quote_ident(&c.name)));
    format!(
        "ROW({})::pg_catalog.text",
        columns.collect::<Vec<_>>().join(", ")
    )
}

/// In a form for which every server uses the key's index.
fn condition(columns: &[KeyColumn], keys: &[Vec<String>]) -> String {
    // There are no arrays of arrays.
    if let [column] = columns
        && !column.is_array
    {
        let values: Vec<String> = keys
            .iter()
            .flatten()
            .map(|text| quote_literal(text))
            .collect();
        let KeyColumn {
            name,
            of_type,
            equals,
            ..
        } = column;
        return format!(
            "{name} {equals} ANY (ARRAY[{}]::{of_type}[])",
            values.join(", ")
        );
    }
    let row = |key: &Vec<String>| {
        let parts = columns.iter().zip(key).map(|(column, text)| {
            let KeyColumn {
                name,
                of_type,
                equals,
                ..
            } = column;
            format!("{name} {equals} {}::{of_type}", quote_literal(text))
        });
        format!("({})", parts.collect::<Vec<_>>().join(" AND "))
    };
    let rows: Vec<String> = keys.iter().map(row).collect();
    format!("({})", rows.join(" OR "))
}

/// The keys of these rows as the source has them, as an array of texts each; `of_source` is
/// [`on_source`]'s.
pub(super) fn held_sql(planned: &PlannedTable, types: &TypeNames, of_source: &str) -> String {
    let mapping = &planned.mapping;
    let rows = source_rows(
        mapping,
        types,
        planned.source_has_parts(),
        planned.published.row_filter.as_deref(),
        Some(of_source),
    );
    let key = key_of(mapping).iter().filter_map(|place| {
        let column = mapping.columns.get(*place)?;
        let value = rows.values.get(*place)?;
        // The source may know the replica's own types by other names, or not at all.
        Some(match column.cast_to.is_builtin() {
            true => format!("(({value})::{})::pg_catalog.text", column.stored_as),
            false => format!("({value})::pg_catalog.text"),
        })
    });
    let key: Vec<String> = key.collect();
    format!("SELECT ARRAY[{}] FROM {}", key.join(", "), rows.from)
}

/// Notes what will be done, with the rows as they are; `$1` to `$6` are the pipeline, the source
/// table's and the replica table's schema and name, and the position. Returns each deed's word.
pub(super) fn note_sql(
    mapping: &TableMapping,
    staging: &QualifiedName,
    on_replica: &str,
    treatment: Treatment,
) -> String {
    let (rows, staging, same_key) = (mapping.replica_rows(), staging.quoted(), same_key(mapping));
    let key = |alias: &str| {
        let columns = key_of(mapping)
            .iter()
            .filter_map(|i| mapping.columns.get(*i));
        let texts = columns.map(|c| format!("{alias}.{}::pg_catalog.text", quote_ident(&c.name)));
        format!("ARRAY[{}]", texts.collect::<Vec<_>>().join(", "))
    };
    let (deletes, is_double) = (treatment.deletes(), treatment.is_double(mapping, &staging));
    format!(
        "INSERT INTO pglockstep.repairs (pipeline, source_schema, source_table, replica_schema, \
         replica_table, lsn, deed, key, before) \
         SELECT $1, $2, $3, $4, $5, $6::text::pg_lsn, d.* FROM (\
         SELECT CASE WHEN s.ctid IS NULL OR {is_double} THEN 'deleted' ELSE 'updated' END, {}, pg_catalog.to_json(t.*) \
         FROM {rows} AS t LEFT JOIN {staging} AS s ON {same_key} WHERE {on_replica} \
         AND CASE WHEN s.ctid IS NULL OR {is_double} THEN {deletes} ELSE {} <> {} END \
         UNION ALL SELECT 'inserted', {}, NULL FROM {staging} AS s \
         WHERE NOT EXISTS (SELECT 1 FROM {rows} AS t WHERE {same_key})) AS d (deed, key, before) \
         RETURNING deed",
        key("t"),
        values_text(mapping, "t"),
        values_text(mapping, "s"),
        key("s"),
    )
}

/// Notes what a copy of the whole table will do, where rows have no key: `$1` to `$6` as [`note_sql`] has
/// them, `$7` the hashes of rows that will go, as often as there are such, `$8` of those that will come.
/// Returns the number of each note.
pub(super) fn note_copy_sql(mapping: &TableMapping) -> String {
    let (rows, hash) = (mapping.replica_rows(), replica_row_hash(mapping, "t"));
    format!(
        "INSERT INTO pglockstep.repairs (pipeline, source_schema, source_table, replica_schema, \
         replica_table, lsn, deed, key, before) \
         SELECT $1, $2, $3, $4, $5, $6::text::pg_lsn, d.* FROM (\
         SELECT 'to_delete', ARRAY[h.hash], h.before FROM (\
         SELECT hash, before, pg_catalog.row_number() OVER (PARTITION BY hash) AS place FROM (\
         SELECT {hash} AS hash, pg_catalog.to_json(t.*) AS before FROM {rows} AS t) AS all_rows \
         WHERE hash = ANY ($7::text[])) AS h \
         JOIN (SELECT u.hash, pg_catalog.count(*) AS rows FROM pg_catalog.unnest($7::text[]) AS u(hash) \
         GROUP BY u.hash) AS w ON w.hash = h.hash WHERE h.place <= w.rows \
         UNION ALL SELECT 'to_insert', ARRAY[u.hash], NULL FROM pg_catalog.unnest($8::text[]) AS u(hash)\
         ) AS d (deed, key, before) RETURNING id"
    )
}

/// Does it.
pub(super) fn mend_sql(
    mapping: &TableMapping,
    staging: &QualifiedName,
    on_replica: &str,
    treatment: Treatment,
) -> String {
    let mut sql = String::new();
    if treatment.deletes() {
        sql = format!(
            "DELETE FROM {} AS t WHERE {on_replica} AND (NOT EXISTS (SELECT 1 FROM {} AS s WHERE {}) OR {});",
            mapping.replica_rows(),
            staging.quoted(),
            same_key(mapping),
            treatment.is_double(mapping, &staging.quoted())
        );
    }
    sql.push_str(&upsert_sql(mapping, staging, &ConflictPolicy::SourceWins));
    sql.push_str(&drop_staging_sql(staging));
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_casts_that_lose_nothing_keep_a_key() {
        for (from, to) in [
            ("integer", "integer"),
            ("smallint", "bigint"),
            ("bigint", "text"),
            ("uuid", "text"),
            ("character varying(40)", "text"),
        ] {
            assert!(keeps_values(from, to), "{from} to {to}");
        }
        for (from, to) in [
            ("bigint", "integer"),
            ("text", "integer"),
            ("numeric", "numeric(6,2)"),
            ("timestamp with time zone", "timestamp(0) with time zone"),
            ("text", "character varying(10)"),
            ("integer", "character varying(3)"),
            ("double precision", "text"),
        ] {
            assert!(!keeps_values(from, to), "{from} to {to}");
        }
    }

    #[test]
    fn rows_are_found_by_each_column_of_their_key() {
        let column = |name: &str, of_type: &str, is_array| KeyColumn {
            name: name.into(),
            of_type: of_type.into(),
            equals: "=".into(),
            is_array,
        };
        let keys = |of: &[&[&str]]| -> Vec<Vec<String>> {
            of.iter()
                .map(|key| key.iter().map(ToString::to_string).collect())
                .collect()
        };
        assert_eq!(
            condition(&[column("t.a", "text", false)], &keys(&[&["it's"], &["b"]])),
            "t.a = ANY (ARRAY['it''s', 'b']::text[])"
        );
        assert_eq!(
            condition(
                &[column("a", "int4", false), column("b", "text", false)],
                &keys(&[&["1", "x"], &["2", "y"]])
            ),
            "((a = '1'::int4 AND b = 'x'::text) OR (a = '2'::int4 AND b = 'y'::text))"
        );
        assert_eq!(
            condition(&[column("a", "_int4", true)], &keys(&[&["{1}"]])),
            "((a = '{1}'::_int4))"
        );
    }
}
