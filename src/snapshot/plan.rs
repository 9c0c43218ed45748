//! In which order tables are copied, and in which pieces; pure.

use super::statement::CtidRange;
use std::collections::VecDeque;

/// Blocks of one piece: 32 MiB at most, and 4 MiB at least, for each is a transaction on both sides.
const RANGE_BLOCKS_MAX: u64 = 4_096;
const RANGE_BLOCKS_MIN: u64 = 512;
/// Pieces of a table for each worker: whoever is left with the last one should not be alone for long.
const PIECES_EACH: u64 = 8;
const BLOCK_BYTES: u64 = 8_192;

/// What planning needs to know of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) priority: i32,
    /// Place when parents come first; only looked at when foreign keys fire.
    pub(crate) place: u32,
    pub(crate) bytes: u64,
    /// Has rows of its own, so that ranges of blocks make sense.
    pub(crate) may_split: bool,
}

/// One piece of work: a whole table or a range of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Place in the list of sizes.
    pub(crate) table: usize,
    pub(crate) range: Option<CtidRange>,
}

/// Pieces in the order of priority and then of size; parents first where foreign keys fire.
pub(crate) fn plan(
    sizes: &[Size],
    split_from: u64,
    workers: usize,
    is_replica_role: bool,
) -> VecDeque<Piece> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|table| {
        let size = sizes[*table];
        let place = if is_replica_role { 0 } else { size.place };
        (
            place,
            std::cmp::Reverse(size.priority),
            std::cmp::Reverse(size.bytes),
        )
    });
    let mut pieces = VecDeque::new();
    for table in order {
        let size = sizes[table];
        let blocks = size.bytes.div_ceil(BLOCK_BYTES);
        // Rows that refer to rows of their own table must arrive in one statement.
        let at_once = blocks / (PIECES_EACH * workers.max(1) as u64);
        let range_blocks = at_once.clamp(RANGE_BLOCKS_MIN, RANGE_BLOCKS_MAX);
        let is_large = size.bytes >= split_from && blocks >= 2 * range_blocks;
        if !size.may_split || !is_replica_role || !is_large {
            pieces.push_back(Piece { table, range: None });
            continue;
        }
        let count = blocks / range_blocks;
        for i in 0..count {
            let to = (i + 1 < count).then_some((i + 1) * range_blocks);
            let range = CtidRange {
                from: i * range_blocks,
                to,
            };
            pieces.push_back(Piece {
                table,
                range: Some(range),
            });
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(priority: i32, place: u32, mebibytes: u64) -> Size {
        Size {
            priority,
            place,
            bytes: mebibytes << 20,
            may_split: true,
        }
    }

    #[test]
    fn priority_then_size_and_ranges_without_gaps() {
        let sizes = [size(0, 2, 1), size(0, 1, 100), size(5, 3, 0)];
        let pieces = plan(&sizes, 0, 1, true);
        let mut tables: Vec<usize> = pieces.iter().map(|p| p.table).collect();
        tables.dedup();
        assert_eq!(tables, [2, 1, 0]);
        assert_eq!(pieces.len(), 2 + 8);
        let ranges: Vec<CtidRange> = pieces.iter().filter_map(|p| p.range).collect();
        assert_eq!(ranges[0].from, 0);
        let unsplit = plan(&sizes, 101 << 20, 1, true);
        assert!(unsplit.iter().all(|piece| piece.range.is_none()));
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].to, Some(pair[1].from));
        }
        assert_eq!(ranges.last().unwrap().to, None);
    }

    #[test]
    fn nobody_is_left_alone_with_a_large_piece_and_none_is_tiny_or_huge() {
        let longest = |mebibytes, workers| {
            let pieces = plan(&[size(0, 0, mebibytes)], 0, workers, true);
            let ranges = pieces.iter().filter_map(|piece| piece.range);
            let blocks = ranges.map(|r| r.to.unwrap_or(mebibytes << 7) - r.from);
            (pieces.len(), blocks.max().unwrap_or_default())
        };
        assert_eq!(longest(200, 4), (32, 800));
        assert_eq!(longest(10, 4), (2, 768));
        assert_eq!(longest(7, 4), (1, 0));
        assert_eq!(longest(100 << 10, 4), (3_200, 4_096));
        assert_eq!(longest(200, 0).0, 8);
    }

    #[test]
    fn whole_tables_parents_first_where_foreign_keys_fire() {
        let pieces = plan(
            &[size(0, 2, 1), size(0, 1, 100), size(5, 3, 0)],
            0,
            4,
            false,
        );
        let tables: Vec<usize> = pieces.iter().map(|p| p.table).collect();
        assert_eq!(tables, [1, 0, 2]);
        assert!(pieces.iter().all(|p| p.range.is_none()));
    }
}
