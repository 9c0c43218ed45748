//! The kinds of conflict, by PostgreSQL's own names (manual, "Conflicts"; `conflict.h`).

use std::fmt;

/// How a change and the row it meets on the replica disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictKind {
    /// A row to insert is there already.
    InsertExists,
    /// A row to update was last written by somebody else.
    UpdateOriginDiffers,
    /// A row to update would take a unique value that another row holds.
    UpdateExists,
    /// A row to update was deleted on the replica.
    UpdateDeleted,
    /// A row to update is not there.
    UpdateMissing,
    /// A row to delete was last written by somebody else.
    DeleteOriginDiffers,
    /// A row to delete is not there.
    DeleteMissing,
    /// A row violates several unique constraints at once.
    MultipleUniqueConflicts,
}

impl ConflictKind {
    /// Every kind, in PostgreSQL's order. A kind's place here is its discriminant.
    pub const ALL: [Self; 8] = [
        Self::InsertExists,
        Self::UpdateOriginDiffers,
        Self::UpdateExists,
        Self::UpdateDeleted,
        Self::UpdateMissing,
        Self::DeleteOriginDiffers,
        Self::DeleteMissing,
        Self::MultipleUniqueConflicts,
    ];

    /// PostgreSQL's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::UpdateExists => "update_exists",
            Self::UpdateDeleted => "update_deleted",
            Self::UpdateMissing => "update_missing",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::DeleteMissing => "delete_missing",
            Self::MultipleUniqueConflicts => "multiple_unique_conflicts",
        }
    }
}

impl fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_discriminants_and_names_are_unique() {
        for (place, kind) in ConflictKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{kind}");
        }
        let names: std::collections::BTreeSet<_> =
            ConflictKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), 8);
    }
}
