//! How many changes of transactions in progress have come in, counted where they do: for the ledger. Pure.
//!
//! They count as received when their transaction commits, for it might have rolled back. What is
//! written of them is counted by `streamed.rs`, by savepoints; here only what the stream says of
//! each change is believed, its subtransaction, and which of those roll back. So each bears out the other.
//!
//! A subtransaction takes those along that it is the parent of, whether or not the stream says so of
//! each. They have later numbers (xact.c, `AssignTransactionId`), and no other has that was heard of
//! when it rolls back: what came after it in its transaction, and was not within it, came after its end.

use crate::pg::RelationId;
use foldhash::HashMap;
use std::collections::BTreeMap;

/// By transaction.
#[derive(Debug, Default)]
pub(super) struct Receipts(HashMap<u32, OfTransaction>);

/// Changes of each table, by how much later than its transaction's the number of the subtransaction is.
type OfTransaction = BTreeMap<u32, BTreeMap<RelationId, u64>>;

impl Receipts {
    /// A change has come in.
    pub(super) fn note(&mut self, xid: u32, subxid: u32, relation: RelationId) {
        let of_transaction = self.0.entry(xid).or_default();
        let later = of_transaction.entry(subxid.wrapping_sub(xid)).or_default();
        *later.entry(relation).or_default() += 1;
    }

    /// A (sub)transaction has rolled back.
    pub(super) fn abort(&mut self, xid: u32, subxid: u32) {
        if subxid == xid {
            self.0.remove(&xid);
        } else if let Some(of_transaction) = self.0.get_mut(&xid) {
            let _gone = of_transaction.split_off(&subxid.wrapping_sub(xid));
        }
    }

    /// It has committed: its changes, table by table.
    pub(super) fn commit(&mut self, xid: u32) -> BTreeMap<RelationId, u64> {
        let mut changes = BTreeMap::new();
        let all = self.0.remove(&xid).unwrap_or_default();
        for (relation, more) in all.into_values().flatten() {
            *changes.entry(relation).or_default() += more;
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its subtransactions' numbers begin anew in the middle.
    const FIRST: u32 = u32::MAX;

    /// One transaction with subtransactions 0, 1 and 2, and another beside it; tables 1 and 2.
    fn noted() -> Receipts {
        let mut receipts = Receipts::default();
        for (xid, subxid, relation, changes) in [
            (FIRST, FIRST, 1, 1),
            (FIRST, 0, 1, 2),
            (FIRST, 1, 1, 4),
            (FIRST, 1, 2, 8),
            (FIRST, 2, 1, 32),
            (800, 800, 1, 16),
        ] {
            (0..changes).for_each(|_| receipts.note(xid, subxid, relation));
        }
        receipts
    }

    #[test]
    fn what_commits_is_counted_by_table() {
        for (aborts, first, other) in [
            (vec![], vec![(1, 39), (2, 8)], vec![(1, 16)]),
            (vec![(FIRST, 2)], vec![(1, 7), (2, 8)], vec![(1, 16)]),
            // With all within it, of which the stream may not speak.
            (vec![(FIRST, 1)], vec![(1, 3)], vec![(1, 16)]),
            (vec![(FIRST, 2), (FIRST, 1)], vec![(1, 3)], vec![(1, 16)]),
            (vec![(FIRST, 0)], vec![(1, 1)], vec![(1, 16)]),
            (vec![(FIRST, FIRST)], vec![], vec![(1, 16)]),
            // Nothing of those came.
            (
                vec![(800, 900), (900, 900), (FIRST, 3)],
                vec![(1, 39), (2, 8)],
                vec![(1, 16)],
            ),
        ] {
            let mut receipts = noted();
            for (xid, subxid) in &aborts {
                receipts.abort(*xid, *subxid);
            }
            for (xid, expected) in [(FIRST, first), (800, other)] {
                let changes: Vec<_> = receipts.commit(xid).into_iter().collect();
                assert_eq!(changes, expected, "{aborts:?} of {xid}");
                assert_eq!(receipts.commit(xid), BTreeMap::new());
            }
        }
    }
}
