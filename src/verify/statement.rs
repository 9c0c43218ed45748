//! The SQL that makes the rows of two tables comparable; pure.
//!
//! ```text
//!  source:   FROM ONLY public.leads WHERE …   ─▶ v0, v1 … as the replica keeps them ─┐
//!  replica:  FROM ONLY crm.leads              ─▶ v0, v1 …                            ├─▶ a hash a row,
//!                                                                                    ┘   a sum a block
//! ```
//!
//! Equal is what is the same data, not what `=` calls equal: 1.0 is not 1.00, -0 not 0, '1 mon'
//! not '30 days'. So a value is hashed by its type only where that hash tells all of those apart,
//! and by the bytes that it is sent as where it does not: `hashint8extended` folds 64 bits into 32,
//! and 1 is 4294967296 to it. What is sent is in one encoding, whatever the servers have. Where
//! those bytes say more than the value, such as the number of a type, its text is sent instead;
//! the settings that shape it are pinned.
//!
//! The sum of hashes has no order, so that nothing is sorted; it tells two equal rows from none,
//! which an exclusive or does not. The hash of a record is a sum as well, by column: over all rows it
//! does not matter to it which row has which value. So there is a second sum, of what each row's hash is
//! hashed to once more. That has 32 bits of it only: a row that changes changes the first sum, but for once in 2^64.

use crate::mapping::{ColumnMapping, RowIdentity, TableMapping};
use crate::pg::{TypeName, TypeNames, quote_ident};
use crate::snapshot::source_rows;

/// Blocks of a table: rows are dealt out to them by a hash of their key.
pub(crate) const BLOCKS: u32 = 16_384;

/// What one side is asked of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SideQueries {
    /// Of each block that has rows: its number, how many, the sum of their hashes as text.
    pub(crate) blocks: String,
    /// The same of all rows as one block, without their hashes.
    pub(crate) count: String,
    /// Of the rows of the blocks `$1`: their key as an array of texts, and their hash. Without a
    /// key each row's hash stands for the key as well.
    pub(crate) rows: String,
}

/// What both sides are asked of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableQueries {
    pub(crate) source: SideQueries,
    pub(crate) replica: SideQueries,
}

/// The queries of one table; `row_filter` is the publication's. Rows count for which `condition` is true,
/// to which a row of either side is `r`, and its values `v0`, `v1` … as the mapping has them.
pub(crate) fn table_queries(
    mapping: &TableMapping,
    types: &TypeNames,
    source_is_partitioned: bool,
    (row_filter, condition): (Option<&str>, Option<&str>),
) -> TableQueries {
    let source = source_rows(mapping, types, source_is_partitioned, row_filter, None);
    let kept = mapping.columns.iter().zip(source.values);
    let values = kept.map(|(column, value)| as_kept(column, value));
    let key = key_of(mapping);
    let forms: Vec<Form> = mapping.columns.iter().map(Form::of).collect();
    let replica = mapping
        .columns
        .iter()
        .map(|column| quote_ident(&column.name));
    TableQueries {
        source: side_queries(values, &source.from, (&forms, &key), condition),
        replica: side_queries(replica, &mapping.replica_rows(), (&forms, &key), condition),
    }
}

/// Places of the key's columns among the mapping's.
fn key_of(mapping: &TableMapping) -> Vec<usize> {
    match &mapping.identity {
        RowIdentity::Key(key) => key.clone(),
        RowIdentity::FullRow | RowIdentity::InsertsOnly => Vec::new(),
    }
}

/// A source value as the replica's column keeps it: rounded and padded as by an assignment.
fn as_kept(column: &ColumnMapping, value: String) -> String {
    match column.cast_to.is_builtin() {
        true => format!("({value})::{}", column.stored_as),
        false => value,
    }
}

