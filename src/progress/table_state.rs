//! Where one table is on its way to lockstep.

use crate::faults::{Bug, planted};
use crate::pg::{Lsn, QualifiedName};

/// State of one table; all of it durable.
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
    /// Set aside since one of its changes could not be applied: that one and all after it are
    /// kept in the books. Set alone, before the first of them is passed; ended by `errors
    /// retry`, `errors skip` or a resync.
    Quarantined {
        /// As of `Copied`.
        at: Lsn,
    },
    /// An operator wants it copied again. Its rows stay, and are brought in line by a merge.
    Resync {
        /// Rows that only the replica has stay too.
        keep_extra: bool,
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
            Self::Quarantined { .. } => "quarantined",
            Self::Resync { keep_extra: false } => "resync",
            Self::Resync { keep_extra: true } => "resync_keep_extra",
        }
    }

    /// From the word and the LSN that the store keeps.
    #[must_use]
    pub fn from_kept(word: &str, copied_at: Option<Lsn>) -> Option<Self> {
        Some(match (word, copied_at) {
            ("init", _) => Self::Init,
            ("copying", _) => Self::Copying,
            ("copied", Some(at)) => Self::Copied { at },
            ("quarantined", Some(at)) => Self::Quarantined { at },
            ("resync", _) => Self::Resync { keep_extra: false },
            ("resync_keep_extra", _) => Self::Resync { keep_extra: true },
            _ => return None,
        })
    }

    /// The snapshot's consistent point, of a table whose copy counts.
    #[must_use]
    pub fn copied_at(self) -> Option<Lsn> {
        match self {
            Self::Copied { at } | Self::Quarantined { at } => Some(at),
            Self::Init | Self::Copying | Self::Resync { .. } => None,
        }
    }

    /// Whether changes of a transaction that committed at `commit` are still to be applied, or
    /// kept.
    #[must_use]
    pub fn wants(self, commit: Lsn) -> bool {
        self.copied_at().is_some_and(|at| {
            if planted(Bug::WantsOneLater) {
                commit > at
            } else {
                commit >= at
            }
        })
    }

    /// Whether its changes are kept instead of applied.
    #[must_use]
    pub fn is_quarantined(self) -> bool {
        matches!(self, Self::Quarantined { .. })
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
    fn a_state_is_read_as_it_was_kept() {
        let at = Lsn::from_wire(100).unwrap();
        for state in [
            TableState::Init,
            TableState::Copying,
            TableState::Copied { at },
            TableState::Quarantined { at },
            TableState::Resync { keep_extra: false },
            TableState::Resync { keep_extra: true },
        ] {
            let read = TableState::from_kept(state.as_str(), state.copied_at());
            assert_eq!(read, Some(state));
        }
        assert_eq!(TableState::from_kept("copied", None), None);
        assert_eq!(TableState::from_kept("new", Some(at)), None);
    }

    #[test]
    fn a_copy_holds_what_committed_before_it() {
        let at = Lsn::from_wire(100).unwrap();
        let copied = TableState::Copied { at };
        assert!(!copied.wants(Lsn::from_wire(99).unwrap()));
        assert!(copied.wants(at));
        assert!(!TableState::Copying.wants(at));
        assert!(TableState::Quarantined { at }.wants(at), "to be kept");
        assert!(!TableState::Resync { keep_extra: false }.wants(at));
        assert!(copied.is_ready(Some(at)));
        assert!(!copied.is_ready(None));
    }
}
