//! The shapes of SQL that write to a replica table; pure.
//!
//! Every shape takes sets of rows: one `text[]` parameter a column, an element a row.
//! One row is a set of one, so the fast path and the exact path share all of them.
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

use crate::mapping::{
    ColumnMapping, ColumnValue, ConflictPolicy, Expression, RowIdentity, TableMapping,
};
use crate::pg::quote_ident;
use std::fmt::Write as _;

/// Source positions of columns that the stream left out as unchanged TOAST; ascending.
pub(crate) type Absent = Vec<u16>;

/// What a statement does with its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// New rows (those the filter keeps).
    Insert,
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
    /// Rows found by their old key.
    Delete,
    /// Rows found by the old row as a whole, one for each.
    DeleteFull,
    /// Rows found by their key that the filter no longer keeps.
    DeleteFiltered(Absent),
    /// Counts the rows whose key is there.
    Exists,
}

/// Which tuple of a change a parameter is filled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageSide {
    /// The row as it is now.
    New,
    /// The row as it was.
    Old,
}

/// A position no tuple has: the parameter is NULL for each row, and only counts them.
pub(crate) const ROW_MARKER: usize = usize::MAX;

/// One array parameter: a column of one of the two tuples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Param {
    pub(crate) side: ImageSide,
    pub(crate) position: usize,
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

/// Writes the statement for one shape.
pub(crate) fn statement(mapping: &TableMapping, shape: &Shape) -> Result<Statement, ShapeError> {
    let mut writer = Writer {
        mapping,
        params: Vec::new(),
        may_read_held_row: true,
    };
    let sql = match shape {
        Shape::Insert => writer.insert(false)?,
        Shape::InsertIfAbsent => writer.insert(true)?,
        Shape::Update(absent) => writer.update(absent, ImageSide::New, true)?,
        Shape::Overwrite(absent) => writer.update(absent, ImageSide::New, false)?,
        Shape::Rekey(absent) => writer.update(absent, ImageSide::Old, false)?,
        Shape::UpdateFull => writer.update_full()?,
        Shape::Delete => writer.delete()?,
        Shape::DeleteFull => writer.delete_full()?,
        Shape::DeleteFiltered(absent) => writer.delete_filtered(absent)?,
        Shape::Exists => writer.exists()?,
    };
    Ok(Statement {
        sql,
        params: writer.params,
    })
}

