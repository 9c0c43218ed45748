//! The rows a statement works on, as a derived table: typed as the source names them, then
//! cast and computed as the replica names them. Pure; the picture is in `statement.rs`.

use super::statement::{Absent, Element, Fields, ImageSide, Param, ShapeError};
use crate::mapping::{
    BinaryInput, ColumnMapping, ColumnValue, ConflictPolicy, Expression, InputColumn, RowIdentity,
    TableMapping,
};
use crate::pg::{ValueFormat, quote_ident};
use std::fmt::Write as _;

/// Writes one statement and collects its parameters.
pub(super) struct Writer<'m> {
    pub(super) mapping: &'m TableMapping,
    /// Of the values that the statement will be given.
    pub(super) format: ValueFormat,
    pub(super) params: Vec<Param>,
    /// Whose key finds the replica's own row, to read absent columns from.
    pub(super) held_by: ImageSide,
    /// The rows are only looked for: their key and the filter's word are enough.
    pub(super) only_key: bool,
}

impl<'m> Writer<'m> {
    pub(super) fn table(&self) -> String {
        self.mapping.replica.quoted()
    }

    pub(super) fn own_rows(&self) -> String {
        self.mapping.replica_rows()
    }

    pub(super) fn key(&self) -> Result<&[usize], ShapeError> {
        match &self.mapping.identity {
            RowIdentity::Key(key) => Ok(key),
            RowIdentity::FullRow | RowIdentity::InsertsOnly => Err(ShapeError::NoIdentity {
                table: self.mapping.relation.name.to_string(),
            }),
        }
    }

    /// `t."id" = r.c0`, or `t."id" = r.k0` for the old key.
    pub(super) fn key_match(&self, side: ImageSide) -> Result<String, ShapeError> {
        let parts: Vec<String> = self
            .key()?
            .iter()
            .enumerate()
            .filter_map(|(place, column)| {
                let to = self.mapping.columns.get(*column)?;
                let (name, equals) = (quote_ident(&to.name), to.equality.written());
                Some(match side {
                    ImageSide::New => format!("t.{name} {equals} r.c{column}"),
                    ImageSide::Old => format!("t.{name} {equals} r.k{place}"),
                })
            })
            .collect();
        Ok(parts.join(" AND "))
    }

    pub(super) fn keep_condition(&self) -> Vec<String> {
        self.mapping
            .filter
            .iter()
            .map(|_| "r.keep".to_owned())
            .collect()
    }

