//! What became of a batch's changes, one by one: the apply's own side of the ledger. Pure.
//!
//! ```text
//!  the net effect has it    in none of its lists   as absorbed             in a list, or two (a row that moves)
//!                            owed: nobody knows     nothing is owed         so many statements are owed
//!  carried by a statement    settled                                         one less; settled when none is owed
//! ```
//!
//! A change counts where the statements that it owes were carried out and touched the rows they had to,
//! or where another change of its row stands for it. What neither is true of was lost on the way: it is
//! counted nowhere, and the ledger shows it. In a filtered table one statement of several is enough: which
//! of them touches the row only the filter knows.

use super::batch::{Batch, BatchItem, RowChange};
use super::net_effect::NetEffect;
use super::resolve::Conflicts;
use super::{Outcome, Written};
use std::collections::BTreeMap;

/// The net effect has not said what becomes of it.
const UNPLACED: u8 = u8::MAX;

/// Kept while the statements of a batch are carried out.
#[derive(Debug)]
pub(super) struct Tally {
    /// Statements that each change owes yet, by place in the batch.
    owed: Vec<u8>,
    /// By table number: rows offered less rows touched. In a filtered table what remains are
    /// the rows that the filter kept out.
    balance: BTreeMap<u32, i64>,
}

impl Tally {
    /// Before the first statement.
    pub(super) fn new(batch: &Batch, effect: &NetEffect) -> Self {
        let mut tally = Self {
            owed: vec![UNPLACED; batch.items.len()],
            balance: BTreeMap::new(),
        };
        tally.each(&effect.absorbed, |_| 0);
        for stage in &effect.stages {
            stage.each_list(|places| {
                tally.each(places, |owed| if owed == UNPLACED { 1 } else { owed + 1 });
            });
        }
        tally
    }

    /// A statement has carried these changes.
    pub(super) fn settle(&mut self, places: &[u32]) {
        self.each(places, |owed| match owed {
            UNPLACED => 0,
            owed => owed.saturating_sub(1),
        });
    }

    fn each(&mut self, places: &[u32], change: impl Fn(u8) -> u8) {
        for place in places {
            if let Some(owed) = self.owed.get_mut(*place as usize) {
                *owed = change(*owed);
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
            is_settled: self.owed.iter().map(|owed| *owed == 0).collect(),
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Which changes are not settled when all that the lists have is carried out, but for the lost one.
    fn unsettled(effect: &NetEffect, batch: &Batch, lost: Option<usize>) -> Vec<usize> {
        let mut tally = Tally::new(batch, effect);
        let mut number = 0;
        for stage in &effect.stages {
            stage.each_list(|places| {
                for place in places {
                    if lost != Some(number) {
                        tally.settle(&[*place]);
                    }
                    number += 1;
                }
            });
        }
        assert!(lost.is_none_or(|lost| lost < number), "there are so many");
        let outcome = tally.close(|_| false);
        let all = outcome.is_settled.iter().enumerate();
        all.filter(|(_, is_settled)| !**is_settled)
            .map(|(place, _)| place)
            .collect()
    }

    /// All are settled in the end; where one statement of one row is lost, that change is not.
    pub(in crate::apply) fn check_tally(effect: &NetEffect, batch: &Batch) {
        assert_eq!(unsettled(effect, batch, None), Vec::<usize>::new());
        let mut carried = 0;
        for stage in &effect.stages {
            stage.each_list(|places| carried += places.len());
        }
        for lost in 0..carried {
            assert_eq!(
                unsettled(effect, batch, Some(lost)).len(),
                1,
                "{lost} of {effect:?}"
            );
        }
    }
}