struct Writer<'a> {
    mapping: &'a TableMapping,
    params: Vec<Param>,
    may_read_held_row: bool,
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
                self.table(),
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

    /// `found_by`: the new row's key (which then stays as it is) or the old row's.
    fn update(
        &mut self,
        absent: &Absent,
        found_by: ImageSide,
        guarded: bool,
    ) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let is_key_kept = found_by == ImageSide::New;
        // The row to read absent columns from is looked up by the new key.
        self.may_read_held_row = is_key_kept;
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
            self.table(),
            where_all(&conditions)
        ))
    }

    fn delete(&mut self) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let rows = self.key_rows(ImageSide::Old, &key);
        let condition = self.key_match(ImageSide::Old)?;
        Ok(format!(
            "DELETE FROM {} AS t USING {rows} AS r WHERE {condition}",
            self.table()
        ))
    }

    fn delete_filtered(&mut self, absent: &Absent) -> Result<String, ShapeError> {
        let rows = self.rows(ImageSide::New, absent)?;
        let condition = self.key_match(ImageSide::New)?;
        Ok(format!(
            "DELETE FROM {} AS t USING {rows} WHERE {condition} AND r.keep IS NOT TRUE",
            self.table()
        ))
    }

    fn exists(&mut self) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let rows = self.key_rows(ImageSide::New, &key);
        let condition = self.key_match(ImageSide::Old)?;
        Ok(format!(
            "SELECT 1 FROM {} AS t, {rows} AS r WHERE {condition}",
            self.table()
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
            self.table(),
            where_all(&conditions)
        ))
    }

    fn delete_full(&mut self) -> Result<String, ShapeError> {
        let found = self.found_row()?;
        Ok(format!(
            "DELETE FROM {} AS t USING {found} WHERE t.ctid = f.ctid AND t.tableoid = f.tableoid",
            self.table()
        ))
    }

    /// One replica row that equals the (single) old row, as `f`. Text against text: types may
    /// have no equality (json, point), or one that is not identity (numeric's scale, box's area).
    fn found_row(&mut self) -> Result<String, ShapeError> {
        let old = self.rows(ImageSide::Old, &Vec::new())?;
        let equal = self
            .mapping
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| {
                // A value made from no column may differ at each evaluation, as now() does.
                !matches!(&column.value, ColumnValue::Computed(e) if e.reads.is_empty())
            });
        let equal: Vec<String> = equal
            .map(|(i, column)| {
                format!(
                    "m.{}::pg_catalog.text IS NOT DISTINCT FROM r.c{i}::pg_catalog.text",
                    quote_ident(&column.name)
                )
            })
            .collect();
        Ok(format!(
            "(SELECT m.ctid, m.tableoid FROM {} AS m, {old}{} LIMIT 1) AS f",
            self.table(),
            where_all(&equal)
        ))
    }

    fn table(&self) -> String {
        self.mapping.replica.quoted()
    }

    fn key(&self) -> Result<&[usize], ShapeError> {
        match &self.mapping.identity {
            RowIdentity::Key(key) => Ok(key),
            RowIdentity::FullRow | RowIdentity::InsertsOnly => Err(ShapeError::NoIdentity {
                table: self.mapping.relation.name.to_string(),
            }),
        }
    }

    /// `t."id" = r.c0`, or `t."id" = r.k0` for the old key.
    fn key_match(&self, side: ImageSide) -> Result<String, ShapeError> {
        let parts: Vec<String> = self
            .key()?
            .iter()
            .enumerate()
            .filter_map(|(place, column)| {
                let name = quote_ident(&self.mapping.columns.get(*column)?.name);
                Some(match side {
                    ImageSide::New => format!("t.{name} = r.c{column}"),
                    ImageSide::Old => format!("t.{name} = r.k{place}"),
                })
            })
            .collect();
        Ok(parts.join(" AND "))
    }

    fn keep_condition(&self) -> Vec<String> {
        self.mapping
            .filter
            .iter()
            .map(|_| "r.keep".to_owned())
            .collect()
    }

    fn newest_guard(&self, absent: &Absent) -> Option<String> {
        let ConflictPolicy::NewestWins { column } = &self.mapping.on_conflict else {
            return None;
        };
        let i = self
            .mapping
            .columns
            .iter()
            .position(|c| c.name == *column)?;
        let is_sent = !self.is_absent(self.mapping.columns.get(i)?, absent);
        is_sent.then(|| format!("(t.{0} <= r.c{i} OR t.{0} IS NULL)", quote_ident(column)))
    }

    fn assignments(&self, absent: &Absent, skip: impl Fn(usize) -> bool) -> String {
        join(
            self.mapping
                .columns
                .iter()
                .enumerate()
                .filter_map(|(i, column)| {
                    let keep = skip(i) || self.is_absent(column, absent);
                    (!keep).then(|| format!("{} = r.c{i}", quote_ident(&column.name)))
                }),
        )
    }

    /// Whether all that the column is made of was left out, so that its value stays.
    fn is_absent(&self, column: &ColumnMapping, absent: &Absent) -> bool {
        let unsent = |position: usize| absent.iter().any(|a| usize::from(*a) == position);
        match &column.value {
            ColumnValue::Input(input) => self
                .mapping
                .inputs
                .get(*input)
                .is_some_and(|i| unsent(i.position)),
            ColumnValue::Computed(e) => {
                !e.reads.is_empty() && e.reads.iter().all(|position| unsent(*position))
            }
        }
    }

    /// The rows as the replica names them: c0, c1 … and `keep`; aliased `r`.
    fn rows(&mut self, side: ImageSide, absent: &Absent) -> Result<String, ShapeError> {
        let mapping = self.mapping;
        let typed = self.typed(side, absent)?;
        let mut values: Vec<String> = Vec::with_capacity(mapping.columns.len() + 1);
        for (i, column) in mapping.columns.iter().enumerate() {
            if !self.is_absent(column, absent) {
                values.push(format!("{} AS c{i}", self.value(column)));
            }
        }
        if let Some(filter) = &mapping.filter {
            values.push(format!("({}) AS keep", on_own_line(filter)));
        }
        Ok(format!(
            "(SELECT {} FROM {typed}) AS r",
            join(values.into_iter())
        ))
    }

    fn value(&self, column: &ColumnMapping) -> String {
        let cast = column.cast_to.quoted();
        match &column.value {
            ColumnValue::Computed(e) => format!("({})::{cast}", on_own_line(e)),
            ColumnValue::Input(input) => match self.mapping.inputs.get(*input) {
                Some(input) if input.read_as == column.cast_to => {
                    format!("s.{}", quote_ident(&input.name))
                }
                Some(input) => format!("s.{}::{cast}", quote_ident(&input.name)),
                None => "NULL".to_owned(),
            },
        }
    }

    /// The rows as the source names them, read by their types; aliased `s`.
    fn typed(&mut self, side: ImageSide, absent: &Absent) -> Result<String, ShapeError> {
        let mapping = self.mapping;
        let mut values = Vec::with_capacity(mapping.inputs.len());
        let mut arrays = Vec::new();
        let mut needs_held = false;
        for input in &mapping.inputs {
            let name = quote_ident(&input.name);
            if !absent.iter().any(|a| usize::from(*a) == input.position) {
                let number = self.param(side, input.position);
                values.push(format!("u.a{number}::{} AS {name}", input.read_as.quoted()));
                arrays.push(number);
            } else if self.is_read_by_expression(input.position, absent) {
                let kept = input.kept_in.as_ref().filter(|_| self.may_read_held_row);
                let kept = kept.ok_or_else(|| ShapeError::Unsent {
                    table: mapping.relation.name.to_string(),
                    column: input.name.clone(),
                })?;
                values.push(format!(
                    "h.{}::{} AS {name}",
                    quote_ident(kept),
                    input.read_as.quoted()
                ));
                needs_held = true;
            }
        }
        if arrays.is_empty() {
            // A table without columns has rows all the same.
            arrays.push(self.param(side, ROW_MARKER));
        }
        let held = if needs_held {
            self.held_row()?
        } else {
            String::new()
        };
        let from = unnest(&arrays);
        Ok(format!(
            "(SELECT {} FROM {from}{held}) AS s",
            join(values.into_iter())
        ))
    }

    /// Whether an expression that must be computed, or the filter, reads a column that was left out.
    fn is_read_by_expression(&self, position: usize, absent: &Absent) -> bool {
        let computed = self
            .mapping
            .columns
            .iter()
            .filter_map(|column| match &column.value {
                ColumnValue::Computed(e) if !self.is_absent(column, absent) => Some(e),
                _ => None,
            });
        computed
            .chain(self.mapping.filter.iter())
            .any(|e| e.reads.contains(&position))
    }

    /// Joins the replica's own row as `h`, by the key columns of `u`.
    fn held_row(&self) -> Result<String, ShapeError> {
        let mut conditions = Vec::new();
        for column in self.key()? {
            let Some(column) = self.mapping.columns.get(*column) else {
                continue;
            };
            let ColumnValue::Input(input) = column.value else {
                continue;
            };
            let Some(input) = self.mapping.inputs.get(input) else {
                continue;
            };
            let param = Param {
                side: ImageSide::New,
                position: input.position,
            };
            let number = self
                .params
                .iter()
                .position(|p| *p == param)
                .unwrap_or_default();
            conditions.push(format!(
                "h.{} = u.a{number}::{}::{}",
                quote_ident(&column.name),
                input.read_as.quoted(),
                column.cast_to.quoted()
            ));
        }
        Ok(format!(
            " JOIN {} AS h ON {}",
            self.table(),
            conditions.join(" AND ")
        ))
    }

    /// Only key columns, as `k0`, `k1` …; not aliased.
    fn key_rows(&mut self, side: ImageSide, key: &[usize]) -> String {
        let mut values = Vec::new();
        let mut arrays = Vec::new();
        for (place, column) in key.iter().enumerate() {
            let Some(column) = self.mapping.columns.get(*column) else {
                continue;
            };
            let ColumnValue::Input(input) = column.value else {
                continue;
            };
            let Some(input) = self.mapping.inputs.get(input) else {
                continue;
            };
            let number = self.param(side, input.position);
            values.push(format!(
                "u.a{number}::{}::{} AS k{place}",
                input.read_as.quoted(),
                column.cast_to.quoted()
            ));
            arrays.push(number);
        }
        format!(
            "(SELECT {} FROM {})",
            join(values.into_iter()),
            unnest(&arrays)
        )
    }

    /// The rows of `rows` with the old key beside each, matched by their place in the arrays.
    fn with_old_key(&mut self, rows: &str, absent: &Absent) -> Result<String, ShapeError> {
        let key = self.key()?.to_vec();
        let old = self.key_rows(ImageSide::Old, &key);
        // A change of key is written one row at a time: both sides hold exactly one.
        let columns = self.mapping.columns.iter().enumerate();
        let mut names: Vec<String> = columns
            .filter(|(_, column)| !self.is_absent(column, absent))
            .map(|(i, _)| format!("r.c{i}"))
            .collect();
        names.extend((0..key.len()).map(|place| format!("o.k{place}")));
        names.extend(self.mapping.filter.iter().map(|_| "r.keep".to_owned()));
        Ok(format!(
            "(SELECT {} FROM {rows}, {old} AS o) AS r",
            join(names.into_iter())
        ))
    }

    fn param(&mut self, side: ImageSide, position: usize) -> usize {
        self.params.push(Param { side, position });
        self.params.len() - 1
    }
}

/// The expression with a line end behind it, so that a `--` comment cannot swallow what follows.
fn on_own_line(expression: &Expression) -> String {
    format!("{}\n", expression.sql)
}

/// `ROWS FROM (unnest($1), unnest($2)) AS u(a0, a1)`: `unnest` of several arrays cannot be
/// named with its schema.
fn unnest(arrays: &[usize]) -> String {
    let columns = join(
        arrays
            .iter()
            .map(|n| format!("pg_catalog.unnest(${}::pg_catalog.text[])", n + 1)),
    );
    let names = join(arrays.iter().map(|n| format!("a{n}")));
    format!("ROWS FROM ({columns}) AS u({names})")
}

fn join(parts: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for part in parts {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&part);
    }
    text
}

fn where_all(conditions: &[String]) -> String {
    let mut text = String::new();
    for (i, condition) in conditions.iter().enumerate() {
        let word = if i == 0 { "WHERE" } else { "AND" };
        // Writing to a String cannot fail.
        let _ = write!(text, " {word} {condition}");
    }
    text
}
