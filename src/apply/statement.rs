//! The shapes of SQL that write to a replica table; pure.
//!
//! Every shape takes sets of rows. One row is a set of one, so the fast path and the exact path
//! share all of them. Rows come in one of three ways:
//!
//! ```text
//!  text      one text[] a column, an element a row: read by the column's type; takes everything
//!  binary    one array of the source's type a column
//!            one array of the replica table's own row type, where it takes the source's rows as
//!            they are (mapping/row_type.rs); or, of inserts, a binary COPY
//! ```
//!
//! ```text
//!  UPDATE "crm"."leads" AS t SET "email" = r.c1
//!  FROM (SELECT s."id" AS c0, (lower(email))::"pg_catalog"."text" AS c1          row: as the replica names it
//!        FROM (SELECT u.a0::"pg_catalog"."int8" AS "id", u.a1::… AS "email"      typed: as the source names it
//!              FROM unnest($1, $2) AS u(a0, a1)) AS s) AS r
//!  WHERE t."id" = r.c0
//! ```
//!
//! Expressions stand where only the source's columns can be seen, so that a name in them
//! never means the replica's. A value travels as text and is read by the type itself; the
//! cast names no length, so that a value too long is refused by the assignment, not cut.
//!
//! An update may leave TOASTed columns out ("absent"). They are left out of SET. Where an
//! expression or the filter reads one, the replica's own copy of it is taken (`h`).

use super::rows::{Writer, join, where_all};
use crate::mapping::{ColumnMapping, ColumnValue, TableMapping};
use crate::pg::{ValueFormat, quote_ident};

/// Source positions of columns that the stream left out as unchanged TOAST; ascending.
pub(crate) type Absent = Vec<u16>;

/// What a statement does with its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// New rows (those the filter keeps).
    Insert,
    /// New rows, by COPY.
    Copy,
    /// New rows whose key is not there yet.
    InsertIfAbsent,
    /// Rows found by their key, which stays.
    Update(Absent),
    /// As `Update`, whatever the conflict policy says of the replica's row.
    Overwrite(Absent),
    /// Rows found by their old key and given a new one.
    Rekey(Absent),
    /// Rows found by the old row as a whole, one for each.
    UpdateFull,
    /// The same for any number of rows.
    UpdateFullRows,
    /// Rows found by their old key.
    Delete,
    /// Rows found by the old row as a whole, one for each.
    DeleteFull,
    /// The same for any number of rows.
    DeleteFullRows,
    /// Rows found by their key that the filter no longer keeps.
    DeleteFiltered(Absent),
    /// Counts the rows whose key is there.
    Exists,
    /// Counts the rows that belong on the replica and are not there; where the filter reads
    /// an absent column, all that are not there, since it cannot be asked.
    Missing(Absent),
    /// Another one, which fails where it does not touch a row for each that it takes: nobody has to
    /// look at its answer before what comes behind it is sent.
    Counted(Box<Shape>),
}

/// Which tuple of a change a parameter is filled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageSide {
    /// The row as it is now.
    New,
    /// The row as it was.
    Old,
}

/// How an array's elements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// As text, taken from values in text.
    Text,
    /// As text, taken from an enum's values in binary, which are its labels.
    Label,
    /// In binary; the object id of the array's type.
    Typed {
        /// `int8[]`, for one.
        array_oid: u32,
    },
}

/// Which fields of a row are filled; the others are NULL, and nobody looks at them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// Those of the key.
    Key,
    /// All but those of these source positions.
    AllBut(Absent),
}

/// One array parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Param {
    /// A column of one of the two tuples.
    Column {
        /// Which tuple.
        side: ImageSide,
        /// Place in it.
        position: usize,
        /// How its values are written.
        element: Element,
    },
    /// One of the two tuples as a row of the replica table.
    Row {
        /// Which tuple.
        side: ImageSide,
        /// What of it.
        fields: Fields,
    },
    /// NULL for each row: only counts them.
    Marker,
}

/// A statement and what its parameters are filled from, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) params: Vec<Param>,
}

/// The shape cannot be written for this table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShapeError {
    /// An expression reads a column that the update did not send and the replica does not keep.
    #[error(
        "an expression or the filter of {table} reads {column}, which the source did not send because the update left it unchanged, and no replica column keeps it"
    )]
    Unsent {
        /// The source table.
        table: String,
        /// The source column.
        column: String,
    },
    /// An update or delete of a table whose source logs no old rows.
    #[error("{table}: an update or delete without a replica identity")]
    NoIdentity {
        /// The source table.
        table: String,
    },
}