fn side_queries(
    values: impl Iterator<Item = String>,
    from: &str,
    (forms, key): (&[Form], &[usize]),
    condition: Option<&str>,
) -> SideQueries {
    let values: Vec<String> = values
        .enumerate()
        .map(|(place, value)| format!("{value} AS v{place}"))
        .collect();
    let sum = |places: &mut dyn Iterator<Item = usize>| {
        let parts =
            places.filter_map(|place| Some(forms.get(place)?.hashable(&format!("r.v{place}"))));
        record_hash(&parts.collect::<Vec<_>>())
    };
    let row_hash = sum(&mut (0..forms.len()));
    let (key_hash, key_texts) = match key.is_empty() {
        true => (
            row_hash.clone(),
            format!("ARRAY[({row_hash})::pg_catalog.text]"),
        ),
        false => {
            let texts = key
                .iter()
                .map(|place| format!("r.v{place}::pg_catalog.text"));
            let texts: Vec<String> = texts.collect();
            let cheap = match key {
                [place] => forms
                    .get(*place)
                    .and_then(|form| form.spread(&format!("r.v{place}"))),
                _ => None,
            };
            (
                cheap.unwrap_or_else(|| sum(&mut key.iter().copied())),
                format!("ARRAY[{}]", texts.join(", ")),
            )
        }
    };
    let block = format!("({key_hash} & {})::pg_catalog.int4", BLOCKS - 1);
    let rows = format!("(SELECT {} FROM {from}) AS r", values.join(", "));
    // Planned as if it stood within, where an index may answer it.
    let of_part = condition.map_or(String::new(), |condition| format!(" WHERE {condition}"));
    let and_of_part = condition.map_or(String::new(), |condition| format!(" AND {condition}"));
    SideQueries {
        // OFFSET 0: each row is hashed once, and not for each sum.
        blocks: format!(
            "SELECT b.block, pg_catalog.count(*), pg_catalog.concat(pg_catalog.sum(b.hash), ' ', \
             pg_catalog.sum(pg_catalog.hashint8extended(b.hash, 0))) \
             FROM (SELECT {block} AS block, {row_hash} AS hash FROM {rows}{of_part} OFFSET 0) AS b GROUP BY b.block"
        ),
        count: format!("SELECT 0, pg_catalog.count(*), '' FROM {from}"),
        rows: format!(
            "SELECT {key_texts}, {row_hash} FROM {rows} WHERE {block} = ANY ($1){and_of_part}"
        ),
    }
}

fn record_hash(parts: &[String]) -> String {
    match parts.is_empty() {
        // Rows without columns are only counted.
        true => "0::pg_catalog.int8".to_owned(),
        false => format!(
            "pg_catalog.hash_record_extended(ROW({}), 0)",
            parts.join(", ")
        ),
    }
}

/// What stands for a row of the replica's table without a key, as [`SideQueries::rows`] tells it.
pub(crate) fn replica_row_hash(mapping: &TableMapping, alias: &str) -> String {
    let parts = mapping.columns.iter().map(|column| {
        let value = format!("{alias}.{}", quote_ident(&column.name));
        Form::of(column).hashable(&value)
    });
    let hash = record_hash(&parts.collect::<Vec<_>>());
    format!("({hash})::pg_catalog.text")
}

/// What of a value is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Its type's hash tells apart whatever is not the same.
    Itself,
    /// So it does; and as a key rows are dealt out by this function, which is cheaper than a record's.
    Spread(&'static str),
    /// What this function sends: all of the value and nothing else.
    Sent(&'static str),
    /// The same of a floating-point number, whose NaN may have a sign here and none there.
    SentNumber {
        send: &'static str,
        name: &'static str,
    },
    /// Its text, as it is sent.
    Text,
}

impl Form {
    fn of(column: &ColumnMapping) -> Self {
        Self::of_type(&column.cast_to)
    }

    fn of_type(name: &TypeName) -> Self {
        if !name.is_builtin() {
            return Self::Text;
        }
        match name.0.name.as_str() {
            "int2" => Self::Spread("hashint2extended"),
            "int4" => Self::Spread("hashint4extended"),
            "uuid" => Self::Spread("uuid_hash_extended"),
            "bool" | "oid" | "date" | "bytea" | "macaddr" => Self::Itself,
            "int8" => Self::Sent("int8send"),
            "time" => Self::Sent("time_send"),
            "timestamp" => Self::Sent("timestamp_send"),
            "timestamptz" => Self::Sent("timestamptz_send"),
            "timetz" => Self::Sent("timetz_send"),
            "interval" => Self::Sent("interval_send"),
            "numeric" => Self::Sent("numeric_send"),
            "jsonb" => Self::Sent("jsonb_send"),
            "text" | "varchar" => Self::Sent("textsend"),
            "float4" => Self::SentNumber {
                send: "float4send",
                name: "float4",
            },
            "float8" => Self::SentNumber {
                send: "float8send",
                name: "float8",
            },
            _ => Self::Text,
        }
    }

    /// By what rows are dealt out to blocks: it need not tell all keys apart.
    fn spread(self, value: &str) -> Option<String> {
        let function = match self {
            Self::Spread(function) => function,
            Self::Sent("int8send") => "hashint8extended",
            _ => return None,
        };
        // NULL is no value of a key, and may be there all the same.
        Some(format!("COALESCE(pg_catalog.{function}({value}, 0), 0)"))
    }

    fn hashable(self, value: &str) -> String {
        match self {
            Self::Itself | Self::Spread(_) => value.to_owned(),
            Self::Sent(send) => format!("pg_catalog.{send}({value})"),
            Self::SentNumber { send, name } => {
                let nan = format!("'NaN'::pg_catalog.{name}");
                format!(
                    "pg_catalog.{send}(CASE WHEN {value} OPERATOR(pg_catalog.=) {nan} THEN {nan} ELSE {value} END)"
                )
            }
            Self::Text => format!("pg_catalog.textsend({value}::pg_catalog.text)"),
        }
    }
}
