//! From a source table to its replica table.
//!
//! ```text
//!  [[tables]] rules ──▶ resolve ──▶ which replica table        (rule.rs)
//!  source Relation  ┐
//!  replica Table    ├─▶ compile ──▶ TableMapping               (compile.rs, table.rs)
//!  the rule         ┘               inputs, columns, key, filter, row type
//! ```
//!
//! Pure: what it knows of both databases is handed to it. A mapping is compiled once
//! for each version of a relation, and whoever writes SQL from it (the first copy, the
//! apply) finds every decision made. All that is wrong with a table is told at once.

mod compile;
mod expression;
mod row_type;
mod rule;
mod settings;
mod table;

pub use compile::{MappingError, compile};
pub use expression::Expression;
pub use row_type::{BinaryInput, Field, FieldValue, RowType};
pub use rule::{Resolved, resolve};
pub use settings::{
    ConflictPolicy, ExistingRows, ExtraRows, ParseConflictPolicyError, ParsePatternError,
    Reference, Settings, TablePattern, TableRule,
};
pub use table::{ColumnMapping, ColumnValue, InputColumn, RowIdentity, TableMapping};
