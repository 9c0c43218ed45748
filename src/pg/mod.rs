//! The nouns every room shares. No I/O, no clock, nothing of ours imported.
//!
//! A change on its way from source to replica is made of these words only:
//! a `Relation` (what a row of a table looks like at a moment of the stream),
//! a `Tuple` (the bytes of one row, never parsed into values), a `Change`,
//! and the `Lsn` that orders all of it.

mod binary;
mod change;
mod conflict;
mod ident;
mod lsn;
mod relation;
mod server_error;
mod side;
mod sqlstate;
mod tuple;

pub use binary::ValueFormat;
pub use change::{Change, OldTuple};
pub use conflict::ConflictKind;
pub use ident::{OperatorName, QualifiedName, TypeName, quote_ident, quote_literal};
pub use lsn::{Lsn, ParseLsnError};
pub use relation::{Column, Relation, RelationId, ReplicaIdentity, TypeNames};
pub(crate) use server_error::{Named, may_quote_values};
pub use server_error::{Refusal, ServerError};
pub use side::Side;
pub use sqlstate::{Disposition, sqlstate_disposition};
pub use tuple::{Tuple, TupleError, TupleValue, Values};
