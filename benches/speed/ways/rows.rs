//! The same rows in every form in which a server takes them, made of what it sends itself.

use std::ops::Range;

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::{Kind, Way};

/// Type and value of row `i`, for one column after the other; behind the key.
const MIXED: [(&str, &str); 6] = [
    ("int4", "(i * 7 % 1000)::int4"),
    ("text", "'value number ' || i"),
    (
        "timestamptz",
        "'2024-01-01 00:00+00'::timestamptz + i * interval '1 second'",
    ),
    ("numeric", "(i / 7.0)::numeric(12, 2)"),
    ("bool", "i % 3 = 0"),
    ("float8", "i / 3.0::float8"),
];
/// `PGCOPY\n\377\r\n\0`, flags, length of an extension (manual, "COPY").
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The array's header: dimensions, NULL flag, type, length, lower bound (utils/adt/arrayfuncs.c).
const ONE_DIMENSION: i32 = 1;

/// A parameter that is encoded already.
#[derive(Debug)]
pub struct Raw(Bytes);

impl ToSql for Raw {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }

    to_sql_checked!();
}

pub struct Rows {
    /// `(name, type)`, the key first.
    columns: Vec<(String, &'static str)>,
    type_oids: Vec<u32>,
    row_type_oid: u32,
    /// By row and column.
    binary: Vec<Vec<Bytes>>,
    text: Vec<Vec<Bytes>>,
}

impl Rows {
    /// The tables `rows_of_ways`, `seed` and `staged` of so many columns, and the rows of `seed`.
    pub async fn make(client: &Client, columns: usize, rows: usize) -> Result<Self> {
        let mixed: Vec<(String, &str, &str)> = (1..columns)
            .map(|n| (format!("c{n}"), MIXED[(n - 1) % MIXED.len()]))
            .map(|(name, (of_type, value))| (name, of_type, value))
            .collect();
        let declared: String = mixed
            .iter()
            .map(|(name, t, _)| format!(", {name} {t}"))
            .collect();
        let values: String = mixed
            .iter()
            .map(|(_, _, value)| format!(", {value}"))
            .collect();
        client
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS rows_of_ways, seed, staged; \
                 CREATE TABLE rows_of_ways (id int8 PRIMARY KEY{declared}); \
                 CREATE TABLE seed (LIKE rows_of_ways); \
                 CREATE TEMP TABLE staged (LIKE rows_of_ways) ON COMMIT DELETE ROWS; \
                 INSERT INTO seed SELECT i::int8{values} FROM generate_series(1, {rows}) AS i; ANALYZE seed"
            ))
            .await?;
        let types = "SELECT atttypid FROM pg_attribute WHERE attrelid = 'rows_of_ways'::regclass \
                     AND attnum > 0 ORDER BY attnum";
        let type_oids = client.query(types, &[]).await?;
        let row_type = "SELECT reltype FROM pg_class WHERE oid = 'rows_of_ways'::regclass";
        let mut names = vec![("id".to_owned(), "int8")];
        names.extend(mixed.into_iter().map(|(name, of_type, _)| (name, of_type)));
        Ok(Self {
            columns: names,
            type_oids: type_oids.iter().map(|row| row.get(0)).collect(),
            row_type_oid: client.query_one(row_type, &[]).await?.get(0),
            binary: binary_fields(&copied_out(client, "binary").await?)?,
            text: text_fields(&copied_out(client, "text").await?),
        })
    }

    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Makes the table empty, or as full as `seed`.
    pub fn refill(&self, is_full: bool) -> &'static str {
        if is_full {
            "TRUNCATE rows_of_ways; INSERT INTO rows_of_ways SELECT * FROM seed; ANALYZE rows_of_ways"
        } else {
            "TRUNCATE rows_of_ways"
        }
    }

    pub fn statement(&self, kind: Kind, way: Way) -> String {
        let list = |each: &dyn Fn(usize, &str, &str) -> String| {
            let items = self.columns.iter().enumerate();
            let items: Vec<String> = items.map(|(n, (name, t))| each(n + 1, name, t)).collect();
            items.join(", ")
        };
        let names = list(&|_, name, _| name.to_owned());
        let new = match way {
            Way::Staging => "staged".to_owned(),
            Way::RowArray => "unnest($1::rows_of_ways[])".to_owned(),
            Way::TextArrays => format!(
                "(SELECT {} FROM unnest({}) AS u ({names}))",
                list(&|_, name, t| format!("u.{name}::{t} AS {name}")),
                list(&|n, _, _| format!("${n}::text[]")),
            ),
            Way::BinaryArrays => format!("unnest({})", list(&|n, _, t| format!("${n}::{t}[]")),),
            Way::CopyText | Way::CopyBinary => unreachable!("COPY is no statement with rows"),
        };
        let as_new = if way == Way::BinaryArrays {
            format!("new ({names})")
        } else {
            "new".to_owned()
        };
        match (kind, way) {
            (Kind::Insert, _) => {
                format!("INSERT INTO rows_of_ways SELECT {names} FROM {new} AS {as_new}")
            }
            (Kind::Update, _) => {
                let set = list(&|_, name, _| format!("{name} = new.{name}"));
                format!(
                    "UPDATE rows_of_ways AS t SET {set} FROM {new} AS {as_new} WHERE t.id = new.id"
                )
            }
            (Kind::Delete, Way::TextArrays) => {
                "DELETE FROM rows_of_ways WHERE id = ANY ($1::text[]::int8[])".to_owned()
            }
            (Kind::Delete, Way::BinaryArrays) => {
                "DELETE FROM rows_of_ways WHERE id = ANY ($1::int8[])".to_owned()
            }
            (Kind::Delete, _) => {
                format!("DELETE FROM rows_of_ways AS t USING {new} AS {as_new} WHERE t.id = new.id")
            }
        }
    }

    pub fn column_array(&self, column: usize, rows: Range<usize>, is_text: bool) -> Raw {
        let (values, element) = if is_text {
            (&self.text, Type::TEXT.oid())
        } else {
            (&self.binary, self.type_oids[column])
        };
        array(element, rows.len(), |out| {
            for row in &values[rows.clone()] {
                put_sized(out, &row[column]);
            }
        })
    }

    /// Values of the table's row type (utils/adt/rowtypes.c, `record_recv`).
    /// The values of the first columns, and NULL in the others.
    pub fn row_array(&self, rows: Range<usize>, columns: usize) -> Raw {
        array(self.row_type_oid, rows.len(), |out| {
            for row in &self.binary[rows.clone()] {
                let mut record = BytesMut::new();
                put_count(&mut record, row.len());
                for (place, (value, oid)) in row.iter().zip(&self.type_oids).enumerate() {
                    record.put_u32(*oid);
                    match place < columns {
                        true => put_sized(&mut record, value),
                        false => record.put_i32(-1),
                    }
                }
                put_sized(out, &record);
            }
        })
    }

    pub fn copy_text(&self, rows: Range<usize>) -> Bytes {
        let mut out = BytesMut::new();
        for row in &self.text[rows] {
            out.put_slice(&row.join(&b'\t'));
            out.put_u8(b'\n');
        }
        out.freeze()
    }

    pub fn copy_binary(&self, rows: Range<usize>) -> Bytes {
        let mut out = BytesMut::from(COPY_HEADER);
        for row in &self.binary[rows] {
            out.put_i16(i16::try_from(row.len()).unwrap());
            for value in row {
                put_sized(&mut out, value);
            }
        }
        out.put_i16(-1);
        out.freeze()
    }
}

