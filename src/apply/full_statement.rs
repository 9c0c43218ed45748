//! SQL that finds any number of rows by the whole old row, in one look at the table; pure.
//!
//! ```text
//!  o   the old rows: number, text of all columns (x), hash of it (h), cheap hashes (q0, q1)
//!  m   rows of the table whose q0, q1 and h are among those                    one scan
//!  k   o, each row with its place among those of its hash                      sort
//!  g   m likewise                                                              sort
//!  p   k and g side by side: the first of a hash, the second, …                sort or hash
//!  f   of each pair, whether the texts are equal too: the row that o takes     by ctid
//! ```
//!
//! What is equal is decided by the texts, as for a single row (`found_row` in `statement.rs`).
//! Where two different texts have the same hash, a row may be missed: the statement then touches
//! too few, and the batch goes in source order.
//!
//! The cheap hashes are of values as they are, which saves most rows from being written out as
//! text, and from being fetched out of line. Equal texts have equal values; that of those
//! types, too.
//!
//! No join here is left to the planner's guess, which would know nothing of the number of
//! rows: `(… IN (SELECT …)) IS TRUE` is a filter by a hashed list whatever the settings of
//! the session, pairs are made by sorting, and rows are fetched by `ctid`.

use super::rows::{Writer, join};
use super::statement::{ImageSide, ShapeError, is_looked_for};
use crate::mapping::ColumnMapping;
use crate::pg::quote_ident;
use std::fmt::Write as _;

/// Longer texts take part in the cheap hash by none of their bytes.
const CHEAP_BYTES_MAX: u32 = 500;

impl Writer<'_> {
    pub(super) fn update_full_rows(&mut self) -> Result<String, ShapeError> {
        let found = self.found_rows()?;
        let rows = self.rows(ImageSide::New, &Vec::new())?;
        let set = self.assignments(&Vec::new(), |_| false);
        // Rows come in the order of their arrays: the number of a row is its place there.
        let of_row = |what: &str, none: &str| {
            format!(
                "(ARRAY(SELECT COALESCE(f.{what}, {none}) FROM f ORDER BY f.n))\
                 [(pg_catalog.row_number() OVER ())::pg_catalog.int4] AS {what}"
            )
        };
        Ok(format!(
            "{found} UPDATE {} AS t SET {set} FROM (SELECT r.*, {}, {} FROM {rows}) AS r \
             WHERE t.ctid = r.ctid AND t.tableoid = r.tableoid",
            self.own_rows(),
            of_row("ctid", "'(0,0)'::pg_catalog.tid"),
            of_row("tableoid", "0::pg_catalog.oid"),
        ))
    }

    pub(super) fn delete_full_rows(&mut self) -> Result<String, ShapeError> {
        let found = self.found_rows()?;
        Ok(format!(
            "{found} DELETE FROM {} AS t USING f WHERE t.ctid = f.ctid AND t.tableoid = f.tableoid",
            self.own_rows()
        ))
    }

    /// `WITH` … `f`: for each old row its number and the row of the table that it takes, a
    /// different one for each; NULL where there is none.
    fn found_rows(&mut self) -> Result<String, ShapeError> {
        let old = self.rows(ImageSide::Old, &Vec::new())?;
        let own = self.own_rows();
        let looked_for = self.mapping.columns.iter().enumerate();
        let looked_for: Vec<_> = looked_for.filter(|(_, c)| is_looked_for(c)).collect();
        let as_text = |value: String| format!("{value}::pg_catalog.text COLLATE pg_catalog.\"C\"");
        let old_values = looked_for.iter().map(|(i, c)| old_value(*i, c));
        let old_texts = join(old_values.clone().map(as_text));
        let own_values = looked_for.iter().map(|(_, c)| own_value(c));
        let own_texts = join(own_values.clone().map(as_text));

        let mut hashes = Vec::new();
        for cheap in [cheap_fixed, cheap_varying] {
            let of = |values: &mut dyn Iterator<Item = String>| {
                let columns = values.zip(&looked_for);
                let cheap = columns.filter_map(|(value, (_, column))| cheap(column, &value));
                join(cheap)
            };
            let (old, own) = (of(&mut old_values.clone()), of(&mut own_values.clone()));
            if !own.is_empty() {
                hashes.push((format!("q{}", hashes.len()), hash(&old), hash(&own)));
            }
        }
        hashes.push(("h".to_owned(), hash(&old_texts), hash(&own_texts)));

        let old_hashes = join(
            hashes
                .iter()
                .map(|(name, old, _)| format!("{old} AS {name}")),
        );
        // One after the other: the dear ones only where the cheap ones agree.
        let mut is_among = String::from("TRUE");
        for (name, _, own) in hashes.iter().rev() {
            is_among = format!(
                "CASE WHEN ({own} IN (SELECT o.{name} FROM o)) IS TRUE THEN {is_among} END"
            );
        }
        let mut sql = format!(
            "WITH o AS MATERIALIZED (SELECT pg_catalog.row_number() OVER () AS n, \
             ROW({old_texts})::pg_catalog.text AS x, {old_hashes} FROM {old}), "
        );
        let of_own = hash(&own_texts);
        // Writing to a String cannot fail.
        let _ = write!(
            sql,
            "m AS MATERIALIZED (SELECT m.ctid, m.tableoid, {of_own} AS h FROM {own} AS m \
             WHERE {is_among}), "
        );
        sql.push_str(
            "k AS MATERIALIZED (SELECT o.h, pg_catalog.row_number() OVER (PARTITION BY o.h) AS place, \
             o.n, o.x FROM o), \
             g AS (SELECT m.h, pg_catalog.row_number() OVER (PARTITION BY m.h) AS place, \
             m.ctid, m.tableoid FROM m), \
             p AS (SELECT pg_catalog.max(e.n) AS n, pg_catalog.max(e.x) AS x, \
             pg_catalog.max(e.ctid) AS ctid, pg_catalog.max(e.tableoid) AS tableoid FROM (\
             SELECT k.h, k.place, k.n, k.x, NULL::pg_catalog.tid AS ctid, \
             NULL::pg_catalog.oid AS tableoid FROM k \
             UNION ALL \
             SELECT g.h, g.place, NULL, NULL, g.ctid, g.tableoid FROM g \
             WHERE g.place <= (SELECT pg_catalog.max(k.place) FROM k)\
             ) AS e GROUP BY e.h, e.place HAVING pg_catalog.count(e.n) = 1), ",
        );
        let _ = write!(
            sql,
            "f AS MATERIALIZED (SELECT p.n, m.ctid, m.tableoid FROM p LEFT JOIN {own} AS m \
             ON m.ctid = p.ctid AND m.tableoid = p.tableoid \
             AND ROW({own_texts})::pg_catalog.text COLLATE pg_catalog.\"C\" = p.x)"
        );
        Ok(sql)
    }
}

