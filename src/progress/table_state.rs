//! Where one table is on its way to lockstep.

use crate::faults::{Bug, planted};
use crate::pg::{Lsn, QualifiedName};

/// State of one table; all of it durable, written by the first copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableState {
    /// Nothing has been copied. Set when the pipeline first hears of the table.
    Init,
    /// A copy has begun; the replica may hold part of it. Set before the first row is written.
    Copying,
    /// The copy is whole, as of this position. Set in a transaction after the last row's.
    Copied {
        /// The snapshot's consistent point: commits before it are in the copy.
        at: Lsn,
    },
}

impl TableState {
    /// The word under which the store keeps it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Copying => "copying",
            Self::Copied { .. } => "copied",
        }
    }

    /// Whether changes of a transaction that committed at `commit` are still to be applied.
    #[must_use]
    pub fn wants(self, commit: Lsn) -> bool {
        match self {
            Self::Init | Self::Copying => false,
            Self::Copied { at } if planted(Bug::WantsOneLater) => commit > at,
            Self::Copied { at } => commit >= at,
        }
    }

    /// Whether the replica, having applied up to `applied`, is past the copy of this table.
    #[must_use]
    pub fn is_ready(self, applied: Option<Lsn>) -> bool {
        matches!(self, Self::Copied { at } if applied >= Some(at))
    }
}

/// A table as the store remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRecord {
    /// The source table.
    pub source: QualifiedName,
    /// Its object id on the source: another table of the same name is another table.
    pub source_oid: u32,
    /// The replica table.
    pub replica: QualifiedName,
    /// What made it part of the publication when it was copied; see `PublishedTable`.
    pub published_by: Option<u32>,
    /// Its state.
    pub state: TableState,
}

impl TableRecord {
    /// Whether the record speaks of this source table's copy into this replica table, and the
    /// table has been published in one and the same way since.
    #[must_use]
    pub fn is_of(
        &self,
        source_oid: u32,
        replica: &QualifiedName,
        published_by: Option<u32>,
    ) -> bool {
        self.source_oid == source_oid
            && self.replica == *replica
            && self.published_by == published_by
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_what_committed_before_it() {
        let at = Lsn::from_wire(100).unwrap();
        let copied = TableState::Copied { at };
        assert!(!copied.wants(Lsn::from_wire(99).unwrap()));
        assert!(copied.wants(at));
        assert!(!TableState::Copying.wants(at));
        assert!(copied.is_ready(Some(at)));
        assert!(!copied.is_ready(None));
    }
}