fn array(element: u32, count: usize, put: impl Fn(&mut BytesMut)) -> Raw {
    let mut out = BytesMut::new();
    out.put_i32(ONE_DIMENSION);
    out.put_i32(0);
    out.put_u32(element);
    put_count(&mut out, count);
    out.put_i32(1);
    put(&mut out);
    Raw(out.freeze())
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_i32(i32::try_from(count).unwrap());
}

fn put_sized(out: &mut BytesMut, value: &[u8]) {
    put_count(out, value.len());
    out.put_slice(value);
}

async fn copied_out(client: &Client, format: &str) -> Result<Bytes> {
    let sql = format!("COPY (SELECT * FROM seed ORDER BY id) TO STDOUT (FORMAT {format})");
    let parts: Vec<Bytes> = client.copy_out(&sql).await?.try_collect().await?;
    Ok(parts.concat().into())
}

fn binary_fields(data: &Bytes) -> Result<Vec<Vec<Bytes>>> {
    let mut left = data.slice(COPY_HEADER.len()..);
    let mut rows = Vec::new();
    while let Ok(fields) = usize::try_from(left.get_i16()) {
        let mut row = Vec::with_capacity(fields);
        for _ in 0..fields {
            let length = usize::try_from(left.get_i32()).context("a NULL among the rows")?;
            row.push(left.split_to(length));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn text_fields(data: &Bytes) -> Vec<Vec<Bytes>> {
    let lines = data.split(|byte| *byte == b'\n');
    let fields = |line: &[u8]| -> Vec<Bytes> {
        line.split(|byte| *byte == b'\t')
            .map(Bytes::copy_from_slice)
            .collect()
    };
    lines.filter(|line| !line.is_empty()).map(fields).collect()
}
