//! How many changes a batch of whole transactions may have, by how those before it went. Pure.
//!
//! Sets of rows are the cheaper, the larger. What passes only in the source's order writes some keys
//! again and again, and within one transaction of the replica each write of a key looks at all the
//! versions that those before it left behind, for they are not dead before COMMIT: twice the changes,
//! four times the work. So such batches are small, and grow again when sets pass.

/// What costs little beside the statements of a batch: some dozens of writes of one key.
const IN_SOURCE_ORDER: usize = 256;

/// Never more than the operator's own bound, which is looked at elsewhere.
pub(super) struct BatchSize {
    changes_max: usize,
}

impl BatchSize {
    pub(super) fn unlimited() -> Self {
        Self {
            changes_max: usize::MAX,
        }
    }

    pub(super) fn is_reached(&self, changes: usize) -> bool {
        changes >= self.changes_max
    }

    /// A batch was written.
    pub(super) fn written(&mut self, in_source_order: bool) {
        self.changes_max = match in_source_order {
            true => IN_SOURCE_ORDER,
            false => self.changes_max.saturating_mul(2),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_where_the_sources_order_is_needed_and_grow_where_it_is_not() {
        let mut size = BatchSize::unlimited();
        size.written(false);
        assert!(!size.is_reached(usize::MAX - 1));
        size.written(true);
        assert!(size.is_reached(IN_SOURCE_ORDER) && !size.is_reached(IN_SOURCE_ORDER - 1));
        size.written(false);
        assert!(size.is_reached(2 * IN_SOURCE_ORDER) && !size.is_reached(IN_SOURCE_ORDER));
        size.written(true);
        assert!(size.is_reached(IN_SOURCE_ORDER));
        for _ in 0..100 {
            size.written(false);
        }
        assert!(!size.is_reached(usize::MAX - 1));
    }
}