/// Writes the statement for one shape, for values of one format.
pub(crate) fn statement(
    mapping: &TableMapping,
    shape: &Shape,
    format: ValueFormat,
) -> Result<Statement, ShapeError> {
    let mut writer = Writer {
        mapping,
        format,
        params: Vec::new(),
        held_by: ImageSide::New,
        only_key: false,
    };
    let sql = match shape {
        Shape::Insert => writer.insert(false)?,
        Shape::Copy => writer.copy(),
        Shape::InsertIfAbsent => writer.insert(true)?,
        Shape::Update(absent) => writer.update(absent, ImageSide::New, true)?,
        Shape::Overwrite(absent) => writer.update(absent, ImageSide::New, false)?,
        Shape::Rekey(absent) => writer.update(absent, ImageSide::Old, false)?,
        Shape::UpdateFull => writer.update_full()?,
        Shape::UpdateFullRows => writer.update_full_rows()?,
        Shape::Delete => writer.delete()?,
        Shape::DeleteFull => writer.delete_full()?,
        Shape::DeleteFullRows => writer.delete_full_rows()?,
        Shape::DeleteFiltered(absent) => writer.delete_filtered(absent)?,
        Shape::Exists => writer.exists()?,
        Shape::Missing(absent) => writer.missing(absent)?,
        Shape::Counted(shape) => {
            let counted = statement(mapping, shape, format)?;
            writer.params = counted.params;
            // Every parameter has an element for each row.
            format!(
                "WITH done AS ({} RETURNING 1) SELECT 1 / \
                 (pg_catalog.count(*) = pg_catalog.cardinality($1))::pg_catalog.int4 FROM done",
                counted.sql
            )
        }
    };
    Ok(Statement {
        sql,
        params: writer.params,
    })
}

/// Whether a row is told from others by this column, where it has no key. A value made from
/// no column may differ at each evaluation, as now() does.
pub(super) fn is_looked_for(column: &ColumnMapping) -> bool {
    !matches!(&column.value, ColumnValue::Computed(e) if e.reads.is_empty())
}

