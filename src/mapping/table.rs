//! One source table's way to the replica, with every decision made; `compile.rs` makes them.

use super::row_type::{BinaryInput, RowType};
use super::{ConflictPolicy, Expression};
use crate::catalog::Triggers;
use crate::pg::{OperatorName, QualifiedName, Relation, TypeName};

/// A source column that is shipped to the replica, because a column, an expression, the
/// filter or the key reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputColumn {
    /// Place in the source's tuples.
    pub position: usize,
    /// Name on the source; expressions call it so.
    pub name: String,
    /// The type its text is read as on the replica before anything is made of it.
    pub read_as: TypeName,
    /// The replica column that holds it unchanged, if one does.
    pub kept_in: Option<String>,
    /// How its values travel in binary, column by column; `None` if they cannot.
    pub binary: Option<BinaryInput>,
}

/// Where a replica column's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnValue {
    /// A source column: index into [`TableMapping::inputs`].
    Input(usize),
    /// An expression over source columns.
    Computed(Expression),
}

/// A replica column that the mapping writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnMapping {
    /// Its name on the replica.
    pub name: String,
    /// The type values are cast to, without a modifier: a length is then enforced by
    /// assignment, which refuses a long value, where an explicit cast would cut it.
    pub cast_to: TypeName,
    /// `cast_to` with the modifier, ready for SQL: how the replica keeps a value.
    pub stored_as: String,
    /// What finds a row by this column.
    pub equality: OperatorName,
    /// Where the value comes from.
    pub value: ColumnValue,
}

/// How an update or delete finds its row on the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowIdentity {
    /// By these columns: indexes into [`TableMapping::columns`], each a plain input.
    Key(Vec<usize>),
    /// By all columns; of several equal rows, one.
    FullRow,
    /// The source logs nothing of old rows, and refuses updates and deletes.
    InsertsOnly,
}

/// One source table's way to the replica. Valid for one version of its relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMapping {
    /// The source table, as the stream or the catalogue described it.
    pub relation: Relation,
    /// The replica table.
    pub replica: QualifiedName,
    /// Its rows are its partitions'.
    pub replica_is_partitioned: bool,
    /// When the replica table's triggers fire.
    pub triggers: Triggers,
    /// Source columns that are shipped.
    pub inputs: Vec<InputColumn>,
    /// Replica columns that are written.
    pub columns: Vec<ColumnMapping>,
    /// How rows are found.
    pub identity: RowIdentity,
    /// Rows for which this is true belong on the replica.
    pub filter: Option<Expression>,
    /// Whose row stands in a conflict.
    pub on_conflict: ConflictPolicy,
    /// The replica's row type, where it takes the source's binary values as they are.
    pub row_type: Option<RowType>,
    /// A row that changes may be deleted and inserted anew, as a value of the row type: the mapping
    /// fills every column that the table does not compute itself, and nothing there takes the one
    /// for something else than the other.
    pub may_reinsert: bool,
}

impl TableMapping {
    /// Source positions of the key's columns; empty without a key.
    #[must_use]
    pub fn key_positions(&self) -> Vec<usize> {
        self.iter_key_positions().collect()
    }

    /// The same, for each row, without a list.
    pub(crate) fn iter_key_positions(&self) -> impl Iterator<Item = usize> {
        let columns: &[usize] = match &self.identity {
            RowIdentity::Key(columns) => columns,
            RowIdentity::FullRow | RowIdentity::InsertsOnly => &[],
        };
        columns
            .iter()
            .filter_map(|column| match self.columns.get(*column)?.value {
                ColumnValue::Input(input) => Some(self.inputs.get(input)?.position),
                ColumnValue::Computed(_) => None,
            })
    }

    /// The replica table as its rows are spoken of: those of tables that inherit from it are
    /// not its own, those of partitions are.
    #[must_use]
    pub fn replica_rows(&self) -> String {
        let only = if self.replica_is_partitioned {
            ""
        } else {
            "ONLY "
        };
        format!("{only}{}", self.replica.quoted())
    }

    /// Index into [`Self::inputs`] of the column at a source position.
    #[must_use]
    pub fn input_at(&self, position: usize) -> Option<usize> {
        self.inputs
            .iter()
            .position(|input| input.position == position)
    }

    /// Whether every replica column is a source column of the same type, one of PostgreSQL's
    /// own: no expression, cast or filter that a server could refuse.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.filter.is_none()
            && self.columns.iter().all(|column| match column.value {
                ColumnValue::Input(input) => self
                    .inputs
                    .get(input)
                    .is_some_and(|i| i.read_as == column.cast_to && i.read_as.is_builtin()),
                ColumnValue::Computed(_) => false,
            })
    }
}
