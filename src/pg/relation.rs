//! What a row of a source table looks like at one moment of the stream.

use super::{QualifiedName, TypeName};

/// A relation's object id on the source: the key under which the stream speaks of it.
pub type RelationId = u32;

/// Which old values the source logs for an update or delete (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing: the source refuses updates and deletes of a published table.
    Nothing,
    /// The whole old row.
    Full,
    /// The columns of a chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// From the catalogue's and the protocol's letter: `d`, `n`, `f` or `i`.
    #[must_use]
    pub const fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'd' => Some(Self::Default),
            b'n' => Some(Self::Nothing),
            b'f' => Some(Self::Full),
            b'i' => Some(Self::Index),
            _ => None,
        }
    }
}

/// One published column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name on the source.
    pub name: String,
    /// Its type's object id on the source; only built-in ids mean the same elsewhere.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`; -1 where there is none.
    pub type_modifier: i32,
    /// Part of the replica identity; under [`ReplicaIdentity::Full`] every column is.
    pub is_key: bool,
}

/// A table as the stream describes it, valid until the stream describes it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Object id on the source.
    pub id: RelationId,
    /// Name on the source.
    pub name: QualifiedName,
    /// What the source logs of old rows.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order of every tuple.
    pub columns: Vec<Column>,
}

impl Relation {
    /// Position of a column by its source name.
    #[must_use]
    pub fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }
}

/// Type names by object id, as catalogue and stream have told them.
pub type TypeNames = std::collections::HashMap<u32, TypeName>;
