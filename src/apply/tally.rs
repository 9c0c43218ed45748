//! What became of a batch's changes, one by one: the apply's own side of the ledger. Pure.
//!
//! A change counts where a statement carried it and touched the rows it had to, or where the net
//! effect says that another change of its row stands for it. What neither is true of was lost on
//! the way: it is counted nowhere, and the ledger shows it.

use super::batch::{Batch, BatchItem, RowChange};
use super::net_effect::NetEffect;
use super::resolve::Conflicts;
use super::{Outcome, Written};
use std::collections::BTreeMap;

/// Kept while the statements of a batch are carried out.
#[derive(Debug)]
pub(super) struct Tally {
    /// By place in the batch.
    is_settled: Vec<bool>,
    /// By table number: rows offered less rows touched. In a filtered table what remains are
    /// the rows that the filter kept out.
    balance: BTreeMap<u32, i64>,
}

impl Tally {
    /// Before the first statement.
    pub(super) fn new(batch: &Batch, effect: &NetEffect) -> Self {
        let mut tally = Self {
            is_settled: vec![false; batch.items.len()],
            balance: BTreeMap::new(),
        };
        tally.settle(&effect.absorbed);
        tally
    }

    /// The changes at these places are done.
    pub(super) fn settle(&mut self, places: &[u32]) {
        for place in places {
            if let Some(is_settled) = self.is_settled.get_mut(*place as usize) {
                *is_settled = true;
            }
        }
    }

    /// A statement was offered so many rows of a table, and touched so many.
    pub(super) fn add_rows(&mut self, table: u32, offered: u64, touched: u64) {
        *self.balance.entry(table).or_default() += offered.cast_signed() - touched.cast_signed();
    }

    /// All are carried out; whether a table has a filter is asked.
    pub(super) fn close(self, is_filtered: impl Fn(u32) -> bool) -> Outcome {
        let balance = self.balance.into_iter();
        let filtered = balance
            .filter(|(table, _)| is_filtered(*table))
            .filter_map(|(table, rows)| Some((table, u64::try_from(rows).ok()?)))
            .collect();
        Outcome {
            is_settled: self.is_settled,
            conflicts: Conflicts::new(),
            filtered,
        }
    }
}

/// Counts what is settled of a batch by table and kind, and adds what became of it.
pub(super) fn tell(batch: &Batch, outcome: &Outcome) -> Vec<Written> {
    let mut written: Vec<Written> = batch.tables.iter().map(Written::nothing).collect();
    let settled = batch.items.iter().zip(&outcome.is_settled);
    for (item, _) in settled.filter(|(_, is_settled)| **is_settled) {
        let (tables, change) = match item {
            BatchItem::Row { table, change } => (std::slice::from_ref(table), Some(change)),
            BatchItem::Truncate { tables, .. } => (tables.as_slice(), None),
        };
        for table in tables {
            let Some(of_table) = written.get_mut(*table as usize) else {
                continue;
            };
            let count = match change {
                Some(RowChange::Insert { .. }) => &mut of_table.inserts,
                Some(RowChange::Update { .. }) => &mut of_table.updates,
                Some(RowChange::Delete { .. }) => &mut of_table.deletes,
                None => &mut of_table.truncates,
            };
            *count += 1;
        }
    }
    for ((table, kind), count) in &outcome.conflicts {
        if let Some(of_table) = written.get_mut(*table as usize) {
            of_table.conflicts.insert(*kind, *count);
        }
    }
    for (table, rows) in &outcome.filtered {
        if let Some(of_table) = written.get_mut(*table as usize) {
            of_table.filtered = *rows;
        }
    }
    written
}
