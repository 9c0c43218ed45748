//! What the sums and hashes of two sides say; pure.
//!
//! ```text
//!  blocks of both ─▶ unlike ones, in groups that fit in memory ─▶ rows of both ─▶ missing, extra, different
//! ```

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A row's key: its columns as text; of a table without a key, the row's hash.
pub type Key = Vec<Option<String>>;

/// The rows of one block, summed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) rows: u64,
    /// Sums of 64-bit numbers, which may be longer than one.
    pub(crate) sum: String,
}

/// One side of a table, by the numbers of its blocks.
pub(crate) type Blocks = BTreeMap<i32, Block>;

/// How a row of the replica is not what the source has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// The source has it, the replica has not.
    Missing,
    /// The replica has it, the source has not.
    Extra,
    /// Both have a row of that key, with other values.
    Different,
}

/// How many rows one side has.
pub(crate) fn rows_of(blocks: &Blocks) -> u64 {
    blocks.values().map(|block| block.rows).sum()
}

/// The blocks in which the sides are unlike, in groups of at most `rows_max` rows of either side,
/// or of one block.
pub(crate) fn unlike(source: &Blocks, replica: &Blocks, rows_max: u64) -> Vec<Vec<i32>> {
    let mut numbers: Vec<i32> = source.keys().chain(replica.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut groups: Vec<Vec<i32>> = Vec::new();
    let mut rows_left = 0;
    for number in numbers {
        let (here, there) = (source.get(&number), replica.get(&number));
        if here == there {
            continue;
        }
        let rows = |block: Option<&Block>| block.map_or(0, |block| block.rows);
        let rows = rows(here).max(rows(there));
        match groups.last_mut() {
            Some(group) if rows <= rows_left => {
                group.push(number);
                rows_left -= rows;
            }
            _ => {
                groups.push(vec![number]);
                rows_left = rows_max.saturating_sub(rows);
            }
        }
    }
    groups
}

/// The rows of some blocks: first all of the source's, then the replica's.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Of each key the source's rows by their hash, and how many of each; without those that the
    /// replica turned out to have.
    left: HashMap<Key, Vec<i64>>,
    /// Rows of the replica that the source has not so.
    unmet: Vec<(Key, i64)>,
}

impl Rows {
    pub(crate) fn source(&mut self, key: Key, hash: i64) {
        self.left.entry(key).or_default().push(hash);
    }

    pub(crate) fn replica(&mut self, key: Key, hash: i64) {
        if let Entry::Occupied(mut entry) = self.left.entry(key.clone()) {
            let hashes = entry.get_mut();
            if let Some(at) = hashes.iter().position(|other| *other == hash) {
                hashes.swap_remove(at);
                if hashes.is_empty() {
                    entry.remove();
                }
                return;
            }
        }
        self.unmet.push((key, hash));
    }

    /// What is left: rows of one key on both sides are different ones.
    pub(crate) fn differences(mut self) -> Vec<(DriftKind, Key)> {
        let mut found = Vec::new();
        for (key, _) in self.unmet {
            match self.left.get_mut(&key) {
                Some(hashes) if !hashes.is_empty() => {
                    hashes.pop();
                    found.push((DriftKind::Different, key));
                }
                _ => found.push((DriftKind::Extra, key)),
            }
        }
        for (key, hashes) in self.left {
            found.extend(hashes.iter().map(|_| (DriftKind::Missing, key.clone())));
        }
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks(list: &[(i32, u64, &str)]) -> Blocks {
        let block = |(number, rows, sum): &(i32, u64, &str)| {
            let sum = (*sum).to_owned();
            (*number, Block { rows: *rows, sum })
        };
        list.iter().map(block).collect()
    }

    #[test]
    fn only_unlike_blocks_are_looked_into_and_no_group_is_too_large() {
        let source = blocks(&[(0, 5, "1"), (1, 5, "2"), (2, 9, "3"), (4, 1, "7")]);
        let replica = blocks(&[(0, 5, "1"), (1, 5, "3"), (2, 8, "3"), (3, 2, "0")]);
        assert_eq!(unlike(&source, &replica, 14), [vec![1, 2], vec![3, 4]]);
        assert_eq!(unlike(&source, &replica, 1), [[1], [2], [3], [4]]);
        assert!(unlike(&source, &source, 1).is_empty());
        assert_eq!((rows_of(&source), rows_of(&replica)), (20, 20));
    }

    fn key(of: u8) -> Key {
        vec![Some(of.to_string()), None]
    }

    #[test]
    fn rows_are_missing_extra_or_different() {
        let mut rows = Rows::default();
        for (k, hash) in [(1, 10), (2, 20), (3, 30)] {
            rows.source(key(k), hash);
        }
        for (k, hash) in [(2, 20), (3, 31), (4, 40)] {
            rows.replica(key(k), hash);
        }
        assert_eq!(
            rows.differences(),
            [
                (DriftKind::Missing, key(1)),
                (DriftKind::Extra, key(4)),
                (DriftKind::Different, key(3)),
            ]
        );
    }

    proptest! {
        /// Of a bag of rows (the hash is the key) exactly those are found that are too many.
        #[test]
        fn a_bag_is_compared_row_by_row(source in bag(), replica in bag()) {
            let mut rows = Rows::default();
            source.iter().for_each(|row| rows.source(key(*row), i64::from(*row)));
            replica.iter().for_each(|row| rows.replica(key(*row), i64::from(*row)));
            let found = rows.differences();
            for row in 0..4 {
                let count = |bag: &[u8]| bag.iter().filter(|other| **other == row).count();
                let (here, there) = (count(&source), count(&replica));
                let of = |kind| {
                    let is_it = |(k, at): &&(DriftKind, Key)| *k == kind && *at == key(row);
                    found.iter().filter(is_it).count()
                };
                prop_assert_eq!(of(DriftKind::Missing), here.saturating_sub(there));
                prop_assert_eq!(of(DriftKind::Extra), there.saturating_sub(here));
                prop_assert_eq!(of(DriftKind::Different), 0);
            }
        }
    }

    fn bag() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0u8..4, 0..12)
    }
}