impl Writer<'_> {
    fn insert(&mut self, if_absent: bool) -> Result<String, ShapeError> {
        let rows = self.rows(ImageSide::New, &Vec::new())?;
        let columns = &self.mapping.columns;
        let names = join(columns.iter().map(|c| quote_ident(&c.name)));
        let values = join((0..columns.len()).map(|i| format!("r.c{i}")));
        let mut conditions = self.keep_condition();
        if if_absent {
            conditions.push(format!(
                "NOT EXISTS (SELECT 1 FROM {} AS t WHERE {})",
                self.own_rows(),
                self.key_match(ImageSide::New)?
            ));
        }
        // A table none of whose columns is mapped still counts its rows.
        let names = if columns.is_empty() {
            String::new()
        } else {
            format!(" ({names}) OVERRIDING SYSTEM VALUE")
        };
        Ok(format!(
            "INSERT INTO {}{names} SELECT {values} FROM {rows}{}",
            self.table(),
            where_all(&conditions)
        ))
    }

    fn copy(&self) -> String {
        let row_type = self.mapping.row_type.iter();
        let fields = row_type.flat_map(|row_type| &row_type.fields);
        let filled = fields.filter(|field| field.value.is_some());
        format!(
            "COPY {} ({}) FROM STDIN (FORMAT binary)",
            self.table(),
            join(filled.map(|field| quote_ident(&field.name)))
        )
    }

    /// `found_by`: the new row's key (which then stays as it is) or the old row's.
    fn update(
        &mut self,
        absent: &Absent,
        found_by: ImageSide,
        guarded: bool,
    ) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let is_key_kept = found_by == ImageSide::New;
        self.held_by = found_by;
        let mut rows = self.rows(ImageSide::New, absent)?;
        if !is_key_kept {
            rows = self.with_old_key(&rows, absent)?;
        }
        let mut conditions = vec![self.key_match(found_by)?];
        let skip = |i: usize| is_key_kept && key.contains(&i);
        let mut set = self.assignments(absent, skip);
        if set.is_empty() {
            // All columns are key columns: touch the row, so that it is counted.
            set = self.assignments(absent, |_| false);
        }
        conditions.extend(self.keep_condition());
        if guarded {
            conditions.extend(self.newest_guard(absent));
        }
        Ok(format!(
            "UPDATE {} AS t SET {set} FROM {rows}{}",
            self.own_rows(),
            where_all(&conditions)
        ))
    }

    fn delete(&mut self) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let rows = self.key_rows(ImageSide::Old, &key);
        let condition = self.key_match(ImageSide::Old)?;
        Ok(format!(
            "DELETE FROM {} AS t USING {rows} AS r WHERE {condition}",
            self.own_rows()
        ))
    }

    fn delete_filtered(&mut self, absent: &Absent) -> Result<String, ShapeError> {
        let rows = self.rows(ImageSide::New, absent)?;
        let condition = self.key_match(ImageSide::New)?;
        Ok(format!(
            "DELETE FROM {} AS t USING {rows} WHERE {condition} AND r.keep IS NOT TRUE",
            self.own_rows()
        ))
    }

    fn exists(&mut self) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let rows = self.key_rows(ImageSide::New, &key);
        let condition = self.key_match(ImageSide::Old)?;
        Ok(format!(
            "SELECT 1 FROM {} AS t, {rows} AS r WHERE {condition}",
            self.own_rows()
        ))
    }

    fn missing(&mut self, absent: &Absent) -> Result<String, ShapeError> {
        let unsent = |position: &usize| absent.iter().any(|a| usize::from(*a) == *position);
        let filter = self.mapping.filter.as_ref();
        let is_unknown = filter.is_some_and(|filter| filter.reads.iter().any(unsent));
        self.only_key = true;
        let (rows, side, keep) = if is_unknown {
            let key = self.key()?.to_vec();
            let rows = format!("{} AS r", self.key_rows(ImageSide::New, &key));
            (rows, ImageSide::Old, String::new())
        } else {
            let keep: String = filter.map(|_| "r.keep AND ".to_owned()).unwrap_or_default();
            (self.rows(ImageSide::New, absent)?, ImageSide::New, keep)
        };
        let condition = self.key_match(side)?;
        Ok(format!(
            "SELECT 1 FROM {rows} WHERE {keep}NOT EXISTS (SELECT 1 FROM {} AS t WHERE {condition})",
            self.own_rows()
        ))
    }

    fn update_full(&mut self) -> Result<String, ShapeError> {
        let rows = self.rows(ImageSide::New, &Vec::new())?;
        let found = self.found_row()?;
        let set = self.assignments(&Vec::new(), |_| false);
        let mut conditions = vec!["t.ctid = f.ctid AND t.tableoid = f.tableoid".to_owned()];
        conditions.extend(self.keep_condition());
        Ok(format!(
            "UPDATE {} AS t SET {set} FROM {rows}, {found}{}",
            self.own_rows(),
            where_all(&conditions)
        ))
    }

    fn delete_full(&mut self) -> Result<String, ShapeError> {
        let found = self.found_row()?;
        Ok(format!(
            "DELETE FROM {} AS t USING {found} WHERE t.ctid = f.ctid AND t.tableoid = f.tableoid",
            self.own_rows()
        ))
    }

    /// One replica row that equals the (single) old row, as `f`. Text against text: types may
    /// have no equality (json, point), or one that is not identity (numeric's scale, box's area).
    /// And byte by byte: a collation may call different texts equal.
    /// What the replica rounds or pads when it keeps it, it does here too.
    fn found_row(&mut self) -> Result<String, ShapeError> {
        let old = self.rows(ImageSide::Old, &Vec::new())?;
        let equal = self
            .mapping
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| is_looked_for(column));
        let equal: Vec<String> = equal
            .map(|(i, column)| {
                format!(
                    "m.{}::pg_catalog.text COLLATE pg_catalog.\"C\" IS NOT DISTINCT FROM \
                     r.c{i}::{}::pg_catalog.text COLLATE pg_catalog.\"C\"",
                    quote_ident(&column.name),
                    column.stored_as
                )
            })
            .collect();
        Ok(format!(
            "(SELECT m.ctid, m.tableoid FROM {} AS m, {old}{} LIMIT 1) AS f",
            self.own_rows(),
            where_all(&equal)
        ))
    }
}
