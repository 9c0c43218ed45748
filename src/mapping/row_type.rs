//! Values that can be handed to the replica as the stream's binary format has them; pure.
//!
//! ```text
//!  source tuple   'b' 8 bytes │ 'b' 5 bytes │ 'n'
//!                      │             │        │        renamed, reordered, left out: no matter
//!  row of the          ▼             ▼        ▼
//!  replica table  (oid, 8 bytes)  (oid, 5)  (oid, -1)  (oid, -1: a column only the replica has)
//! ```
//!
//! A table whose columns all are source columns of the same types has a [`RowType`]: its rows go
//! to the replica as values of the table's own row type, or as rows of a binary COPY. Other tables
//! (an expression, a cast, a filter) take their values column by column, each an array of the
//! source's type; that goes for scalar types of PostgreSQL's own and for enums.

use super::TableMapping;
use crate::catalog::{Table, TableColumn, TypeKind};
use crate::pg::TypeName;

/// How an input's values become elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryInput {
    /// They are binary values of the type they are read as.
    Typed,
    /// They are an enum's labels, and so text in every format.
    Label,
}

/// The replica table's row type, and what of a source row goes where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowType {
    /// The columns of the replica table, in its order.
    pub fields: Vec<Field>,
    /// COPY does what INSERT does: no rule rewrites one and not the other.
    pub may_copy: bool,
}

/// One column of a row type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name on the replica.
    pub name: String,
    /// Its type's object id on the replica.
    pub type_oid: u32,
    /// What fills it; `None` for a column that only the replica has.
    pub value: Option<FieldValue>,
}

/// A source column that fills a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldValue {
    /// Place in the source's tuples.
    pub position: usize,
    /// An array of a type that is not PostgreSQL's own names it by its object id: the replica's.
    pub element_oid: Option<u32>,
}

impl TableMapping {
    /// Whether all of the source's values can be handed to the replica in binary, by servers that
    /// agree about [intervals](TypeName::is_interval) or not.
    #[must_use]
    pub fn takes_binary(&self, agree_on_intervals: bool) -> bool {
        let mut inputs = self.inputs.iter();
        let has_form = self.row_type.is_some() || self.inputs.iter().all(|i| i.binary.is_some());
        has_form && (agree_on_intervals || !inputs.any(|input| input.read_as.is_interval()))
    }
}

/// Whether a column takes the binary form of a source type as it is, and with which object id for
/// the elements of an array.
fn taken_by(from: Option<&TypeName>, to: &TableColumn) -> Option<Option<u32>> {
    let from = from?;
    if from.is_builtin() || to.base_type.is_builtin() {
        return (*from == to.base_type && from.is_portable()).then_some(None);
    }
    // Of a source type that is not built in, only the name is known here; the replica's type reads
    // the bytes, and refuses what are not its own.
    let is_same_name = from.0.name == to.base_type.0.name;
    match (to.form.kind, to.form.element) {
        (TypeKind::Enum, _) => Some(None),
        (TypeKind::Base, None) => is_same_name.then_some(None),
        (TypeKind::Base, Some((oid, TypeKind::Enum))) => Some(Some(oid)),
        (TypeKind::Base, Some((oid, TypeKind::Base))) => is_same_name.then_some(Some(oid)),
        _ => None,
    }
}

/// How an input read as `read_as` becomes an array's elements, if its source type is known to.
pub(super) fn binary_input(
    from: Option<&TypeName>,
    read_as: &TypeName,
    to: Option<&TableColumn>,
) -> Option<BinaryInput> {
    if from == Some(read_as) && read_as.portable_array_oid().is_some() {
        return Some(BinaryInput::Typed);
    }
    let is_other = from.is_some_and(|name| !name.is_builtin());
    let is_enum = to.is_some_and(|to| to.form.kind == TypeKind::Enum && to.base_type == *read_as);
    (is_other && is_enum).then_some(BinaryInput::Label)
}

/// The row type of a replica table whose columns `plain` are filled by source positions, each with
/// its type's name; `None` where one of them takes another form.
pub(super) fn row_type<'t>(
    replica: &Table,
    plain: &[(usize, &TableColumn)],
    type_at: impl Fn(usize) -> Option<&'t TypeName>,
) -> Option<RowType> {
    let field = |column: &TableColumn| {
        // A domain may refuse the NULL that stands for a value which nobody looks at.
        if column.form.is_domain {
            return None;
        }
        let filled = plain.iter().find(|(_, to)| to.name == column.name);
        let value = match filled {
            Some((position, to)) => Some(FieldValue {
                position: *position,
                element_oid: taken_by(type_at(*position), to)?,
            }),
            None => None,
        };
        Some(Field {
            name: column.name.clone(),
            type_oid: column.type_oid,
            value,
        })
    };
    if plain.is_empty() {
        return None;
    }
    Some(RowType {
        fields: replica.columns.iter().map(field).collect::<Option<_>>()?,
        may_copy: !replica.has_rules,
    })
}
