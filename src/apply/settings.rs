//! What an operator says about applying.

/// `[apply]`, but for what each table can override (see `mapping::Settings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A batch takes no further transaction once it holds so many changes.
    pub batch_changes_max: ChangesMax,
    /// A batch takes no further transaction once it holds this many bytes.
    pub batch_bytes_max: usize,
    /// Bytes of changes in memory, over all queues.
    pub memory_max: usize,
    /// What becomes of a change that cannot be applied.
    pub on_error: OnError,
}

/// How many changes a batch may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangesMax {
    /// As many as make sets of rows of each of its tables: what costs little for a row.
    #[default]
    ByTables,
    /// An operator's word.
    Exactly(usize),
}

/// Sets of rows cost hardly less for each, where they are larger.
const CHANGES: usize = 20_000;
/// The same for one table of many (`make bench ARGS="--only ways"`).
const CHANGES_OF_A_TABLE: usize = 64;

impl ChangesMax {
    /// Whether a batch has them.
    #[must_use]
    pub fn is_reached(self, changes: usize, tables: usize) -> bool {
        changes
            >= match self {
                Self::ByTables => CHANGES.max(tables.saturating_mul(CHANGES_OF_A_TABLE)),
                Self::Exactly(max) => max,
            }
    }
}

/// What becomes of a change that cannot be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The pipeline stops before its transaction.
    #[default]
    Stop,
    /// Its table is set aside: that change and all after it are kept, and the others go on.
    Quarantine,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_changes_max: ChangesMax::default(),
            batch_bytes_max: 16 << 20,
            memory_max: 64 << 20,
            on_error: OnError::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_tables_make_larger_batches_unless_an_operator_says_otherwise() {
        let is_reached = |max: ChangesMax, changes, tables| max.is_reached(changes, tables);
        for (changes, tables, is_full) in [
            (19_999, 1, false),
            (20_000, 1, true),
            (20_000, 312, true),
            (20_000, 313, false),
            (63_999, 1_000, false),
            (64_000, 1_000, true),
        ] {
            let by_tables = is_reached(ChangesMax::ByTables, changes, tables);
            assert_eq!(by_tables, is_full, "{changes} of {tables}");
        }
        assert!(is_reached(ChangesMax::Exactly(2), 2, 1_000));
        assert!(!is_reached(ChangesMax::Exactly(100_000), 20_000, 1));
    }
}
