//! In which tables unique values move between rows that stay; pure.
//!
//! ```text
//!  seat 1: place A ─▶ B     one UPDATE of both: the index meets A (or B) twice, and refuses
//!  seat 2: place B ─▶ A     DELETE both, INSERT both: nothing is met twice
//! ```
//!
//! An update in place is the cheaper one, so it is tried again now and then: a refusal costs
//! one batch written twice.

use crate::pg::QualifiedName;
use std::collections::HashMap;

/// After so many batches an update in place is tried again.
const BATCHES: u32 = 64;

/// Replica tables with the batches for which each is not to be updated in place.
#[derive(Debug, Default)]
pub(crate) struct MovingValues(HashMap<QualifiedName, u32>);

impl MovingValues {
    /// Whether the rows of a table are to be deleted and inserted rather than updated.
    pub(super) fn are_in(&self, table: &QualifiedName) -> bool {
        self.0.contains_key(table)
    }

    /// A unique index refused rows of this table; whether that was not known yet.
    pub(super) fn seen_in(&mut self, table: &QualifiedName) -> bool {
        self.0.insert(table.clone(), BATCHES).is_none()
    }

    /// It was something else.
    pub(super) fn not_in(&mut self, table: &QualifiedName) {
        self.0.remove(table);
    }

    /// A batch was written.
    pub(super) fn batch_written(&mut self) {
        self.0.retain(|_, batches| {
            *batches -= 1;
            *batches > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_in_place_are_tried_again_after_a_while() {
        let (table, other) = (QualifiedName::new("s", "t"), QualifiedName::new("s", "o"));
        let mut moving = MovingValues::default();
        assert!(!moving.are_in(&table));
        assert!(moving.seen_in(&table));
        assert!(!moving.seen_in(&table));
        assert!(moving.are_in(&table) && !moving.are_in(&other));
        for _ in 1..BATCHES {
            moving.batch_written();
        }
        assert!(moving.are_in(&table));
        moving.batch_written();
        assert!(!moving.are_in(&table));
        assert!(moving.seen_in(&table));
        moving.not_in(&table);
        assert!(!moving.are_in(&table));
    }
}
