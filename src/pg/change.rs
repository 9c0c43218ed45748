//! One change of one transaction, as the source logged it.

use super::{RelationId, Tuple};

/// What the source says of the row as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple {
    /// Only the replica identity's columns hold values; the others read as null.
    Key(Tuple),
    /// The whole row (replica identity full).
    Full(Tuple),
}

impl OldTuple {
    /// The tuple, whichever kind.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// A change, in the words of the source's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new row.
    Insert {
        /// The table.
        relation: RelationId,
        /// The row.
        new: Tuple,
    },
    /// A row that changed.
    Update {
        /// The table.
        relation: RelationId,
        /// Sent when the identity changed, or under replica identity full.
        old: Option<OldTuple>,
        /// The row as it is now; may hold unchanged TOAST.
        new: Tuple,
    },
    /// A row that went.
    Delete {
        /// The table.
        relation: RelationId,
        /// The row, or its identity.
        old: OldTuple,
    },
    /// Tables emptied by one statement.
    Truncate {
        /// The published tables among them; foreign keys need all in one statement.
        relations: Vec<RelationId>,
        /// The statement said CASCADE.
        cascade: bool,
        /// The statement said RESTART IDENTITY.
        restart_identity: bool,
    },
}

impl Change {
    /// The tables it is about.
    #[must_use]
    pub fn relations(&self) -> &[RelationId] {
        match self {
            Self::Insert { relation, .. }
            | Self::Update { relation, .. }
            | Self::Delete { relation, .. } => std::slice::from_ref(relation),
            Self::Truncate { relations, .. } => relations,
        }
    }

    /// Bytes this change holds on to, as queues count them.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        let old_bytes = |old: &OldTuple| old.tuple().wire_bytes();
        match self {
            Self::Insert { new, .. } => new.wire_bytes(),
            Self::Update { old, new, .. } => new.wire_bytes() + old.as_ref().map_or(0, old_bytes),
            Self::Delete { old, .. } => old_bytes(old),
            Self::Truncate { relations, .. } => relations.len() * 4,
        }
    }
}