    pub(super) fn newest_guard(&self, absent: &Absent) -> Option<String> {
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

    pub(super) fn assignments(&self, absent: &Absent, skip: impl Fn(usize) -> bool) -> String {
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
    pub(super) fn is_absent(&self, column: &ColumnMapping, absent: &Absent) -> bool {
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
    pub(super) fn rows(&mut self, side: ImageSide, absent: &Absent) -> Result<String, ShapeError> {
        let mapping = self.mapping;
        let typed = self.typed(side, absent)?;
        let mut values: Vec<String> = Vec::with_capacity(mapping.columns.len() + 1);
        for (i, column) in mapping.columns.iter().enumerate() {
            let is_wanted = !self.only_key || self.key()?.contains(&i);
            if is_wanted && !self.is_absent(column, absent) {
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

    pub(super) fn value(&self, column: &ColumnMapping) -> String {
        if let Some(field) = self.field_of(column) {
            return format!("s.f{field}");
        }
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
    pub(super) fn typed(&mut self, side: ImageSide, absent: &Absent) -> Result<String, ShapeError> {
        let mapping = self.mapping;
        if self.takes_rows() {
            let fields = Fields::AllBut(absent.clone());
            return Ok(self.unnested_rows(side, fields, "s"));
        }
        let mut values = Vec::with_capacity(mapping.inputs.len());
        let mut arrays = Vec::new();
        let mut needs_held = false;
        for input in &mapping.inputs {
            let name = quote_ident(&input.name);
            if !absent.iter().any(|a| usize::from(*a) == input.position) {
                let array = self.column(side, input);
                values.push(format!("{} AS {name}", array.read()));
                arrays.push(array);
            } else if self.is_read_by_expression(input.position, absent) {
                let kept = input.kept_in.as_ref().ok_or_else(|| ShapeError::Unsent {
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
            let number = self.param(Param::Marker);
            arrays.push(Array::of_text(number, "pg_catalog", "text"));
        }
        let held = if needs_held {
            self.held_row(&mut arrays)?
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
    pub(super) fn is_read_by_expression(&self, position: usize, absent: &Absent) -> bool {
        let computed = self
            .mapping
            .columns
            .iter()
            .filter_map(|column| match &column.value {
                ColumnValue::Computed(e) if !self.only_key && !self.is_absent(column, absent) => {
                    Some(e)
                }
                _ => None,
            });
        computed
            .chain(self.mapping.filter.iter())
            .any(|e| e.reads.contains(&position))
    }

    /// Joins the replica's own row as `h`, by the key columns of `u`.
    fn held_row(&mut self, arrays: &mut Vec<Array>) -> Result<String, ShapeError> {
        let mut conditions = Vec::new();
        for (column, input) in self.key_inputs(self.key()?) {
            let is_it = |param: &Param| {
                matches!(param, Param::Column { side, position, .. }
                if *side == self.held_by && *position == input.position)
            };
            let array = match self.params.iter().position(is_it) {
                Some(number) => self.array(number, input),
                None => {
                    let array = self.column(self.held_by, input);
                    arrays.push(array.clone());
                    array
                }
            };
            conditions.push(format!(
                "h.{} {} {}::{}",
                quote_ident(&column.name),
                column.equality.written(),
                array.read(),
                column.cast_to.quoted()
            ));
        }
        Ok(format!(
            " JOIN {} AS h ON {}",
            self.own_rows(),
            conditions.join(" AND ")
        ))
    }

    /// Only key columns, as `k0`, `k1` …; not aliased.
    pub(super) fn key_rows(&mut self, side: ImageSide, key: &[usize]) -> String {
        let inputs = self.key_inputs(key);
        let is_typed = |input: &InputColumn| input.binary.is_some();
        if self.takes_rows() && !inputs.iter().all(|(_, input)| is_typed(input)) {
            let rows = self.unnested_rows(side, Fields::Key, "u");
            let values = inputs
                .iter()
                .enumerate()
                .filter_map(|(place, (column, _))| {
                    Some(format!("u.f{} AS k{place}", self.field_of(column)?))
                });
            return format!("(SELECT {} FROM {rows})", join(values));
        }
        let mut values = Vec::new();
        let mut arrays = Vec::new();
        for (place, (column, input)) in inputs.into_iter().enumerate() {
            let array = self.column(side, input);
            values.push(format!(
                "{}::{} AS k{place}",
                array.read(),
                column.cast_to.quoted()
            ));
            arrays.push(array);
        }
        format!(
            "(SELECT {} FROM {})",
            join(values.into_iter()),
            unnest(&arrays)
        )
    }

    /// The columns of a key, and what fills each.
    fn key_inputs(&self, key: &[usize]) -> Vec<(&'m ColumnMapping, &'m InputColumn)> {
        let mapping = self.mapping;
        let column = |place: &usize| {
            let column = mapping.columns.get(*place)?;
            match column.value {
                ColumnValue::Input(input) => Some((column, mapping.inputs.get(input)?)),
                ColumnValue::Computed(_) => None,
            }
        };
        key.iter().filter_map(column).collect()
    }

    /// The rows of `rows` with the old key beside each, matched by their place in the arrays.
    pub(super) fn with_old_key(
        &mut self,
        rows: &str,
        absent: &Absent,
    ) -> Result<String, ShapeError> {
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

    /// Whether rows come as values of the replica table's own type.
    fn takes_rows(&self) -> bool {
        self.format == ValueFormat::Binary && self.mapping.row_type.is_some()
    }

    /// Rows by a parameter of the replica table's row type. Fields are called by their places: a
    /// column that was renamed since has another name, and the place that its values are put in.
    fn unnested_rows(&mut self, side: ImageSide, fields: Fields, alias: &str) -> String {
        let number = self.param(Param::Row { side, fields });
        let count = self.mapping.row_type.as_ref().map_or(0, |r| r.fields.len());
        format!(
            "pg_catalog.unnest(${}::{}[]) AS {alias}({})",
            number + 1,
            self.table(),
            join((0..count).map(|field| format!("f{field}")))
        )
    }

    /// The place of a column in the rows, where they come as such.
    fn field_of(&self, column: &ColumnMapping) -> Option<usize> {
        let row_type = self
            .mapping
            .row_type
            .as_ref()
            .filter(|_| self.takes_rows())?;
        let mut fields = row_type.fields.iter();
        fields.position(|field| field.name == column.name)
    }

    /// A parameter for a source column.
    fn column(&mut self, side: ImageSide, input: &InputColumn) -> Array {
        let array_oid = input.read_as.portable_array_oid();
        let element = match (self.format, input.binary, array_oid) {
            (ValueFormat::Binary, Some(BinaryInput::Typed), Some(array_oid)) => {
                Element::Typed { array_oid }
            }
            (ValueFormat::Binary, ..) => Element::Label,
            (ValueFormat::Text, ..) => Element::Text,
        };
        let number = self.param(Param::Column {
            side,
            position: input.position,
            element,
        });
        self.array(number, input)
    }

    fn array(&self, number: usize, input: &InputColumn) -> Array {
        let is_typed = matches!(
            self.params.get(number),
            Some(Param::Column {
                element: Element::Typed { .. },
                ..
            })
        );
        let (schema, name) = (&input.read_as.0.schema, &input.read_as.0.name);
        match is_typed {
            true => Array::typed(number, input.read_as.quoted()),
            false => Array::of_text(number, schema, name),
        }
    }

    fn param(&mut self, param: Param) -> usize {
        self.params.push(param);
        self.params.len() - 1
    }
}

/// A parameter that `unnest` takes apart, and how its elements become values.
#[derive(Clone, Debug)]
pub(super) struct Array {
    number: usize,
    element_type: String,
    value: String,
}

impl Array {
    fn typed(number: usize, element_type: String) -> Self {
        Self {
            number,
            element_type,
            value: format!("u.a{number}"),
        }
    }

    /// An element of text becomes a value by the type's own input. A cast from text does just
    /// that, but for one type: `'-'::text::regclass` looks for a table of that name.
    fn of_text(number: usize, schema: &str, name: &str) -> Self {
        let value = match (schema, name) {
            ("pg_catalog", "regclass") => {
                format!("pg_catalog.regclassin(u.a{number}::pg_catalog.cstring)")
            }
            _ => format!("u.a{number}::{}.{}", quote_ident(schema), quote_ident(name)),
        };
        Self {
            number,
            element_type: "pg_catalog.text".to_owned(),
            value,
        }
    }

    fn read(&self) -> &str {
        &self.value
    }
}

/// The expression with a line end behind it, so that a `--` comment cannot swallow what follows.
pub(super) fn on_own_line(expression: &Expression) -> String {
    format!("{}\n", expression.sql)
}

/// `ROWS FROM (unnest($1), unnest($2)) AS u(a0, a1)`: `unnest` of several arrays cannot be
/// named with its schema.
fn unnest(arrays: &[Array]) -> String {
    let columns = join(arrays.iter().map(|array| {
        format!(
            "pg_catalog.unnest(${}::{}[])",
            array.number + 1,
            array.element_type
        )
    }));
    let names = join(arrays.iter().map(|array| format!("a{}", array.number)));
    format!("ROWS FROM ({columns}) AS u({names})")
}

pub(super) fn join(parts: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for part in parts {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&part);
    }
    text
}

pub(super) fn where_all(conditions: &[String]) -> String {
    let mut text = String::new();
    for (i, condition) in conditions.iter().enumerate() {
        let word = if i == 0 { "WHERE" } else { "AND" };
        // Writing to a String cannot fail.
        let _ = write!(text, " {word} {condition}");
    }
    text
}