/// An old row's value as the replica keeps it.
fn old_value(i: usize, column: &ColumnMapping) -> String {
    format!("r.c{i}::{}", column.stored_as)
}

fn own_value(column: &ColumnMapping) -> String {
    format!("m.{}", quote_ident(&column.name))
}

fn hash(values: &str) -> String {
    format!("pg_catalog.hash_record_extended(ROW({values}), 0)")
}

/// Of values of one length, which are hashed as fast as they are read.
fn cheap_fixed(column: &ColumnMapping, value: &str) -> Option<String> {
    let is_fixed = matches!(
        builtin(column)?,
        "int2"
            | "int4"
            | "int8"
            | "bool"
            | "date"
            | "timestamp"
            | "timestamptz"
            | "uuid"
            | "float8"
    );
    is_fixed.then(|| format!("{value}::{}", column.cast_to.quoted()))
}

/// Of values that may be long; the long ones are left where they are.
fn cheap_varying(column: &ColumnMapping, value: &str) -> Option<String> {
    let collation = match builtin(column)? {
        "text" | "varchar" | "bpchar" => " COLLATE pg_catalog.\"C\"",
        "bytea" => "",
        "numeric" => return Some(format!("{value}::{}", column.cast_to.quoted())),
        _ => return None,
    };
    let value = format!("{value}::{}", column.cast_to.quoted());
    Some(format!(
        "CASE WHEN pg_catalog.octet_length({value}) < {CHEAP_BYTES_MAX} THEN {value}{collation} END"
    ))
}

fn builtin(column: &ColumnMapping) -> Option<&str> {
    let name = &column.cast_to;
    name.is_builtin().then_some(name.0.name.as_str())
}
