//! How many changes of transactions in progress have come in, counted where they do: for the ledger. Pure.
//!
//! They count as received when their transaction commits, for it might have rolled back. What is
//! written of them is counted by `streamed.rs`, by savepoints; here only what the stream says of
//! each change is believed, its subtransaction, and which of those roll back. So each bears out the other.

use crate::pg::RelationId;
use foldhash::HashMap;
use std::collections::BTreeMap;

/// By transaction: changes of each table, by the (sub)transaction that made them.
#[derive(Debug, Default)]
pub(super) struct Receipts(HashMap<u32, HashMap<(u32, RelationId), u64>>);

impl Receipts {
    /// A change has come in.
    pub(super) fn note(&mut self, xid: u32, subxid: u32, relation: RelationId) {
        let of_transaction = self.0.entry(xid).or_default();
        *of_transaction.entry((subxid, relation)).or_default() += 1;
    }

    /// A (sub)transaction has rolled back. The stream says so of each one within it, too.
    pub(super) fn abort(&mut self, xid: u32, subxid: u32) {
        if subxid == xid {
            self.0.remove(&xid);
        } else if let Some(of_transaction) = self.0.get_mut(&xid) {
            of_transaction.retain(|(made_by, _), _| *made_by != subxid);
        }
    }

    /// It has committed: its changes, table by table.
    pub(super) fn commit(&mut self, xid: u32) -> BTreeMap<RelationId, u64> {
        let mut changes = BTreeMap::new();
        for ((_, relation), more) in self.0.remove(&xid).into_iter().flatten() {
            *changes.entry(relation).or_default() += more;
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transaction 700 with subtransactions, 800 beside it; tables 1 and 2.
    fn noted() -> Receipts {
        let mut receipts = Receipts::default();
        for (xid, subxid, relation, changes) in [
            (700, 700, 1, 1),
            (700, 701, 1, 2),
            (700, 702, 1, 4),
            (700, 702, 2, 8),
            (800, 800, 1, 16),
        ] {
            (0..changes).for_each(|_| receipts.note(xid, subxid, relation));
        }
        receipts
    }

    #[test]
    fn what_commits_is_counted_by_table() {
        for (aborts, first, other) in [
            (vec![], vec![(1, 7), (2, 8)], vec![(1, 16)]),
            (vec![(700, 702)], vec![(1, 3)], vec![(1, 16)]),
            (vec![(700, 701)], vec![(1, 5), (2, 8)], vec![(1, 16)]),
            (vec![(700, 702), (700, 701)], vec![(1, 1)], vec![(1, 16)]),
            (vec![(700, 700)], vec![], vec![(1, 16)]),
            (
                vec![(800, 701), (900, 900)],
                vec![(1, 7), (2, 8)],
                vec![(1, 16)],
            ),
        ] {
            let mut receipts = noted();
            for (xid, subxid) in &aborts {
                receipts.abort(*xid, *subxid);
            }
            for (xid, expected) in [(700, first), (800, other)] {
                let changes: Vec<_> = receipts.commit(xid).into_iter().collect();
                assert_eq!(changes, expected, "{aborts:?} of {xid}");
                assert_eq!(receipts.commit(xid), BTreeMap::new());
            }
        }
    }
}
